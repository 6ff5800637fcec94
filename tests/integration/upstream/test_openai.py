"""A server with OpenAI's protocol behind the contract: its answers, its failures, and readers who leave."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import HTMLResponse, JSONResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace

from tests.upstreams import Answer, Upstream, breaking, failing, silent, streaming
from workshop.contracts.errors import (
    DeadlineExceededError,
    ModelFailedError,
    OverloadedError,
    PromptTooLongError,
    ServiceError,
    UnavailableError,
)
from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Message, Prompt, Token, Usage
from workshop.integration.generator import WithDeadline
from workshop.integration.upstream.openai import OpenAIGenerator
from workshop.logs import set_log_fields
from workshop.machine import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = "key-SECRET"
PROMPT = Prompt((Message("user", "What is Ray Serve?"),))
ESTIMATED = 5
"""The prompt's tokens, at four characters per token."""

Event = dict[str, Any]


def piece(text: str | None = None, *logprobs: float, finish: str | None = None) -> Event:
    """An event. The text is split at spaces into tokens, one for each log-probability."""
    content = [{"token": token, "logprob": value} for token, value in zip((text or "").split(), logprobs, strict=False)]
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    return {"choices": [choice | {"logprobs": {"content": content}} if content else choice]}


OPENING: Event = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
USAGE: Event = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
EVENTS = [OPENING, piece("It serves", -0.5, -0.25), piece(" models", -0.125), piece(finish="stop"), USAGE]
COMPLETION = Completion(
    "It serves models", (Token("It", -0.5), Token("serves", -0.25), Token("models", -0.125)), "stop", Usage(7, 3)
)


def line(event: object) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


def answering(*events: object, done: bool = True) -> Answer:
    return streaming(*map(line, events), b"data: [DONE]\n\n" * done)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    models = JSONResponse({"data": [{"id": "other"}, {"id": "big"}]})
    with Upstream([answering(*EVENTS)], lambda: models).running() as upstream:
        yield upstream


def connect(upstream: Upstream, model="big", key=KEY, *, timeout_s=10.0, max_retries=0, **options) -> OpenAIGenerator:
    url = f"{upstream.url}/v1"
    return OpenAIGenerator(url, model, key, timeout_s=timeout_s, max_retries=max_retries, **options)


@pytest.fixture
async def generator(upstream) -> AsyncGenerator[OpenAIGenerator, None]:
    async with aclosing(connect(upstream)) as generator:
        yield generator


async def test_an_answer_has_its_text_tokens_reason_and_usage(generator):
    assert await generator.complete(PROMPT) == COMPLETION


async def test_a_stream_has_a_chunk_for_each_piece_and_ends_with_reason_and_usage(generator):
    assert [chunk async for chunk in generator.stream(PROMPT)] == [
        Chunk("It serves", (Token("It", -0.5), Token("serves", -0.25)), usage=Usage(ESTIMATED, 2)),
        Chunk(" models", (Token("models", -0.125),), usage=Usage(ESTIMATED, 3)),
        Chunk("", (), "stop", usage=Usage(7, 3)),
    ]


async def test_the_server_gets_the_trace_and_the_id_of_our_request(upstream, generator):
    context = trace.SpanContext(trace_id=1, span_id=2, is_remote=True, trace_flags=trace.TraceFlags(1))
    set_log_fields(request_id="callers-own-id")
    with trace.use_span(trace.NonRecordingSpan(context)):
        await generator.complete(PROMPT)
    set_log_fields()
    await generator.complete(PROMPT)
    traced, other = upstream.headers
    assert traced["traceparent"] == f"00-{1:032x}-{2:016x}-01"
    assert traced["x-request-id"] == "callers-own-id"
    assert not {"traceparent", "x-request-id"} & set(other)


