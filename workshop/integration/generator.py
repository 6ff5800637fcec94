"""Language models: with a deadline, and behind a deployment's handle. ``upstream/`` has those of other servers."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt, TextGenerator
from workshop.deployments.language_models import LanguageModelsDeployment
from workshop.integration.deadline import deadline, each_in_time

if TYPE_CHECKING:  # a service on uvicorn alone needs no Ray
    from workshop.integration.calls import Calls


class WithDeadline:
    """A language model with a deadline for each complete answer, and for each piece of a stream.

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


class HandleGenerator:
    """A language model behind a handle of ``LanguageModelsDeployment``.

    Args:
        calls: calls the deployment.
        model: the model's name there.
    """

    def __init__(self, calls: "Calls", model: str) -> None:
        self._calls = calls
        self._model = model

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        return await self._calls(LanguageModelsDeployment.complete, self._model, prompt)

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        return self._calls.stream(LanguageModelsDeployment.stream, self._model, prompt)

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        return await self._calls.probe(LanguageModelsDeployment.card, self._model)

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        return await self._calls.probe(LanguageModelsDeployment.activity, self._model)

    async def aclose(self) -> None:
        """Do nothing: Serve manages the handle's connections."""
