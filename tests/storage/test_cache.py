"""Values are computed once for all who ask for them, here or in Redis, and Redis may fail."""

import asyncio
import logging
import signal
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from workshop.storage import cache as module
from workshop.storage.cache import Cache, MemoryStore, RedisStore, Values

pytestmark = pytest.mark.anyio

MB = 2**20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Computer:
    """Computes each key's value from its name, once ``go`` is set. Records the keys of each call."""

    calls: list[list[str]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.go.set()

    async def __call__(self, keys: Sequence[str]) -> Values:
        self.calls.append(list(keys))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return {key: key.encode() for key in keys}

    async def until_called(self, times: int = 1) -> None:
        async with asyncio.timeout(60):
            while len(self.calls) < times:
                await asyncio.sleep(0.01)


@pytest.fixture
async def compute() -> Computer:
    return Computer()


@pytest.fixture
def redis_url(redis) -> str:
    url, _ = redis
    return url


@pytest.fixture
async def replicas(redis_url) -> AsyncIterator[Callable[[], Cache]]:
    """Makes caches that share a Redis, as those of several processes do."""
    async with AsyncExitStack() as stack:

        def replica() -> Cache:
            cache = Cache.at(redis_url, MB)
            stack.push_async_callback(cache.aclose)
            return cache

        yield replica


@pytest.fixture(params=["memory", "redis"])
async def cache(request) -> AsyncIterator[Cache]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    async with aclosing(Cache.at(url, MB)) as cache:
        yield cache


async def test_only_values_that_are_not_there_are_computed(cache, compute):
    assert await cache.get(["a", "b"], compute) == {"a": b"a", "b": b"b"}
    assert await cache.get(["c", "b", "c", "a"], compute) == {"a": b"a", "b": b"b", "c": b"c"}
    assert compute.calls == [["a", "b"], ["c"]]


async def test_what_many_ask_for_at_once_is_computed_once_even_if_the_first_leaves(cache, compute):
    compute.go.clear()
    calls = [asyncio.create_task(cache.get(["a"], compute)) for _ in range(50)]
    await compute.until_called()
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    compute.go.set()
    assert await asyncio.gather(*calls[1:]) == [{"a": b"a"}] * 49
    assert compute.calls == [["a"]]


async def test_replicas_compute_for_each_other(replicas, compute):
    compute.go.clear()
    caches = [replicas() for _ in range(5)]
    calls = [asyncio.create_task(cache.get(["a"], compute)) for cache in caches for _ in range(10)]
    await compute.until_called()
    compute.go.set()
    assert await asyncio.gather(*calls) == [{"a": b"a"}] * 50
    assert await replicas().get(["a"], compute) == {"a": b"a"}
    assert compute.calls == [["a"]]


async def test_replicas_that_ask_for_overlapping_values_share_the_work(replicas, compute):
    compute.go.clear()
    first = asyncio.create_task(replicas().get(["a", "b"], compute))
    await compute.until_called()
    second = asyncio.create_task(replicas().get(["b", "c"], compute))
    await compute.until_called(2)
    compute.go.set()
    assert await first == {"a": b"a", "b": b"b"}
    assert await second == {"b": b"b", "c": b"c"}
    assert compute.calls == [["a", "b"], ["c"]]


async def test_a_value_that_is_there_does_not_wait_for_others(cache, compute):
    await cache.get(["a"], compute)
    compute.go.clear()
    slow = asyncio.create_task(cache.get(["a", "b"], compute))
    await compute.until_called(2)
    assert await cache.get(["a"], compute) == {"a": b"a"}
    assert not slow.done()
    compute.go.set()
    await slow


async def test_an_error_reaches_all_who_wait_and_is_not_kept(cache, compute):
    compute.error = RuntimeError("out of memory")
    answers = await asyncio.gather(*(cache.get(["a"], compute) for _ in range(5)), return_exceptions=True)
    assert {str(answer) for answer in answers} == {"out of memory"}
    assert compute.calls == [["a"]]
    compute.error = None
    assert await cache.get(["a"], compute) == {"a": b"a"}


async def test_after_an_error_another_replica_computes_at_once(replicas, compute, monkeypatch):
    monkeypatch.setattr(module, "CLAIM_S", 600.0)
    compute.go.clear()
    compute.error = RuntimeError("out of memory")
    failing = asyncio.create_task(replicas().get(["a"], compute))
    await compute.until_called()
    works = Computer()
    waiting = asyncio.create_task(replicas().get(["a"], works))
    compute.go.set()
    with pytest.raises(RuntimeError):
        await failing
    assert await waiting == {"a": b"a"}


async def test_the_claim_of_a_process_that_has_died_expires(replicas, redis_url, compute, monkeypatch):
    monkeypatch.setattr(module, "CLAIM_S", 0.2)
    await RedisStore(redis_url).claim(["a"])
    assert await replicas().get(["a"], compute) == {"a": b"a"}


async def test_two_who_hold_the_same_claim_both_compute_and_both_answer(replicas, compute, monkeypatch):
    monkeypatch.setattr(module, "CLAIM_S", 0.05)
    compute.go.clear()
    calls = [asyncio.create_task(replicas().get(["a"], compute)) for _ in range(2)]
    await compute.until_called(2)
    compute.go.set()
    assert await asyncio.gather(*calls) == [{"a": b"a"}] * 2


async def test_a_closed_cache_ends_what_is_under_way_and_others_may_compute_it(redis_url, replicas, compute):
    compute.go.clear()
    cache = Cache.at(redis_url, MB)
    call = asyncio.create_task(cache.get(["a"], compute))
    await compute.until_called()
    await cache.aclose()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with Redis.from_url(redis_url) as redis:
        assert await redis.dbsize() == 0


# ------------------------------------------------------------------------------------------------------------ limits


async def test_in_memory_what_was_used_last_is_kept(compute):
    cache = Cache(MemoryStore(3 * (module.ENTRY_BYTES + 1)))
    await cache.get(["a", "b", "c"], compute)
    await cache.get(["a"], compute)
    await cache.get(["d"], compute)
    await cache.get(["a", "c", "d"], compute)
    assert compute.calls == [["a", "b", "c"], ["d"]]
    await cache.get(["b"], compute)
    assert compute.calls[-1] == ["b"]


@pytest.mark.parametrize(("size", "count"), [(16, 20_000), (3072, 10_000), (300_000, 100)])
async def test_the_memory_has_a_limit(size, count):
    store = MemoryStore(4 * MB)
    tracemalloc.start()
    try:
        for number in range(count):
            await store.put({f"prediction:{number:064}": bytes(size)})
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert MB < used < 4.5 * MB


async def test_a_value_that_is_too_large_is_computed_each_time(compute):
    cache = Cache(MemoryStore(100))
    for _ in range(2):
        assert await cache.get(["a"], compute) == {"a": b"a"}
    assert compute.calls == [["a"], ["a"]]


async def test_redis_takes_a_huge_value(cache):
    huge = bytes(20 * MB)

    async def compute(keys: Sequence[str]) -> Values:
        return dict.fromkeys(keys, huge)

    for _ in range(2):
        assert await cache.get(["a"], compute) == {"a": huge}


async def test_a_value_expires_in_redis(redis_url, compute):
    async with aclosing(Cache(RedisStore(redis_url, expire_s=0.2))) as cache, Redis.from_url(redis_url) as redis:
        await cache.get(["a"], compute)
        async with asyncio.timeout(60):
            while await redis.dbsize():
                await asyncio.sleep(0.01)
        await cache.get(["a"], compute)
    assert compute.calls == [["a"], ["a"]]


# ------------------------------------------------------------------------------------------------------ Redis fails


async def test_a_redis_that_has_died_does_no_harm_and_is_logged_once(redis, replicas, compute, caplog):
    _, process = redis
    cache = replicas()
    await cache.get(["a"], compute)
    process.kill()
    process.wait()
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            assert await cache.get(["a", str(number)], compute) == {"a": b"a", str(number): str(number).encode()}
    assert len(compute.calls) == 51
    [record] = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "workshop.storage.cache")


