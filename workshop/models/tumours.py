"""The tumour classifier: a scikit-learn pipeline, trained on the data that scikit-learn ships."""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from workshop.contracts.classifier import FeatureRange, FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import InvalidInputError
from workshop.contracts.tumours import FEATURES, LARGEST_VALUE, UNITS
from workshop.models import artifacts
from workshop.models.artifacts import ArtifactError

logger = logging.getLogger(__name__)

NAME = "tumour-classifier"
CLASSES = ("malignant", "benign")

_MODEL_FILE = "model.skops"
_CARD_FILE = "card.json"
_CARD = TypeAdapter(ModelCard)
_MEASUREMENTS = len(FEATURES) // 3
_WORST = 2 * _MEASUREMENTS


class TumourClassifier:
    """A trained pipeline and its card.

    Args:
        pipeline: fitted, with ``predict_proba``; columns in the order of ``FEATURES``.
        card: describes the model.
    """

    def __init__(self, pipeline: Pipeline, card: ModelCard) -> None:
        self.card = card
        self.pipeline = pipeline

    def predict(self, rows: FloatMatrix) -> Scores:
        """Score rows: see ``Classifier.predict``.

        Raises:
            InvalidInputError: a value is out of range, or a worst value is smaller than its mean, so the row cannot be
                a measurement.
        """
        out_of_range = ~((rows >= 0) & (rows <= LARGEST_VALUE))  # NaN too
        if out_of_range.any():
            row, column = (int(index) for index in np.argwhere(out_of_range)[0])
            raise InvalidInputError(f"{FEATURES[column]} must be from 0 to {LARGEST_VALUE:g}", row, FEATURES[column])
        if errors := impossible_values(rows):
            raise errors[0]
        logger.debug("%s predicts %d rows", self.card.name, len(rows))
        return Scores(self.pipeline.predict_proba(rows), self.card.classes, self.card.version, self.card.sha256)

    def save(self, folder: Path) -> str:
        """Write the artifact: the pipeline, and a card with the pipeline's checksum, which is returned."""
        model = artifacts.dumps(self.pipeline)
        card = replace(self.card, sha256=hashlib.sha256(model).hexdigest())
        artifacts.write(folder / _MODEL_FILE, model)
        artifacts.write(folder / _CARD_FILE, json.dumps(asdict(card), indent=2).encode())
        return card.sha256

    @classmethod
    def load(cls, location: Path | str) -> Self:
        """Read an artifact.

        Args:
            location: a folder or a URL; see ``artifacts.Location``.

        Raises:
            ArtifactError: missing, damaged, another one than the location asks for, or it contains untrusted code.
        """
        place = artifacts.Location.parse(str(location))
        model, content = place.read(_MODEL_FILE), place.read(_CARD_FILE)
        try:
            card = _CARD.validate_json(content)
        except ValidationError as error:
            raise ArtifactError(
                f"the model in {place.url} is damaged: its card cannot be read; {place.remedy}"
            ) from error
        names = tuple(feature.name for feature in card.features)
        if (card.classes, card.positive_class, names) != (CLASSES, CLASSES[0], FEATURES):
            raise ArtifactError(f"the model in {place.url} has other classes or features; {place.remedy}")
        checksum = hashlib.sha256(model).hexdigest()
        if checksum != card.sha256:
            raise ArtifactError(f"the model in {place.url} is damaged: its checksum differs; {place.remedy}")
        if place.sha256 not in {None, checksum}:
            raise ArtifactError(f"the model in {place.url} is another one: its checksum is not {place.sha256}")
        try:
            pipeline = artifacts.loads(model)
        except Exception as error:  # whatever skops and the libraries raise whose objects it builds
            raise ArtifactError.because(f"the model in {place.url} cannot be loaded", error, place.remedy) from error
        return cls(pipeline, replace(card, version=place.version or card.version))


def impossible_values(rows: FloatMatrix) -> list[InvalidInputError]:
    """An error for each worst value that is smaller than its mean, in the order of the rows.

    Args:
        rows: shape (n, 30), columns in the order of ``FEATURES``.
    """
    is_impossible = rows[:, _WORST:] < rows[:, :_MEASUREMENTS]
    return [
        InvalidInputError(f"{FEATURES[_WORST + i]} must not be smaller than {FEATURES[i]}", row, FEATURES[_WORST + i])
        for row, i in np.argwhere(is_impossible).tolist()
    ]


def training_data() -> tuple[FloatMatrix, NDArray[np.int64]]:
    """The 569 rows, shape (569, 30), and their classes, shape (569,): 0 malignant, 1 benign."""
    data = load_breast_cancer()
    return data.data, data.target


def train(version: str = "1.0.0") -> TumourClassifier:
    """Fit on four fifths of the rows and score on the rest. The result is the same every time."""
    rows, labels = training_data()
    train_rows, test_rows, train_labels, test_labels = train_test_split(
        rows, labels, test_size=0.2, stratify=labels, random_state=0
    )
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    pipeline.fit(train_rows, train_labels)
    predicted = pipeline.predict(test_rows)
    card = ModelCard(
        name=NAME,
        version=version,
        accuracy=float(accuracy_score(test_labels, predicted)),
        f1=float(f1_score(test_labels, predicted, pos_label=0)),
        classes=CLASSES,
        positive_class=CLASSES[0],
        features=tuple(
            FeatureRange(name, UNITS[name], float(column.min()), float(column.max()))
            for name, column in zip(FEATURES, train_rows.T, strict=True)
        ),
    )
    return TumourClassifier(pipeline, card)
