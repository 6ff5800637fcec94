"""Deployment handles as contracts. No Ray type and no Ray exception leaves this file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import ModelFailedError, OverloadedError, ServiceError, UnavailableError


@contextmanager
def contract_errors() -> Iterator[None]:
    """Turn what a handle raises into what the contract promises.

    | Ray                                         | contract           |
    |---------------------------------------------|--------------------|
    | a contract's error raised in the replica    | that error         |
    | any other error raised in the replica       | ModelFailedError   |
    | an error that cannot be unpickled here      | ModelFailedError   |
    | BackPressureError                           | OverloadedError    |
    | a replica that died or never came up        | UnavailableError   |
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ServiceError):
            raise error.cause from error
        raise ModelFailedError("the model failed") from error
    except UnserializableException as error:
        raise ModelFailedError("the model failed") from error
    except BackPressureError as error:
        raise OverloadedError("the model's queue is full", error.retry_after_s or 1.0) from error
    except (RayServeException, RayError) as error:
        raise UnavailableError("the model is not available") from error


class HandleClassifier:
    """A classifier behind a handle of ``ClassifierDeployment``."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        with contract_errors():
            scores: Scores = await self._handle.predict.remote(rows)
        return scores

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        with contract_errors():
            card: ModelCard = await self._handle.card.remote()
        return card
