"""Helpers for streams of answers."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

Item = TypeVar("Item")

UNBUFFERED = {"X-Accel-Buffering": "no"}
"""Headers that ask a proxy to pass on each piece of a stream at once. FastAPI does so for events of generators."""


@asynccontextmanager
async def open_stream(stream: AsyncGenerator[Item, None]) -> AsyncIterator[AsyncIterator[Item]]:
    """Yield the same stream once its first item has arrived. An error before that can still be reported by a status.

    The stream is closed at the end of the block. Use this in a dependency: when the reader of a response leaves, its
    generator is not closed.
    """
    async with aclosing(stream):
        first = await anext(stream)

        async def all_items() -> AsyncIterator[Item]:
            yield first
            async for item in stream:
                yield item

        yield all_items()


async def last_item(stream: AsyncGenerator[Item, None]) -> Item:
    """The last item of a stream, which must not be empty."""
    async with aclosing(stream):
        *_, item = [item async for item in stream]
    return item
