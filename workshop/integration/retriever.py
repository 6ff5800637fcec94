"""The retriever's embedding, and a retriever behind a deployment's handle.

``CachedRetriever``, the one in this process, needs no adapter.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.deployments.retriever import RetrieverDeployment
from workshop.settings import Settings

if TYPE_CHECKING:
    from workshop.integration.calls import Calls  # a service on uvicorn alone needs no Ray
    from workshop.models.retriever import Embedding  # and a replica of the API no FAISS


def make_embedding(settings: Settings) -> "Embedding | None":
    """The embedding that the settings name; None for the one that comes with the index.

    Raises:
        StartError: the model cannot be loaded.
    """
    model, server = settings.embedding_model, settings.embedding_server
    if model is None:
        return None
    if server is None:
        from workshop.models.retriever import SentenceEmbedding

        return SentenceEmbedding(model)
    from workshop.integration.upstream.openai import OpenAIEmbedding

    return OpenAIEmbedding(server.base_url, model, server.api_key, timeout_s=settings.generate_timeout_s)


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
