"""How the service shuts down, in either runtime: work under way gets a few seconds, then it is cancelled."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Collection

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 3.0
"""How long work under way may take to finish."""
CANCEL_GRACE_S = 1.0
"""How long a cancelled request may take to tell its client, and to record its usage."""
LIMIT_S = 9.5
"""After this long the process ends, whatever still hangs."""


async def end_tasks(running: Callable[[], Collection[asyncio.Task[None]]]) -> None:
    """Wait until no task runs; end those that take longer than ``GRACE_S``.

    Args:
        running: the tasks of the requests that are under way now. One that ends may have let another begin.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GRACE_S
    while (tasks := running()) and loop.time() < deadline:
        await asyncio.wait(tasks, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
    if tasks := running():
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCEL_GRACE_S)


def begin_stop() -> None:
    """Ignore further signals, and end the process ``LIMIT_S`` from now, even if a thread or the event loop hangs.

    Called in the main thread.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # also while the interpreter shuts down
    limit = threading.Timer(LIMIT_S, os._exit, [1])
    limit.daemon = True  # a shutdown that completes does not wait for it
    limit.start()


def is_stopping() -> bool:
    """Whether ``begin_stop`` has been called: only it has signals ignored."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
