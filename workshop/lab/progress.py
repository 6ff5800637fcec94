"""Shows what a cell waits for, while it waits."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from IPython import get_ipython
from IPython.display import clear_output

START_LIMIT_S = 180.0
"""How long a server may take to start. On a busy machine, PyTorch and Ray take most of a minute each."""
PATIENCE_S = 3.0
"""A wait that is shorter than this shows nothing."""
REFRESH_S = 1.0


@contextmanager
def waiting_for(what: str, latest: Callable[[], str] = str) -> Iterator[None]:
    """While the block runs, show for how long it has run, in one line that is removed at the end.

    In a notebook, this also removes what the cell has shown before.

    Args:
        what: the thing to wait for, such as ``"workshop api"``.
        latest: returns its latest news, such as its last line of output, or "".
    """
    done = threading.Event()
    start = time.monotonic()
    # Where the caller shows things, even if the block redirects its own output.
    shell, stream = get_ipython(), sys.stdout
    clear = shell.display_pub.clear_output if shell else clear_output

    def show() -> None:
        if done.wait(PATIENCE_S):
            return
        while not done.wait(REFRESH_S):
            clear(wait=True)
            line = f"Waiting for {what}: {time.monotonic() - start:.0f} s. {latest()}".rstrip()
            print(line, end="", flush=True, file=stream)
        clear()

    watcher = threading.Thread(target=show, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
