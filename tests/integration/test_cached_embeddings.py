"""A text is embedded once, wherever vectors are kept."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest

from tests.language import StandInRetriever
from workshop.integration.cached_embeddings import MAX_TEXTS, CachedEmbeddings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["here", "redis"])
async def places(request) -> AsyncIterator[tuple[StandInRetriever, CachedEmbeddings]]:
    url, _ = request.getfixturevalue("redis") if request.param == "redis" else (None, None)
    inner = StandInRetriever()
    async with aclosing(CachedEmbeddings(inner, url)) as cached:
        yield inner, cached


async def test_only_new_texts_are_embedded_and_the_order_stays(places):
    inner, cached = places
    await cached.embed(["a", "bb"])
    vectors = await cached.embed(["ccc", "bb", "ccc", "a"])
    np.testing.assert_array_equal(vectors, [[1, 3], [1, 2], [1, 3], [1, 1]])
    assert inner.embedded == ["a", "bb", "ccc"]


async def test_vectors_of_another_version_are_not_taken(places):
    inner, cached = places
    await cached.embed(["a"])
    inner.version = "2"
    await cached.embed(["a"])
    assert inner.embedded == ["a", "a"]


async def test_search_and_card_are_those_of_the_retriever(places):
    inner, cached = places
    assert await cached.card() == await inner.card()
    assert await cached.search("a", 1) == await inner.search("a", 1)


async def test_replicas_with_a_redis_embed_for_each_other(redis):
    url, _ = redis
    one, two = StandInRetriever(), StandInRetriever()
    async with aclosing(CachedEmbeddings(one, url)) as first, aclosing(CachedEmbeddings(two, url)) as second:
        np.testing.assert_array_equal(await first.embed(["a"]), await second.embed(["a"]))
    assert (one.embedded, two.embedded) == (["a"], [])


async def test_without_an_answer_of_redis_every_text_is_embedded(redis):
    url, process = redis
    inner = StandInRetriever()
    async with aclosing(CachedEmbeddings(inner, url)) as cached:
        await cached.embed(["a"])
        process.terminate()
        process.wait()
        np.testing.assert_array_equal(await cached.embed(["a", "bb"]), [[1, 1], [1, 2]])
    assert inner.embedded == ["a", "a", "bb"]


async def test_a_redis_that_was_never_there_does_no_harm():
    inner = StandInRetriever()
    async with aclosing(CachedEmbeddings(inner, "redis://127.0.0.1:9")) as cached:
        np.testing.assert_array_equal(await cached.embed(["a"]), [[1, 1]])


async def test_what_is_kept_here_has_a_limit():
    inner = StandInRetriever()
    async with aclosing(CachedEmbeddings(inner, None)) as cached:
        await cached.embed([str(number) for number in range(MAX_TEXTS + 1)])
        await cached.embed([str(MAX_TEXTS), "0"])
    assert inner.embedded[MAX_TEXTS + 1 :] == ["0"]
