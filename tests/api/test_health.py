"""What the service says of its state when a part of it does not answer, and what it still does."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.service import RECORD, concurrently, socket_url, until
from tests.stand_ins import (
    SURE,
    UNSURE,
    StandInClassifier,
    StandInModel,
    database_url,
    draft,
    language_services,
)
from workshop.api import health
from workshop.api.app import create_app
from workshop.contracts.classifier import ModelCard
from workshop.contracts.errors import ModelFailedError, UnavailableError
from workshop.contracts.generator import Chunk, GeneratorCard, Prompt
from workshop.contracts.services import Services
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore

AWAY = UnavailableError("the connection to the language model's server failed", 4.0)


@dataclass
class Part:
    """The card of a part: comes, fails, or does not come until ``go`` is set. Counts how often it was asked for."""

    error: Exception | None = None
    silent: bool = False
    asked: int = 0
    at_once: int = 0
    most_at_once: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    async def answer(self) -> None:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while self.silent and not self.go.is_set():
                await asyncio.sleep(0.01)
            if self.error is not None:
                raise self.error
        finally:
            self.at_once -= 1


class Classifier(StandInClassifier):
    def __init__(self, part: Part) -> None:
        self.part = part

    async def card(self) -> ModelCard:
        await self.part.answer()
        return await super().card()


@dataclass
class Model(StandInModel):
    """With a server that may be away."""

    part: Part = field(default_factory=Part)

    async def card(self) -> GeneratorCard:
        await self.part.answer()
        return await super().card()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        if self.part.error is not None:
            raise self.part.error
        async for chunk in super().stream(prompt):
            yield chunk


class Cases(SqlCaseStore):
    part = Part()

    async def ready(self) -> None:
        await self.part.answer()
        await super().ready()


@dataclass
class Running:
    client: httpx.Client
    classifier: Part
    database: Part
    model: Part

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)


@pytest.fixture
def serve(tmp_path):
    @contextmanager
    def serve(probability: float = SURE, **parts: Part) -> Iterator[Running]:
        parts = {name: parts.get(name, Part()) for name in ("classifier", "database", "model")}
        file = tmp_path / "service.sqlite"
        big = Model("main", ("One", " of", " several"), part=parts["model"])
        cases = Cases(database_url(file))
        cases.part = parts["database"]
        language = language_services(file, draft(probability), big)
        app = create_app(Services(Classifier(parts["classifier"]), cases, language), Settings())
        with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
            yield Running(client, **parts)

    return serve


def test_when_all_parts_answer_it_is_ready_and_healthy(serve):
    with serve() as service:
        assert service.get("/readiness").json() == {"status": "ready", "degraded": []}
        body = service.get("/health").json()
    assert (body["status"], body["model_loaded"], body["missing"], body["degraded"]) == ("healthy", True, [], [])


@pytest.mark.parametrize(
    "error", [AWAY, ModelFailedError("refuses our key"), RuntimeError("a bug")], ids=lambda error: type(error).__name__
)
def test_without_the_main_models_server_it_is_degraded_and_says_so(serve, error):
    with serve() as service:
        service.model.error = error
        answer = service.get("/readiness")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "degraded": ["main"]})
        health = service.get("/health")
        assert (health.status_code, health.json()["status"], health.json()["degraded"]) == (200, "degraded", ["main"])
        assert service.get("/ping").status_code == 200
        assert service.client.post("/v1/predict", json=RECORD).status_code == 200
        service.model.error = None
        assert service.get("/readiness").json()["status"] == "ready"


@pytest.mark.parametrize("part", ["classifier", "database"])
def test_without_a_part_that_it_needs_it_is_not_ready_and_names_it(serve, part):
    with serve() as service:
        getattr(service, part).error = AWAY
        for path in ("/readiness", "/ping"):
            answer = service.get(path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["detail"] == f"{part}: {AWAY}"
        answer = service.get("/health")
        assert answer.status_code == 503
        body = answer.json()
        assert (body["status"], body["missing"], body["model_loaded"]) == ("unhealthy", [part], part != "classifier")
        assert service.get("/liveness").status_code == 200
        getattr(service, part).error = None
        assert service.get("/readiness").status_code == 200


def test_the_database_is_really_asked(serve, tmp_path):
    with serve() as service:
        (tmp_path / "service.sqlite").write_bytes(b"no database " * 1000)
        assert until(lambda: service.get("/readiness"), lambda answer: answer.status_code == 503).json()["detail"] == (
            "database: the database does not answer"
        )


def test_a_part_that_says_nothing_holds_up_no_other(serve, monkeypatch):
    monkeypatch.setattr("workshop.contracts.services.PROBE_TIMEOUT_S", 0.5)
    with serve() as service:
        service.model.silent = True
        assert service.get("/readiness").json() == {"status": "degraded", "degraded": ["main"]}


def test_many_probes_at_once_are_one_check(serve):
    with serve() as service:
        service.model.silent = True
        let_go = threading.Thread(target=lambda: until(lambda: service.model.at_once, bool) and service.model.go.set())
        let_go.start()
        answers = concurrently(lambda _: service.get("/readiness"), range(64), at_once=32)
        let_go.join()
    assert {answer.status_code for answer in answers} == {200}
    assert service.model.most_at_once == 1


def test_a_flood_of_probes_does_not_reach_the_models_server(serve, monkeypatch):
    monkeypatch.setattr(health, "FRESH_S", 3600.0)
    with serve() as service:
        asked = service.model.asked
        for _ in range(100):
            assert service.get("/readiness").status_code == 200
    assert service.model.asked == asked + 1


def test_a_probe_that_leaves_breaks_no_other(serve):
    with serve() as service:
        service.model.silent = True
        with pytest.raises(httpx.TimeoutException):
            service.client.get("/readiness", timeout=0.2)
        service.model.go.set()
        assert service.get("/readiness").json()["status"] == "ready"


def test_it_starts_without_the_main_models_server_and_logs_it(serve, caplog):
    with serve(model=Part(error=AWAY)) as service:
        assert service.get("/readiness").json() == {"status": "degraded", "degraded": ["main"]}
    assert "starting without main" in caplog.text


@pytest.mark.parametrize("part", ["classifier", "database"])
def test_it_does_not_start_without_a_part_that_it_needs(serve, part):
    with pytest.raises(UnavailableError, match="connection"), serve(**{part: Part(error=AWAY)}):
        pass


def test_it_waits_at_its_start_for_a_part_that_is_still_loading(serve, monkeypatch, caplog):
    monkeypatch.setattr("workshop.contracts.services.PROBE_TIMEOUT_S", 0.2)
    loading = Part(silent=True)
    threading.Thread(target=lambda: until(lambda: loading.asked, lambda n: n > 1) and loading.go.set()).start()
    with serve(classifier=loading) as service:
        assert service.get("/readiness").status_code == 200
    assert "waiting for classifier" in caplog.text


QUERY: dict[str, Any] = {"query": "What is a replica?"}


def test_without_its_main_model_a_cascade_gives_the_drafts_that_are_good_enough(serve):
    with serve(SURE) as service:
        service.model.error = AWAY
        answer = service.client.post("/v1/query", json=QUERY)
        assert (answer.status_code, answer.json()["draft_accepted"]) == (200, True)
        answer = service.client.post("/v1/query", json=QUERY | {"force_direct": True})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")


def test_without_its_main_model_a_cascade_has_no_answer_where_the_draft_is_not_good_enough(serve):
    with serve(UNSURE) as service:
        service.model.error = AWAY
        answer = service.client.post("/v1/query", json=QUERY)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")
        assert answer.json()["error"] == "UnavailableError"


def test_without_its_main_model_the_list_of_models_and_the_chat_offer_what_is_left(serve):
    with serve() as service:
        service.model.error = AWAY
        lengths = {entry["id"]: entry["context_length"] for entry in service.get("/v1/models").json()["data"]}
        assert lengths == {"draft": 1024, "main": None, "stand-in": None}
        with connect(socket_url(service.client)) as socket:
            assert [model["name"] for model in json.loads(socket.recv(10))["models"]] == ["draft"]
            socket.send(json.dumps({"type": "ask", "id": "1", "content": "Is it so?"}))
            assert json.loads(socket.recv(10))["error"] == "UnavailableError"
            socket.send(json.dumps({"type": "ask", "id": "2", "content": "Is it so?", "model": "draft"}))
            assert json.loads(socket.recv(10))["type"] == "text"
            while json.loads(socket.recv(10))["type"] != "done":
                pass
            service.model.error = None
            socket.send(json.dumps({"type": "reset"}))
            assert [model["name"] for model in json.loads(socket.recv(10))["models"]] == ["draft", "main"]
