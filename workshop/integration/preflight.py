"""Checks before the service starts: a mistake is reported in one line here, rather than by each replica."""

import asyncio

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from workshop.contracts.errors import ServiceError, StartError
from workshop.integration.services import model_sources, require_pytorch
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore


def check_database(settings: Settings) -> None:
    """Bring the database up to date.

    Raises:
        StartError: the database does not answer, is not supported, or has tables that are not the service's.
    """

    async def use_database() -> None:
        store = SqlCaseStore(settings.database_url)
        try:
            await store.ready()
        finally:
            await store.aclose()

    try:
        asyncio.run(use_database())
    except (SQLAlchemyError, ServiceError, OSError, TypeError) as error:  # TypeError: an unknown option in the URL
        reason = error.__cause__ or error
        if isinstance(reason, DBAPIError) and reason.orig is not None:
            reason = reason.orig  # SQLAlchemy's own message begins with the name of a class
        raise StartError.because("cannot use the database that DATABASE_URL names", reason) from error


def check_models(settings: Settings) -> None:
    """Check every model.

    Raises:
        StartError: a model is missing or damaged.
    """
    TumourClassifier.load(settings.artifact)
    if not settings.language_models:
        return
    require_pytorch()
    from workshop.models.language_model import check_model
    from workshop.models.retriever import CorpusRetriever

    CorpusRetriever.load(settings.retriever_artifact, settings.embedding_model)
    for source in model_sources(settings).values():
        check_model(source)
