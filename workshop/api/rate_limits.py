"""Limits on requests per route, without a key, and with a wrong key: see ``Settings.rate_limits``."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import TypeVar

from limits import RateLimitItem, parse
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from workshop.contracts.errors import RateLimitedError

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 1.0
"""How long Redis may take to answer. A request waits for it."""
REDIS_RETRY_S = 2.0
"""How long each process counts alone before it asks a Redis again that did not answer."""

_ANONYMOUS = "requests without a key"
_WRONG_KEYS = "wrong keys"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Quota:
    """What a caller has left of a limit.

    Attributes:
        policy: the name of the limit: the path of its rule, or what it counts.
        limit: how many requests, in which time.
        remaining: requests left.
        resets_s: seconds until there are more.
        is_exceeded: whether this request is one too many.
    """

    policy: str
    limit: RateLimitItem
    remaining: int
    resets_s: int
    is_exceeded: bool

    def require(self) -> None:
        """Raise RateLimitedError if the limit is exceeded."""
        if self.is_exceeded:
            raise RateLimitedError(f"rate limit exceeded: {self.limit} for {self.policy}", max(1, self.resets_s))


class RateLimits:
    """Counts requests in a moving window, in this process or in a Redis server that all replicas share.

    While Redis does not answer, each process counts alone: a caller gets more than the limit, but not any number.

    Args:
        rules: limits by path, such as ``{"/v1/query": "10/minute"}``. A rule applies to its path and everything below
            it; the rule with the longest path wins.
        wrong_keys: how many wrong credentials an address may send, such as ``30/minute``.
        anonymous: how many requests an address may send without a credential; None for no limit.
        redis_url: None to count in this process.
    """

    def __init__(
        self, rules: Mapping[str, str], wrong_keys: str, redis_url: str | None, anonymous: str | None = None
    ) -> None:
        self._rules = {path: parse(rules[path]) for path in sorted(rules, key=len, reverse=True)}
        self._wrong_keys = parse(wrong_keys)
        self._anonymous = parse(anonymous) if anonymous else None
        self._here = MovingWindowRateLimiter(storage_from_string("async+memory://"))
        self._shared = _in_redis(redis_url) if redis_url else None
        self._retry_at: float | None = None  # when to ask Redis again, if it does not answer

    async def count(self, path: str, caller: str) -> Quota | None:
        """Count a request, or a question on a WebSocket. None if no rule applies."""
        rule_path = next((rule_path for rule_path in self._rules if is_at_or_below(path, rule_path)), None)
        return None if rule_path is None else await self._count(self._rules[rule_path], rule_path, caller)

    async def count_anonymous(self, address: str) -> Quota | None:
        """Count a request without a credential. None if such requests are not limited."""
        return None if self._anonymous is None else await self._count(self._anonymous, _ANONYMOUS, address)

    async def count_wrong_key(self, address: str) -> Quota:
        """Count a wrong credential."""
        return await self._count(self._wrong_keys, _WRONG_KEYS, address)

    async def wrong_keys(self, address: str) -> Quota:
        """The same quota, without counting. It is exceeded if nothing is left."""
        quota = await self._quota(self._wrong_keys, _WRONG_KEYS, address, was_counted=True)
        return quota if quota.remaining else replace(quota, is_exceeded=True)

    async def _count(self, limit: RateLimitItem, policy: str, caller: str) -> Quota:
        was_counted = await self._ask(lambda limiter: limiter.hit(limit, policy, caller))
        return await self._quota(limit, policy, caller, was_counted=was_counted)

    async def _quota(self, limit: RateLimitItem, policy: str, caller: str, *, was_counted: bool) -> Quota:
        window = await self._ask(lambda limiter: limiter.get_window_stats(limit, policy, caller))
        resets_s = ceil(max(0.0, window.reset_time - time.time()))
        return Quota(policy, limit, max(0, window.remaining), resets_s, is_exceeded=not was_counted)

    async def _ask(self, question: Callable[[MovingWindowRateLimiter], Awaitable[Result]]) -> Result:
        """Ask the counters in Redis, or those of this process if there is no Redis or it does not answer."""
        if self._shared is not None and (self._retry_at is None or time.monotonic() >= self._retry_at):
            if self._retry_at is not None:
                self._retry_at = time.monotonic() + REDIS_RETRY_S  # this request waits for Redis, others do not
            try:
                result = await question(self._shared)
            except StorageError as error:
                if self._retry_at is None:  # once, however many requests wait
                    logger.error("Redis does not answer: each process limits rates alone. %s", error.storage_error)
                self._retry_at = time.monotonic() + REDIS_RETRY_S
            else:
                if self._retry_at is not None:
                    logger.warning("Redis answers again: all processes limit rates together")
                self._retry_at = None
                return result
        return await question(self._here)


def _in_redis(url: str) -> MovingWindowRateLimiter:
    storage = storage_from_string(
        f"async+{url}",
        implementation="redispy",
        wrap_exceptions=True,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        retry_on_error=[ConnectionError],  # type: ignore[arg-type]  # once: a Redis that restarts closes connections
    )
    return MovingWindowRateLimiter(storage)


def is_at_or_below(path: str, rule_path: str) -> bool:
    """Whether a rule for ``rule_path`` applies to ``path``."""
    return f"{path}/".startswith(f"{rule_path.rstrip('/')}/")
