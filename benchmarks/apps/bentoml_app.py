"""The classifier on BentoML.

The settings that answered most on two cores, of those that we tried: see the comments.
"""

# /// script
# dependencies = ["bentoml==1.4.39", "httptools", "scikit-learn", "skops", "uvloop"]
# ///

import bentoml
from tumours import Tumour, load, to_rows


# One worker for each core. A line in the log for each request, metrics and traces are off. uvicorn, which it runs on,
# takes uvloop and httptools where they are installed: BentoML does not ask for them.
@bentoml.service(workers=2, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Tumours:
    """Asynchronous methods: the way to a thread and back takes longer than the model."""

    def __init__(self) -> None:
        self.pipeline = load()

    # Not batchable: with BentoML's batches of several requests, half as many were answered. They suit a slower model.
    @bentoml.api(route="/predict")
    async def predict(self, tumour: Tumour, /) -> list[float]:
        """The probabilities of one row."""
        probabilities: list[list[float]] = self.pipeline.predict_proba(to_rows([tumour])).tolist()
        return probabilities[0]

    @bentoml.api(route="/predict-batch")
    async def predict_batch(self, tumours: list[Tumour], /) -> list[list[float]]:
        """The probabilities of many rows."""
        probabilities: list[list[float]] = self.pipeline.predict_proba(to_rows(tumours)).tolist()
        return probabilities
