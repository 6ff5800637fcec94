"""Writing without keeping anybody waiting, and without losing anything."""

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
"""Entries that may wait: about 10 MB of records. Databases write thousands in a second, so this means one is away."""
MAX_BATCH = 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
DRAIN_LIMIT_S = 2.0
"""How long a stop may wait for the database. Servers kill a process that takes much longer to stop."""


class WriteBehind(Generic[Entry]):
    """Writes entries in the order in which they come, many at a time, one batch after the other.

    While the database is away, entries wait, and the batch is tried again after a growing pause. An entry that can
    never be written, because a value does not fit for instance, is given up alone.

    Args:
        write: writes a batch, all or nothing. After UnavailableError it is tried again; any other error means that one
            of the entries is bad.
        give_up: is told of each entry that cannot be written.
    """

    def __init__(self, write: Callable[[Sequence[Entry]], Awaitable[None]], give_up: Callable[[Entry], None]) -> None:
        self._write = write
        self._give_up = give_up
        self._waiting: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._writing: asyncio.Task[None] | None = None

    def check_room(self) -> None:
        """Ask this before the work that ends with an entry.

        Raises:
            OverloadedError: too many entries wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadedError("the database is behind with the records of usage", retry_after_s=5.0)

    def add(self, entry: Entry) -> asyncio.Future[None]:
        """Take an entry. The result is done once it is written, or given up."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append((entry, written))
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_all())
        return written

    async def aclose(self) -> None:
        """Wait until all is written, but not for ever: what cannot be written in time is given up."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=DRAIN_LIMIT_S)
            self._writing.cancel()
            await asyncio.wait([self._writing])
        while self._waiting:
            self._drop_bad()

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
            except Exception as error:  # whatever a driver makes of a value that it cannot write
                if len(batch) == 1:
                    logger.error("cannot write: %s", error, exc_info=error)
                    self._drop_bad()
                size = max(1, len(batch) // 2)  # the halves that hold no bad entry are written
            else:
                for _ in batch:
                    self._done(self._waiting.popleft()[1])
                size, pause_s = min(2 * size, MAX_BATCH), FIRST_PAUSE_S

    def _drop_bad(self) -> None:
        entry, written = self._waiting.popleft()
        self._give_up(entry)
        self._done(written)

    @staticmethod
    def _done(written: asyncio.Future[None]) -> None:
        if not written.done():  # whoever waited for it may have been cancelled
            written.set_result(None)
