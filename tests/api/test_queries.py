"""Questions to the cascade over HTTP, with stand-in models: answers, streams, batches, budgets, records."""

import asyncio
import gc
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from httpx_sse import ServerSentEvent, connect_sse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stand_ins import (
    DRAFT_COST,
    MAIN_COST,
    PROMPT_TOKENS,
    SURE,
    UNSURE,
    StandInModel,
    application,
    draft,
    main,
    records_in,
    replace_with_a_folder,
)
from workshop.api.clock import now
from workshop.contracts import errors
from workshop.contracts.usage import UsageRecord
from workshop.storage import write_behind
from workshop.storage.usage import SqlUsageStore

pytestmark = pytest.mark.slow

TIMEOUT_S = 10  # generous: success comes quickly
QUESTION = {"query": "What is a replica?"}
SECRET = "SECRET-internals"
KEYS = {"key-of-ada": "ada", "key-of-grace": "grace"}
ASKS: dict[str, Callable[..., httpx.Response]] = {
    "post": lambda client, **options: client.post("/v1/query", json=QUESTION, **options),
    "get": lambda client, **options: client.get("/v1/query", params=QUESTION, **options),
    "stream": lambda client, **options: client.get("/v1/query/stream", params=QUESTION, **options),
    "batch": lambda client, **options: client.post("/v1/batch", json={"queries": [QUESTION]}, **options),
}


def events_of(client: httpx.Client, **options: Any) -> list[ServerSentEvent]:
    with connect_sse(client, "GET", "/v1/query/stream", params=QUESTION | options) as source:
        assert source.response.status_code == 200, source.response.read()
        return list(source.iter_sse())


def add_records(file: Path, *records: UsageRecord) -> None:
    async def add() -> None:
        store = SqlUsageStore(f"sqlite+aiosqlite:///{file}")
        await store.add(*records)
        await store.aclose()

    asyncio.run(add())


def record(principal: str = "anonymous", **values: Any) -> UsageRecord:
    usual = {
        "endpoint": "/v1/query",
        "principal": principal,
        "model": "draft",
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cost": 0.5,
        "latency_ms": 40.0,
        "cascaded": False,
        "draft_accepted": True,
        "at": now(),
    }
    return UsageRecord(**usual | values)


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


# Answers


@pytest.mark.parametrize("way", ["post", "get"])
def test_an_accepted_draft_is_the_answer(serve, way):
    with serve() as service:
        answer = ASKS[way](service.client).json()
    assert answer.pop("quality") == pytest.approx(SURE)
    assert answer.pop("latency_ms") > 0
    assert answer.pop("cost") == pytest.approx((PROMPT_TOKENS + 2) * DRAFT_COST / 1000)
    assert answer == {"content": "A copy.", "model_used": "draft", "cascaded": False, "draft_accepted": True}


@pytest.mark.parametrize("way", ["post", "get"])
def test_the_main_model_answers_after_a_rejected_draft(serve, way):
    with serve(draft(UNSURE)) as service:
        answer = ASKS[way](service.client).json()
    assert (answer["content"], answer["model_used"]) == ("One of several copies.", "main")
    assert (answer["cascaded"], answer["draft_accepted"]) == (True, False)


def test_both_ways_to_ask_take_the_same_parameters(serve):
    parameters = {"query": "Why?", "max_tokens": 7, "temperature": 0.5, "force_direct": True}
    with serve() as service:
        service.client.post("/v1/query", json=parameters).raise_for_status()
        service.client.get("/v1/query", params=parameters).raise_for_status()
    posted, got = service.main.prompts
    assert posted == got
    assert (posted.messages[0].content, posted.max_tokens, posted.temperature) == ("Why?", 7, 0.5)
    assert not service.draft.prompts


def test_the_answer_to_a_get_request_is_not_cached(serve):
    with serve() as service:
        assert ASKS["get"](service.client).headers["Cache-Control"] == "no-store"


# Bad input


TEXTS = st.one_of(
    st.text(max_size=50),
    st.integers(1990, 2010).map(lambda n: "x" * n),
    st.integers(490, 510).map(lambda n: "x " * n),
    st.text(" \n\t\u3000", max_size=5),
)


