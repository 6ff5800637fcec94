"""An asynchronous retriever that embeds each text once."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import anyio.to_thread
import numpy as np
from cashews import Cache

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.models.retriever import CorpusRetriever, normalized

MAX_TEXTS = 4096
"""How many of the most recently used are kept in this process: at 384 dimensions, 13 MB."""
EXPIRE_S = 24 * 3600.0


class CachedRetriever:
    """``Retriever`` over an index in this process. It works in threads, so that the event loop stays free.

    ``embed`` and ``search`` share a cache of vectors. Concurrent calls with the same text embed it once. The cache is
    next to the index, so the version in its keys is at hand, and another index never gets this one's vectors. They are
    kept in this process, or in a Redis that all replicas share. If Redis does not answer, this is logged, and every
    text is embedded again.

    Args:
        index: embeds and searches.
        redis_url: such as ``redis://127.0.0.1``; None to keep the vectors here.
    """

    def __init__(self, index: CorpusRetriever, redis_url: str | None = None) -> None:
        self._index = index
        self._under_way: dict[str, asyncio.Task[dict[str, bytes]]] = {}
        self._cache = Cache()
        # Plain bytes: unpickling would run code from anyone who can write to that Redis.
        self._cache.setup(redis_url or f"mem://?size={MAX_TEXTS}&check_interval=0", pickle_type="null")

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
        """Close the connections to Redis."""
        await self._cache.close()

    async def _project(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Embedding.project``."""
        keys = {text: self._key(text) for text in texts}
        stored = await self._cache.get_many(*keys.values())
        rows = {key: row for key, row in zip(keys.values(), stored, strict=True) if row}
        missing = {key: text for text, key in keys.items() if key not in rows}
        if new := {key: text for key, text in missing.items() if key not in self._under_way}:
            # A separate task: others may still wait for it when its first caller has left.
            task = asyncio.create_task(self._embed_and_store(new))
            self._under_way |= dict.fromkeys(new, task)
        for task in {self._under_way[key] for key in missing}:
            rows |= await asyncio.shield(task)
        return np.stack([np.frombuffer(rows[keys[text]]) for text in texts])

    async def _embed_and_store(self, texts: Mapping[str, str]) -> dict[str, bytes]:
        """Embed texts, and store the vectors. Texts and vectors are given by the vectors' keys."""
        try:
            vectors = await anyio.to_thread.run_sync(self._index.project, list(texts.values()))
            rows = {key: row.tobytes() for key, row in zip(texts, vectors, strict=True)}
            await self._cache.set_many(rows, expire=EXPIRE_S)
        finally:
            for key in texts:
                del self._under_way[key]
        return rows

    def _key(self, text: str) -> str:
        return f"projection:{self._index.card.version}:{hashlib.sha256(text.encode()).hexdigest()}"
