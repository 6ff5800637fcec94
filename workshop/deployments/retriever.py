"""The retriever as a deployment."""

from collections.abc import Sequence
from pathlib import Path

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard


class RetrieverDeployment:
    """One replica holds one loaded index, and a cache of vectors.

    Args:
        artifact: folder that ``CorpusRetriever.save`` wrote, readable on every node.
        embedding_model: the sentence-transformers model that it was built with, if any.
        redis_url: see ``CachedRetriever``.

    Raises:
        StartError: the artifact or the model is missing or damaged; the replica does not start.
    """

    def __init__(self, artifact: Path, embedding_model: str | None = None, redis_url: str | None = None) -> None:
        from workshop.models.cached_retriever import CachedRetriever
        from workshop.models.retriever import CorpusRetriever

        self._retriever = CachedRetriever(CorpusRetriever.load(artifact, embedding_model), redis_url)

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return await self._retriever.embed(texts)

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await self._retriever.search(text, k)

    async def card(self) -> RetrieverCard:
        """The card of the loaded index."""
        return await self._retriever.card()
