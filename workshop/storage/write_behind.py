"""Writes in the background: callers do not wait, and nothing is lost."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from workshop.contracts.errors import OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")

MAX_WAITING = 10_000
"""Entries that may wait: about 10 MB of records. Databases write thousands per second: this many mean an outage."""
MAX_BATCH = 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
DRAIN_LIMIT_S = 2.0
"""How long a stop may wait for the database. Servers kill a process that takes much longer to stop."""


class WriteBehind(Generic[Entry]):
    """Writes entries in the order in which they come, in batches, one after another.

    While the database is unreachable, entries wait, and the batch is retried after a growing pause. An entry that can
    never be written, for instance because a value does not fit, is dropped, and the others are written.

    Args:
        write: writes a batch, all or nothing. After UnavailableError it is retried; any other error means that one of
            the entries is bad.
        on_drop: called with each entry that is dropped.
    """

    def __init__(self, write: Callable[[Sequence[Entry]], Awaitable[None]], on_drop: Callable[[Entry], None]) -> None:
        self._write = write
        self._on_drop = on_drop
        self._waiting: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._writing: asyncio.Task[None] | None = None

    def check_capacity(self) -> None:
        """Call this before starting work that ends with an entry.

        Raises:
            OverloadedError: too many entries wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadedError("too many records of usage are waiting for the database", retry_after_s=5.0)

    def add(self, entry: Entry) -> asyncio.Future[None]:
        """Queue an entry. The future is done once it is written, or dropped."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append((entry, written))
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_all())
        return written

    async def aclose(self) -> None:
        """Wait until everything is written, but not forever: what cannot be written in time is dropped."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=DRAIN_LIMIT_S)
            self._writing.cancel()
            await asyncio.wait([self._writing])
        while self._waiting:
            self._drop_first()

    async def _write_all(self) -> None:
        size, pause_s = MAX_BATCH, FIRST_PAUSE_S
        while self._waiting:
            batch = [entry for entry, _ in islice(self._waiting, size)]
            try:
                await self._write(batch)
            except UnavailableError as error:
                if pause_s == FIRST_PAUSE_S:
                    logger.warning("cannot write now, %d entries wait: %s", len(self._waiting), error, exc_info=error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except Exception as error:  # drivers raise various errors for a value that they cannot write
                if len(batch) == 1:
                    logger.error("cannot write: %s", error, exc_info=error)
                    self._drop_first()
                size = max(1, len(batch) // 2)  # the halves that hold no bad entry are written
            else:
                for _ in batch:
                    self._set_done(self._waiting.popleft()[1])
                size, pause_s = min(2 * size, MAX_BATCH), FIRST_PAUSE_S

    def _drop_first(self) -> None:
        entry, written = self._waiting.popleft()
        self._on_drop(entry)
        self._set_done(written)

    @staticmethod
    def _set_done(written: asyncio.Future[None]) -> None:
        if not written.done():  # the task that waited for it may have been cancelled
            written.set_result(None)
