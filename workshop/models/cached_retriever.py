"""An asynchronous retriever that embeds each text once."""

import hashlib
from collections.abc import Sequence

import anyio.to_thread
import numpy as np

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.models.retriever import CorpusRetriever, normalized
from workshop.storage.cache import Cache, Values


class CachedRetriever:
    """``Retriever`` over an index in this process. It searches in threads, so that the event loop stays free.

    ``embed`` and ``search`` share a cache of vectors. It is next to the index, so the version in its keys is at hand,
    and another index never gets this one's vectors.

    Args:
        index: embeds and searches.
        cache: keeps the vectors.
    """

    def __init__(self, index: CorpusRetriever, cache: Cache) -> None:
        self._index = index
        self._cache = cache

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return normalized(await self._project(texts))

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await anyio.to_thread.run_sync(self._index.nearest, await self._project([text]), k)

    async def card(self) -> RetrieverCard:
        """See ``Retriever.card``."""
        return self._index.card

    async def aclose(self) -> None:
        """Release the index, but not the cache, which belongs to whoever made it."""
        await self._index.aclose()

    async def _project(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Embedding.project``."""
        by_key = {self._key(text): text for text in texts}

        async def compute(keys: Sequence[str]) -> Values:
            vectors = await self._index.project([by_key[key] for key in keys])
            return {key: row.tobytes() for key, row in zip(keys, vectors, strict=True)}

        rows = await self._cache.get(by_key, compute)
        return np.stack([np.frombuffer(rows[self._key(text)]) for text in texts])

    def _key(self, text: str) -> str:
        return f"projection:{self._index.card.version}:{hashlib.sha256(text.encode()).hexdigest()}"
