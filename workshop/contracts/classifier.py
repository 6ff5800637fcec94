"""The tumour classifier as its callers see it."""

from dataclasses import dataclass
from itertools import product
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatMatrix: TypeAlias = NDArray[np.float64]

_UNITS = {
    "radius": "pixel",
    "texture": "grey level",
    "perimeter": "pixel",
    "area": "pixel²",
    "smoothness": "1",
    "compactness": "1",
    "concavity": "1",
    "concave_points": "1",
    "symmetry": "1",
    "fractal_dimension": "1",
}

UNITS: dict[str, str] = {
    pattern.format(measurement): unit
    for pattern, (measurement, unit) in product(("mean_{}", "{}_error", "worst_{}"), _UNITS.items())
}
"""Unit of each feature, in the order of the model's columns.

Ten measurements of the cell nuclei in one digitised image; of each the mean, its standard error, and the
worst (the mean of the three largest values). Source: Breast Cancer Wisconsin (Diagnostic), W. Street et al., 1993.
"""

FEATURES: tuple[str, ...] = tuple(UNITS)

LARGEST_VALUE = 1e12
"""Of any feature: the area of an image of a million by a million pixels. Models need not bear larger numbers."""


@dataclass(frozen=True, slots=True)
class FeatureRange:
    """One feature, with the smallest and largest value that the model has seen in training."""

    name: str
    unit: str
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a classifier says of itself. Accuracy and F1 (of the positive class) are of held-out rows."""

    name: str
    version: str
    accuracy: float
    f1: float
    classes: tuple[str, ...]
    positive_class: str
    features: tuple[FeatureRange, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer for n rows.

    Attributes:
        probabilities: shape (n, n_classes), columns in the order of ``classes``; each row sums to 1.
        classes: their names.
        model_version: the version that answered.
    """

    probabilities: FloatMatrix
    classes: tuple[str, ...]
    model_version: str


class Classifier(Protocol):
    """Tells the classes of rows of measurements."""

    async def predict(self, rows: FloatMatrix) -> Scores:
        """Score rows.

        Args:
            rows: shape (n, 30), n ≥ 1, columns in the order of ``FEATURES``.

        Raises:
            InvalidInputError: a row cannot be a measurement; each value is from 0 to ``LARGEST_VALUE``.
            UnavailableError, DeadlineExceededError, ModelFailedError: see their docstrings.
        """
        ...

    async def card(self) -> ModelCard:
        """The card of the model that answers now. Doubles as the readiness probe.

        Raises:
            UnavailableError: no model can answer.
        """
        ...
