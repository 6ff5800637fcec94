"""Answers from sources over HTTP, with stand-ins behind the contract."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from tests.leaving import leaving
from tests.stand_ins import StandInClassifier, StandInRetriever
from workshop.api.app import create_app
from workshop.contracts.cascade import Cascade
from workshop.contracts.errors import ModelFailedError, OverloadedError
from workshop.contracts.generator import Usage
from workshop.contracts.rag import RagAnswer, RagEvent, RagProgress
from workshop.contracts.retriever import Hit, Passage
from workshop.contracts.services import LanguageServices, Services
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import SqlUsageStore

pytestmark = pytest.mark.slow

HITS = (Hit(Passage("1", "ray_serve", "A replica is a process."), 0.75), Hit(Passage("2", "lesson 09", "Copies."), 0.5))
SURE = RagAnswer("A process.", HITS, "main", Usage(20, 3), sure=True)
UNSURE = RagAnswer("I am not sure.", (), None, Usage(0, 0), sure=False)


@dataclass
class StandInRag:
    """Answers every question in the same way, or raises, or never finishes (None)."""

    outcome: RagAnswer | Exception | None = SURE
    asked: list[tuple[str, int]] = field(default_factory=list)
    at_work: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    async def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        self.asked.append((question, k))
        try:
            if self.outcome is not UNSURE:
                yield RagProgress("main", Usage(20, 2))
            self.at_work.set()
            if self.outcome is None:
                await asyncio.Event().wait()
            if isinstance(self.outcome, Exception):
                raise self.outcome
            yield self.outcome
        finally:
            self.over.set()


def application(rag: StandInRag, file: Path) -> FastAPI:
    url = f"sqlite+aiosqlite:///{file}"
    language = LanguageServices(
        generators={},
        prices={"main": 0.001},
        default_model="main",
        cascade=cast(Cascade, None),
        retriever=StandInRetriever(),
        embedding="stand-in",
        rag=rag,
        usage=SqlUsageStore(url),
    )
    return create_app(Services(StandInClassifier(), SqlCaseStore(url), language), Settings())


@pytest.fixture
def answerer() -> StandInRag:
    return StandInRag()


@pytest.fixture
def client(answerer, tmp_path) -> Iterator[httpx.Client]:
    with (
        run_app(application(answerer, tmp_path / "service.sqlite")) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        yield client


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/rag/query", json=body)


def test_the_answer_comes_with_its_sources(client):
    answer = ask(client, query="What is a replica?")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "answer": "A process.",
        "sources": [
            {"source": "ray_serve", "text": "A replica is a process.", "score": 0.75},
            {"source": "lesson 09", "text": "Copies.", "score": 0.5},
        ],
        "sure": True,
        "model": "main",
    }


def test_an_unsure_answer_has_neither_sources_nor_model(client, answerer):
    answerer.outcome = UNSURE
    assert ask(client, query="How long do I boil an egg?").json() == {
        "answer": "I am not sure.",
        "sources": [],
        "sure": False,
        "model": None,
    }


@pytest.mark.parametrize(
    "body",
    [{"query": "x"}, {"query": "x" * 2000}, {"query": "Où?", "k": 1}, {"query": " {x}\n", "k": 10}],
    ids=["one character", "2000 characters", "one source", "ten sources"],
)
def test_a_question_is_passed_on_unchanged(client, answerer, body):
    assert ask(client, **body).status_code == 200
    assert answerer.asked == [(body["query"], body.get("k", 1))]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": " \t\n\u00a0\u3000"}, "query"),
        ({"query": "x" * 2001}, "query"),
        ({"query": 7}, "query"),
        ({"query": None}, "query"),
        ({"query": "x", "k": 0}, "k"),
        ({"query": "x", "k": 11}, "k"),
        ({"query": "x", "k": "3"}, "k"),
        ({"query": "x", "k": 2.5}, "k"),
        ({"query": "x", "k": True}, "k"),
        ({"query": "x", "limit": 3}, "limit"),
    ],
    ids=str,
)
def test_an_invalid_question_is_reported_and_reaches_no_model(client, answerer, body, field):
    answer = ask(client, **body)
    assert answer.status_code == 422
    assert [detail["field"] for detail in answer.json()["details"]] == [field]
    assert answerer.asked == []


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b'{"query": "x"', "application/json"), (b'{"query": "\\ud800"}', "application/json"), (b"query=x", "text/plain")],
    ids=["malformed", "half a character", "not JSON"],
)
def test_a_body_that_is_not_json_is_a_problem_document(client, answerer, content, content_type):
    answer = client.post("/v1/rag/query", content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert answerer.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(OverloadedError("too much is waiting", 7.0), 503), (ModelFailedError("the model failed"), 500)],
)
def test_an_error_of_the_contract_has_its_status(client, answerer, error, status):
    answerer.outcome = error
    answer = ask(client, query="What is a replica?")
    assert (answer.status_code, answer.json()["error"]) == (status, type(error).__name__)


def records(file: Path) -> list[tuple]:
    with closing(sqlite3.connect(file)) as connection:
        columns = "endpoint, principal, model, prompt_tokens, completion_tokens, cost"
        return connection.execute(f"SELECT {columns} FROM usage").fetchall()


def test_a_client_that_leaves_stops_the_model_and_pays_for_the_tokens_so_far(answerer, tmp_path):
    answerer.outcome = None
    file = tmp_path / "service.sqlite"
    with run_app(application(answerer, file)) as server, httpx.Client(base_url=server.url) as client:
        with leaving(client, "POST", "/v1/rag/query", json={"query": "What is a replica?"}):
            assert answerer.at_work.wait(10)
        assert answerer.over.wait(10)
    assert records(file) == [("/v1/rag/query", "anonymous", "main", 20, 2, pytest.approx(22 * 0.001 / 1000))]


def test_only_answers_from_a_model_are_charged(answerer, tmp_path):
    file = tmp_path / "service.sqlite"
    with run_app(application(answerer, file)) as server:
        for outcome, status in ((SURE, 200), (UNSURE, 200), (ModelFailedError("the model failed"), 500)):
            answerer.outcome = outcome
            body, headers = {"query": "What is a replica?"}, {"Authorization": "Bearer ada"}
            assert httpx.post(f"{server.url}/v1/rag/query", json=body, headers=headers).status_code == status
    assert records(file) == [("/v1/rag/query", "ada", "main", 20, 3, pytest.approx(23 * 0.001 / 1000))]
