"""The tumour classifier as a deployment."""

from pathlib import Path

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.models.tumours import TumourClassifier


class ClassifierDeployment:
    """One replica holds one loaded model.

    Args:
        artifact: folder that ``TumourClassifier.save`` wrote, readable on every node.

    Raises:
        ArtifactError: the artifact is missing or damaged; the replica does not start.
    """

    def __init__(self, artifact: Path) -> None:
        self._model = TumourClassifier.load(artifact)

    def predict(self, rows: FloatMatrix) -> Scores:
        """Score rows: see ``Classifier.predict``."""
        return self._model.predict(rows)

    def card(self) -> ModelCard:
        """The card of the loaded model."""
        return self._model.card
