"""Values that are computed once for all who ask for them, and kept in this process or in Redis."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from cachetools import LRUCache

logger = logging.getLogger(__name__)

DEFAULT_BYTES = 32 * 2**20
"""About 9000 texts at 384 dimensions, or 80 000 single predictions."""
ENTRY_BYTES = 400
"""What an entry in this process takes besides its value: its key, and its places in the tables."""
EXPIRE_S = 24 * 3600.0
"""How long Redis keeps a value. It never becomes wrong: this only frees memory."""
CLAIM_S = 5.0
"""How long other processes wait for the one that computes a value, in case that it has died."""
POLL_S = 0.01
"""How often they look."""
REDIS_TIMEOUT_S = 1.0
REDIS_PAUSE_S = 10.0
"""How long a Redis that has not answered is not asked again."""

Answer = TypeVar("Answer")
Values: TypeAlias = Mapping[str, bytes]
Compute: TypeAlias = Callable[[Sequence[str]], Awaitable[Values]]
"""Computes the values of some keys."""


class Store(Protocol):
    """Where values are kept. It never raises: what it cannot find is computed again."""

    async def get(self, keys: Sequence[str]) -> Values:
        """Those of the values that are there."""
        ...

    async def claim(self, keys: Sequence[str]) -> tuple[Values, Sequence[str]]:
        """Those of the values that are there by now, and the keys that the caller should compute.

        The others are being computed by another process.
        """
        ...

    async def put(self, values: Values) -> None:
        """Keep values, and give up the claims on their keys."""
        ...

    async def release(self, keys: Sequence[str]) -> None:
        """Give up claims: their values could not be computed."""
        ...

    async def aclose(self) -> None:
        """Release the store's resources."""
        ...


class MemoryStore:
    """Keeps the most recently used values in this process.

    Args:
        max_bytes: of memory.
    """

    def __init__(self, max_bytes: int) -> None:
        self._values = LRUCache[str, bytes](max_bytes, getsizeof=lambda value: len(value) + ENTRY_BYTES)

    async def get(self, keys: Sequence[str]) -> Values:
        """See ``Store.get``."""
        return {key: self._values[key] for key in keys if key in self._values}

    async def claim(self, keys: Sequence[str]) -> tuple[Values, Sequence[str]]:
        """See ``Store.claim``: there is no other process."""
        return {}, keys

    async def put(self, values: Values) -> None:
        """See ``Store.put``."""
        for key, value in values.items():
            with suppress(ValueError):  # it is larger than the whole store
                self._values[key] = value

    async def release(self, keys: Sequence[str]) -> None:
        """See ``Store.release``."""

    async def aclose(self) -> None:
        """See ``Store.aclose``."""


