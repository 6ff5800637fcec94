"""Checks before the service starts: a mistake is reported in one line here, rather than by each replica."""

import asyncio

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from workshop.contracts.errors import ServiceError, StartError
from workshop.integration.retriever import make_embedding
from workshop.integration.services import active_location, require_pytorch
from workshop.machine import is_loopback
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore


def check_access(settings: Settings, host: str) -> None:
    """Check that the service knows its callers.

    Raises:
        StartError: other machines can reach the address, and anyone could use the service.
    """
    if not (settings.checks_credentials or settings.unverified_names or is_loopback(host)):
        raise StartError(
            f"other machines can reach {host}, and this service checks no keys; set WORKSHOP_API_KEYS or "
            "WORKSHOP_TOKEN_KEYS, or WORKSHOP_UNVERIFIED_NAMES=true to let anyone use it under any name"
        )


def check_shared_limits(settings: Settings, processes: int) -> None:
    """Check that rate limits hold, however many processes answer.

    Raises:
        StartError: each process would count by itself.
    """
    limits = {"rate_limits", "anonymous_limit", "wrong_keys_limit"} & settings.model_fields_set
    if processes > 1 and settings.redis_url is None and limits:
        raise StartError(
            f"setting {min(limits)}: {processes} processes would each count by themselves, and let callers have "
            f"{processes} times the limit; set REDIS_URL, where they count together"
        )


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
    TumourClassifier.load(active_location(settings))
    if not settings.language_models:
        return
    from workshop.models.retriever import CorpusRetriever

    CorpusRetriever.load(settings.retriever_artifact, make_embedding(settings))
    if not settings.local_models:
        return
    require_pytorch()
    from workshop.models.language_model import check_model

    for source in settings.local_models.values():
        check_model(source)
