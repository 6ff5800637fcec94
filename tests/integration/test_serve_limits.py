"""Clients that send too much or too slowly, at the proxy of Ray Serve, which treats them as uvicorn does."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.deployed import deployed
from workshop.settings import Settings

GET = b"GET /health HTTP/1.1\r\nHost: test\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture(scope="module")
def service(cluster, artifact, tmp_path_factory) -> Iterator[str]:
    """The URL of the service, with a short limit for bodies."""
    database = tmp_path_factory.mktemp("database") / "service.sqlite"
    settings = Settings(
        artifact=artifact, DATABASE_URL=f"sqlite+aiosqlite:///{database}", language_models=False, body_timeout_s=2.0
    )
    with deployed(settings):
        yield cluster


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


def problem(received: bytes) -> dict:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    document = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {document['status']} ".encode())
    return document


@pytest.mark.parametrize("size", [40_000, 2**21])
def test_headers_that_are_too_large_are_a_431(service, size):
    with connection(service) as client:
        client.sendall(GET + b"X-Long: " + size * b"a" + b"\r\n\r\n")
        assert problem(everything(client))["status"] == 431


def test_endless_headers_take_no_memory(service):
    proxies = [each for each in psutil.Process().children(recursive=True) if "ProxyActor" in each.name()]
    before = {process: process.memory_info().rss for process in proxies}
    with connection(service) as client:
        try:
            for piece in [GET + b"X-Long: ", *[2**20 * b"a"] * 200]:
                client.sendall(piece)
        except OSError:
            pass
    assert proxies
    for process in proxies:
        assert process.memory_info().rss - before[process] < 100e6


def memory(name: str) -> dict[psutil.Process, int]:
    """Bytes in use by each process of this test run's Ray with this name."""
    processes = [each for each in psutil.Process().children(recursive=True) if name in each.name()]
    assert processes
    return {process: process.memory_info().rss for process in processes}


@pytest.mark.parametrize("path", ["/v1/predict", "/nowhere", "/health"])
def test_endless_bodies_take_no_memory(service, path):
    """Also those that no application wants to read, and in many small chunks."""
    before = {**memory("ProxyActor"), **memory("api")}
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n".encode()
    chunk = b"100000\r\n" + 2**20 * b" " + b"\r\n"
    with connection(service) as client:
        try:
            for piece in [head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 300]:
                client.sendall(piece)
        except OSError:
            pass
    after = {**memory("ProxyActor"), **memory("api")}
    assert all(after[process] - before[process] < 100e6 for process in before)


@pytest.mark.parametrize("length", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_long_is_a_413(service, length):
    body = 5_000_000 * b" " if "5000000" in length else (2**16 * b" " for _ in range(80))
    answer = httpx.post(service + "/v1/predict", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 413


def test_a_compressed_body_is_a_415(service):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = httpx.post(service + "/v1/predict", content=b"nothing", headers=headers)
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")


def test_what_is_not_http_is_a_400(service):
    with connection(service) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert problem(everything(client))["status"] == 400


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/docs", "/", "/-/healthz"])
def test_every_response_has_each_security_header_once(service, path):
    """The last one is an answer of the proxy itself."""
    answer = httpx.get(service + path)
    for name in ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control"):
        assert len(answer.headers.get_list(name)) == 1, name
    assert ("script-src" in answer.headers["Content-Security-Policy"]) == (path in ("/docs", "/"))


@pytest.mark.parametrize("start", [b"", GET + b"X-Slow: a"])
def test_slow_headers_are_cut_off(service, start):
    with connection(service) as client:
        client.sendall(start)
        assert everything(client) == b""


def test_a_slow_body_is_a_408(service):
    with connection(service) as client:
        client.sendall(POST + b"{")
        assert problem(everything(client))["status"] == 408


@pytest.mark.parametrize("sent", ["a" * 129, "a" * 20_000, "two words", 'a"b'])
def test_a_request_id_of_the_wrong_form_is_never_sent_back(service, sent):
    answer = httpx.get(service + "/nowhere", headers={"X-Request-ID": sent})
    [request_id] = answer.headers.get_list("X-Request-ID")
    assert len(request_id) == 36
    assert answer.json()["request_id"] == request_id