async def test_one_that_dies_while_a_value_is_computed_does_no_harm(redis, replicas, compute):
    _, process = redis
    compute.go.clear()
    calls = [asyncio.create_task(replicas().get(["a"], compute)) for _ in range(2)]
    await compute.until_called()
    process.kill()
    process.wait()
    await compute.until_called(2)  # the one who has waited computes for itself
    compute.go.set()
    assert await asyncio.gather(*calls) == [{"a": b"a"}] * 2


async def test_one_that_hangs_is_waited_for_once(redis, replicas, compute, monkeypatch, caplog):
    monkeypatch.setattr(module, "REDIS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(module, "REDIS_PAUSE_S", 600.0)
    _, process = redis
    cache = replicas()
    await cache.get(["a"], compute)
    process.send_signal(signal.SIGSTOP)
    try:
        loop = asyncio.get_running_loop()
        with caplog.at_level(logging.WARNING):
            start = loop.time()
            await asyncio.gather(*(cache.get([f"first {number}"], compute) for number in range(100)))
            waited = loop.time() - start
            start = loop.time()
            for number in range(100):
                await cache.get([f"later {number}"], compute)
            not_waited = loop.time() - start
    finally:
        process.send_signal(signal.SIGCONT)
    assert len(caplog.records) == 1
    assert not_waited < waited  # a hundred pauses would be a hundred times as long


async def test_a_redis_that_comes_back_is_used_again(redis_server, redis, replicas, compute, monkeypatch):
    monkeypatch.setattr(module, "REDIS_PAUSE_S", 0.0)
    url, process = redis
    cache = replicas()
    await cache.get(["a"], compute)
    process.terminate()
    process.wait()
    await cache.get(["a"], compute)
    again = await asyncio.create_subprocess_exec(
        redis_server, "--port", url.rpartition(":")[2], "--save", "", stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while True:
                computed = len(compute.calls)
                await cache.get(["a"], compute)
                if len(compute.calls) == computed:
                    break
                await asyncio.sleep(0.01)
    finally:
        again.terminate()
        await again.wait()


async def test_a_redis_that_is_full_does_no_harm(redis_url, replicas, compute):
    async with Redis.from_url(redis_url) as redis:
        await redis.config_set("maxmemory", 1)
    for _ in range(2):
        assert await replicas().get(["a"], compute) == {"a": b"a"}
    assert compute.calls == [["a"], ["a"]]


async def test_a_redis_that_was_never_there_does_no_harm(compute):
    async with aclosing(Cache.at("redis://127.0.0.1:9", MB)) as cache:
        assert await cache.get(["a"], compute) == {"a": b"a"}
