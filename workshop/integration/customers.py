"""Customers' own classifiers."""

from collections.abc import Mapping

from cachetools import LRUCache

from workshop.contracts.classifier import Classifier, FloatMatrix, ModelCard, Scores
from workshop.contracts.principals import CALLER
from workshop.integration.classifier import InProcessClassifier
from workshop.models.loaded import LoadedClassifiers
from workshop.models.tumours import TumourClassifier


class CustomerClassifiers:
    """The classifier of whoever calls: a customer's own, or the one that all others share.

    Args:
        shared: for all other callers.
        own: by the ids of the customers.
    """

    def __init__(self, shared: Classifier, own: Mapping[str, Classifier]) -> None:
        self._shared = shared
        self._own = own

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        return await self._of_caller().predict(rows)

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return await self._of_caller().card()

    def _of_caller(self) -> Classifier:
        return self._own.get(CALLER.get(), self._shared)


class RecentClassifiers:
    """Classifiers in this process. Those that were used last stay in memory; others are loaded when they are needed.

    Args:
        max_models: how many stay.
    """

    def __init__(self, max_models: int) -> None:
        self._loaded = LoadedClassifiers()
        self._kept: LRUCache[str, TumourClassifier] = LRUCache(max_models)

    def at(self, location: str) -> Classifier:
        """The classifier at a location, not loaded yet: see ``artifacts.Location``."""
        return _Recent(self, location)

    async def get(self, location: str) -> TumourClassifier:
        """The same, loaded."""
        model = self._kept[location] = await self._loaded.get(location)
        return model


class _Recent:
    def __init__(self, models: RecentClassifiers, location: str) -> None:
        self._models = models
        self._location = location

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await InProcessClassifier(await self._models.get(self._location)).predict(rows)

    async def card(self) -> ModelCard:
        return (await self._models.get(self._location)).card
