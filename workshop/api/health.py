"""How the service is: asked at its start, and by whoever watches it."""

import asyncio
import logging
from contextvars import Context

from workshop.contracts.errors import DeadlineExceededError, ServiceError
from workshop.contracts.services import Health, Services

logger = logging.getLogger(__name__)

FRESH_S = 2.0
"""So long is an answer good for all who ask: the parts, some of them others' servers, are asked no more often."""


class HealthCheck:
    """Asks all parts of a service at once. However many want to know, there is one check at a time."""

    def __init__(self) -> None:
        self._check: asyncio.Task[Health] | None = None
        self._stale_at = 0.0

    async def __call__(self, services: Services) -> Health:
        """How the service is, or was a moment ago."""
        if self._check is None or (self._check.done() and asyncio.get_running_loop().time() >= self._stale_at):
            # It belongs to no request: if this one is cancelled, others still wait for the same check.
            self._check = asyncio.create_task(self._ask(services), context=Context())
        return await asyncio.shield(self._check)

    async def _ask(self, services: Services) -> Health:
        health = await services.health()
        _log_bugs(health)
        self._stale_at = asyncio.get_running_loop().time() + FRESH_S
        return health


async def wait_until_ready(services: Services) -> None:
    """Until every required part answers. One that says nothing is waited for: it may still be loading its model.

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
