"""Classifiers other than the service's own: good ones, and one that fails."""

from dataclasses import replace
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workshop.models.tumours import TumourClassifier, train, training_data


def trained(folder: Path, *, regularization: float = 1.0, features: int = 30, version: str = "1.0.0") -> str:
    """Save a classifier in a folder, and return its location.

    Args:
        folder: where it is saved.
        regularization: makes another model.
        features: with fewer than 30, it can be loaded, and each prediction fails.
        version: in its card.
    """
    rows, labels = training_data()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / regularization, max_iter=1000))
    pipeline.fit(rows[:, :features], labels)
    TumourClassifier(pipeline, replace(train().card, version=version, sha256="")).save(folder)
    return str(folder)
