"""Caching as a decorator of the contract: every runtime and placement caches in the same way."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from contextvars import Context

import numpy as np

from workshop.contracts.classifier import Classifier, FloatMatrix, ModelCard, Scores
from workshop.integration.deadline import deadline
from workshop.storage.cache import Cache, Values


class _AnotherModelAnsweredError(Exception):
    """The model was replaced between its card and its answer, which must not be kept under the key of the old one."""

    def __init__(self, scores: Scores) -> None:
        super().__init__(scores)
        self.scores = scores


class CachedClassifier:
    """A classifier that calls another classifier only for requests that nobody has sent before.

    The key of an answer contains the model: its name, its version and its checksum. So each request asks which model
    answers now, which is a call of its own if the model is behind a handle. Concurrent requests share that call.

    It sits before the micro-batcher: an answer that is known does not wait for others to be computed.

    Args:
        inner: predicts what is not in the cache.
        cache: keeps the answers.
        timeout_s: how long a request may take, its waiting for another process included.
    """

    def __init__(self, inner: Classifier, cache: Cache, timeout_s: float) -> None:
        self._inner = inner
        self._cache = cache
        self._timeout_s = timeout_s
        self._asking: asyncio.Task[ModelCard] | None = None

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return await self._inner.card()

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``. A card without a checksum does not identify its model: nothing is cached."""
        async with deadline(self._timeout_s):
            card = await self._shared_card()
            if not card.sha256:
                return await self._inner.predict(rows)

            async def compute(keys: Sequence[str]) -> Values:
                scores = await self._inner.predict(rows)
                if (scores.model_version, scores.model_sha256) != (card.version, card.sha256):
                    raise _AnotherModelAnsweredError(scores)
                return dict.fromkeys(keys, scores.probabilities.astype("<f8").tobytes())

            try:
                [stored] = (await self._cache.get([_key(card, rows)], compute)).values()
            except _AnotherModelAnsweredError as another:
                return another.scores
            probabilities = np.frombuffer(stored, "<f8").reshape(len(rows), len(card.classes))
            return Scores(probabilities.copy(), card.classes, card.version, card.sha256)

    async def _shared_card(self) -> ModelCard:
        if self._asking is None or self._asking.done():
            # An empty context detaches the call from this request: see ``MicroBatched``.
            self._asking = asyncio.create_task(self._inner.card(), context=Context())
        return await asyncio.shield(self._asking)


def _key(card: ModelCard, rows: FloatMatrix) -> str:
    """Numbers are the same if all their bits are: 0.0 and -0.0 are computed separately."""
    model = json.dumps([card.name, card.version, card.sha256, card.classes, rows.shape])
    return f"prediction:{hashlib.sha256(model.encode() + rows.astype('<f8').tobytes()).hexdigest()}"
