"""Budgets, and the cost of answers on every route: complete ones, failed ones, and those whose reader has left."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from websockets.sync.client import connect

from tests.api.test_chat_socket import Model
from tests.api.test_queries import locked
from tests.leaving import leaving
from tests.service import socket_url, until
from tests.stand_ins import DRAFT_COST, MAIN_COST, PROMPT_TOKENS, UNSURE, StandInModel, draft, main, records_in
from workshop.api import budget
from workshop.contracts.errors import ModelFailedError
from workshop.contracts.generator import Chunk, Usage
from workshop.storage import write_behind

pytestmark = pytest.mark.slow

TIMEOUT_S = 10  # generous: success comes quickly
QUESTION = {"query": "What is a replica?", "force_direct": True}
TURNS = {"model": "main", "messages": [{"role": "user", "content": "What is a replica?"}]}
WHOLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "query": ("POST", "/v1/query", {"json": QUESTION}),
    "query by GET": ("GET", "/v1/query", {"params": QUESTION}),
    "batch": ("POST", "/v1/batch", {"json": {"queries": [QUESTION]}}),
    "generate": ("POST", "/v1/generate", {"json": {"model": "main", "prompt": "What is a replica?"}}),
    "chat": ("POST", "/v1/chat/completions", {"json": TURNS}),
}
STREAMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "events": ("GET", "/v1/query/stream", {"params": QUESTION}),
    "lines": ("POST", "/v1/chat/stream", {"json": TURNS}),
    "OpenAI's events": ("POST", "/v1/chat/completions", {"json": TURNS | {"stream": True}}),
}
SOCKET = ("", "/v1/chat/ws", {})
EVERYWHERE = WHOLE | STREAMS | {"socket": SOCKET}


def ask(client: httpx.Client, method: str, path: str, options: dict[str, Any]) -> str:
    """The whole response of the service to a question."""
    if path == SOCKET[1]:
        with connect(socket_url(client)) as talk:
            talk.send(json.dumps({"type": "ask", "id": "1", "content": "What is a replica?", "model": "main"}))
            said = [talk.recv(timeout=TIMEOUT_S)]
            while '"type":"text"' in said[-1] or len(said) == 1:
                said.append(talk.recv(timeout=TIMEOUT_S))
            return "".join(said)
    return client.request(method, path, **options).text


def price(prompt_tokens: int, completion_tokens: int) -> float:
    return pytest.approx((prompt_tokens + completion_tokens) * MAIN_COST / 1000)


# The cost of an answer


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_complete_answer_is_charged_in_full(serve, way):
    with serve() as service:
        assert "copies" in ask(service.client, *way)
        [record] = service.records()
    assert (record["endpoint"], record["model"]) == (way[1], "main")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (PROMPT_TOKENS, 4)
    assert record["cost"] == price(PROMPT_TOKENS, 4)


@pytest.mark.parametrize("way", WHOLE.values(), ids=WHOLE)
def test_a_client_that_leaves_early_stops_the_model_and_pays_for_the_tokens_so_far(serve, way):
    with serve(None, main(endless=True)) as service:
        method, path, options = way
        with leaving(service.client, method, path, **options):
            until(lambda: service.main.generated_tokens, lambda made: made >= 3)
        assert service.main.over.wait(TIMEOUT_S)
        assert (service.main.running, service.main.completed, service.main.cancelled) == (0, 0, 1)
        [record] = service.records()
    assert record["prompt_tokens"] == PROMPT_TOKENS
    assert 3 <= record["completion_tokens"] <= service.main.generated_tokens
    assert record["cost"] == price(PROMPT_TOKENS, record["completion_tokens"])


@pytest.mark.parametrize("way", (STREAMS | {"socket": SOCKET}).values(), ids=STREAMS | {"socket": SOCKET})
def test_a_reader_who_leaves_a_stream_pays_for_the_tokens_so_far(serve, way):
    with serve(None, main(endless=True)) as service:
        if way == SOCKET:
            # Without a limit on its queue, the client keeps reading while it closes, and gets the close frame.
            with connect(socket_url(service.client), max_queue=None) as talk:
                talk.send(json.dumps({"type": "ask", "id": "1", "content": "Why?", "model": "main"}))
                until(lambda: service.main.generated_tokens, lambda made: made >= 3)
        else:
            method, path, options = way
            with service.client.stream(method, path, **options):
                until(lambda: service.main.generated_tokens, lambda made: made >= 3)
        assert service.main.over.wait(TIMEOUT_S)
        [record] = service.records()
    assert record["prompt_tokens"] == PROMPT_TOKENS
    assert 1 <= record["completion_tokens"] <= service.main.generated_tokens


def test_a_client_that_leaves_a_batch_pays_for_each_question(serve):
    with serve(draft(UNSURE), main(endless=True)) as service:
        queries = [QUESTION, QUESTION, {"query": "What is a replica?"}]
        with leaving(service.client, "POST", "/v1/batch", json={"queries": queries}):
            until(lambda: service.main.generated_tokens, lambda made: made >= 30)
        until(lambda: service.main.running, lambda running: running == 0)
        assert service.main.cancelled == 3
        records = service.records()
    assert [record["prompt_tokens"] for record in records].count(PROMPT_TOKENS) == 2
    [cascaded] = [record for record in records if record["cascaded"]]
    assert cascaded["prompt_tokens"] == 2 * PROMPT_TOKENS
    of_main = cascaded["completion_tokens"] - 2
    assert cascaded["cost"] == pytest.approx((12 * DRAFT_COST + (PROMPT_TOKENS + of_main) * MAIN_COST) / 1000)


@pytest.mark.parametrize("error", [ModelFailedError("the model failed"), KeyError("SECRET")], ids=["failure", "bug"])
@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_an_answer_that_fails_costs_nothing_and_is_logged(serve, way, error, caplog):
    with serve(None, main(error=error)) as service:
        said = ""
        try:
            said = ask(service.client, *way)
        except Exception:
            assert way == SOCKET  # a bug closes the connection
        assert "SECRET" not in said
        assert service.records() == []
    assert any(str(error) in str(record.exc_info) for record in caplog.records if record.levelno == logging.ERROR)


class Unfinished(StandInModel):
    """Ends without a finish reason."""

    async def stream(self, prompt):
        async for chunk in super().stream(prompt):
            if chunk.finish_reason is None:
                yield chunk


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_an_answer_without_a_finish_reason_is_a_failure(serve, way, caplog):
    with serve(None, Unfinished("main")) as service:
        assert "the model's answer ended unexpectedly" in ask(service.client, *way)
        assert service.records() == []
    assert "the model's answer ended unexpectedly" in caplog.text


class Corrected(StandInModel):
    """Estimates its usage until the last chunk, as an upstream server may."""

    async def stream(self, prompt):
        yield Chunk("It", usage=Usage(999, 1))
        yield Chunk(" is.", finish_reason="stop", usage=Usage(7, 2))


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_the_last_reported_usage_is_charged(serve, way):
    with serve(None, Corrected("main")) as service:
        ask(service.client, *way)
        [record] = service.records()
    assert (record["prompt_tokens"], record["completion_tokens"]) == (7, 2)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_no_model_is_asked_while_too_many_records_wait(serve, way, monkeypatch):
    monkeypatch.setattr(write_behind, "MAX_WAITING", 0)
    with serve() as service:
        if way == SOCKET:
            assert '"error":"OverloadedError"' in ask(service.client, *way)
        else:
            method, path, options = way
            answer = service.client.request(method, path, **options)
            assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert not service.main.prompts


# Budgets


@contextmanager
def statements() -> Iterator[list[str]]:
    """A list to which each SQL statement is appended."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_without_a_budget_nothing_is_reserved(serve, way):
    with serve() as service, statements() as seen:
        ask(service.client, *way)
        until(lambda: len(records_in(service.file)), bool)
    assert not [each for each in seen if "reservations" in each and each.startswith(("SELECT", "INSERT", "DELETE"))]
    assert [each.split(" (")[0] for each in seen if "usage" in each and "INSERT" in each] == ["INSERT INTO usage"]