def test_a_query_is_answered_if_and_only_if_it_is_within_the_limits(serve):
    with serve() as service:

        @settings(max_examples=60, deadline=None)
        @given(TEXTS)
        def check(text: str) -> None:
            right = 1 <= len(text) <= 2000 and 1 <= len(text.split()) <= 500
            posted = service.client.post("/v1/query", json={"query": text})
            got = service.client.get("/v1/query", params={"query": text})
            assert posted.status_code == got.status_code == (200 if right else 422)

        check()


MISTAKES = {
    "no query": ({}, ("query", "missing")),
    "empty": ({"query": ""}, ("query", "string_too_short")),
    "blank": ({"query": " \n"}, ("query", "blank")),
    "2001 characters": ({"query": "x" * 2001}, ("query", "string_too_long")),
    "501 words": ({"query": "x " * 501}, ("query", "too_many_words")),
    "no tokens": (QUESTION | {"max_tokens": 0}, ("max_tokens", "greater_than_equal")),
    "too many tokens": (QUESTION | {"max_tokens": 4097}, ("max_tokens", "less_than_equal")),
    "half a token": (QUESTION | {"max_tokens": 1.5}, ("max_tokens", "int_")),
    "below zero": (QUESTION | {"temperature": -0.1}, ("temperature", "greater_than_equal")),
    "too hot": (QUESTION | {"temperature": 2.1}, ("temperature", "less_than_equal")),
    "neither true nor false": (QUESTION | {"force_direct": "perhaps"}, ("force_direct", "bool_")),
    "misspelt": (QUESTION | {"max_token": 3}, ("max_token", "extra_forbidden")),
}


