"""What a server can do to every adapter, whatever its protocol, and what a caller and the log learn of it."""

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing

import pytest
from fastapi import Response
from fastapi.responses import HTMLResponse, RedirectResponse

from tests.upstreams import Answer, Upstream, failing, silent, streaming
from workshop.contracts.errors import ModelFailedError, OverloadedError, ServiceError, UnavailableError
from workshop.contracts.generator import Message, Prompt
from workshop.integration.upstream.anthropic import AnthropicGenerator
from workshop.integration.upstream.client import MAX_LINE_BYTES
from workshop.integration.upstream.errors import MAX_QUOTED
from workshop.integration.upstream.openai import OpenAIEmbedding, OpenAIGenerator

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = "key-SECRET"
PROMPT = Prompt((Message("user", "What is Ray Serve?"),))

Ask = Callable[[], Awaitable[object]]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream([silent], silent).running() as upstream:
        yield upstream


@pytest.fixture(params=["openai", "anthropic", "embedding"])
async def ask(request, upstream) -> AsyncIterator[Ask]:
    options = {"api_key": KEY, "timeout_s": 10.0, "max_retries": 0}
    if request.param == "embedding":
        async with aclosing(OpenAIEmbedding(upstream.url, "model", **options)) as embedding:
            yield lambda: embedding.project(["What is Ray Serve?"])
        return
    kind = OpenAIGenerator if request.param == "openai" else AnthropicGenerator
    async with aclosing(kind(upstream.url, "model", **options)) as generator:
        yield lambda: generator.complete(PROMPT)


def events(content: bytes, headers: dict[str, str] | None = None) -> Answer:
    return lambda: Response(b"event: message_start\ndata: " + content + b"\n\n", 200, headers, "text/event-stream")


UNREADABLE = {
    "not compressed": events(b"{}", {"Content-Encoding": "gzip"}),
    "nested events": events(b"[" * 100_000),
    "nested JSON": lambda: Response(b"[" * 100_000, media_type="application/json"),
    "a huge number": events(b"9" * 100_000),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_no_parser_accepts_is_an_error_of_the_contract(upstream, ask, answer):
    upstream.answers = [answer]
    with pytest.raises((ModelFailedError, UnavailableError)):
        await ask()


async def test_a_huge_line_is_not_collected(upstream, ask):
    upstream.answers = [events(b"x" * 2 * MAX_LINE_BYTES)]
    with pytest.raises(ModelFailedError, match="as its protocol says") as caught:
        await ask()
    assert str(caught.value.__cause__) == "a line is too long"


QUOTING = {
    "400": failing(400, message=f"Authorization: Bearer {KEY}"),
    "401": failing(401, message=f"{KEY} is not a key"),
    "404": failing(404, message=f"unknown: {KEY}"),
    "413": failing(413, message=f"prompt is too long: {KEY}"),
    "429": failing(429, message=f"too often: {KEY}"),
    "500": failing(500, message=f"x-api-key={KEY}"),
    "a web page": lambda: HTMLResponse(f"<pre>Authorization: Bearer {KEY}</pre>", 500),
    "in a stream": streaming(b'event: error\ndata: {"error": {"message": "%b"}}\n\n' % KEY.encode()),
    "in another form": events(b'{"choices": "%b", "message": "%b"}' % (KEY.encode(), KEY.encode())),
}


@pytest.mark.parametrize("answer", QUOTING.values(), ids=QUOTING)
async def test_a_key_that_the_server_quotes_is_in_no_error_and_no_log(upstream, ask, answer, caplog):
    caplog.set_level(logging.DEBUG)
    upstream.answers = [answer]
    with pytest.raises(ServiceError) as caught:
        await ask()
    assert KEY in str(upstream.headers[-1])
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text


async def test_only_the_start_of_a_long_message_is_passed_on(upstream, ask):
    upstream.answers = [failing(413, message="prompt is too long. " * 100_000)]
    with pytest.raises(ServiceError) as caught:
        await ask()
    assert len(str(caught.value)) == len(str(caught.value.__cause__)) == MAX_QUOTED


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed_because_the_key_would_go_along(upstream, ask, status):
    upstream.answers = [lambda: RedirectResponse("http://localhost:9/elsewhere", status)]
    with pytest.raises(ModelFailedError, match="could not answer"):
        await ask()
    assert len(upstream.paths) == 1


@pytest.mark.parametrize(
    ("said", "understood"),
    [("0", 0), ("7", 7), ("9" * 400, 86_400), ("-1", 1), ("1e400", 1), ("nan", 1), ("", 1), ("soon", 1)],
)
async def test_a_pause_is_a_number_of_seconds_within_a_day(upstream, ask, said, understood):
    upstream.answers = [failing(429, {"Retry-After": said})]
    with pytest.raises(OverloadedError) as caught:
        await ask()
    assert caught.value.retry_after_s == understood