async def test_the_server_gets_the_whole_prompt_and_our_key(upstream, generator):
    messages = (Message("system", "Be short."), Message("user", "Hello"))
    await generator.complete(Prompt(messages, max_tokens=5, temperature=0.5, top_p=0.9, stop=("\n",)))
    assert upstream.asked == [
        {
            "model": "big",
            "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["\n"],
            "logprobs": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert [headers["Authorization"] for headers in upstream.headers] == [f"Bearer {KEY}"]
    assert upstream.paths == ["/v1/chat/completions"]


async def test_limits_that_a_prompt_does_not_set_are_not_sent(upstream, generator):
    await generator.complete(PROMPT)
    assert {"max_tokens", "stop"}.isdisjoint(upstream.asked[0])


async def test_a_key_of_openai_is_not_sent_to_another_server(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "SECRET")
    async with aclosing(connect(upstream, key=None)) as generator:
        await generator.complete(PROMPT)
    assert [headers["Authorization"] for headers in upstream.headers] == ["Bearer anonymous"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [("stop", "stop"), ("length", "length"), ("model_length", "length"), ("content_filter", "stop"), ("eos", "stop")],
)
async def test_each_servers_finish_reason_is_mapped_to_ours(upstream, generator, said, meant):
    upstream.answers = [answering(piece("It"), piece(finish=said), USAGE)]
    assert (await generator.complete(PROMPT)).finish_reason == meant


@pytest.mark.parametrize(
    "events",
    [
        [piece("It", -0.5, finish="length") | {"usage": USAGE["usage"]}],
        [piece("It", -0.5, finish="length"), USAGE, piece("")],
        [USAGE, piece("It", -0.5), piece(finish="length")],
    ],
    ids=["with the last piece", "before another event", "at the start"],
)
async def test_finish_reason_and_usage_may_come_in_any_event(upstream, generator, events):
    upstream.answers = [answering(*events)]
    assert await generator.complete(PROMPT) == Completion("It", (Token("It", -0.5),), "length", Usage(7, 3))


async def test_an_answer_without_usage_is_an_error_because_it_could_not_be_charged(upstream, generator):
    upstream.answers = [answering(piece("It", finish="stop"))]
    with pytest.raises(ModelFailedError, match="how many tokens"):
        await generator.complete(PROMPT)


@pytest.mark.parametrize("n_tokens", [-1, 2**31, 2**70])
@pytest.mark.parametrize("kind", ["prompt_tokens", "completion_tokens"])
async def test_a_usage_that_cannot_be_charged_is_an_error(upstream, generator, kind, n_tokens):
    upstream.answers = [
        answering(piece("It", finish="stop"), {"choices": [], "usage": USAGE["usage"] | {kind: n_tokens}})
    ]
    with pytest.raises(ModelFailedError, match="as its protocol says"):
        await generator.complete(PROMPT)


async def test_without_log_probabilities_the_usage_so_far_is_estimated_from_the_text(upstream, generator):
    upstream.answers = [answering(piece("It serves"), piece(" models"), piece(finish="stop"), USAGE)]
    usage = [chunk.usage async for chunk in generator.stream(PROMPT)]
    assert usage == [Usage(ESTIMATED, 3), Usage(ESTIMATED, 5), Usage(7, 3)]


async def test_without_log_probabilities_there_is_text_and_no_token(upstream, generator):
    upstream.answers = [answering(piece("It serves"), piece(finish="stop"), USAGE)]
    assert await generator.complete(PROMPT) == Completion("It serves", (), "stop", Usage(7, 3))


async def test_a_draft_without_log_probabilities_is_logged_once(upstream, caplog):
    upstream.answers = [answering(piece("It serves"), piece(finish="stop"), USAGE)]
    async with aclosing(connect(upstream, needs_logprobs=True)) as draft, aclosing(connect(upstream)) as main:
        for generator in (draft, draft, main):
            await generator.complete(PROMPT)
    assert caplog.messages == ["the server of big returns no log-probabilities: its drafts have a quality of 0"]


async def test_a_server_that_refuses_to_give_log_probabilities_is_not_asked_for_them_again(upstream, generator):
    upstream.answers = [failing(400, message="logprobs are not supported by this model"), answering(*EVENTS)]
    await generator.complete(PROMPT)
    await generator.complete(PROMPT)
    assert ["logprobs" in asked for asked in upstream.asked] == [True, False, False]


async def test_an_error_that_only_mentions_log_probabilities_does_not_end_them(upstream, generator):
    refused = failing(400, message="the prompt says: logprobs")
    upstream.answers = [refused, refused, answering(*EVENTS)]
    with pytest.raises(ModelFailedError):
        await generator.complete(PROMPT)
    assert await generator.complete(PROMPT) == COMPLETION
    assert ["logprobs" in asked for asked in upstream.asked] == [True, False, True]


async def test_answers_one_after_the_other_share_a_connection(upstream, generator):
    for _ in range(3):
        await generator.complete(PROMPT)
    assert len(set(upstream.ports)) == 1


async def test_concurrent_answers_are_kept_apart(upstream, generator):
    upstream.answers = [answering(piece(f"{number}", -0.5), piece(finish="stop"), USAGE) for number in range(32)]
    answers = await asyncio.gather(*(generator.complete(PROMPT) for _ in range(32)))
    assert sorted(int(answer.text) for answer in answers) == list(range(32))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_a_transient_failure_is_retried(upstream, status):
    upstream.answers = [failing(status), answering(*EVENTS)]
    async with aclosing(connect(upstream, max_retries=1)) as generator:
        assert await generator.complete(PROMPT) == COMPLETION
    assert len(upstream.asked) == 2


async def test_a_persistent_failure_is_retried_only_as_often_as_allowed(upstream):
    upstream.answers = [failing(500)]
    async with aclosing(connect(upstream, max_retries=1)) as generator:
        with pytest.raises(UnavailableError):
            await generator.complete(PROMPT)
    assert len(upstream.asked) == 2


async def test_a_server_that_asks_for_a_long_pause_is_not_retried(upstream):
    upstream.answers = [failing(429, {"Retry-After": "60"})]
    async with aclosing(connect(upstream, max_retries=2)) as generator:
        with pytest.raises(OverloadedError) as caught:
            await generator.complete(PROMPT)
    assert caught.value.retry_after_s == 60
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (failing(400), ModelFailedError, "could not answer"),
        (failing(401), ModelFailedError, "check the key"),
        (failing(402), ModelFailedError, "could not answer"),
        (failing(403), ModelFailedError, "check the key"),
        (failing(404), ModelFailedError, "check the model and the URL"),
        (failing(429), OverloadedError, "is overloaded"),
        (failing(500), UnavailableError, "has failed"),
        (failing(504), UnavailableError, "has failed"),
        (lambda: HTMLResponse("<h1>Bad Gateway</h1>", 502), UnavailableError, "has failed"),
        (lambda: HTMLResponse("<h1>Teapot</h1>", 418), ModelFailedError, "could not answer"),
        (answering({"error": {"message": "out of memory", "code": 500}}), ModelFailedError, "could not answer"),
        (answering({"error": "out of memory"}), ModelFailedError, "could not answer"),
        (answering(piece("It"), done=False), UnavailableError, "broke off"),
        (answering(piece("It")), UnavailableError, "broke off"),
        (
            lambda: Response(b"data: {half\n\n", media_type="text/event-stream"),
            ModelFailedError,
            "as its protocol says",
        ),
        (lambda: Response(b"data: \xff\n\n", media_type="text/event-stream"), ModelFailedError, "as its protocol says"),
        (answering(piece("It", float("nan"))), ModelFailedError, "as its protocol says"),
    ],
)
async def test_each_failure_has_its_error(upstream, generator, answer, error, message):
    upstream.answers = [answer]
    with pytest.raises(error, match=message) as caught:
        await generator.complete(PROMPT)
    assert type(caught.value) is error
    assert caught.value.__cause__ is not None or "broke off" in message


async def test_no_error_shows_the_key_or_what_the_server_said_about_it(upstream, generator):
    upstream.answers = [failing(401, message=f"{KEY} is not a key")]
    with pytest.raises(ModelFailedError) as caught:
        await generator.complete(PROMPT)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        failing(400, message="it has 9000 tokens, and may have 8192", code="context_length_exceeded"),
        failing(400, message="This model's maximum context length is 8192 tokens.", code=400),
        answering({"error": {"message": "9000 tokens exceed the context length", "code": "ModelFailed"}}),
    ],
    ids=["code", "message", "within the stream"],
)
async def test_a_prompt_that_is_too_long_is_the_callers_error(upstream, generator, answer):
    upstream.answers = [answer]
    with pytest.raises(PromptTooLongError, match="tokens"):
        await generator.complete(PROMPT)


async def test_a_server_that_is_not_there_is_unavailable():
    nobody = Upstream([], silent, url=f"http://127.0.0.1:{free_port()}")
    async with aclosing(connect(nobody)) as generator:
        for call in (generator.complete(PROMPT), generator.card()):
            with pytest.raises(UnavailableError, match="connection"):
                await call


async def test_a_connection_that_breaks_in_the_middle_is_unavailable_after_the_pieces_that_came(upstream, generator):
    upstream.answers = [breaking(line(piece("It", -0.5)))]
    stream = generator.stream(PROMPT)
    assert (await anext(stream)).text == "It"
    with pytest.raises(UnavailableError, match="connection"):
        await anext(stream)


@pytest.mark.parametrize("events", [[], [piece("It", -0.5)]], ids=["from the start", "in the middle"])
async def test_a_server_that_falls_silent_is_a_deadline_error_and_is_disconnected(upstream, events):
    upstream.answers = [upstream.holding(*map(line, events))]
    async with aclosing(connect(upstream, timeout_s=0.2)) as generator:
        with pytest.raises(DeadlineExceededError) as caught:
            await generator.complete(PROMPT)
        assert caught.value.timeout_s == 0.2
        assert await upstream.is_gone()


