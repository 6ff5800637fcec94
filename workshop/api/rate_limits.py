"""Limits on requests per route and on wrong keys: see ``Settings.rate_limits``."""

import logging
import time
from collections.abc import Mapping

from limits import RateLimitItem, parse
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from workshop.contracts.errors import RateLimitedError

logger = logging.getLogger(__name__)


class RateLimits:
    """Counts requests in a moving window, in this process or in a Redis server that all replicas share.

    Args:
        rules: limits by path, such as ``{"/v1/query": "10/minute"}``. A rule applies to its path and everything below
            it; the rule with the longest path wins.
        wrong_keys: how many wrong keys an address may send, such as ``30/minute``.
        redis_url: None to count in this process.
    """

    def __init__(self, rules: Mapping[str, str], wrong_keys: str, redis_url: str | None) -> None:
        storage = storage_from_string(
            f"async+{redis_url or 'memory://'}", implementation="redispy", wrap_exceptions=True
        )
        self._limiter = MovingWindowRateLimiter(storage)
        self._rules = {path: parse(rules[path]) for path in sorted(rules, key=len, reverse=True)}
        self._wrong_keys = parse(wrong_keys)

    async def check(self, path: str, caller: str) -> None:
        """Count a request, or a question on a WebSocket.

        Raises:
            RateLimitedError: the limit is exceeded.
        """
        rule_path = next((rule_path for rule_path in self._rules if is_at_or_below(path, rule_path)), None)
        if rule_path is not None:
            await self._count(self._rules[rule_path], rule_path, caller)

    async def count_wrong_key(self, address: str) -> None:
        """Count a wrong key.

        Raises:
            RateLimitedError: the limit is exceeded.
        """
        await self._count(self._wrong_keys, "wrong keys", address)

    async def _count(self, rule: RateLimitItem, what: str, caller: str) -> None:
        try:
            if await self._limiter.hit(rule, what, caller):
                return
            window = await self._limiter.get_window_stats(rule, what, caller)
        except StorageError:
            logger.exception("requests are not counted")  # answering too many is better than answering none
            return
        raise RateLimitedError(f"rate limit exceeded: {rule} for {what}", max(1.0, window.reset_time - time.time()))


def is_at_or_below(path: str, rule_path: str) -> bool:
    """Whether a rule for ``rule_path`` applies to ``path``."""
    return f"{path}/".startswith(f"{rule_path.rstrip('/')}/")
