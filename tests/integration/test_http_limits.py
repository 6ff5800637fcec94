"""Clients that send too much or too slowly, on bare sockets: only they are cut off."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psutil
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.service import until
from tests.stand_ins import application, draft, main
from workshop.api.middleware.header_limit import MAX_HEADER_BYTES
from workshop.integration import http_limits
from workshop.integration.http_limits import LimitedHttpProtocol
from workshop.lab.app_server import Server, run_app

pytestmark = pytest.mark.slow

GET = b"GET /health HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def service(tmp_path) -> Iterator[Server]:
    app = application(tmp_path / "service.sqlite", draft(), main(), body_timeout_s=0.5)
    with run_app(app, http=LimitedHttpProtocol) as server:
        yield server


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(http_limits, "HEADER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_limits, "BODY_TIMEOUT_S", 0.6)
    monkeypatch.setattr(http_limits, "LINGER_S", 0.3)


@contextmanager
def connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        yield client


def everything(client: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def problem(received: bytes) -> dict:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    document = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {document['status']} ".encode())
    return document


HEADS: dict[str, Callable[[int], bytes]] = {
    "one header": lambda size: GET + b"X-Long: " + size * b"a" + b"\r\n\r\n",
    "many headers": lambda size: GET + size // 10 * b"X-Ma: ny\r\n" + b"\r\n",
    "a path": lambda size: b"GET /" + size * b"a" + b" HTTP/1.1\r\nHost: test\r\n\r\n",
    "a query": lambda size: b"GET /health?" + size * b"a" + b" HTTP/1.1\r\nHost: test\r\n\r\n",
    "a header's name": lambda size: GET + size * b"a" + b": x\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 100, 2**21])
def test_headers_that_are_too_large_are_a_431(service, head, size):
    with connection(service) as client:
        client.sendall(HEADS[head](size))
        answer = problem(everything(client))
    assert answer["status"] == 431
    assert len(answer["instance"]) < 2000
    assert httpx.get(service.url + "/health").status_code == 200


@pytest.mark.parametrize("head", ["one header", "many headers", "a query"])
def test_headers_within_the_limit_are_accepted(service, head):
    with connection(service) as client:
        client.sendall(HEADS[head](MAX_HEADER_BYTES // 2))
        assert client.recv(20).startswith(b"HTTP/1.1 200 ")


def send_until_cut_off(client: socket.socket, pieces: Iterable[bytes], pause_s: float = 0.0) -> bool:
    """Whether the connection broke before all of it was sent."""
    try:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause_s)
    except OSError:
        return True
    return False


def test_endless_headers_and_trailers_take_no_memory(service):
    """A client that never stops sending is cut off, in any part of a request."""
    before = psutil.Process().memory_info().rss
    trailers = b"POST /health HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    for start in (GET + b"X-Long: ", GET + b"X-Ma: ny\r\n", b"GET /", trailers + b"X-Long: "):
        with connection(service) as client:
            send_until_cut_off(client, [start, *[2**20 * b"a"] * 200])
    assert psutil.Process().memory_info().rss - before < 100e6


def test_the_answer_under_way_is_whole_when_the_next_request_is_too_large(service):
    with connection(service) as client:
        client.sendall(GET + b"\r\n" + HEADS["one header"](2**21))
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'{"status":' in received


def test_slow_headers_are_cut_off(service, hasty):
    for start in (b"", b"G", GET, GET + b"X-Slow: a"):
        with connection(service) as client:
            client.sendall(start)
            assert everything(client) == b""


def test_headers_that_trickle_are_cut_off(service, hasty):
    with connection(service) as client:
        assert send_until_cut_off(client, [GET, *[b"X-Slow: a\r\n"] * 1000], pause_s=0.05)


def test_the_headers_of_a_second_request_are_cut_off_too(service, hasty):
    with connection(service) as client:
        client.sendall(GET + b"\r\n")
        assert client.recv(20).startswith(b"HTTP/1.1 200 ")
        client.sendall(GET)
        assert b"HTTP/1.1" not in everything(client)


@pytest.mark.parametrize("body", [b"", b'{"mean_radius": 1'])
def test_a_slow_body_is_a_408(service, body):
    with connection(service) as client:
        client.sendall(POST + body)
        answer = problem(everything(client))
    assert answer["status"] == 408
    assert answer["error"] == "RequestTimeout"


def test_a_body_that_trickles_is_a_408(service):
    with connection(service) as client:
        client.sendall(POST)
        received = b""
        client.settimeout(0.05)
        while not received:
            client.sendall(b" ")
            try:
                received = client.recv(20)
            except TimeoutError:
                continue
    assert received.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_reads_does_not_hold_the_connection(service, hasty):
    """The answer has been sent, and the client goes on sending as slowly as it can."""
    with connection(service) as client:
        client.sendall(POST.replace(b"/v1/predict", b"/nowhere"))
        assert client.recv(20).startswith(b"HTTP/1.1 404 ")
        assert send_until_cut_off(client, [b" "] * 900, pause_s=0.05)


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00", GET + b"No colon\r\n\r\n"])
def test_what_is_not_http_is_a_400(service, head):
    with connection(service) as client:
        client.sendall(head)
        received = everything(client)
    assert problem(received)["status"] == 400
    assert b"x-content-type-options: nosniff" in received.lower()


def test_a_body_in_wrong_chunks_is_a_400_at_once(service):
    chunked = POST.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")
    with connection(service) as client:
        client.sendall(chunked + b"1\r\n{\r\nnonsense\r\n")
        assert problem(everything(client))["status"] == 400


def test_one_connection_too_many_is_a_503(service, monkeypatch):
    monkeypatch.setattr(http_limits, "MAX_CONNECTIONS", 3)
    with ExitStack() as stack:
        stack.enter_context(connect(f"ws://127.0.0.1:{service.port}/v1/chat/ws"))
        first, _, refused = (stack.enter_context(connection(service)) for _ in range(3))
        received = everything(refused)
        assert problem(received)["status"] == 503
        assert b"retry-after: 5" in received.lower()
        first.sendall(GET + b"\r\n")
        assert first.recv(20).startswith(b"HTTP/1.1 200 ")
    assert until(lambda: can_connect(service), bool)


def can_connect(server: Server) -> bool:
    return httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_large_message_is_refused_before_it_is_in_memory(service, compression):
    with connect(f"ws://127.0.0.1:{service.port}/v1/chat/ws", compression=compression) as talk:
        assert '"ready"' in talk.recv(timeout=60)
        with suppress(ConnectionClosed):  # it may be closed before all is sent
            talk.send(" " * 2**23)
        with pytest.raises(ConnectionClosed) as caught:
            talk.recv(timeout=60)
    if caught.value.rcvd is not None:  # a client that is still sending may not get to read it
        assert caught.value.rcvd.code == 1009


def slow_app() -> FastAPI:
    """Takes longer than any client may."""
    app = FastAPI()

    @app.post("/slow")
    async def slow(request: Request) -> int:
        body = await request.body()
        await asyncio.sleep(1.5)
        return len(body)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces():
            for _ in range(3):
                yield b"piece"
                await asyncio.sleep(0.5)

        return StreamingResponse(pieces())

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    return app


def test_a_slow_model_is_not_a_slow_sender(hasty):
    with run_app(slow_app(), http=LimitedHttpProtocol) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert client.post("/slow", content=b"body").json() == 4
            assert client.get("/stream").content == 3 * b"piece"
        with connection(server) as client:  # the next request begins to arrive during the first
            client.sendall(b"POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody" + GET)
            assert client.recv(20).startswith(b"HTTP/1.1 200 ")
        with connect(f"ws://127.0.0.1:{server.port}/echo") as talk:
            time.sleep(1.5)
            talk.send("still there")
            assert talk.recv() == "still there"


IDS = ["callers-own-id", "a" * 128, "0.1_2-Z"]
IMPROPER_IDS = ["", "a" * 129, "a" * 20_000, "two words", 'a"b', "<script>", "ä".encode(), "a;b"]


@pytest.mark.parametrize("sent", IDS)
def test_a_proper_request_id_comes_back(service, sent):
    assert httpx.get(service.url + "/health", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", IMPROPER_IDS)
def test_any_other_request_id_is_replaced(service, sent):
    answer = httpx.get(service.url + "/nowhere", headers={"X-Request-ID": sent})
    assert len(answer.headers["X-Request-ID"]) == 36
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
