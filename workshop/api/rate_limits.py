"""How often a principal may ask each route: see ``Settings.rate_limits``."""

import logging
import time
from collections.abc import Mapping
from typing import Annotated, cast

from fastapi import Depends
from limits import parse
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from starlette.requests import HTTPConnection

from workshop.api.dependencies import ANONYMOUS, SettingsDep, bearer_key, owner_of, path_of
from workshop.contracts.errors import RateLimitedError

logger = logging.getLogger(__name__)


class RateLimits:
    """Counts requests in a moving window, in this process or in a Redis that all replicas share.

    Args:
        rules: such as ``{"/v1/query": "10/minute"}``. A rule holds for its path and all below it, the longest first.
        redis_url: None to count in this process.
    """

    def __init__(self, rules: Mapping[str, str], redis_url: str | None) -> None:
        storage = storage_from_string(
            f"async+{redis_url or 'memory://'}", implementation="redispy", wrap_exceptions=True
        )
        self._limiter = MovingWindowRateLimiter(storage)
        self._rules = {path: parse(rules[path]) for path in sorted(rules, key=len, reverse=True)}

    async def check(self, connection: HTTPConnection, principal: str | None) -> None:
        """Count a request, or a question on a WebSocket. Nameless callers are told apart by their address.

        Raises:
            RateLimitedError: it is one too many.
        """
        path = path_of(connection)
        ruled = next((ruled for ruled in self._rules if is_below(path, ruled)), None)
        if ruled is None:
            return
        rule = self._rules[ruled]
        host = connection.client.host if connection.client else ""
        caller = host if principal in (None, ANONYMOUS) else f"principal {principal}"
        try:
            if await self._limiter.hit(rule, ruled, caller):
                return
            window = await self._limiter.get_window_stats(rule, ruled, caller)
        except StorageError:
            logger.exception("requests are not counted")  # better too many answers than none
            return
        raise RateLimitedError(f"at most {rule} for {ruled}", max(1.0, window.reset_time - time.time()))


def is_below(path: str, ruled: str) -> bool:
    """Whether a rule for one path holds for the other."""
    return f"{path}/".startswith(f"{ruled.rstrip('/')}/")


async def get_rate_limits(connection: HTTPConnection) -> RateLimits:
    return cast(RateLimits, connection.app.state.rate_limits)


RateLimitsDep = Annotated[RateLimits, Depends(get_rate_limits)]


async def limit_rate(connection: HTTPConnection, settings: SettingsDep, rate_limits: RateLimitsDep) -> None:
    """Turn away who asks a route too often."""
    await rate_limits.check(connection, owner_of(bearer_key(connection), settings))
