"""What all answers share, streamed or not."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

Item = TypeVar("Item")


@asynccontextmanager
async def started(stream: AsyncGenerator[Item, None]) -> AsyncIterator[AsyncIterator[Item]]:
    """The same stream, once its first item is there: what fails before it can still be answered with a status.

    The block closes the stream. Use it in a dependency: a response whose reader has gone leaves its generator as it is.
    """
    async with aclosing(stream):
        first = await anext(stream)

        async def all_items() -> AsyncIterator[Item]:
            yield first
            async for item in stream:
                yield item

        yield all_items()


async def last(stream: AsyncGenerator[Item, None]) -> Item:
    """The last item of a stream that has one."""
    async with aclosing(stream):
        *_, item = [item async for item in stream]
    return item