class RedisStore:
    """Keeps values in a Redis that all processes share. How many is its own setting, ``maxmemory``.

    A Redis that does not answer is left alone for a while, and a warning is logged, once in that time. A claim is a key
    that expires. If two processes hold the same one because it has expired, both compute the value, and no more.

    Args:
        url: such as ``redis://127.0.0.1``.
        expire_s: how long a value is kept.
    """

    def __init__(self, url: str, expire_s: float = EXPIRE_S) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._failures = RedisError, OSError
        self._redis = Redis.from_pool(
            BlockingConnectionPool.from_url(
                url,
                max_connections=32,
                timeout=REDIS_TIMEOUT_S,  # for a free connection
                socket_timeout=REDIS_TIMEOUT_S,
                socket_connect_timeout=REDIS_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
        )
        self._expire_ms = int(expire_s * 1000)
        self._ask_again_at = 0.0

    async def get(self, keys: Sequence[str]) -> Values:
        """See ``Store.get``."""

        async def get() -> Values:
            return _present(keys, await self._redis.mget(keys))

        return await self._unless_silent(get, {})

    async def claim(self, keys: Sequence[str]) -> tuple[Values, Sequence[str]]:
        """See ``Store.claim``."""

        async def claim() -> tuple[Values, Sequence[str]]:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.set(_claim(key), b"", nx=True, px=int(CLAIM_S * 1000))
                pipeline.mget(keys)
                *claims, stored = await pipeline.execute()
            claimed = [key for key, is_ours in zip(keys, claims, strict=True) if is_ours]
            values = _present(keys, stored)
            await self.release([key for key in claimed if key in values])
            return values, [key for key in claimed if key not in values]

        return await self._unless_silent(claim, ({}, keys))

    async def put(self, values: Values) -> None:
        """See ``Store.put``."""

        async def put() -> None:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key, value in values.items():
                    pipeline.set(key, value, px=self._expire_ms)
                pipeline.delete(*map(_claim, values))
                await pipeline.execute()

        await self._unless_silent(put, None)

    async def release(self, keys: Sequence[str]) -> None:
        """See ``Store.release``."""

        async def release() -> None:
            await self._redis.delete(*map(_claim, keys))

        if keys:
            await self._unless_silent(release, None)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _unless_silent(self, ask: Callable[[], Awaitable[Answer]], otherwise: Answer) -> Answer:
        """What Redis answers, or ``otherwise`` if it does not answer, or did not a short time ago."""
        if time.monotonic() < self._ask_again_at:
            return otherwise
        try:
            return await ask()
        except self._failures as error:
            if time.monotonic() >= self._ask_again_at:  # of several that fail together, one is logged
                logger.warning("Redis does not answer, so nothing is cached for %g seconds: %s", REDIS_PAUSE_S, error)
            self._ask_again_at = time.monotonic() + REDIS_PAUSE_S
            return otherwise


def _claim(key: str) -> str:
    return f"{key}:claim"


def _present(keys: Sequence[str], stored: Iterable[Any]) -> Values:
    """What Redis has answered for each key, without the ``None`` for those that are not there."""
    return {key: value for key, value in zip(keys, stored, strict=True) if value is not None}


class Cache:
    """Computes each value once, however many ask for it at the same time.

    In one process this always holds. Processes that share a Redis compute for each other, as long as it answers.
    A computation goes on when the one who started it leaves: others may wait for it. Errors are not kept.

    The values are plain bytes: unpickling would run code from anyone who can write to that Redis.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: dict[str, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def at(cls, redis_url: str | None, max_bytes: int) -> Self:
        """A cache in a Redis or, without one, of this size in this process."""
        return cls(RedisStore(redis_url) if redis_url else MemoryStore(max_bytes))

    async def get(self, keys: Iterable[str], compute: Compute) -> dict[str, bytes]:
        """The values of all keys. Those that are not there, and that nobody computes yet, are computed in one call.

        A key must stand for all that its value depends on. Raises what ``compute`` raises, for all who wait for it.
        """
        keys = dict.fromkeys(keys)
        if new := [key for key in keys if key not in self._under_way]:
            loop = asyncio.get_running_loop()
            waiting = {key: loop.create_future() for key in new}
            self._under_way |= waiting
            task = asyncio.create_task(self._find(waiting, compute))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        futures = {key: self._under_way[key] for key in keys}
        await asyncio.wait(futures.values())  # which leaves them alone when this caller is cancelled
        return {key: future.result() for key, future in futures.items()}

    async def aclose(self) -> None:
        """End what is under way, and release the store's resources."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.aclose()

    async def _find(self, waiting: dict[str, "asyncio.Future[bytes]"], compute: Compute) -> None:
        """Find or compute values, and give them to those who wait."""

        def settle(values: Values) -> None:
            for key in values.keys() & waiting.keys():
                del self._under_way[key]
                waiting.pop(key).set_result(values[key])

        claimed: Sequence[str] = ()
        try:
            settle(await self._store.get(list(waiting)))
            while waiting:
                found, claimed = await self._store.claim(list(waiting))
                settle(found)
                if claimed:
                    values = await compute(claimed)
                    settle(values)
                    await self._store.put(values)
                    claimed = ()
                elif not found:
                    await asyncio.sleep(POLL_S)
        except Exception as error:
            for future in waiting.values():
                future.set_exception(error)
                future.exception()  # perhaps nobody waits any more: then asyncio shall not complain
        finally:
            for key, future in waiting.items():
                del self._under_way[key]
                future.cancel()  # does nothing if it is done
            await self._store.release(claimed)
