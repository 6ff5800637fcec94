"""Clients that send too much or too slowly, with Ray Serve: it treats them as uvicorn does, behind HAProxy or not."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.cli.conftest import Run
from tests.deployed import deployed
from tests.processes import descendants, of_each
from workshop.integration import ingress
from workshop.settings import Settings

GET = b"GET /health HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


HAPROXY = pytest.param("HAProxy", marks=pytest.mark.ray)
SERVES_PROXY = pytest.param("Serve's proxy", marks=pytest.mark.ray(own=True))
"""Where there is no HAProxy."""


@pytest.fixture(scope="module", params=[HAPROXY, SERVES_PROXY])
def service(request, artifact, tmp_path_factory) -> Iterator[str]:
    """The URL of the service, with a short limit for bodies."""
    folder = tmp_path_factory.mktemp("service")
    settings = {"database_url": f"sqlite+aiosqlite:///{folder}/service.sqlite", "body_timeout_s": 2.0}
    if request.param == "HAProxy":
        url = request.getfixturevalue("cluster")
        with deployed(Settings(artifact=artifact, language_models=False, **settings)):
            yield url
        return
    file = folder / "settings.yaml"
    file.write_text(json.dumps(settings | {"artifact": str(artifact), "language_models": False}))
    run = Run(
        folder, "serve", "--port=0", WORKSHOP_SETTINGS_FILE=str(file), RAY_SERVE_ENABLE_HA_PROXY="0", RAY_ADDRESS=""
    )
    try:
        yield run.url()
    finally:
        run.send(signal.SIGTERM)


@pytest.fixture
def behind_haproxy(service, request) -> bool:
    return "HAProxy" in request.node.callspec.id


@contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        yield client


def everything(client: socket.socket) -> bytes:
    """What the proxy says until it closes the connection."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def response(client: socket.socket) -> bytes:
    """What the proxy says until its response is complete."""
    received = client.recv(65536)
    while not received.endswith(b"}"):
        piece = client.recv(65536)
        assert piece, received
        received += piece
    return received


def problem(received: bytes) -> dict:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    document = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {document['status']} ".encode())
    return document


@pytest.mark.parametrize("size", [40_000, 2**21])
def test_headers_that_are_too_large_are_a_431(service, behind_haproxy, size):
    with connection(service) as client:
        with suppress(OSError):  # it may be closed before all is sent
            client.sendall(GET + b"X-Long: " + size * b"a" + b"\r\n\r\n")
        if behind_haproxy and size > ingress.MAX_HAPROXY_HEADERS:  # HAProxy does not read them to their end
            assert client.recv(12) == b"HTTP/1.1 400"
        else:
            assert problem(everything(client))["status"] == 431


def test_endless_headers_take_no_memory(service):
    before = memory("ProxyActor", "haproxy")
    with connection(service) as client:
        try:
            for piece in [GET + b"X-Long: ", *[2**20 * b"a"] * 200]:
                client.sendall(piece)
        except OSError:
            pass
    assert_small(before, memory("ProxyActor", "haproxy"))


def memory(*names: str) -> dict[psutil.Process, int]:
    """Bytes in use by each process of this test run's Ray with one of these names."""
    found: dict[psutil.Process, int] = {}
    for name in names:
        seen = of_each(descendants(name), lambda process: process.memory_info().rss)
        assert seen or name == "haproxy"
        found |= seen
    return found


def assert_small(before: dict[psutil.Process, int], after: dict[psutil.Process, int]) -> None:
    """None has grown by 100 MB. An HAProxy ends when another one takes over, and takes its memory along."""
    remaining = before.keys() & after.keys()
    assert remaining
    assert all(after[process] - before[process] < 100e6 for process in remaining)


@pytest.mark.parametrize("path", ["/v1/predict", "/nowhere", "/health"])
def test_endless_bodies_take_no_memory(service, path):
    """Also those that no application wants to read, and in many small chunks."""
    before = memory("ProxyActor", "haproxy", "api")
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n".encode()
    chunk = b"100000\r\n" + 2**20 * b" " + b"\r\n"
    with connection(service) as client:
        try:
            for piece in [head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 300]:
                client.sendall(piece)
        except OSError:
            pass
    assert_small(before, memory("ProxyActor", "haproxy", "api"))


@pytest.mark.parametrize("length", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_long_is_a_413(service, length):
    body = 5_000_000 * b" " if "5000000" in length else (2**16 * b" " for _ in range(80))
    answer = httpx.post(service + "/v1/predict", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 413


def test_a_compressed_body_is_a_415(service):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = httpx.post(service + "/v1/predict", content=b"nothing", headers=headers)
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")


def test_what_is_not_http_is_a_400(service, behind_haproxy):
    with connection(service) as client:
        client.sendall(b"nonsense\r\n\r\n")
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 400 ")
    if not behind_haproxy:
        assert problem(received)["status"] == 400


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/docs", "/", "/-/healthz"])
def test_every_response_has_each_security_header_once(service, path):
    """The last one is an answer of the proxy itself."""
    answer = httpx.get(service + path)
    for name in ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control"):
        assert len(answer.headers.get_list(name)) == 1, name
    assert ("script-src" in answer.headers["Content-Security-Policy"]) == (path in ("/docs", "/"))


@pytest.mark.parametrize("start", [b"", GET + b"X-Slow: a"])
def test_slow_headers_are_cut_off(service, behind_haproxy, start):
    with connection(service) as client:
        client.sendall(start)
        received = everything(client)
    assert received.startswith(b"HTTP/1.1 408 ") if behind_haproxy and start else received == b""


def test_a_slow_body_is_a_408(service):
    with connection(service) as client:
        client.sendall(POST + b"{")
        assert problem(response(client))["status"] == 408


@pytest.mark.parametrize("sent", ["a" * 129, "a" * 20_000, "two words", 'a"b'])
def test_a_request_id_of_the_wrong_form_is_never_sent_back(service, sent):
    answer = httpx.get(service + "/nowhere", headers={"X-Request-ID": sent})
    [request_id] = answer.headers.get_list("X-Request-ID")
    assert len(request_id) == 36
    assert answer.json()["request_id"] == request_id
