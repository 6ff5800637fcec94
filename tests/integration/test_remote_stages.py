"""A service whose models all run on other servers: of different protocols, and each with a price of its own."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from fastapi.responses import HTMLResponse, JSONResponse
from httpx_sse import connect_sse

from tests.deployed import deployed
from tests.service import client_at
from tests.upstreams import (
    Upstream,
    anthropic_events,
    breaking,
    embedding_all,
    failing,
    openai_events,
    silent,
    streaming,
    vector,
)
from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.integration.training import index_passages
from workshop.lab.app_server import run_app
from workshop.settings import Placement, Settings

QUESTION = {"query": "What is Ray Serve?"}
SURE, UNSURE = (streaming(*openai_events("A draft.", logprob, 10, 2)) for logprob in (-0.001, -3.0))
ANSWER = streaming(*anthropic_events("It serves", " models.", prompt_tokens=20, completion_tokens=5))
DRAFT_COST, MAIN_COST = 1.0, 10.0


@dataclass(frozen=True)
class Stages:
    """The service, and the servers behind it."""

    client: httpx.Client
    draft: Upstream
    main: Upstream
    embedding: Upstream


@pytest.fixture(scope="module", params=["uvicorn", pytest.param("serve", marks=pytest.mark.ray)])
def running(request, artifact, tmp_path_factory) -> Iterator[Stages]:
    folder = tmp_path_factory.mktemp("service")
    models = JSONResponse({"data": [{"id": "makers/small"}]})
    model = JSONResponse({"type": "model", "id": "claude", "max_input_tokens": 100_000, "max_tokens": 1000})
    with (
        Upstream([SURE], lambda: models).running() as draft,
        Upstream([ANSWER], lambda: model).running() as main,
        Upstream([], silent).running() as letters,
    ):
        letters.answers = [embedding_all(letters)]
        settings = Settings(
            artifact=artifact,
            retriever_artifact=folder / "retriever",
            database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
            placement=Placement.DEPLOYMENT,
            draft_model="makers/small",
            draft_base_url=f"{draft.url}/v1",
            draft_api_key="draft-key",
            draft_cost=DRAFT_COST,
            main_model="claude",
            main_cost=MAIN_COST,
            llm_base_url=main.url,
            llm_protocol="anthropic",
            llm_api_key="main-key",
            embedding_model="makers/letters",
            embedding_base_url=f"{letters.url}/v1",
            embedding_api_key="embedding-key",
        )
        index_passages(settings, settings.retriever_artifact)
        if request.param == "uvicorn":
            with run_app(create_app(build_services(settings), settings)) as server, client_at(server.url) as client:
                yield Stages(client, draft, main, letters)
        else:
            url = request.getfixturevalue("cluster")
            with deployed(settings), client_at(url) as client:
                yield Stages(client, draft, main, letters)


@pytest.fixture
def stages(running) -> Stages:
    """With answers as usual, and nothing asked yet."""
    running.draft.answers, running.main.answers = [SURE], [ANSWER]
    running.embedding.answers = [embedding_all(running.embedding)]
    for server in (running.draft, running.main, running.embedding):
        server.asked.clear()
        server.gone.clear()
    return running


def test_a_draft_that_is_sure_costs_what_its_tokens_cost(stages):
    answer = stages.client.post("/v1/query", json=QUESTION).json()
    assert (answer["content"], answer["model_used"], answer["draft_accepted"]) == ("A draft.", "small", True)
    assert answer["cost"] == pytest.approx(12 * DRAFT_COST / 1000)
    assert not stages.main.asked


def test_after_a_draft_that_is_unsure_both_are_paid(stages):
    stages.draft.answers = [UNSURE]
    answer = stages.client.post("/v1/query", json=QUESTION).json()
    assert (answer["content"], answer["model_used"], answer["cascaded"]) == ("It serves models.", "claude", True)
    assert answer["cost"] == pytest.approx((12 * DRAFT_COST + 25 * MAIN_COST) / 1000)


def test_each_server_gets_its_own_key_and_the_name_of_its_model(stages):
    stages.draft.answers = [UNSURE]
    stages.client.post("/v1/query", json=QUESTION)
    assert stages.draft.headers[-1]["Authorization"] == "Bearer draft-key"
    assert stages.main.headers[-1]["x-api-key"] == "main-key"
    assert [server.asked[-1]["model"] for server in (stages.draft, stages.main)] == ["makers/small", "claude"]


def test_a_stream_switches_from_one_server_to_the_other(stages):
    stages.draft.answers = [UNSURE]
    with connect_sse(stages.client, "GET", "/v1/query/stream", params=QUESTION) as source:
        events = [(event.event, event.json().get("text")) for event in source.iter_sse()]
    chunks = [("chunk", "It serves"), ("chunk", " models.")]
    assert events == [("chunk", "A draft."), ("switch", None), *chunks, ("complete", None)]


def test_a_client_that_leaves_stops_the_server(stages):
    start, piece, *_ = anthropic_events("It serves", prompt_tokens=20, completion_tokens=5)
    stages.main.answers = [stages.main.holding(start, piece)]
    with connect_sse(stages.client, "GET", "/v1/query/stream", params=QUESTION | {"force_direct": True}) as source:
        assert next(source.iter_sse()).json()["text"] == "It serves"
    assert stages.main.gone.wait(10)


def test_a_server_that_is_overloaded_is_a_503_with_its_own_pause(stages):
    stages.main.answers = [failing(529, {"Retry-After": "7"}, type="overloaded_error")]
    answer = stages.client.post("/v1/query", json=QUESTION | {"force_direct": True})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")


def test_the_other_routes_ask_the_main_models_server(stages):
    body = {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]}
    completion = stages.client.post("/v1/chat/completions", json=body | {"max_tokens": 10**6}).json()
    assert completion["choices"][0]["message"]["content"] == "It serves models."
    assert completion["usage"] == {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    assert stages.main.asked[-1]["system"] == "Be short."
    assert stages.main.asked[-1]["max_tokens"] == 1000  # what the server allows
    sources = stages.client.post("/v1/rag/query", json=QUESTION).json()
    assert sources["answer"] == "It serves models."


def test_a_text_of_a_hundred_thousand_characters_reaches_a_model_that_has_room_for_it(stages):
    text = "a word of я " * 8333 + "end."
    body = {"messages": [{"role": "user", "content": text}]}
    assert stages.client.post("/v1/chat/completions", json=body).status_code == 200
    assert stages.main.asked[-1]["messages"] == body["messages"]
    assert len(text) == 100_000


def test_the_service_is_ready_and_knows_both_models(stages):
    assert stages.client.get("/readiness").json()["status"] == "ready"
    models = {model["id"]: model["context_length"] for model in stages.client.get("/v1/models").json()["data"]}
    assert models == {"small": 8192, "claude": 100_000, "letters": None}


def test_texts_are_embedded_on_a_server_each_of_them_once(stages):
    body = {"model": "letters", "input": ["aab", "b", "b"]}
    for _ in range(2):
        vectors = [item["embedding"] for item in stages.client.post("/v1/embeddings", json=body).json()["data"]]
        np.testing.assert_allclose(vectors[1:], [vector("b")] * 2)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert [asked["input"] for asked in stages.embedding.asked] == [["aab", "b"]]
    assert stages.embedding.headers[-1]["Authorization"] == "Bearer embedding-key"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/embeddings", {"model": "letters", "input": "new"}), ("/v1/rag/query", {"query": "Is it new?"})],
)
def test_an_embedding_server_that_is_overloaded_is_a_503_with_its_own_pause(stages, path, body):
    stages.embedding.answers = [failing(429, {"Retry-After": "7"})]
    answer = stages.client.post(path, json=body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")


FAILURES = {
    "too many requests": (failing(429, {"Retry-After": "60"}), 503, "60"),
    "our key is wrong": (failing(401, message="main-key is no key"), 500, None),
    "an error": (failing(500, {"Retry-After": "60"}), 503, "60"),
    "a page": (lambda: HTMLResponse("<h1>Welcome, main-key</h1>"), 503, "1"),
    "an error page": (lambda: HTMLResponse("<h1>Sorry, main-key</h1>", 418), 500, None),
    "half an event": (streaming(b"event: message_start\ndata: {half\n\n"), 500, None),
    "breaking": (breaking(*anthropic_events("It", prompt_tokens=20, completion_tokens=5)[:2]), 503, "1"),
}


@pytest.mark.parametrize(("answer", "status", "retry_after"), FAILURES.values(), ids=FAILURES)
def test_a_caller_learns_of_a_servers_failure_and_nothing_about_the_key(stages, caplog, answer, status, retry_after):
    caplog.set_level(logging.DEBUG)
    stages.main.answers = [answer]
    asked = QUESTION | {"force_direct": True}
    whole = stages.client.post("/v1/query", json=asked)
    assert (whole.status_code, whole.headers.get("Retry-After")) == (status, retry_after)
    streamed = stages.client.get("/v1/query/stream", params=asked)
    assert f'"status":{status}' in streamed.text  # in the last event, or in place of a stream
    assert "main-key" not in whole.text + streamed.text + caplog.text
