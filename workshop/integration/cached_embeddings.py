"""Vectors of texts that were embedded before, as a decorator of the contract."""

import hashlib
from collections.abc import Sequence

import numpy as np
from cashews import Cache

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, Retriever, RetrieverCard

MAX_TEXTS = 4096
"""Kept in this process, the ones asked for last: at 384 dimensions, 13 MB."""
EXPIRE_S = 24 * 3600.0


class CachedEmbeddings:
    """A retriever that embeds a text once. Vectors are kept in this process, or in a Redis that all replicas share.

    A Redis that does not answer is logged, and every text embedded anew.

    Args:
        inner: embeds and searches.
        redis_url: such as ``redis://127.0.0.1``; None to keep the vectors here.
    """

    def __init__(self, inner: Retriever, redis_url: str | None) -> None:
        self._inner = inner
        self._cache = Cache()
        # Plain bytes: a pickle would run the code of whoever can write to the Redis.
        self._cache.setup(redis_url or f"mem://?size={MAX_TEXTS}&check_interval=0", pickle_type="null")

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        card = await self._inner.card()
        keys = {text: f"embedding:{card.version}:{hashlib.sha256(text.encode()).hexdigest()}" for text in texts}
        stored = await self._cache.get_many(*keys.values())
        vectors = {text: np.frombuffer(value) for text, value in zip(keys, stored, strict=True) if value}
        if missing := [text for text in keys if text not in vectors]:
            made = dict(zip(missing, await self._inner.embed(missing), strict=True))
            await self._cache.set_many({keys[text]: row.tobytes() for text, row in made.items()}, expire=EXPIRE_S)
            vectors |= made
        return np.stack([vectors[text] for text in texts])

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await self._inner.search(text, k)

    async def card(self) -> RetrieverCard:
        """See ``Retriever.card``."""
        return await self._inner.card()

    async def aclose(self) -> None:
        """See ``Retriever.aclose``."""
        await self._cache.close()
        await self._inner.aclose()
