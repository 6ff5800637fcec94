"""Measurements, predictions, cases and the classifier's metadata."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from workshop.api.clock import now
from workshop.api.schemas.base import ClosedModel, StrictModel
from workshop.contracts.cases import Case
from workshop.contracts.classifier import FloatMatrix, Scores
from workshop.contracts.tumours import FEATURES, LARGEST_VALUE

MAX_RECORDS = 1000

# The first row of the data set, which is malignant.
# fmt: off
EXAMPLE: JsonDict = dict(zip(FEATURES, [
    17.99, 10.38, 122.8, 1001.0, 0.1184, 0.2776, 0.3001, 0.1471, 0.2419, 0.07871,
    1.095, 0.9053, 8.589, 153.4, 0.006399, 0.04904, 0.05373, 0.01587, 0.03003, 0.006193,
    25.38, 17.33, 184.6, 2019.0, 0.1622, 0.6656, 0.7119, 0.2654, 0.4601, 0.1189,
], strict=True))
# fmt: on

Measurement = Annotated[float, Field(ge=0, le=LARGEST_VALUE, allow_inf_nan=False)]
Diagnosis = Literal["malignant", "benign"]


class Measurements(StrictModel):
    """The 30 measurements of one tumour's cell nuclei: mean, standard error and worst of ten properties."""

    # A misspelt feature is an error and not silently ignored; "17.99" is a string, not a number.
    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    mean_radius: Measurement
    mean_texture: Measurement
    mean_perimeter: Measurement
    mean_area: Measurement
    mean_smoothness: Measurement
    mean_compactness: Measurement
    mean_concavity: Measurement
    mean_concave_points: Measurement
    mean_symmetry: Measurement
    mean_fractal_dimension: Measurement
    radius_error: Measurement
    texture_error: Measurement
    perimeter_error: Measurement
    area_error: Measurement
    smoothness_error: Measurement
    compactness_error: Measurement
    concavity_error: Measurement
    concave_points_error: Measurement
    symmetry_error: Measurement
    fractal_dimension_error: Measurement
    worst_radius: Measurement
    worst_texture: Measurement
    worst_perimeter: Measurement
    worst_area: Measurement
    worst_smoothness: Measurement
    worst_compactness: Measurement
    worst_concavity: Measurement
    worst_concave_points: Measurement
    worst_symmetry: Measurement
    worst_fractal_dimension: Measurement

    def values(self) -> tuple[float, ...]:
        """The 30 numbers, in the order of ``FEATURES``."""
        return tuple(value for _, value in self)


def to_rows(records: Sequence[Measurements]) -> FloatMatrix:
    """Records as a matrix of shape (n, 30)."""
    return np.array([record.values() for record in records], dtype=np.float64)


class Batch(ClosedModel):
    """Several tumours."""

    records: Annotated[list[Measurements], Field(min_length=1, max_length=MAX_RECORDS)]


class Label(BaseModel):
    """The predicted class of one tumour. ``prediction`` is the index of ``label`` in the model's classes."""

    prediction: int
    label: str
    probabilities: dict[str, float]
    confidence: float

    @classmethod
    def of(cls, scores: Scores) -> list["Label"]:
        """One label per row: the most probable class."""
        labels = []
        for row in scores.probabilities.tolist():
            best = row.index(max(row))
            labels.append(
                Label(
                    prediction=best,
                    label=scores.classes[best],
                    probabilities=dict(zip(scores.classes, row, strict=True)),
                    confidence=row[best],
                )
            )
        return labels


class Prediction(Label):
    """The predicted class of one tumour, and the version of the model."""

    model_version: str
    timestamp: datetime

    @classmethod
    def of_one(cls, scores: Scores) -> Self:
        """From the scores of a single row."""
        [label] = Label.of(scores)
        return cls(**dict(label), model_version=scores.model_version, timestamp=now())


class BatchPrediction(BaseModel):
    """The predicted classes of several tumours, in the order of the records."""

    predictions: list[Label]
    count: int
    model_version: str
    timestamp: datetime

    @classmethod
    def of(cls, scores: Scores) -> Self:
        """From the scores of n rows."""
        labels = Label.of(scores)
        return cls(predictions=labels, count=len(labels), model_version=scores.model_version, timestamp=now())


class Feature(BaseModel):
    """One feature, with its range in the training data. Outside this range, the model extrapolates."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    unit: str
    minimum: float
    maximum: float


class ModelMetadata(BaseModel):
    """The model. Accuracy and F1 (of the class malignant) are measured on rows that it was not trained on."""

    name: str
    version: str
    accuracy: float
    f1: float
    classes: list[str]
    n_features: int


class CaseContent(ClosedModel):
    """A case as a client sends it. ``diagnosis`` is the confirmed one, or absent while the case is open."""

    measurements: Measurements
    diagnosis: Diagnosis | None = None


class StoredCase(CaseContent):
    """A stored case."""

    id: UUID

    @classmethod
    def of(cls, case: Case) -> Self:
        """From the contract's type. Measurements stored under older rules can still be read."""
        values: dict[str, Any] = dict(zip(FEATURES, case.measurements, strict=True))
        measurements = Measurements.model_construct(**values)  # not validated
        return cls.model_validate({"id": case.id, "measurements": measurements, "diagnosis": case.diagnosis})
