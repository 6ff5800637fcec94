"""A limit on waiting: for any block, for the pieces of a stream, and as a decorator of a language model."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from workshop.contracts.errors import DeadlineExceededError
from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt, TextGenerator

Piece = TypeVar("Piece")


@asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """Cancel the block when its time is up.

    Raises:
        DeadlineExceededError: it was.
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
    """The same pieces, each with a deadline of its own. The time that their reader takes does not count."""
    async with aclosing(pieces):
        while True:
            async with deadline(timeout_s):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece


class WithDeadline:
    """A language model whose every answer, and every next piece of a stream, comes in time or not at all.

    Models behind handles do without: each call of a handle has its deadline.

    Args:
        inner: generates.
        timeout_s: the limit in seconds.
    """

    def __init__(self, inner: TextGenerator, timeout_s: float) -> None:
        self._inner = inner
        self._timeout_s = timeout_s

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        async with deadline(self._timeout_s):
            return await self._inner.complete(prompt)

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        return each_in_time(self._inner.stream(prompt), self._timeout_s)

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        return await self._inner.card()

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        return await self._inner.activity()

    async def aclose(self) -> None:
        """See ``TextGenerator.aclose``."""
        await self._inner.aclose()
