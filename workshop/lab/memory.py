"""Peak memory of a process and its descendants."""

from __future__ import annotations

import os
import threading
import uuid
from types import TracebackType
from typing import Self

import psutil

MARKER = "MEMORY_MARKER"
MB = 1024 * 1024


class PeakMemory:
    """Samples the memory of every process that carries the marker, in a thread, while the `with` block runs.

    with PeakMemory() as memory:
        subprocess.run(command, env=memory.env)
    memory.peak_mb

    Without `with` it samples nothing, and `processes` lists the processes with the marker.
    A process carries the marker if it was started with `env`, or is a descendant of one that was: environments are
    inherited, so Ray's processes count although they have a new parent. The figure is the proportional set size
    (PSS: a page shared by n processes counts 1/n in each), or resident size where the system has no PSS.
    """

    def __init__(self, interval: float = 0.25) -> None:
        self.marker = uuid.uuid4().hex
        self.peak = 0  # bytes
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, with the marker."""
        return {**os.environ, MARKER: self.marker}

    @property
    def peak_mb(self) -> int:
        return round(self.peak / MB)

    @property
    def now(self) -> int:
        """Bytes at this moment."""
        return sum(map(_memory, self.processes()))

    def processes(self) -> list[psutil.Process]:
        """The living processes that carry the marker."""
        return [process for process in psutil.process_iter() if _marker_of(process) == self.marker]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak = max(self.peak, self.now)


def _marker_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        marker: str | None = process.environ().get(MARKER)
    except (psutil.Error, OSError):  # gone, or another user's
        return None
    return marker


def _memory(process: psutil.Process) -> int:
    try:
        usage = process.memory_full_info()
        return int(getattr(usage, "pss", usage.rss))
    except (psutil.Error, OSError):
        return 0
