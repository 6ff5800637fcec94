"""Health checks, at the start and for monitoring."""

import asyncio
import logging
from contextvars import Context

from workshop.contracts.errors import DeadlineExceededError, ServiceError
from workshop.contracts.services import Health, Services

logger = logging.getLogger(__name__)

CACHE_S = 2.0
"""How long a result is reused. Some parts are external servers, which must not be called for every probe."""


class HealthCheck:
    """Checks all parts of a service. Runs one check at a time, however many callers wait for it."""

    def __init__(self) -> None:
        self._check: asyncio.Task[Health] | None = None
        self._stale_at = 0.0

    async def __call__(self, services: Services) -> Health:
        """The health of the service, at most ``CACHE_S`` old."""
        if self._check is None or (self._check.done() and asyncio.get_running_loop().time() >= self._stale_at):
            # The task belongs to no request: several wait for the same check, and the end of one must not end it.
            self._check = asyncio.create_task(self._run(services), context=Context())
        return await asyncio.shield(self._check)

    async def _run(self, services: Services) -> Health:
        health = await services.health()
        _log_bugs(health)
        self._stale_at = asyncio.get_running_loop().time() + CACHE_S
        return health


async def wait_until_ready(services: Services) -> None:
    """Wait until every required part answers. A silent part may still be loading its model.

    Raises what a required part raises.
    """
    while (health := await services.health()).missing:
        for error in health.missing.values():
            if not isinstance(error, DeadlineExceededError):
                raise error
        logger.warning("waiting for %s", ", ".join(health.missing))
    _log_bugs(health)
    if health.degraded:
        logger.warning("starting without %s", "; ".join(f"{name}: {why}" for name, why in health.degraded.items()))


def _log_bugs(health: Health) -> None:
    for name, error in {**health.missing, **health.degraded}.items():
        if not isinstance(error, ServiceError):
            logger.error("the health check of %s failed: %s", name, error, exc_info=error)
