"""A server with Anthropic's Messages API behind the contract: what it is sent, its answers, its failures."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from fastapi.responses import HTMLResponse, JSONResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.upstreams import Answer, Upstream, breaking, failing, silent, streaming
from workshop.contracts.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    OverloadedError,
    PromptTooLongError,
    ServiceError,
    UnavailableError,
)
from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Message, Prompt, Usage
from workshop.integration.generator import WithDeadline
from workshop.integration.upstream.anthropic import AnthropicGenerator
from workshop.machine import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = "key-SECRET"
PROMPT = Prompt((Message("user", "What is Ray Serve?"),))
COMPLETION = Completion("It serves models", (), "stop", Usage(7, 3))
MODEL = {"type": "model", "id": "claude", "max_input_tokens": 1_000_000, "max_tokens": 64_000}

Event = dict[str, Any]


def start(**usage: object) -> Event:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "claude"}
    counts = {"input_tokens": 7, "output_tokens": 1} | usage
    return {"type": "message_start", "message": message | {"stop_reason": None, "usage": counts}}


def piece(text: str, kind: str = "text") -> Event:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}}


def end(reason: str | None = "end_turn", **usage: object) -> Event:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 3} | usage}


def error(kind: str, message: str = "no") -> Event:
    return {"type": "error", "error": {"type": kind, "message": message}}


BLOCK: Event = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
PING: Event = {"type": "ping"}
BLOCK_STOP: Event = {"type": "content_block_stop", "index": 0}
STOP: Event = {"type": "message_stop"}
EVENTS = [start(), BLOCK, PING, piece("It serves"), piece(" models"), BLOCK_STOP, end(), STOP]


def line(event: object) -> bytes:
    name = event.get("type", "") if isinstance(event, dict) else "message_delta"
    return f"event: {name}\ndata: {json.dumps(event)}\n\n".encode()


def answering(*events: object) -> Answer:
    return streaming(*map(line, events))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream([answering(*EVENTS)], lambda: JSONResponse(MODEL)).running() as upstream:
        yield upstream


def connect(upstream: Upstream, key: str | None = KEY, **options: Any) -> AnthropicGenerator:
    return AnthropicGenerator(upstream.url, "claude", key, **{"timeout_s": 10.0, "max_retries": 0} | options)


@pytest.fixture
async def generator(upstream) -> AsyncGenerator[AnthropicGenerator, None]:
    async with aclosing(connect(upstream)) as generator:
        yield generator


async def test_an_answer_has_its_text_reason_and_usage(generator):
    assert await generator.complete(PROMPT) == COMPLETION


async def test_a_stream_has_a_chunk_for_each_piece_with_the_prompt_as_reported_and_the_answer_as_estimated(generator):
    assert [chunk async for chunk in generator.stream(PROMPT)] == [
        Chunk("It serves", usage=Usage(7, 3)),
        Chunk(" models", usage=Usage(7, 5)),
        Chunk("", (), "stop", usage=Usage(7, 3)),
    ]


async def test_the_server_gets_the_whole_prompt(upstream, generator):
    messages = (
        Message("system", "Be short."),
        Message("user", "Hello"),
        Message("assistant", "Hi."),
        Message("system", "In French."),
        Message("user", "How are you?"),
    )
    await generator.complete(Prompt(messages, max_tokens=5, temperature=0.5, stop=("END",)))
    assert upstream.paths == ["/v1/messages"]
    assert upstream.asked == [
        {
            "model": "claude",
            "system": "Be short.\n\nIn French.",
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "How are you?"},
            ],
            "max_tokens": 5,
            "temperature": 0.5,
            "stop_sequences": ["END"],
            "stream": True,
        }
    ]


async def test_the_server_gets_our_key_in_its_own_header(upstream, generator):
    await generator.complete(PROMPT)
    await generator.card()
    for headers in upstream.headers:
        assert headers["x-api-key"] == KEY
        assert "anthropic-version" in headers
        assert "Authorization" not in headers


async def test_no_credential_of_this_machine_is_sent(upstream, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "SECRET")
    async with aclosing(connect(upstream, key=None)) as generator:
        await generator.complete(PROMPT)
    assert "SECRET" not in str(upstream.headers)


async def test_what_a_prompt_does_not_set_is_not_sent(upstream, generator):
    await generator.complete(PROMPT)
    assert {"system", "stop_sequences", "top_p"}.isdisjoint(upstream.asked[0])


async def test_an_empty_message_is_left_out_because_the_protocol_has_none(upstream, generator):
    messages = (Message("system", " "), Message("user", "Why?"), Message("assistant", ""), Message("user", "Why?"))
    await generator.complete(Prompt(messages))
    assert upstream.asked[0]["messages"] == [{"role": "user", "content": "Why?"}] * 2
    assert "system" not in upstream.asked[0]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"temperature": 0.0}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 2.0}, {"temperature": 1.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7}),
        ({"temperature": 1.0, "top_p": 0.9}, {"top_p": 0.9}),
    ],
    ids=str,
)
async def test_a_server_gets_temperature_or_top_p_never_both(upstream, generator, given, sent):
    await generator.complete(Prompt(PROMPT.messages, **given))
    assert {name: upstream.asked[0][name] for name in ("temperature", "top_p") if name in upstream.asked[0]} == sent


async def test_a_model_that_refuses_a_temperature_is_not_sent_one_again(upstream, generator):
    upstream.answers = [failing(400, message="`temperature` is deprecated for this model."), answering(*EVENTS)]
    await generator.complete(PROMPT)
    await generator.complete(PROMPT)
    assert ["temperature" in asked for asked in upstream.asked] == [True, False, False]


async def test_an_error_that_only_mentions_the_temperature_does_not_end_it(upstream, generator):
    refused = failing(400, message="the prompt says: temperature")
    upstream.answers = [refused, refused, answering(*EVENTS)]
    with pytest.raises(ModelFailedError):
        await generator.complete(PROMPT)
    await generator.complete(PROMPT)
    assert ["temperature" in asked for asked in upstream.asked] == [True, False, True]


async def test_a_blank_stop_text_is_the_callers_mistake(upstream, generator):
    with pytest.raises(InvalidInputError, match="blank"):
        await generator.complete(Prompt(PROMPT.messages, stop=("\n",)))
    assert not upstream.asked


@pytest.mark.parametrize(("asked", "sent"), [(None, 64_000), (100, 100), (10**9, 64_000)])
async def test_an_answer_may_have_as_many_tokens_as_the_server_allows(upstream, generator, asked, sent):
    await generator.card()
    await generator.complete(Prompt(PROMPT.messages, asked))
    assert upstream.asked[0]["max_tokens"] == sent


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("refusal", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
    ],
)
async def test_each_stop_reason_is_mapped_to_ours(upstream, generator, said, meant):
    upstream.answers = [answering(start(), piece("It"), end(said), STOP)]
    assert (await generator.complete(PROMPT)).finish_reason == meant


async def test_what_the_model_thinks_is_not_part_of_the_answer(upstream, generator):
    thoughts = [piece("Hm.", "thinking"), piece("c2ln", "signature")]
    upstream.answers = [answering(start(), *thoughts, *EVENTS[1:])]
    assert await generator.complete(PROMPT) == COMPLETION


async def test_events_of_a_new_kind_are_ignored(upstream, generator):
    upstream.answers = [answering({"type": "weather", "message": "rain", "delta": 3}, *EVENTS)]
    assert await generator.complete(PROMPT) == COMPLETION


async def test_tokens_from_a_cache_are_tokens_of_the_prompt(upstream, generator):
    cached = {"cache_creation_input_tokens": 20, "cache_read_input_tokens": 100}
    upstream.answers = [answering(start(**cached), *EVENTS[1:])]
    assert (await generator.complete(PROMPT)).usage == Usage(127, 3)


@pytest.mark.parametrize(
    "events",
    [[start(input_tokens=None), *EVENTS[1:]], [start(), piece("It"), end(output_tokens=None), STOP], EVENTS[1:]],
    ids=["of the prompt", "of the answer", "no opening"],
)
async def test_an_answer_without_usage_is_an_error_because_it_could_not_be_charged(upstream, generator, events):
    upstream.answers = [answering(*events)]
    with pytest.raises(ModelFailedError, match="how many tokens"):
        await generator.complete(PROMPT)


@pytest.mark.parametrize("n_tokens", [-1, 2**31, 2**70])
async def test_a_usage_that_cannot_be_charged_is_an_error(upstream, generator, n_tokens):
    for events in ([start(input_tokens=n_tokens), *EVENTS[1:]], [start(), end(output_tokens=n_tokens)]):
        upstream.answers = [answering(*events)]
        with pytest.raises(ModelFailedError, match="as its protocol says"):
            await generator.complete(PROMPT)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
async def test_a_transient_failure_is_retried(upstream, status):
    upstream.answers = [failing(status), answering(*EVENTS)]
    async with aclosing(connect(upstream, max_retries=1)) as generator:
        assert await generator.complete(PROMPT) == COMPLETION
    assert len(upstream.asked) == 2


@pytest.mark.parametrize("status", [429, 529])
async def test_a_server_that_asks_for_a_long_pause_is_not_retried(upstream, status):
    upstream.answers = [failing(status, {"Retry-After": "60"})]
    async with aclosing(connect(upstream, max_retries=2)) as generator:
        with pytest.raises(OverloadedError) as caught:
            await generator.complete(PROMPT)
    assert caught.value.retry_after_s == 60
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (failing(400, type="invalid_request_error"), ModelFailedError, "could not answer"),
        (failing(401, type="authentication_error"), ModelFailedError, "check the key"),
        (failing(402, type="billing_error"), ModelFailedError, "could not answer"),
        (failing(403, type="permission_error"), ModelFailedError, "check the key"),
        (failing(404, type="not_found_error"), ModelFailedError, "check the model and the URL"),
        (failing(429, type="rate_limit_error"), OverloadedError, "is overloaded"),
        (failing(500, type="api_error"), UnavailableError, "has failed"),
        (failing(504, type="timeout_error"), UnavailableError, "has failed"),
        (failing(529, type="overloaded_error"), OverloadedError, "is overloaded"),
        (lambda: HTMLResponse("<h1>Bad Gateway</h1>", 502), UnavailableError, "has failed"),
        (lambda: HTMLResponse("<h1>Teapot</h1>", 418), ModelFailedError, "could not answer"),
        (answering(start(), piece("It"), error("overloaded_error")), OverloadedError, "is overloaded"),
        (answering(start(), piece("It"), error("rate_limit_error")), OverloadedError, "is overloaded"),
        (answering(start(), piece("It"), error("api_error")), UnavailableError, "has failed"),
        (answering(start(), piece("It"), error("invalid_request_error")), ModelFailedError, "could not answer"),
        (streaming(b"event: error\ndata: <html>\n\n"), ModelFailedError, "could not answer"),
        (answering(start(), piece("It")), UnavailableError, "broke off"),
        (answering(start(), piece("It"), STOP), UnavailableError, "broke off"),
        (answering(start(), piece("It"), end(None), STOP), UnavailableError, "broke off"),
        (lambda: JSONResponse({"type": "message"}), UnavailableError, "broke off"),
        (streaming(b"event: message_start\ndata: {half\n\n"), ModelFailedError, "as its protocol says"),
        (streaming(b"event: message_start\ndata: \xff\n\n"), ModelFailedError, "as its protocol says"),
        (answering({"type": "message_start", "message": 3}), ModelFailedError, "as its protocol says"),
        (answering(start(), {"type": "content_block_delta", "delta": 3}), ModelFailedError, "as its protocol says"),
        (answering(None), UnavailableError, "broke off"),
    ],
)
async def test_each_failure_has_its_error(upstream, generator, answer, kind, message):
    upstream.answers = [answer]
    with pytest.raises(kind, match=message) as caught:
        await generator.complete(PROMPT)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is not None or "broke off" in message


async def test_no_error_shows_the_key_or_what_the_server_said_about_it(upstream, generator):
    upstream.answers = [failing(401, message=f"{KEY} is not a key")]
    with pytest.raises(ModelFailedError) as caught:
        await generator.complete(PROMPT)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        failing(400, message="prompt is too long: 208310 tokens > 200000 maximum"),
        failing(400, message="input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000 tokens"),
        failing(413, type="request_too_large", message="Request exceeds the maximum size"),
        lambda: HTMLResponse("<h1>Content Too Large</h1>", 413),
        answering(error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum")),
    ],
    ids=["tokens", "with the answer", "bytes", "bytes, says a proxy", "within the stream"],
)
async def test_a_prompt_that_is_too_long_is_the_callers_error(upstream, generator, answer):
    upstream.answers = [answer]
    with pytest.raises(PromptTooLongError, match=r"tokens|maximum size|too long for the server of claude"):
        await generator.complete(PROMPT)


async def test_a_server_that_is_not_there_is_unavailable():
    nobody = Upstream([], silent, url=f"http://127.0.0.1:{free_port()}")
    async with aclosing(connect(nobody)) as generator:
        for call in (generator.complete(PROMPT), generator.card()):
            with pytest.raises(UnavailableError, match="connection"):
                await call


async def test_a_connection_that_breaks_in_the_middle_is_unavailable_after_the_pieces_that_came(upstream, generator):
    upstream.answers = [breaking(line(start()), line(piece("It")))]
    stream = generator.stream(PROMPT)
    assert (await anext(stream)).text == "It"
    with pytest.raises(UnavailableError, match="connection"):
        await anext(stream)


@pytest.mark.parametrize("events", [[], [start(), piece("It")]], ids=["from the start", "in the middle"])
async def test_a_server_that_falls_silent_is_a_deadline_error_and_is_disconnected(upstream, events):
    upstream.answers = [upstream.holding(*map(line, events))]
    async with aclosing(connect(upstream, timeout_s=0.2)) as generator:
        with pytest.raises(DeadlineExceededError) as caught:
            await generator.complete(PROMPT)
        assert caught.value.timeout_s == 0.2
        assert await upstream.is_gone()


async def test_pings_that_keep_the_connection_alive_do_not_extend_a_deadline(upstream, generator):
    upstream.answers = [upstream.holding(*[line(PING)] * 3, comments=True)]
    with pytest.raises(DeadlineExceededError):
        await WithDeadline(generator, 0.2).complete(PROMPT)
    assert await upstream.is_gone()


async def test_closing_a_stream_stops_the_server(upstream, generator):
    upstream.answers = [upstream.holding(line(start()), line(piece("It serves")))]
    stream = generator.stream(PROMPT)
    assert (await anext(stream)).text == "It serves"  # while the server is at work on the rest
    assert (await generator.activity()).running == 1
    await stream.aclose()
    assert await upstream.is_gone()
    assert await generator.activity() == Activity(running=0, completed=0, cancelled=1, generated_tokens=0)


async def test_cancelling_a_completion_stops_the_server(upstream, generator):
    upstream.answers = [upstream.holding(line(start()), line(piece("It")))]
    call = asyncio.create_task(generator.complete(PROMPT))
    await asyncio.to_thread(upstream.at_work.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await upstream.is_gone()


async def test_concurrent_answers_are_kept_apart_and_share_connections(upstream, generator):
    upstream.answers = [answering(start(), piece(f"{number}"), end()) for number in range(32)]
    answers = await asyncio.gather(*(generator.complete(PROMPT) for _ in range(32)))
    assert sorted(int(answer.text) for answer in answers) == list(range(32))
    for _ in range(3):
        await generator.complete(PROMPT)
    assert len(set(upstream.ports)) <= 32


async def test_the_counters_tell_what_was_answered(upstream, generator):
    upstream.answers = [answering(*EVENTS), failing(500)]
    await generator.complete(PROMPT)
    with pytest.raises(UnavailableError):
        await generator.complete(PROMPT)
    assert await generator.activity() == Activity(running=0, completed=1, cancelled=0, generated_tokens=3)


@pytest.mark.parametrize(
    ("entry", "context_length"), [(MODEL, 1_000_000), ({"type": "model", "id": "claude"}, 1000)], ids=["all", "none"]
)
async def test_the_card_has_the_context_length_that_the_server_reports_or_else_the_given_one(
    upstream, entry, context_length
):
    upstream.models = lambda: JSONResponse(entry)
    async with aclosing(connect(upstream, context_length=1000)) as generator:
        assert await generator.card() == GeneratorCard("claude", context_length)
    assert upstream.paths == ["/v1/models/claude"]


@pytest.mark.parametrize(
    ("models", "kind"),
    [
        (failing(404, type="not_found_error"), ModelFailedError),
        (failing(503), UnavailableError),
        (failing(401), ModelFailedError),
        (lambda: HTMLResponse("<h1>Welcome</h1>"), ModelFailedError),
    ],
    ids=["another model", "not up yet", "a wrong key", "a web page"],
)
async def test_a_server_that_cannot_answer_has_no_card(upstream, generator, models, kind):
    upstream.models = models
    with pytest.raises(kind):
        await generator.card()


async def test_a_card_times_out_quickly_and_is_not_retried(upstream, monkeypatch):
    monkeypatch.setattr("workshop.integration.upstream.anthropic.PROBE_TIMEOUT_S", 0.3)
    upstream.models = silent
    async with aclosing(connect(upstream, timeout_s=60.0, max_retries=2)) as generator:
        with pytest.raises(DeadlineExceededError):
            await generator.card()
    assert upstream.paths == ["/v1/models/claude"]


KINDS = st.sampled_from(["message_start", "content_block_delta", "message_delta", "error", "ping", "weather"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["message", "delta", "error", "text", "type", "usage", "stop_reason"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def test_whatever_a_server_sends_only_errors_of_the_contract_are_raised(upstream):
    generator = connect(upstream)
    with asyncio.Runner() as runner:

        @given(events=st.lists(st.tuples(KINDS, JSON), min_size=1, max_size=3))
        @settings(max_examples=100, deadline=None)
        def ask(events: list[tuple[str, object]]) -> None:
            lines = (f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode() for kind, value in events)
            upstream.answers = [streaming(*lines)]
            with pytest.raises(ServiceError):
                runner.run(generator.complete(PROMPT))

        ask()
        runner.run(generator.aclose())
