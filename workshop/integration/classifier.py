"""Classifiers: in this process, and behind a deployment's handle."""

from typing import TYPE_CHECKING

import anyio.to_thread

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import ModelFailedError, ServiceError
from workshop.deployments.classifier import ClassifierDeployment
from workshop.models.tumours import TumourClassifier

if TYPE_CHECKING:  # a service on uvicorn alone needs no Ray
    from workshop.integration.calls import Calls


class InProcessClassifier:
    """A classifier in this process, run in a worker thread so that the event loop stays free."""

    def __init__(self, model: TumourClassifier) -> None:
        self._model = model

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        try:
            return await anyio.to_thread.run_sync(self._model.predict, rows)
        except ServiceError:
            raise
        except Exception as error:
            raise ModelFailedError("the model failed") from error

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return self._model.card


class HandleClassifier:
    """A classifier behind a handle of ``ClassifierDeployment``.

    Args:
        calls: calls the deployment.
    """

    def __init__(self, calls: "Calls") -> None:
        self._calls = calls

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        return await self._calls(ClassifierDeployment.predict, rows)

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return await self._calls.probe(ClassifierDeployment.card)
