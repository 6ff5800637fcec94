"""Classifiers of rows of numbers, as their callers see them."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatMatrix: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureRange:
    """One feature, with the smallest and largest value that the model has seen in training."""

    name: str
    unit: str
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A classifier's description. Accuracy and F1 (of the positive class) are measured on held-out rows.

    ``sha256`` is the checksum of the saved model: it tells apart two models of the same version.
    """

    name: str
    version: str
    accuracy: float
    f1: float
    classes: tuple[str, ...]
    positive_class: str
    features: tuple[FeatureRange, ...]
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer for n rows.

    Attributes:
        probabilities: shape (n, n_classes), columns in the order of ``classes``; each row sums to 1.
        classes: their names.
        model_version: the version that answered.
        model_sha256: see ``ModelCard``.
    """

    probabilities: FloatMatrix
    classes: tuple[str, ...]
    model_version: str
    model_sha256: str = ""


class Classifier(Protocol):
    """Predicts the classes of rows."""

    async def predict(self, rows: FloatMatrix) -> Scores:
        """Score rows.

        Args:
            rows: shape (n, n_features), n ≥ 1, columns in the order of the card's features.

        Raises:
            InvalidInputError: the model cannot score a row.
            UnavailableError, DeadlineExceededError, ModelFailedError: see their docstrings.
        """
        ...

    async def card(self) -> ModelCard:
        """The card of the model that answers now. Doubles as the readiness probe.

        Raises:
            UnavailableError: no model can answer.
        """
        ...
