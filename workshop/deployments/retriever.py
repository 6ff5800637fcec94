"""The retriever as a deployment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.storage.cache import DEFAULT_BYTES, Cache

if TYPE_CHECKING:
    from workshop.models.retriever import Embedding


class RetrieverDeployment:
    """One replica holds one loaded index, and a cache of vectors.

    Args:
        artifact: folder that ``CorpusRetriever.save`` wrote, readable on every node.
        make_embedding: returns the embedding that it was built with, or None for the one that it contains.
        redis_url: see ``Cache.at``, as for the next.
        cache_bytes: of memory for vectors.

    Raises:
        StartError: the artifact or the model is missing or damaged; the replica does not start.
    """

    def __init__(
        self,
        artifact: Path,
        make_embedding: Callable[[], "Embedding | None"] = lambda: None,
        redis_url: str | None = None,
        cache_bytes: int = DEFAULT_BYTES,
    ) -> None:
        from workshop.models.cached_retriever import CachedRetriever
        from workshop.models.retriever import CorpusRetriever

        cache = Cache.at(redis_url, cache_bytes)
        self._retriever = CachedRetriever(CorpusRetriever.load(artifact, make_embedding()), cache)

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return await self._retriever.embed(texts)

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await self._retriever.search(text, k)

    async def card(self) -> RetrieverCard:
        """The card of the loaded index."""
        return await self._retriever.card()
