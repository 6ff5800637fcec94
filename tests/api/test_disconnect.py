"""What happens to a request when its client disconnects."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.leaving import leaving
from workshop.api.middleware.disconnect import DisconnectMiddleware
from workshop.lab.app_server import run_app

TIMEOUT_S = 10  # generous: success comes quickly
EMPTY = {"type": "http.response.body", "body": b""}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}


@contextmanager
def served(app: ASGIApp) -> Iterator[httpx.Client]:
    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await DisconnectMiddleware(app)(scope, receive, send)

    with run_app(with_lifespan) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@dataclass
class Waiting:
    """Works forever, with or without reading the body first."""

    reads: bool
    at_work: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    cleaned_up: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while self.reads and (await receive()).get("more_body"):
            pass
        self.at_work.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            await asyncio.sleep(0.05)  # the clean-up is not cancelled a second time
            self.cleaned_up.set()


@pytest.mark.parametrize("reads", [True, False], ids=["reads its body", "does not read its body"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_request_of_a_client_that_leaves_is_cancelled_once(method, reads, caplog):
    app = Waiting(reads)
    body = {"content": b"x"} if method == "POST" else {}
    with served(app) as client:
        with leaving(client, method, "/", **body):
            assert app.at_work.wait(TIMEOUT_S)
            assert not app.cancelled.is_set()
        assert app.cancelled.wait(TIMEOUT_S)
        assert app.cleaned_up.wait(TIMEOUT_S)
    assert not caplog.records


def test_the_request_of_a_client_that_leaves_in_mid_body_is_cancelled():
    app = Waiting(reads=True)
    leaves = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"x"
        leaves.wait(TIMEOUT_S)
        raise ConnectionError

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            assert (await receive())["body"] == b"x"
            leaves.set()
            await receive()
            app.at_work.set()
        except asyncio.CancelledError:
            app.cancelled.set()
            raise

    with served(reading) as client:
        with pytest.raises(ConnectionError):
            client.post("/", content=body())
        client.close()
        assert app.cancelled.wait(TIMEOUT_S)
    assert not app.at_work.is_set()


def test_an_application_that_listens_after_its_response_learns_that_it_is_over():
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send(EMPTY)
        heard.append(await receive())

    with served(app) as client:
        assert client.get("/").status_code == 200
    assert [message["type"] for message in heard] == ["http.disconnect"]


def test_work_after_the_response_is_not_cancelled():
    """Servers report a disconnect as soon as the response has been sent."""
    over = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(EMPTY)
        for _ in range(20):
            await asyncio.sleep(0.01)
        over.set()

    with served(app) as client:
        with leaving(client, "GET", "/"):
            pass
        assert over.wait(TIMEOUT_S)  # before the server stops, which cancels long requests


def test_a_timeout_in_the_application_is_not_taken_for_a_disconnect():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            await send(START)
            await send(EMPTY)
            raise

    with served(app) as client:
        assert client.get("/").status_code == 200


def test_a_long_body_arrives_completely():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        n_bytes, more = 0, True
        while more:
            message = await receive()
            n_bytes += len(message["body"])
            more = message["more_body"]
        body = str(n_bytes).encode()
        await send(START | {"headers": [(b"content-length", str(len(body)).encode())]})
        await send(EMPTY | {"body": body})

    with served(app) as client:
        chunks = (b"x" * 2**16 for _ in range(300))
        assert client.post("/", content=chunks).text == str(300 * 2**16)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_body_is_received_no_faster_than_the_application_reads_it():
    received = read = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"x", "more_body": received < 100}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal read
        more = True
        while more:
            await asyncio.sleep(0)
            assert received <= read + 2
            more = (await receive())["more_body"]
            read += 1
        await send(EMPTY)

    async def send(message: Message) -> None:
        pass

    await DisconnectMiddleware(app)({"type": "http"}, receive, send)
    assert read == 100
