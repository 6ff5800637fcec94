"""Time limits: for a block, and for each piece of a stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from workshop.contracts.errors import DeadlineExceededError

Piece = TypeVar("Piece")


@asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """Cancel the block when its time is up.

    Raises:
        DeadlineExceededError: the time was up.
    """
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceededError("the model did not answer in time", timeout_s) from None


async def each_in_time(pieces: AsyncGenerator[Piece, None], timeout_s: float) -> AsyncGenerator[Piece, None]:
    """The same pieces, each with a deadline of its own. The reader's own time does not count."""
    async with aclosing(pieces):
        while True:
            async with deadline(timeout_s):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece
