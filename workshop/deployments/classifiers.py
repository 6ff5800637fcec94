"""Many classifiers behind one deployment."""

import asyncio

from ray import serve

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.models.loaded import LoadedClassifiers
from workshop.models.tumours import TumourClassifier


class ClassifiersDeployment:
    """Each call names the classifier that it wants by its location, as Serve's multiplexed model id.

    A replica keeps those that it has used last. Serve sends a call to a replica that has the classifier, if there is
    one.

    Args:
        max_models: how many a replica keeps.
    """

    def __init__(self, max_models: int) -> None:
        self._loaded = LoadedClassifiers()

        # Serve loads one at a time, and drops another one first. So it gets only what is loaded already.
        @serve.multiplexed(max_num_models_per_replica=max_models)  # type: ignore[untyped-decorator]
        async def keep(location: str) -> TumourClassifier:
            return await self._loaded.get(location)

        self._keep = keep

    async def predict(self, rows: FloatMatrix) -> Scores:
        """Score rows: see ``Classifier.predict``."""
        return await asyncio.to_thread((await self._model()).predict, rows)

    async def card(self) -> ModelCard:
        """The card of the classifier."""
        return (await self._model()).card

    async def _model(self) -> TumourClassifier:
        location = serve.get_multiplexed_model_id()
        model = await self._loaded.get(location)
        await self._keep(location)
        return model
