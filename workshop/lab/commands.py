"""Run a server's command line beside the notebook."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import httpx
import psutil

from workshop.lab.progress import START_LIMIT_S, waiting_for
from workshop.lab.running import running
from workshop.machine import free_port

STOP_LIMIT_S = 10.0

_named: dict[str, "Command"] = {}


def run_command(command: str, *, name: str, folder: str | Path | None = None, ready: str | None = None) -> "Command":
    """Start a server by its command line and return once it accepts requests.

    If it starts slowly, the last line of its output is shown meanwhile. A server that was started under the same name
    is stopped first, so a cell can run twice.

    Args:
        command: such as ``"uvicorn my_app:app --port {port}"``; ``{port}`` becomes a free port.
        name: a name for this server.
        folder: the working directory of the command.
        ready: a path that answers with success once the server is ready. By default, any answer will do.

    Raises:
        RuntimeError: it ended, or did not answer in time. The message holds its output.
    """
    if name in _named:
        _named[name].stop()
    _named[name] = started = Command(command, folder)
    started.wait_until_it_answers(ready)
    return started


class Command(AbstractContextManager["Command"]):
    """A running command. ``url`` is its address; ``stop()``, or the end of a ``with`` block, ends it."""

    def __init__(self, command: str, folder: str | Path | None) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the command runs
        self._program, *arguments = shlex.split(command.format(port=port))
        self._process = subprocess.Popen(
            # The module of this Python, whatever PATH says.
            [sys.executable, "-m", self._program, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # what it prints shows at once
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        running.add(self)

    @property
    def processes(self) -> list[psutil.Process]:
        """The command's process and its descendants."""
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    @property
    def output(self) -> str:
        """What it has printed."""
        file = self._output.fileno()
        # Not by seek and read: the command writes at the same position.
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def wait_until_it_answers(self, ready: str | None = None) -> None:
        """Return once there is any HTTP response, or one from the path ``ready`` that says success."""
        deadline = time.monotonic() + START_LIMIT_S
        with waiting_for(self._program, self._last_line):
            while time.monotonic() < deadline and self._process.poll() is None:
                with suppress(httpx.HTTPError):
                    answer = httpx.get(f"{self.url}{ready or ''}", trust_env=False)
                    if answer.is_success or ready is None:
                        return
                time.sleep(0.1)
        ended = self._process.poll()
        self.stop()
        what = f"did not answer within {START_LIMIT_S:.0f} s" if ended is None else f"ended with exit status {ended}"
        raise RuntimeError(f"{self._program} {what}. It printed:\n{self.output or '(nothing)'}")

    def _last_line(self) -> str:
        *_, line = self.output.splitlines() or [""]
        return line

    def stop(self) -> None:
        """End the command and its descendants. A second call does nothing."""
        running.discard(self)
        if self._process.poll() is not None:
            return
        processes = self.processes
        self._process.terminate()
        _, alive = psutil.wait_procs(processes, STOP_LIMIT_S)
        for process in alive:
            process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()
