"""Kills what a process has started as soon as the process itself has ended, for whatever reason.

Ray ends its own processes when it is told to stop. When its driver is killed, some of them go on for a minute or more.
Only a separate process can take care of that: `python -m workshop.integration.reaper PID`.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

LOOK_EVERY_S = 1.0


@contextmanager
def reaper() -> Iterator[None]:
    """If this process ends within the block, everything that it has started is killed."""
    command = [sys.executable, "-m", "workshop.integration.reaper", str(psutil.Process().pid)]
    # In its own session, which Ctrl-C in a terminal does not reach.
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def main(pid: int) -> None:
    """Watch a process, and kill its descendants when it has ended. Their parents may have ended before."""
    family: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        watched = psutil.Process(pid)
        family |= set(watched.children(recursive=True))
        print("watching", flush=True)
        while watched.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_EVERY_S)
            family |= set(watched.children(recursive=True))
    for process in family - {psutil.Process()}:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
