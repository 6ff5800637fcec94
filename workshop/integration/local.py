"""The services within one process: for uvicorn alone, and for an API replica when models are inline."""

import asyncio

import anyio.to_thread
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from workshop.api.app import create_app
from workshop.contracts.classifier import Classifier, FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import ModelFailedError, ServiceError, StartError
from workshop.contracts.services import Services
from workshop.integration.batching import MicroBatched
from workshop.integration.language import check_language, local_language
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings, read_settings
from workshop.storage.cases import SqlCaseStore


class InProcessClassifier:
    """A classifier in this process, run in a worker thread so that the event loop stays free."""

    def __init__(self, model: TumourClassifier) -> None:
        self._model = model

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        try:
            return await anyio.to_thread.run_sync(self._model.predict, rows)
        except ServiceError:
            raise
        except Exception as error:
            raise ModelFailedError("the model failed") from error

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return self._model.card


def batched(classifier: Classifier, settings: Settings, *, max_calls: int = 1) -> Classifier:
    """The classifier with micro-batching as the settings want it."""
    return MicroBatched(
        classifier,
        max_rows=settings.batch_max_rows if settings.batching else 1,
        max_waiting_rows=settings.queue_max_rows,
        max_calls=max_calls,
        timeout_s=settings.predict_timeout_s,
    )


def local_services(settings: Settings) -> Services:
    """Load every model into this process.

    Raises:
        StartError: a model is missing or damaged.
    """
    classifier = batched(InProcessClassifier(TumourClassifier.load(settings.artifact)), settings)
    cases = SqlCaseStore(settings.database_url)
    if not settings.language_models:
        return Services(classifier, cases)
    return Services(classifier, cases, local_language(settings))


def check_database(settings: Settings) -> None:
    """Bring the database up to date: what is wrong with it shows here, rather than at the first request.

    Raises:
        StartError: the database does not answer, is not supported, or holds something else than what the service keeps.
    """

    async def use_database() -> None:
        store = SqlCaseStore(settings.database_url)
        try:
            await store.ready()
        finally:
            await store.aclose()

    try:
        asyncio.run(use_database())
    except (SQLAlchemyError, ServiceError, OSError, TypeError) as error:  # of an option in the URL
        reason = error.__cause__ or error
        if isinstance(reason, DBAPIError) and reason.orig is not None:
            reason = reason.orig  # SQLAlchemy's own message begins with the name of a class
        raise StartError.because("cannot use the database that DATABASE_URL names", reason) from error


def check_models(settings: Settings) -> None:
    """Look at every model: what is wrong shows here, rather than in each replica after minutes.

    Raises:
        StartError: a model is missing or damaged.
    """
    TumourClassifier.load(settings.artifact)
    if settings.language_models:
        check_language(settings)


def app() -> FastAPI:
    """The service for ``uvicorn --factory workshop.integration.local:app``."""
    settings = read_settings()
    return create_app(local_services(settings), settings)