def batch(client: httpx.Client, n_questions: int = 32) -> list[dict]:
    answer = client.post("/v1/batch", json={"queries": [QUESTION] * n_questions})
    return answer.json()["results"] if answer.status_code == 200 else [{"error": answer.json()}] * n_questions


class Slow(StandInModel):
    async def stream(self, prompt):
        async for chunk in super().stream(prompt):
            await asyncio.sleep(0.01)
            yield chunk


def test_concurrent_batches_do_not_exceed_the_budget(serve):
    dollars = 20 * 14 * MAIN_COST / 1000
    with (
        serve(None, Slow("main"), daily_budget=dollars) as one,
        serve(None, Slow("main"), daily_budget=dollars) as other,
    ):
        with ThreadPoolExecutor(6) as pool:
            results = list(chain.from_iterable(pool.map(batch, [one.client, other.client] * 3)))
        other.server.stop()
        spent = sum(record["cost"] for record in one.records())
    refused = [item["error"] for item in results if item.get("error")]
    assert {(error["status"], error["error"]) for error in refused} == {(402, "BudgetExceededError")}
    assert len(results) - len(refused) >= 1
    assert spent <= dollars + 13 * MAIN_COST / 1000  # the last answer may exceed it a little


def test_with_a_length_limit_more_concurrent_answers_fit_into_a_budget(serve):
    class Together(StandInModel):
        barrier = asyncio.Barrier(8)

        async def stream(self, prompt):
            async with asyncio.timeout(TIMEOUT_S):
                await self.barrier.wait()
            async for chunk in super().stream(prompt):
                yield chunk

    bound = (len("Why?") + 32 + 4) * MAIN_COST / 1000
    with serve(None, Together("main"), daily_budget=8 * bound) as service:
        body = {"model": "main", "prompt": "Why?", "max_tokens": 4}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: service.client.post("/v1/generate", json=body), range(8)))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_sequential_questions_can_spend_the_whole_budget(serve, way):
    with serve(daily_budget=2.5 * 14 * MAIN_COST / 1000) as service:
        said = [ask(service.client, *way) for _ in range(4)]
        assert ["BudgetExceededError" in text or "budget" in text for text in said] == [False] * 3 + [True]
        assert len(service.records()) == 3


