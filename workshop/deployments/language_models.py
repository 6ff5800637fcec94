"""Language models as a deployment."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt


class LanguageModelsDeployment:
    """One replica holds all models that it is given: small ones share the memory that PyTorch itself takes.

    Give a large model a deployment of its own.

    Args:
        sources: folder or hub name of each model, by the name that callers use.
        cache_tokens: of each model, see ``LanguageModel``.

    Raises:
        StartError: a model cannot be loaded; the replica does not start.
    """

    def __init__(self, sources: Mapping[str, str], cache_tokens: int | None = None) -> None:
        # Only a replica needs PyTorch; code that only refers to this class does not.
        from workshop.models.language_model import LanguageModel

        self._models = {name: LanguageModel.load(source, name, cache_tokens) for name, source in sources.items()}

    async def complete(self, model: str, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        return await self._models[model].complete(prompt)

    async def stream(self, model: str, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        async with aclosing(self._models[model].stream(prompt)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def card(self, model: str) -> GeneratorCard:
        """The card of a model."""
        return await self._models[model].card()

    async def activity(self, model: str) -> Activity:
        """The counters of a model in this replica."""
        return await self._models[model].activity()

    def __del__(self) -> None:
        """Serve calls this when the replica stops: the models' threads would keep its process alive."""
        for model in getattr(self, "_models", {}).values():
            model.close()
