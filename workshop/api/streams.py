"""What all streamed answers share."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def started(stream: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """The same stream, once its first item is there: what fails before it can still be answered with a status."""
    first = await anext(stream)

    async def all_items() -> AsyncGenerator[Item, None]:
        async with aclosing(stream):
            yield first
            async for item in stream:
                yield item

    return all_items()