@pytest.mark.parametrize(("parameters", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_before_any_model_is_asked(serve, parameters, wrong):
    with serve() as service:
        answers = [
            service.client.post("/v1/query", json=parameters),
            service.client.get("/v1/query", params=parameters),
            service.client.get("/v1/query/stream", params=parameters),
        ]
        assert not service.draft.prompts
        batch = service.client.post("/v1/batch", json={"queries": [QUESTION, parameters]}).json()
        assert len(service.draft.prompts) == 1
    assert [answer.status_code for answer in answers] == [422] * 3
    assert {answer.headers["Content-Type"] for answer in answers} == {"application/problem+json"}
    for problem in (*(answer.json() for answer in answers), batch["results"][1]["error"]):
        [detail] = problem["details"]
        assert detail["field"] == wrong[0]
        assert detail["rule"].startswith(wrong[1])


@pytest.mark.parametrize("literal", ["NaN", "Infinity", '"0.5"', "true", "1e400"])
def test_a_temperature_in_json_is_a_finite_number(serve, literal):
    body = '{"query": "Why?", "temperature": %s}' % literal  # noqa: UP031
    with serve() as service:
        answer = service.client.post("/v1/query", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert [detail["field"] for detail in answer.json()["details"]] == ["temperature"]


def test_a_lone_surrogate_is_invalid_input_and_not_a_failure(serve):
    with serve() as service:
        body = rb'{"query": "\ud800"}'
        answer = service.client.post("/v1/query", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert ASKS["post"](service.client).status_code == 200


# Errors of the models

ERRORS = [
    (errors.PromptTooLongError("2000 tokens are too many", 2000, 1024), 400),
    (errors.UnavailableError("no replica is up", 2.0), 503),
    (errors.OverloadedError("too much is waiting", 7.0), 503),
    (errors.DeadlineExceededError("too slow", 0.5), 504),
    (errors.ModelFailedError("the model failed"), 500),
    (KeyError(SECRET), 500),
]


@pytest.mark.parametrize("way", ["post", "get", "stream"])
@pytest.mark.parametrize(
    ("error", "status"), ERRORS, ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value)
)
def test_an_error_before_the_first_token_is_a_problem_document(serve, way, error, status):
    with serve(StandInModel(words=(), error=error)) as service:
        answer = ASKS[way](service.client)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert SECRET not in answer.text
        assert service.records() == []


@pytest.mark.parametrize(
    ("error", "status"), ERRORS, ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value)
)
def test_an_error_after_the_first_token_is_an_event(serve, error, status, caplog):
    with serve(draft(error=error)) as service:
        *shown, last = events_of(service.client)
        assert [event.event for event in shown] == ["chunk", "chunk"]
        problem = last.json()
        assert (last.event, last.id, problem["status"]) == ("error", "3", status)
        assert problem["error"] == ("InternalError" if isinstance(error, KeyError) else type(error).__name__)
        assert problem["instance"] == "/v1/query/stream"
        assert problem["request_id"]
        assert SECRET not in last.data
        assert service.records() == []
    assert ("Traceback" in caplog.text) == (status >= 500)


# Streams


def test_a_stream_has_the_draft_the_switch_the_answer_and_its_cost(serve):
    with serve(draft(UNSURE)) as service:
        events = events_of(service.client)
    kinds = [event.event for event in events]
    assert kinds == [*["chunk"] * 2, "switch", *["chunk"] * 4, "complete"]
    assert [event.id for event in events] == [str(number) for number in range(1, 9)]
    assert events[0].json() == {"model": "draft", "text": "A"}
    switch = events[2].json()
    assert switch.pop("quality") == pytest.approx(UNSURE)
    assert switch == {"from_model": "draft", "to_model": "main", "threshold": 0.8}
    complete = events[-1].json()
    assert (complete["content"], complete["model_used"]) == ("One of several copies.", "main")
    assert complete["cost"] == pytest.approx((12 * DRAFT_COST + 14 * MAIN_COST) / 1000)


def test_a_stream_ends_with_the_same_answer_as_a_query(serve):
    with serve() as service:
        streamed, asked = events_of(service.client)[-1].json(), ASKS["post"](service.client).json()
    assert streamed | {"latency_ms": 0} == asked | {"latency_ms": 0}


def test_a_stream_is_neither_cached_nor_buffered(serve):
    with serve() as service:
        headers = ASKS["stream"](service.client).headers
    assert headers["Content-Type"].startswith("text/event-stream")
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-cache", "no")


def test_comments_keep_the_connection_alive_while_the_model_is_silent(serve, monkeypatch):
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.01)
    pinged = threading.Event()

    class Thoughtful(StandInModel):
        async def stream(self, prompt):
            async for chunk in super().stream(prompt):
                yield chunk
                await asyncio.to_thread(pinged.wait, TIMEOUT_S)

    with (
        serve(Thoughtful("draft")) as service,
        service.client.stream("GET", "/v1/query/stream", params=QUESTION) as answer,
    ):
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if line.startswith(":"):
                pinged.set()
    assert ": ping" in lines
    assert "event: complete" in lines


def test_a_reader_who_reconnects_is_told_to_stop_and_not_charged(serve):
    with serve() as service:
        last = events_of(service.client)[-1].id
        service.draft.prompts.clear()
        answer = ASKS["stream"](service.client, headers={"Last-Event-ID": last})
        assert (answer.status_code, answer.content) == (204, b"")
        assert not service.draft.prompts
        assert len(service.records()) == 1


def test_a_reader_who_reconnects_before_the_first_event_gets_an_answer(serve):
    with serve() as service:
        assert ASKS["stream"](service.client, headers={"Last-Event-ID": ""}).status_code == 200


@pytest.mark.parametrize("direct", [False, True])
def test_a_reader_who_leaves_stops_the_model_and_is_charged_for_the_tokens_so_far(serve, direct):
    with serve(draft(endless=True), main(endless=True)) as service:
        at_work = service.main if direct else service.draft
        parameters = QUESTION | {"force_direct": direct}
        with connect_sse(service.client, "GET", "/v1/query/stream", params=parameters) as source:
            stream = source.iter_sse()
            assert [next(stream).id for _ in range(3)] == ["1", "2", "3"]
        assert at_work.over.wait(TIMEOUT_S)
        assert (at_work.running, at_work.cancelled, at_work.completed) == (0, 1, 0)
        [charged] = service.records()
    assert (charged["endpoint"], charged["model"]) == ("/v1/query/stream", at_work.name)
    assert 3 <= charged["completion_tokens"] <= at_work.generated_tokens
    tokens = charged["prompt_tokens"] + charged["completion_tokens"]
    assert charged["prompt_tokens"] == PROMPT_TOKENS
    assert charged["cost"] == pytest.approx(tokens * (MAIN_COST if direct else DRAFT_COST) / 1000)


CONVERSATION = {"model": "draft", "messages": [{"role": "user", "content": "What is a replica?"}]}
STREAMS: dict[str, Callable[[httpx.Client], AbstractContextManager[httpx.Response]]] = {
    "events": lambda client: client.stream("GET", "/v1/query/stream", params=QUESTION),
    "OpenAI's": lambda client: client.stream("POST", "/v1/chat/completions", json=CONVERSATION | {"stream": True}),
    "lines": lambda client: client.stream("POST", "/v1/chat/stream", json=CONVERSATION),
}


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_client_that_does_not_read_pauses_the_model_and_stops_it_by_leaving(serve, stream, caplog):
    """A stream that waits in ``send`` is cancelled there, and no generator is left to the garbage collector."""
    wordy = StandInModel("draft", ("x" * 100_000,), endless=True)
    with serve(wordy) as service:
        with stream(service.client):
            until(lambda: (seen := wordy.generated_tokens) and not time.sleep(0.2) and seen == wordy.generated_tokens)
            assert not wordy.over.is_set()
        assert wordy.over.wait(TIMEOUT_S)
        assert len(service.records()) == 1
    assert not caplog.records


# Batches


def test_a_batch_answers_in_the_order_of_its_questions(serve):
    class Echo(StandInModel):
        async def stream(self, prompt):
            self.words = (prompt.messages[0].content,)
            async for chunk in super().stream(prompt):
                yield chunk

    questions = [f"question {number}" for number in range(32)]
    with serve(Echo("draft")) as service:
        answer = service.client.post("/v1/batch", json={"queries": [{"query": text} for text in questions]}).json()
        assert [item["answer"]["content"] for item in answer["results"]] == questions
        assert [item["error"] for item in answer["results"]] == [None] * 32
        assert (answer["answered"], answer["failed"]) == (32, 0)
        charged = service.records()
    assert len(charged) == 32
    assert sum(row["cost"] for row in charged) == pytest.approx(answer["cost"])
    assert {row["endpoint"] for row in charged} == {"/v1/batch"}


def test_the_questions_of_a_batch_are_answered_concurrently(serve):
    class Together(StandInModel):
        barrier = asyncio.Barrier(32)

        async def stream(self, prompt):
            async with asyncio.timeout(TIMEOUT_S):
                await self.barrier.wait()
            async for chunk in super().stream(prompt):
                yield chunk

    with serve(Together("draft")) as service:
        assert service.client.post("/v1/batch", json={"queries": [QUESTION] * 32}).json()["answered"] == 32


@pytest.mark.parametrize(
    ("error", "status"), ERRORS, ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value)
)
def test_a_question_that_fails_does_not_affect_the_others(serve, error, status):
    class Choosy(StandInModel):
        async def stream(self, prompt):
            if prompt.messages[0].content == "bad":
                raise error
            async for chunk in super().stream(prompt):
                yield chunk

    with serve(Choosy("draft")) as service:
        answer = service.client.post("/v1/batch", json={"queries": [QUESTION, {"query": "bad"}, QUESTION]})
        assert answer.status_code == 200
        first, second, third = answer.json()["results"]
        assert first["answer"]["content"] == third["answer"]["content"] == "It is so."
        assert (second["answer"], second["error"]["status"]) == (None, status)
        assert SECRET not in answer.text
        assert (answer.json()["answered"], answer.json()["failed"]) == (2, 1)
        assert len(service.records()) == 2


INVALID_QUESTIONS = {
    "null": None,
    "text": "What is a replica?",
    "a number": 1e308,
    "a list": [QUESTION],
    "deep": {"query": {"query": {"query": "Why?"}}},
    "many unknown names": {f"name {number}": number for number in range(1000)},
}


@pytest.mark.parametrize("mistake", INVALID_QUESTIONS.values(), ids=INVALID_QUESTIONS)
def test_an_invalid_question_does_not_affect_the_others(serve, mistake):
    with serve() as service:
        body = json.dumps({"queries": [QUESTION, mistake, QUESTION]})
        answer = service.client.post("/v1/batch", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        first, second, third = answer.json()["results"]
        assert first["answer"]["content"] == third["answer"]["content"] == "A copy."
        assert (second["answer"], second["error"]["status"]) == (None, 422)
        assert 1 <= len(second["error"]["details"]) <= 100
        assert (answer.json()["answered"], answer.json()["failed"]) == (2, 1)
        assert len(service.records()) == 2


@pytest.mark.parametrize(
    "body", [None, [], {}, {"queries": None}, {"queries": QUESTION}, {"queries": [QUESTION], "more": 1}], ids=str
)
def test_an_invalid_batch_is_rejected(serve, body):
    with serve() as service:
        assert service.client.post("/v1/batch", json=body).status_code == 422
    assert not service.draft.prompts


def test_openapi_says_that_a_batch_accepts_any_value_as_a_question(file):
    document = application(file, draft(), main()).openapi()
    items = document["components"]["schemas"]["QueryBatch"]["properties"]["queries"]["items"]["anyOf"]
    assert items[0] == {"$ref": "#/components/schemas/QueryBody"}
    assert items[1].keys() == {"description"}


@pytest.mark.parametrize(("n", "rule"), [(0, "too_short"), (33, "too_long")])
def test_a_batch_has_1_to_32_questions(serve, n, rule):
    with serve() as service:
        answer = service.client.post("/v1/batch", json={"queries": [QUESTION] * n})
    assert (answer.status_code, answer.json()["details"][0]["rule"]) == (422, rule)


# Records


@pytest.mark.parametrize("way", ASKS)
def test_each_answer_is_recorded(serve, way):
    with serve(draft(UNSURE), api_keys=KEYS) as service:
        before = now()
        ASKS[way](service.client, headers={"Authorization": "Bearer key-of-ada"}).raise_for_status()
        [charged] = service.records()
    at = charged.pop("at")
    assert before.replace(tzinfo=None).isoformat(" ") <= at <= now().replace(tzinfo=None).isoformat(" ")
    assert charged.pop("latency_ms") > 0
    assert charged.pop("cost") == pytest.approx((12 * DRAFT_COST + 14 * MAIN_COST) / 1000)
    paths = {"post": "/v1/query", "get": "/v1/query", "stream": "/v1/query/stream", "batch": "/v1/batch"}
    assert charged == {
        "id": 1,
        "endpoint": paths[way],
        "principal": "ada",
        "model": "main",
        "prompt_tokens": 2 * PROMPT_TOKENS,
        "completion_tokens": 6,
        "cascaded": 1,
        "draft_accepted": 0,
    }


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a write lock on the database, so that other writers wait."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


def refuses(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:
        return True
    return False


@pytest.mark.parametrize("way", ASKS)
def test_a_service_stopped_right_after_a_response_loses_no_record(serve, way):
    with serve() as service:
        with locked(service.file):
            assert ASKS[way](service.client).status_code == 200
            stopping = threading.Thread(target=service.server.stop)
            stopping.start()
            until(partial(refuses, service.server.url))
            assert records_in(service.file) == []
        stopping.join()
        assert len(records_in(service.file)) == 1


def cancelled_at(message_type: str, way: str, app: FastAPI) -> None:
    """Ask, and cancel the request's task when the application has sent its last message of this type.

    Ray Serve does this when a client closes its connection.
    """

    async def cancelling(scope: Any, receive: Any, send: Any) -> None:
        async def watched(message: Any) -> None:
            await send(message)
            if message["type"] == message_type and not message.get("more_body"):
                call.cancel()

        call = asyncio.create_task(app(scope, receive, watched))
        with suppress(asyncio.CancelledError):
            await call

    async def run() -> None:
        transport = httpx.ASGITransport(cancelling)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            with suppress(AssertionError):  # the client does not get the rest of the response
                await ASKS[way](client)

    asyncio.run(run())


@pytest.mark.parametrize("way", ASKS)
def test_a_request_cancelled_after_its_response_loses_no_record(file, way):
    cancelled_at("http.response.body", way, application(file, draft(), main()))
    assert len(records_in(file)) == 1


def test_a_stream_cancelled_before_its_first_event_stops_the_model_and_is_charged(file):
    small = draft(endless=True)
    cancelled_at("http.response.start", "stream", application(file, small, main()))
    assert (small.running, small.cancelled) == (0, 1)
    assert len(records_in(file)) == 1


def test_a_record_that_cannot_be_stored_is_logged_and_affects_no_response(serve, caplog, file, monkeypatch):
    monkeypatch.setattr(write_behind, "DRAIN_LIMIT_S", 0.1)
    with serve() as service:
        assert ASKS["post"](service.client).status_code == 200
        until(lambda: len(records_in(file)) == 1)
        replace_with_a_folder(file)
        for ask in ASKS.values():
            assert ask(service.client).status_code == 200
        service.server.stop()
    assert caplog.text.count("lost: {") == len(ASKS)
    assert '"principal": "anonymous"' in caplog.text


# Budgets

ADA = {"Authorization": "Bearer key-of-ada"}


@pytest.mark.parametrize("way", ASKS)
def test_a_caller_with_a_spent_budget_is_rejected_before_any_model_is_asked(serve, way, file):
    add_records(file, record("ada", cost=0.6), record("ada", cost=0.4))
    with serve(api_keys=KEYS, daily_budget=1.0) as service:
        answer = ASKS[way](service.client, headers=ADA)
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["error"]) == (402, 402, "BudgetExceededError")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "1.000000 of 1.000000 dollars" in problem["detail"]
        midnight = (now() + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        assert int(answer.headers["Retry-After"]) == pytest.approx((midnight - now()).total_seconds(), abs=60)
        assert not service.draft.prompts


@pytest.mark.parametrize(
    "spent",
    [record("ada", cost=0.99), record("grace", cost=5.0), record("ada", cost=5.0, at=now() - timedelta(days=1))],
    ids=["less than the budget", "by another caller", "yesterday"],
)
def test_a_caller_with_budget_left_is_answered(serve, spent, file):
    add_records(file, spent)
    with serve(api_keys=KEYS, daily_budget=1.0) as service:
        assert ASKS["post"](service.client, headers=ADA).status_code == 200


def test_answers_use_up_the_budget_one_by_one(serve, file):
    price = (PROMPT_TOKENS + 2) * DRAFT_COST / 1000
    with serve(daily_budget=2.5 * price) as service:
        for n in (1, 2, 3):
            assert ASKS["post"](service.client).status_code == 200
            until(lambda n=n: len(records_in(file)) == n)
        assert ASKS["post"](service.client).status_code == 402


@pytest.mark.parametrize("way", ASKS)
def test_an_unknown_key_is_rejected_if_keys_are_set(serve, way):
    with serve(api_keys=KEYS) as service:
        answer = ASKS[way](service.client, headers={"Authorization": "Bearer guess"})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert not service.draft.prompts


# Totals

HISTORY = (
    record(cost=0.5, latency_ms=40.0),
    record(cost=1.5, latency_ms=400.0, model="main", cascaded=True, draft_accepted=False),
    record(cost=1.0, latency_ms=4000.0, model="main", draft_accepted=False),
    record(cost=3.0, model="main", endpoint="/v1/chat/completions", cascaded=None, draft_accepted=None),
)


def test_stats_of_a_new_service(serve):
    with serve() as service:
        stats = service.client.get("/v1/stats").json()
    assert stats.pop("uptime_seconds") >= 0
    assert stats == {
        "total_queries": 0,
        "total_cost": 0.0,
        "average_cost": None,
        "queries_by_model": {},
        "acceptance_rate": None,
    }


def test_every_replica_reports_the_stats_of_the_whole_service_since_its_first_start(serve, file):
    add_records(file, *HISTORY)
    with serve() as service, serve() as another:
        for replica in (service, another):
            stats = replica.client.get("/v1/stats").json()
            del stats["uptime_seconds"]
            assert stats == {
                "total_queries": 4,
                "total_cost": 6.0,
                "average_cost": 1.5,
                "queries_by_model": {"draft": 1, "main": 3},
                "acceptance_rate": 0.5,
            }


@pytest.mark.parametrize("path", ["/v1/stats", "/metrics"])
def test_totals_are_unavailable_without_a_database(serve, path, file):
    with serve() as service:
        replace_with_a_folder(file)
        answer = service.client.get(path)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
