"""Health checks when a part of the service does not answer, and the requests that still work."""

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

DOWN = UnavailableError("the connection to the language model's server failed", 4.0)


@dataclass
class Part:
    """Controls a part's health probe: it succeeds, fails, or waits until ``go`` is set. Counts the calls."""

    error: Exception | None = None
    silent: bool = False
    calls: int = 0
    concurrent: int = 0
    max_concurrent: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    async def answer(self) -> None:
        self.calls += 1
        self.concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)
        try:
            while self.silent and not self.go.is_set():
                await asyncio.sleep(0.01)
            if self.error is not None:
                raise self.error
        finally:
            self.concurrent -= 1


class Classifier(StandInClassifier):
    def __init__(self, part: Part) -> None:
        self.part = part

    async def card(self) -> ModelCard:
        await self.part.answer()
        return await super().card()


@dataclass
class Model(StandInModel):
    """A model on a server that may be down."""

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


def test_it_is_ready_and_healthy_when_all_parts_answer(serve):
    with serve() as service:
        assert service.get("/readiness").json() == {"status": "ready", "degraded": []}
        body = service.get("/health").json()
    assert (body["status"], body["model_loaded"], body["missing"], body["degraded"]) == ("healthy", True, [], [])
    assert body["agent_initialized"] is True


@pytest.mark.parametrize(
    "error", [DOWN, ModelFailedError("refuses our key"), RuntimeError("a bug")], ids=lambda error: type(error).__name__
)
def test_it_is_degraded_without_the_main_models_server(serve, error):
    with serve() as service:
        service.model.error = error
        answer = service.get("/readiness")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "degraded": ["main"]})
        health = service.get("/health")
        assert (health.status_code, health.json()["status"], health.json()["degraded"]) == (200, "degraded", ["main"])
        assert health.json()["agent_initialized"] is False
        assert service.get("/ping").status_code == 200
        assert service.client.post("/v1/predict", json=RECORD).status_code == 200
        service.model.error = None
        assert service.get("/readiness").json()["status"] == "ready"


@pytest.mark.parametrize("part", ["classifier", "database"])
def test_it_is_not_ready_without_a_required_part_and_names_it(serve, part):
    with serve() as service:
        getattr(service, part).error = DOWN
        for path in ("/readiness", "/ping"):
            answer = service.get(path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json()["detail"] == f"{part}: {DOWN}"
        answer = service.get("/health")
        assert answer.status_code == 503
        body = answer.json()
        assert (body["status"], body["missing"], body["model_loaded"]) == ("unhealthy", [part], part != "classifier")
        assert service.get("/liveness").status_code == 200
        getattr(service, part).error = None
        assert service.get("/readiness").status_code == 200


def test_readiness_queries_the_database(serve, tmp_path):
    with serve() as service:
        (tmp_path / "service.sqlite").write_bytes(b"no database " * 1000)
        assert until(lambda: service.get("/readiness"), lambda answer: answer.status_code == 503).json()["detail"] == (
            "database: the database does not answer"
        )


def test_a_silent_part_does_not_delay_the_others(serve, monkeypatch):
    monkeypatch.setattr("workshop.contracts.services.PROBE_TIMEOUT_S", 0.5)
    with serve() as service:
        service.model.silent = True
        assert service.get("/readiness").json() == {"status": "degraded", "degraded": ["main"]}


def test_concurrent_probes_share_one_check(serve):
    with serve() as service:
        service.model.silent = True
        release = threading.Thread(
            target=lambda: until(lambda: service.model.concurrent, bool) and service.model.go.set()
        )
        release.start()
        answers = concurrently(lambda _: service.get("/readiness"), range(64), at_once=32)
        release.join()
    assert {answer.status_code for answer in answers} == {200}
    assert service.model.max_concurrent == 1


def test_a_flood_of_probes_does_not_reach_the_models_server(serve, monkeypatch):
    monkeypatch.setattr(health, "CACHE_S", 3600.0)
    with serve() as service:
        calls = service.model.calls
        for _ in range(100):
            assert service.get("/readiness").status_code == 200
    assert service.model.calls == calls + 1


def test_a_probe_that_disconnects_does_not_break_the_next(serve):
    with serve() as service:
        service.model.silent = True
        with pytest.raises(httpx.TimeoutException):
            service.client.get("/readiness", timeout=0.2)
        service.model.go.set()
        assert service.get("/readiness").json()["status"] == "ready"


def test_it_starts_without_the_main_models_server_and_logs_it(serve, caplog):
    with serve(model=Part(error=DOWN)) as service:
        assert service.get("/readiness").json() == {"status": "degraded", "degraded": ["main"]}
    assert "starting without main" in caplog.text


@pytest.mark.parametrize("part", ["classifier", "database"])
def test_it_does_not_start_without_a_required_part(serve, part):
    with pytest.raises(UnavailableError, match="connection"), serve(**{part: Part(error=DOWN)}):
        pass


def test_at_startup_it_waits_for_a_part_that_is_still_loading(serve, monkeypatch, caplog):
    monkeypatch.setattr("workshop.contracts.services.PROBE_TIMEOUT_S", 0.2)
    loading = Part(silent=True)
    threading.Thread(target=lambda: until(lambda: loading.calls, lambda n: n > 1) and loading.go.set()).start()
    with serve(classifier=loading) as service:
        assert service.get("/readiness").status_code == 200
    assert "waiting for classifier" in caplog.text


QUERY: dict[str, Any] = {"query": "What is a replica?"}


def test_without_the_main_model_a_cascade_still_returns_good_drafts(serve):
    with serve(SURE) as service:
        service.model.error = DOWN
        answer = service.client.post("/v1/query", json=QUERY)
        assert (answer.status_code, answer.json()["draft_accepted"]) == (200, True)
        answer = service.client.post("/v1/query", json=QUERY | {"force_direct": True})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")


def test_without_the_main_model_a_cascade_fails_if_the_draft_is_not_good_enough(serve):
    with serve(UNSURE) as service:
        service.model.error = DOWN
        answer = service.client.post("/v1/query", json=QUERY)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")
        assert answer.json()["error"] == "UnavailableError"


def test_without_the_main_model_the_model_list_and_the_chat_offer_the_others(serve):
    with serve() as service:
        service.model.error = DOWN
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
