"""Registered models, for the command line. Importing this takes seconds and 200 MB, because of MLflow."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from mlflow.models import ModelSignature
from mlflow.pyfunc import load_model, scoring_server
from mlflow.sklearn import save_model
from mlflow.types import ColSpec, Schema
from starlette.types import ASGIApp

from workshop.contracts.errors import StartError, start_errors
from workshop.contracts.tumours import FEATURES
from workshop.integration.services import active_location
from workshop.models.tumours import NAME, TumourClassifier
from workshop.settings import Settings
from workshop.storage.registry import CHALLENGER, CHAMPION, MlflowRegistry, VersionSummary, share_from

Result = TypeVar("Result")


def add(settings: Settings, location: str) -> str:
    """Register the artifact at a location as a new version, and return its number. Raises StartError."""
    model = TumourClassifier.load(location)
    with TemporaryDirectory() as folder:
        checksum = save_for_mlflow(model, Path(folder) / "model")
        metrics = {"accuracy": model.card.accuracy, "f1": model.card.f1}
        return _ask(
            settings,
            lambda registry: registry.add(Path(folder) / "model", checksum, metrics, settings.mlflow_files),
        )


def find_all(settings: Settings) -> list[VersionSummary]:
    """All versions, the newest first. Raises StartError."""
    return _ask(settings, lambda registry: registry.versions())


def activate(settings: Settings, number: str) -> None:
    """Let a version answer all callers. Raises StartError."""
    _ask(settings, lambda registry: registry.activate(number))


def try_out(settings: Settings, number: str, share: float) -> None:
    """Let a version answer a share of the callers. Raises StartError."""
    try:
        share_from(str(share))
    except ValueError as error:
        raise StartError.because("share", error) from error

    def begin(registry: MlflowRegistry) -> None:
        if registry.number_of(CHAMPION) == number:
            raise StartError(f"version {number} is active: all callers have it")
        registry.try_out(number, share)

    _ask(settings, begin)


def withdraw(settings: Settings) -> str | None:
    """End the trial of the challenger, and return its number, or None if there is none. Raises StartError."""

    def end(registry: MlflowRegistry) -> str | None:
        if (number := registry.number_of(CHALLENGER)) is not None:
            registry.withdraw(number, "by hand")
        return number

    return _ask(settings, end)


def save_for_mlflow(model: TumourClassifier, folder: Path) -> str:
    """Write the artifact, together with what MLflow needs to load it by itself. Returns the model's checksum."""
    inputs = Schema([ColSpec("double", name) for name in FEATURES])
    signature = ModelSignature(inputs, Schema([ColSpec("long")]))
    # Without requirements, MLflow would start a process to find them.
    save_model(model.pipeline, folder, signature=signature, pip_requirements=["scikit-learn", "skops"])
    return model.save(folder)


@contextmanager
def mlflow_app(settings: Settings) -> Iterator[ASGIApp]:
    """The application with which MLflow itself serves the classifier. Raises StartError."""
    model = TumourClassifier.load(active_location(settings))
    with TemporaryDirectory() as folder:
        save_for_mlflow(model, Path(folder) / "model")
        yield scoring_server.init(load_model(f"{folder}/model"))


def server_command(settings: Settings, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of MLflow's own server, for the database of the settings.

    The database's address may contain a password, and all users of a machine can see command lines.
    """
    store = {
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow_tracking_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": settings.mlflow_files,
    }
    return [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)], {**os.environ, **store}


def _ask(settings: Settings, use: Callable[[MlflowRegistry], Result]) -> Result:
    with start_errors():
        return use(MlflowRegistry(settings.mlflow_tracking_uri, settings.registered_model or NAME))
