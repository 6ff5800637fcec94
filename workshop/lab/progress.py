"""Tells who waits for a start what it waits for."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from IPython.display import clear_output

START_LIMIT_S = 180.0
"""How long a server may take to start. On a busy machine, PyTorch and Ray take most of a minute each."""
PATIENCE_S = 3.0
"""A start that is quicker than this shows nothing."""
REFRESH_S = 1.0


@contextmanager
def waiting_for(what: str, latest: Callable[[], str] = str) -> Iterator[None]:
    """While the block runs, show how long it has run already, in one line that is gone at the end.

    In a notebook, what the cell has shown before goes with it.

    Args:
        what: is waited for, such as ``"workshop api"``.
        latest: the newest thing that is known of it, such as its last line of output; or nothing.
    """
    done = threading.Event()
    start = time.monotonic()

    def show() -> None:
        if done.wait(PATIENCE_S):
            return
        while not done.wait(REFRESH_S):
            clear_output(wait=True)  # type: ignore[no-untyped-call]
            print(f"Waiting for {what}: {time.monotonic() - start:.0f} s. {latest()}".rstrip(), end="", flush=True)
        clear_output()  # type: ignore[no-untyped-call]

    watcher = threading.Thread(target=show, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
