"""An embedding on a server with OpenAI's protocol: in the index, in the service, and when the server fails."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import Response
from fastapi.responses import HTMLResponse, JSONResponse

from tests.retriever import finish, search
from tests.upstreams import Answer, Upstream, embedding_all, failing, listed, silent, vector
from workshop import corpus
from workshop.contracts.errors import (
    DeadlineExceededError,
    ModelFailedError,
    OverloadedError,
    PromptTooLongError,
    StartError,
    UnavailableError,
)
from workshop.integration.preflight import check_models
from workshop.integration.retriever import make_embedding
from workshop.integration.training import index_passages
from workshop.integration.upstream.openai import MAX_TEXTS, OpenAIEmbedding
from workshop.machine import free_port
from workshop.models.retriever import CorpusRetriever
from workshop.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = "key-SECRET"
ENTRY = corpus.entries()[3]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream([], silent).running() as upstream:
        upstream.answers = [embedding_all(upstream)]
        yield upstream


def connect(upstream: Upstream, **options: Any) -> OpenAIEmbedding:
    options = {"timeout_s": 10.0, "max_retries": 0} | options
    return OpenAIEmbedding(f"{upstream.url}/v1", "makers/letters", KEY, **options)


async def test_texts_become_vectors_of_length_one_in_their_order(upstream):
    async with aclosing(connect(upstream)) as embedding:
        vectors = await embedding.project(["a", "bb", "a b"])
    assert (vectors.shape, vectors.dtype) == ((3, 64), np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    np.testing.assert_array_equal(vectors[0], vector("a"))
    np.testing.assert_array_equal(vectors[1], vector("b"))


async def test_the_server_gets_a_limited_number_of_texts_at_a_time_and_our_key(upstream):
    texts = [f"text {number}" for number in range(2 * MAX_TEXTS + 1)]
    async with aclosing(connect(upstream)) as embedding:
        assert len(await embedding.project(texts)) == len(texts)
    assert [asked.pop("input") for asked in upstream.asked] == [texts[:32], texts[32:64], texts[64:]]
    assert upstream.asked == [{"model": "makers/letters", "encoding_format": "float"}] * 3
    assert upstream.paths == ["/v1/embeddings"] * 3
    assert {headers["Authorization"] for headers in upstream.headers} == {f"Bearer {KEY}"}


async def test_a_vector_of_zeros_stays_one(upstream):
    upstream.answers = [lambda: listed([0.0, 0.0])]
    async with aclosing(connect(upstream)) as embedding:
        np.testing.assert_array_equal(await embedding.project(["a"]), [[0.0, 0.0]])


async def test_a_transient_failure_is_retried(upstream):
    upstream.answers = [failing(503), embedding_all(upstream)]
    async with aclosing(connect(upstream, max_retries=1)) as embedding:
        assert len(await embedding.project(["a"])) == 1


def data(*items: object) -> Answer:
    return lambda: JSONResponse({"data": items})


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (failing(401), ModelFailedError, "check the key"),
        (failing(404), ModelFailedError, "check the model and the URL"),
        (failing(429, {"Retry-After": "60"}), OverloadedError, "overloaded"),
        (failing(500), UnavailableError, "has failed"),
        (failing(400, message="This model's maximum context length is 8192 tokens"), PromptTooLongError, "8192"),
        (lambda: HTMLResponse("<h1>Welcome</h1>"), ModelFailedError, "protocol"),
        (data(), ModelFailedError, "protocol"),
        (data({"index": 0, "embedding": [1.0]}), ModelFailedError, "protocol"),
        (data(*[{"index": 0, "embedding": [1.0]}] * 2), ModelFailedError, "protocol"),
        (data({"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}), ModelFailedError, "protocol"),
        (data({"index": 0, "embedding": []}, {"index": 1, "embedding": []}), ModelFailedError, "protocol"),
        (data({"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}), ModelFailedError, "protocol"),
        (data({"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": ["NaN"]}), ModelFailedError, "protocol"),
        (data({"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": None}), ModelFailedError, "protocol"),
        (lambda: Response(b'{"data": [', media_type="application/json"), ModelFailedError, "protocol"),
    ],
)
async def test_each_failure_has_its_error(upstream, answer, kind, message):
    upstream.answers = [answer]
    async with aclosing(connect(upstream)) as embedding:
        with pytest.raises(kind, match=message) as caught:
            await embedding.project(["a", "b"])
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)


async def test_batches_with_vectors_of_different_lengths_are_an_error(upstream):
    upstream.answers = [lambda: listed(*[[1.0]] * MAX_TEXTS), lambda: listed([1.0, 2.0])]
    async with aclosing(connect(upstream)) as embedding:
        with pytest.raises(ModelFailedError, match="protocol"):
            await embedding.project(["a"] * (MAX_TEXTS + 1))


@pytest.mark.parametrize("comments", [False, True], ids=["silent", "a little now and then"])
async def test_a_server_that_does_not_answer_is_a_deadline_error_and_is_disconnected(upstream, comments):
    upstream.answers = [upstream.holding(comments=comments)]
    async with aclosing(connect(upstream, timeout_s=0.3)) as embedding:
        with pytest.raises(DeadlineExceededError):
            await embedding.project(["a"])
        assert await upstream.is_gone()


async def test_a_caller_that_leaves_closes_the_connection(upstream):
    upstream.answers = [upstream.holding()]
    async with aclosing(connect(upstream)) as embedding:
        call = asyncio.create_task(embedding.project(["a"]))
        await asyncio.to_thread(upstream.at_work.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await upstream.is_gone()


@pytest.fixture
def settings(upstream, artifact, tmp_path) -> Settings:
    return Settings(
        artifact=artifact,
        retriever_artifact=tmp_path / "retriever",
        database_url=f"sqlite+aiosqlite:///{tmp_path}/service.sqlite",
        embedding_model="makers/letters",
        embedding_base_url=f"{upstream.url}/v1",
        embedding_api_key=KEY,
        draft_base_url=f"{upstream.url}/v1",  # so that no model has to be loaded
        draft_model="draft",
        llm_base_url=f"{upstream.url}/v1",
        rag_threshold=0.0,
    )


def test_the_index_is_made_with_it_and_finds_what_it_should(settings):
    line = index_passages(settings, settings.retriever_artifact)
    assert line.startswith("letters: ")
    index = CorpusRetriever.load(settings.retriever_artifact, make_embedding(settings))
    assert (index.card.embedding, index.card.dimensions) == ("letters", 64)
    [hit] = search(index, ENTRY.answer, 1)
    assert (hit.passage.text, hit.score) == (ENTRY.answer, pytest.approx(1, abs=1e-5))


def test_vectors_of_another_length_than_the_indexs_are_an_error_with_a_remedy(settings, upstream):
    index_passages(settings, settings.retriever_artifact)
    index = CorpusRetriever.load(settings.retriever_artifact, make_embedding(settings))
    upstream.answers = [embedding_all(upstream, dimensions=32)]
    with pytest.raises(ModelFailedError, match="32 numbers, and the index has 64; run: python -m workshop train"):
        finish(index.project(["a"]))


def test_an_index_of_another_embedding_stops_the_start(settings, retriever_artifact):
    other = settings.model_copy(update={"retriever_artifact": retriever_artifact})
    with pytest.raises(StartError, match="made with tfidf-svd, not letters; run: python -m workshop train"):
        check_models(other)


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "is not there"])
def test_without_the_server_nothing_is_indexed_and_one_line_says_why(settings, upstream, fails, tmp_path):
    upstream.answers = [failing(401)]
    if not fails:
        url = f"http://127.0.0.1:{free_port()}/v1"
        settings = settings.model_copy(update={"embedding_base_url": url})
    with pytest.raises(StartError, match=r"cannot embed the passages: .* letters") as caught:
        index_passages(settings, settings.retriever_artifact)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path(tmp_path / "retriever").exists()