async def test_comments_that_keep_the_connection_alive_do_not_extend_a_deadline(upstream, generator):
    upstream.answers = [upstream.holding(comments=True)]
    with pytest.raises(DeadlineExceededError):
        await WithDeadline(generator, 0.2).complete(PROMPT)
    assert await upstream.is_gone()


async def test_closing_a_stream_stops_the_server(upstream, generator):
    upstream.answers = [upstream.holding(line(piece("It serves", -0.5, -0.25)))]
    stream = generator.stream(PROMPT)
    assert (await anext(stream)).text == "It serves"  # while the server is at work on the rest
    assert await generator.activity() == Activity(running=1, completed=0, cancelled=0, generated_tokens=2)
    await stream.aclose()
    assert await upstream.is_gone()
    assert await generator.activity() == Activity(running=0, completed=0, cancelled=1, generated_tokens=2)


async def test_cancelling_a_completion_stops_the_server(upstream, generator):
    upstream.answers = [upstream.holding(line(piece("It", -0.5)))]
    call = asyncio.create_task(generator.complete(PROMPT))
    await asyncio.to_thread(upstream.at_work.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await upstream.is_gone()
    activity = await generator.activity()
    assert (activity.running, activity.completed, activity.cancelled) == (0, 0, 1)


async def test_the_counters_tell_what_was_answered(upstream, generator):
    upstream.answers = [answering(*EVENTS), answering(piece("It serves"), piece(finish="stop"), USAGE), failing(500)]
    await generator.complete(PROMPT)
    await generator.complete(PROMPT)
    with pytest.raises(UnavailableError):
        await generator.complete(PROMPT)
    assert await generator.activity() == Activity(running=0, completed=2, cancelled=0, generated_tokens=6)


@pytest.mark.parametrize(
    ("entry", "context_length"),
    [({"context_length": 512}, 512), ({"max_model_len": 4096}, 4096), ({"context_length": None}, 1000), ({}, 1000)],
    ids=str,
)
async def test_the_card_has_the_context_length_that_the_server_reports_or_else_the_given_one(
    upstream, entry, context_length
):
    upstream.models = lambda: JSONResponse({"object": "list", "data": [{"id": "other"}, {"id": "big"} | entry]})
    async with aclosing(connect(upstream, context_length=1000)) as generator:
        assert await generator.card() == GeneratorCard("big", context_length)


async def test_a_long_name_on_the_server_is_a_short_one_here(upstream):
    upstream.models = lambda: JSONResponse({"data": [{"id": "makers/big"}]})
    async with aclosing(connect(upstream, "makers/big")) as generator:
        assert (await generator.card()).name == "big"
        await generator.complete(PROMPT)
    assert upstream.asked[0]["model"] == "makers/big"


@pytest.mark.parametrize(
    ("models", "error"),
    [
        (lambda: JSONResponse({"data": [{"id": "other"}]}), UnavailableError),
        (failing(503), UnavailableError),
        (failing(401), ModelFailedError),
        (lambda: HTMLResponse("<h1>Welcome</h1>"), ModelFailedError),
    ],
    ids=["another model", "not up yet", "a wrong key", "a web page"],
)
async def test_a_server_that_cannot_answer_has_no_card(upstream, generator, models, error):
    upstream.models = models
    with pytest.raises(error):
        await generator.card()


async def test_a_card_times_out_quickly_and_is_not_retried(upstream, monkeypatch):
    monkeypatch.setattr("workshop.integration.upstream.openai.PROBE_TIMEOUT_S", 0.3)
    upstream.models = silent
    async with aclosing(connect(upstream, timeout_s=60.0, max_retries=2)) as generator:
        with pytest.raises(DeadlineExceededError):
            await generator.card()
    assert upstream.paths == ["/v1/models"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "error", "logprobs", "usage"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def test_whatever_a_server_sends_only_errors_of_the_contract_are_raised(upstream):
    generator = connect(upstream)
    with asyncio.Runner() as runner:

        @given(events=st.lists(JSON, min_size=1, max_size=3))
        @settings(max_examples=100, deadline=None)
        def ask(events: list[object]) -> None:
            upstream.answers = [answering(*events)]
            with pytest.raises(ServiceError):
                runner.run(generator.complete(PROMPT))

        ask()
        runner.run(generator.aclose())