@pytest.mark.parametrize("way", EVERYWHERE.values(), ids=EVERYWHERE)
def test_an_answer_that_fails_releases_its_reservation(serve, way):
    with serve(None, main(error=ModelFailedError("the model failed")), daily_budget=0.001) as service:
        said = [ask(service.client, *way) for _ in range(3)]
    assert all("the model failed" in text for text in said)


def test_a_client_that_leaves_releases_the_unused_reservation(serve):
    with serve(None, main(endless=True), daily_budget=100.0) as service:
        method, path, options = WHOLE["chat"]
        with leaving(service.client, method, path, **options):
            until(lambda: service.main.generated_tokens, bool)
        assert service.main.over.wait(TIMEOUT_S)
        service.main.endless = False
        assert until(lambda: ask(service.client, method, path, options), lambda said: "copies" in said)


def test_the_error_says_that_the_rest_of_a_budget_is_reserved(serve):
    with serve(None, main(endless=True), daily_budget=0.5) as service:
        method, path, options = STREAMS["lines"]
        with service.client.stream(method, path, **options) as answer:
            lines = answer.iter_lines()  # keep a reference, or it is closed, and the connection with it
            next(lines)
            refused = service.client.post("/v1/generate", json={"model": "main", "prompt": "Why?"})
    assert (refused.status_code, refused.json()["error"]) == (402, "BudgetExceededError")
    assert refused.json()["detail"] == (
        "0.000000 of 0.500000 dollars of today's budget are spent; the rest is reserved for answers in progress"
    )
    assert int(refused.headers["Retry-After"]) > 0


def test_a_conversation_that_is_shortened_to_fit_reserves_only_once(serve):
    """Each attempt that is too long releases its reservation before the next."""
    model = Model("main", max_messages=3)
    with serve(None, model, daily_budget=1000.0) as service, connect(socket_url(service.client)) as talk:
        talk.recv(timeout=TIMEOUT_S)
        for number in range(4):
            talk.send(json.dumps({"type": "ask", "id": str(number), "content": "Why?", "model": "main"}))
            while (said := json.loads(talk.recv(timeout=TIMEOUT_S)))["type"] == "text":
                pass
            assert said["type"] == "done", said


def test_the_database_may_be_down_when_a_reserved_answer_ends(serve, monkeypatch):
    """The answer is hardly delayed, and is charged when the database is back."""
    monkeypatch.setattr(budget, "SETTLE_LIMIT_S", 0.05)
    held = threading.Event()

    class Held(StandInModel):
        async def stream(self, prompt):
            async for chunk in super().stream(prompt):
                yield chunk
                while not held.is_set():
                    await asyncio.sleep(0.01)

    with serve(None, Held("main"), daily_budget=100.0) as service:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: service.client.post("/v1/generate", json={"model": "main", "prompt": "Why?"}))
            until(lambda: service.main.prompts, bool)
            with locked(service.file):
                held.set()
                assert answer.result().status_code == 200
        assert until(lambda: records_in(service.file), bool)
