"""A retriever behind a deployment's handle. ``CachedRetriever``, the one in this process, needs no adapter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.deployments.retriever import RetrieverDeployment

if TYPE_CHECKING:  # a service on uvicorn alone needs no Ray
    from workshop.integration.calls import Calls


class HandleRetriever:
    """A retriever behind a handle of ``RetrieverDeployment``.

    Args:
        calls: calls the deployment.
    """

    def __init__(self, calls: "Calls") -> None:
        self._calls = calls

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return await self._calls(RetrieverDeployment.embed, texts)

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await self._calls(RetrieverDeployment.search, text, k)

    async def card(self) -> RetrieverCard:
        """See ``Retriever.card``."""
        return await self._calls.probe(RetrieverDeployment.card)

    async def aclose(self) -> None:
        """Do nothing: Serve manages the handle's connections."""
