"""Each text is embedded once, wherever vectors are cached, and ``embed`` and ``search`` share them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.retriever import HELD_OUT, built, embed, search
from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.models.cached_retriever import CachedRetriever
from workshop.storage.cache import Cache

pytestmark = pytest.mark.anyio

MAX_BYTES = 2**20
QUESTION, OTHER, THIRD = (question for question, _ in HELD_OUT[:3])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Watched:
    """The real index, which records the texts that it had to embed. It waits for ``go``."""

    card: RetrieverCard = field(default_factory=lambda: built().card)
    embedded: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.go.set()

    async def project(self, texts: Sequence[str]) -> FloatMatrix:
        self.embedded += texts
        await asyncio.to_thread(self.go.wait)
        if self.error is not None:
            raise self.error
        return await built().project(texts)

    def nearest(self, projection: FloatMatrix, k: int) -> list[Hit]:
        return built().nearest(projection, k)

    async def aclose(self) -> None:
        pass


@pytest.fixture(params=["memory", "redis"])
async def places(request) -> AsyncIterator[tuple[Watched, CachedRetriever]]:
    url, _ = request.getfixturevalue("redis") if request.param == "redis" else (None, None)
    index = Watched()
    async with caching(index, url) as cached:
        yield index, cached


@asynccontextmanager
async def caching(index: Watched, url: str | None) -> AsyncIterator[CachedRetriever]:
    async with aclosing(Cache.at(url, MAX_BYTES)) as cache, aclosing(CachedRetriever(index, cache)) as cached:
        yield cached


async def test_only_new_texts_are_embedded_and_the_order_stays(places):
    index, cached = places
    await cached.embed([QUESTION, OTHER])
    texts = [THIRD, OTHER, THIRD, QUESTION]
    np.testing.assert_allclose(await cached.embed(texts), embed(built(), texts), rtol=0, atol=1e-12)
    assert index.embedded == [QUESTION, OTHER, THIRD]


async def test_a_search_uses_the_same_vectors_and_finds_the_same(places):
    index, cached = places
    for _ in range(2):
        assert await cached.search(QUESTION, 3) == search(built(), QUESTION, 3)
    await cached.embed([QUESTION])
    assert index.embedded == [QUESTION]


async def test_a_text_without_a_known_word_is_all_zeros_and_finds_nothing(places):
    _, cached = places
    for _ in range(2):
        assert not (await cached.embed([""])).any()
        assert await cached.search("", 3) == []


async def test_the_card_is_that_of_the_index(places):
    index, cached = places
    assert await cached.card() == index.card


async def test_a_text_that_is_asked_for_many_times_at_once_is_embedded_once(places):
    index, cached = places
    index.go.clear()
    calls = [asyncio.create_task(cached.embed([QUESTION])) for _ in range(25)]
    calls += [asyncio.create_task(cached.search(QUESTION, 3)) for _ in range(24)]
    calls.append(asyncio.create_task(cached.embed([QUESTION, OTHER])))
    await until_embedded(index, 2)
    calls[0].cancel()  # the first one leaves: the others do not notice
    await asyncio.wait(calls[:1])
    index.go.set()
    answers = await asyncio.gather(*calls[1:])
    np.testing.assert_allclose(answers[-1], embed(built(), [QUESTION, OTHER]), rtol=0, atol=1e-12)
    assert sorted(index.embedded) == sorted([QUESTION, OTHER])


async def test_an_error_reaches_all_who_wait_and_is_not_kept(places):
    index, cached = places
    index.error = RuntimeError("out of memory")
    answers = await asyncio.gather(*(cached.embed([QUESTION]) for _ in range(5)), return_exceptions=True)
    assert {str(answer) for answer in answers} == {"out of memory"}
    index.error = None
    assert len(await cached.embed([QUESTION])) == 1


async def until_embedded(index: Watched, n_texts: int) -> None:
    async with asyncio.timeout(20):
        while len(index.embedded) < n_texts:
            await asyncio.sleep(0.01)


async def test_another_index_does_not_get_the_vectors_of_this_one(redis):
    url, _ = redis
    one, other = Watched(), Watched(replace(built().card, version="another"))
    async with caching(one, url) as first, caching(other, url) as second:
        await first.embed([QUESTION])
        await second.embed([QUESTION])
    assert (one.embedded, other.embedded) == ([QUESTION], [QUESTION])


async def test_replicas_with_a_redis_embed_for_each_other(redis):
    url, _ = redis
    one, two = Watched(), Watched()
    async with caching(one, url) as first, caching(two, url) as second:
        np.testing.assert_array_equal(await first.embed([QUESTION]), await second.embed([QUESTION]))
    assert (one.embedded, two.embedded) == ([QUESTION], [])


async def test_when_redis_does_not_answer_every_text_is_embedded(redis):
    url, process = redis
    index = Watched()
    async with caching(index, url) as cached:
        await cached.embed([QUESTION])
        process.terminate()
        process.wait()
        assert len(await cached.embed([QUESTION, OTHER])) == 2
    assert index.embedded == [QUESTION, QUESTION, OTHER]


async def test_a_redis_that_was_never_there_does_no_harm():
    async with caching(Watched(), "redis://127.0.0.1:9") as cached:
        assert await cached.search(QUESTION, 3) == search(built(), QUESTION, 3)
