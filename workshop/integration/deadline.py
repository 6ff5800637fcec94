"""A limit on waiting, as a decorator of the contract: a handle waits for a replica as long as it takes to come up."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from workshop.contracts.errors import DeadlineExceededError
from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt, TextGenerator


class WithDeadline:
    """A generator whose every answer, and every next piece of a stream, comes in time or not at all.

    Args:
        inner: generates.
        timeout_s: the limit in seconds.
    """

    def __init__(self, inner: TextGenerator, timeout_s: float) -> None:
        self._inner = inner
        self._timeout_s = timeout_s

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        with self._as_contract_error():
            async with asyncio.timeout(self._timeout_s):
                return await self._inner.complete(prompt)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        async with aclosing(self._inner.stream(prompt)) as chunks:
            while True:
                with self._as_contract_error():
                    async with asyncio.timeout(self._timeout_s):
                        chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        return await self._inner.card()

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        return await self._inner.activity()

    async def aclose(self) -> None:
        """See ``TextGenerator.aclose``."""
        await self._inner.aclose()

    @contextmanager
    def _as_contract_error(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise DeadlineExceededError("the model did not answer in time", self._timeout_s) from None
