"""Registered models in MLflow: in a database, or behind its server.

MLflow is imported when it is used. That takes two seconds and 200 MB, and a migration imports every module of stores.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy.exc import SQLAlchemyError

from workshop.contracts.errors import NotFoundError, UnavailableError, first_line
from workshop.contracts.registry import ModelVersion, Rollout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as RegisteredVersion
    from mlflow.entities.model_registry import RegisteredModel

logger = logging.getLogger(__name__)

_OPTIONS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
"""Of MLflow, unless the environment has others. By default, it takes minutes to notice that a server is gone."""
CHAMPION, CHALLENGER = "champion", "challenger"
"""MLflow's aliases of the versions that answer."""
_SHARE, _CHECKSUM, _WITHDRAWN = "challenger_share", "sha256", "withdrawn"
"""Tags."""
_NOT_FOUND = "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"
_REFUSED = "PERMISSION_DENIED", "UNAUTHENTICATED"
_NO_ANSWER = "the model registry that MLFLOW_TRACKING_URI names does not answer"
_ARTIFACTS = "api/2.0/mlflow-artifacts/artifacts"
"""Where MLflow's server has the files."""


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A version, for people.

    Attributes:
        number: counts from 1.
        aliases: such as ``champion``.
        share: of the callers whom it answers.
        withdrawn: why its trial was ended, or "".
    """

    number: str
    aliases: Sequence[str]
    share: float
    withdrawn: str


class MlflowRegistry:
    """``ModelRegistry`` in MLflow. Its methods raise UnavailableError if MLflow does not answer.

    Args:
        uri: of MLflow's server, or of a database: ``sqlite:///mlflow.sqlite``.
        model: the registered model.
    """

    def __init__(self, uri: str, model: str) -> None:
        self._uri = uri
        self._model = model
        self._warned: set[str] = set()
        with self._errors():
            self._client = _client_at(uri)

    def add(self, folder: Path, checksum: str, metrics: Mapping[str, float], store: str) -> str:
        """Register a version. Returns its number.

        Args:
            folder: what MLflow stores: the artifact, and what MLflow itself needs to serve it.
            checksum: SHA-256 of the model.
            metrics: of its quality.
            store: where the files go, unless a server decides that.
        """
        with self._errors():
            run = self._client.create_run(self._experiment(store), run_name=f"{self._model} {checksum[:8]}")
            try:
                for name, value in metrics.items():
                    self._client.log_metric(run.info.run_id, name, value)
                self._store(run.info.run_id, folder)
                if not self._client.search_registered_models(f"name='{self._model}'"):
                    self._client.create_registered_model(self._model)
                added = self._client.create_model_version(
                    self._model, f"{run.info.artifact_uri}/model", run.info.run_id, tags={_CHECKSUM: checksum}
                )
            except BaseException:
                self._client.set_terminated(run.info.run_id, "FAILED")
                raise
            self._client.set_terminated(run.info.run_id)
            return str(added.version)

    def versions(self) -> list[VersionSummary]:
        """All versions, the newest first."""
        with self._errors():
            model = self._client.get_registered_model(self._model)
            found = self._client.search_model_versions(f"name='{self._model}'")
        aliases = {alias: str(number) for alias, number in model.aliases.items()}
        share = self._share(model)
        return [
            VersionSummary(
                number := str(version.version),
                names := [alias for alias, of in aliases.items() if of == number],
                share if CHALLENGER in names else 0.0,
                version.tags.get(_WITHDRAWN, ""),
            )
            for version in sorted(found, key=lambda version: -int(version.version))
        ]

    def number_of(self, alias: str) -> str | None:
        """The number of the version with an alias."""
        with self._errors():
            number = self._client.get_registered_model(self._model).aliases.get(alias)
        return None if number is None else str(number)

    def activate(self, number: str) -> None:
        """Let a version answer all callers. Raises NotFoundError."""
        self._version(number)
        with self._errors():
            self._client.set_registered_model_alias(self._model, CHAMPION, number)
            if self.number_of(CHALLENGER) == number:
                self._client.delete_registered_model_alias(self._model, CHALLENGER)

    def try_out(self, number: str, share: float) -> None:
        """Let a version answer a share of the callers, from 0 to 1. Raises NotFoundError."""
        self._version(number)
        with self._errors():
            if self.number_of(CHALLENGER) not in {None, number}:  # the share is not meant for that one
                self._client.delete_registered_model_alias(self._model, CHALLENGER)
            self._client.set_registered_model_tag(self._model, _SHARE, str(share))
            self._client.delete_model_version_tag(self._model, number, _WITHDRAWN)
            self._client.set_registered_model_alias(self._model, CHALLENGER, number)

    def rollout(self) -> Rollout:
        """See ``ModelRegistry.rollout``."""
        with self._errors():
            model = self._client.get_registered_model(self._model)
        champion, challenger = (model.aliases.get(alias) for alias in (CHAMPION, CHALLENGER))
        if champion is None:
            raise NotFoundError(
                f"no version of {self._model} is active; run: python -m workshop models activate VERSION"
            )
        active = self._version(champion)
        if challenger is None:
            return Rollout(active)
        try:
            return Rollout(active, self._version(challenger), self._share(model))
        except NotFoundError as error:  # the champion goes on
            self._warn(error.message)
            return Rollout(active)

    def withdraw(self, number: str, reason: str) -> None:
        """See ``ModelRegistry.withdraw``."""
        with self._errors():
            if self.number_of(CHALLENGER) == number:
                self._client.delete_registered_model_alias(self._model, CHALLENGER)
                self._client.set_model_version_tag(self._model, number, _WITHDRAWN, reason)

    def _store(self, run_id: str, folder: Path) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_artifacts(run_id, str(folder), "model")
        except (MlflowException, OSError):
            raise
        except Exception as error:  # each kind of storage has errors of its own
            raise UnavailableError(f"cannot store the model: {first_line(error)}") from error

    def _share(self, model: "RegisteredModel") -> float:
        """The share of the callers whom the challenger answers: 0 if the tag makes no sense."""
        try:
            return share_from(model.tags.get(_SHARE, "0"))
        except ValueError as error:
            self._warn(f"the tag {_SHARE} of {self._model} is wrong: {error}; nobody gets the challenger")
            return 0.0

    def _warn(self, problem: str) -> None:
        """Say it once: the registry is asked every few seconds."""
        if problem not in self._warned:
            logger.warning("%s", problem)
        self._warned.add(problem)

    def _version(self, number: str | int) -> ModelVersion:
        with self._errors():
            return self._described(self._client.get_model_version(self._model, str(number)))

    def _described(self, version: "RegisteredVersion") -> ModelVersion:
        if (checksum := version.tags.get(_CHECKSUM)) is None:
            raise NotFoundError(
                f"version {version.version} of {self._model} has no checksum; register it with: "
                "python -m workshop models add"
            )
        source = urlsplit(str(version.source))
        url = (
            f"{self._uri.rstrip('/')}/{_ARTIFACTS}{source.path}"
            if source.scheme == "mlflow-artifacts"
            else source.geturl()
        )
        return ModelVersion(str(version.version), f"{url}#sha256={checksum}&version={version.version}")

    def _experiment(self, store: str) -> str:
        if (experiment := self._client.get_experiment_by_name(self._model)) is not None:
            return str(experiment.experiment_id)
        is_local = not self._uri.startswith(("http://", "https://"))
        return str(self._client.create_experiment(self._model, store if is_local else None))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.error_code in _NOT_FOUND:
                raise NotFoundError(str(error.message)) from error
            if error.error_code in _REFUSED:
                raise UnavailableError(f"the model registry refuses this: {error.message}") from error
            raise UnavailableError(_NO_ANSWER) from error
        except ImportError as error:
            raise UnavailableError(
                f"the model registry that MLFLOW_TRACKING_URI names needs a package: {error}"
            ) from error
        except (SQLAlchemyError, OSError) as error:  # those of requests are OSErrors
            raise UnavailableError(_NO_ANSWER) from error


def share_from(text: str) -> float:
    """Raises ValueError unless it is a number from 0 to 1."""
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(f"{text} is not from 0 to 1")
    return share


def _client_at(uri: str) -> "MlflowClient":
    for name, value in _OPTIONS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    logging.getLogger(utils.__name__).setLevel(logging.ERROR)  # it reports each new table and each try
    utils.MAX_RETRY_COUNT = 2  # ten tries take 100 s, and there is no option
    return MlflowClient(uri, uri)
