"""Notice that the machine stood still: a virtual machine was paused, or memory came back from the disk."""

import threading
import time
from contextlib import AbstractContextManager

STANDSTILL_S = 0.3
"""From how many seconds on a measurement of time is spoilt."""
POLL_S = 0.02


class StandstillWatch(AbstractContextManager["StandstillWatch"]):
    """Watches the machine for the length of a `with` block.

    Attributes:
        longest_s: the longest time, in seconds, in which this process should have run and could not. Time in which its
            own threads computed, and so kept the watch waiting, does not count.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="standstill-watch", daemon=True)

    def _watch(self) -> None:
        wall_s, cpu_s = time.monotonic(), time.process_time()
        while not self._over.wait(POLL_S):
            self.longest_s = max(self.longest_s, time.monotonic() - wall_s - POLL_S - (time.process_time() - cpu_s))
            wall_s, cpu_s = time.monotonic(), time.process_time()

    def __enter__(self) -> "StandstillWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
