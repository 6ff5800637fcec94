"""Bodies that are hard to read: whatever they hold, the answer is an error that says so, and comes soon."""

import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.service import RECORD
from tests.stand_ins import application, draft, main
from workshop.api.routes import MAX_NAMES
from workshop.lab.app_server import run_app

JSON = {"Content-Type": "application/json"}
CHAT = {"model": "main", "messages": [{"role": "user", "content": "What is a replica?"}]}
QUERY = {"query": "What is a replica?"}
GOOD = {
    "/v1/predict": RECORD,
    "/v1/batch-predict": {"records": [RECORD]},
    "/v1/cases": {"measurements": RECORD},
    "/v1/cases/{case_id}": {"measurements": RECORD},
    "/v1/chat/completions": CHAT,
    "/v1/chat/stream": CHAT,
    "/v1/embeddings": {"model": "stand-in", "input": "text"},
    "/v1/generate": {"model": "main", "prompt": "What is a replica?"},
    "/v1/query": QUERY,
    "/v1/batch": {"queries": [QUERY]},
    "/v1/rag/query": QUERY,
}
SURROGATE = b'"\\ud800"'


class Heartbeat:
    """Notes how long the event loop was held at a time."""

    def __init__(self, app) -> None:
        self.app = app
        self.longest = 0.0

    async def beat(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.perf_counter() - start)
            await asyncio.sleep(0.005)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            self.task = asyncio.create_task(self.beat())
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[tuple[httpx.Client, Heartbeat]]:
    app = Heartbeat(application(tmp_path_factory.mktemp("bodies") / "service.sqlite", draft(), main()))
    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client, app


def send(client: httpx.Client, path: str, content: bytes) -> httpx.Response:
    method = "PUT" if "{" in path else "POST"
    return client.request(method, path.format(case_id="0" * 32), content=content, headers=JSON)


def test_every_route_with_a_body_is_here(service):
    client, _ = service
    paths = client.get("/openapi.json").json()["paths"]
    assert {path for path, item in paths.items() if any("requestBody" in operation for operation in item.values())} == (
        set(GOOD)
    )


def is_openai(path: str) -> bool:
    return path in ("/v1/chat/completions", "/v1/embeddings")


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "content",
    [SURROGATE, b'{"a": ' + SURROGATE + b"}", b"{" + SURROGATE + b": 1}", b'"\\udc00\\ud800"', b"[" * 10**5, b"\xff"],
    ids=["text", "value", "name", "wrong order", "too deep", "not UTF-8"],
)
def test_text_that_no_encoding_has_is_refused(service, path, content):
    client, _ = service
    answer = send(client, path, content)
    assert answer.status_code == (400 if is_openai(path) else 422)
    assert "JSON decode error" in answer.text


@pytest.mark.parametrize("path", GOOD)
def test_a_surrogate_in_any_of_the_texts_is_refused(service, path):
    client, _ = service
    good = json.dumps(GOOD[path]).encode()
    for text in (b'"main"', b'"What is a replica?"', b'"text"', b'"user"', b'"query"', b'"mean_radius"', b'"stand-in"'):
        if text in good:
            assert send(client, path, good.replace(text, SURROGATE)).status_code in (400, 422), text


def test_a_pair_of_surrogates_is_a_character(service):
    client, _ = service
    answer = send(client, "/v1/query", b'{"query": "\\ud83d\\ude00"}')
    assert answer.status_code == 200


def names(n: int) -> bytes:
    return b"{" + b",".join(b'"%x" : 0' % i for i in range(n)) + b"}"


HEAVY = {
    "very many names": ("/v1/predict", names(350_000), 413),
    "many names": ("/v1/predict", names(MAX_NAMES), 422),
    "many names in an item": ("/v1/batch-predict", b'{"records": [%b]}' % names(MAX_NAMES - 1), 422),
    "many names in many items": ("/v1/batch-predict", b'{"records": [%b]}' % b",".join([names(45)] * 1000), 422),
    "many items with nothing": ("/v1/batch-predict", b'{"records": [%b]}' % b",".join([b"{}"] * 1000), 422),
    "too many items": ("/v1/batch-predict", b'{"records": [%b]}' % b",".join([b"{}"] * 10**6), 422),
    "many wrong parts": (
        "/v1/chat/stream",
        b'{"messages": [%b]}' % b",".join([b'{"content": [%b]}' % b",".join([b"{}"] * 64)] * 256),
        422,
    ),
    "many names for OpenAI": ("/v1/chat/completions", names(MAX_NAMES), 400),
}


@pytest.mark.parametrize("case", HEAVY)
def test_a_body_with_very_many_mistakes_holds_the_others_no_longer_than_a_large_good_one(service, case):
    client, heartbeat = service
    path, content, status = HEAVY[case]

    def held(path: str, content: bytes, expected: int) -> float:
        """Of three tries, so that a pause of this machine does not count."""
        times = []
        for _ in range(3):
            heartbeat.longest = 0.0
            assert send(client, path, content).status_code == expected
            client.get("/version")
            times.append(heartbeat.longest)
        return min(times)

    good = held("/v1/batch-predict", json.dumps({"records": [RECORD] * 1000}).encode(), 200)
    assert held(path, content, status) < 3 * good + 0.05


def test_unknown_names_are_named_and_of_very_many_some(service):
    client, _ = service
    for n, named in ((3, 3), (10, 10), (5000, 10)):
        answer = client.post("/v1/query", json=QUERY | {f"unknown-{i}": 0 for i in range(n)})
        assert answer.status_code == 422
        assert [detail["rule"] for detail in answer.json()["details"]] == ["extra_forbidden"] * named
        assert answer.json()["details"][0]["field"] == "unknown-0"


def test_a_message_with_very_many_mistakes_is_one_mistake(service):
    client, _ = service
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws") as socket:
        assert json.loads(socket.recv(timeout=10))["type"] == "ready"
        socket.send(json.dumps({"type": "cancel", "id": "1"} | {f"{i:x}": 0 for i in range(20_000)}))
        message = json.loads(socket.recv(timeout=10))
    assert (message["type"], message["id"]) == ("error", "1")
    assert [detail["rule"] for detail in message["details"]] == ["too_many_mistakes"]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/v1/chat/completions", "max_tokens", 10.0),
        ("/v1/chat/completions", "max_completion_tokens", 10.0),
        ("/v1/chat/completions", "n", 1.0),
        ("/v1/chat/completions", "presence_penalty", 0.0),
        ("/v1/chat/stream", "max_tokens", 10.0),
        ("/v1/generate", "max_tokens", 10.0),
        ("/v1/query", "max_tokens", 10.0),
        ("/v1/query", "max_tokens", 1e2),
    ],
)
def test_ten_point_zero_is_an_integer(service, path, name, value):
    client, _ = service
    assert client.post(path, json=GOOD[path] | {name: value}).status_code == 200


@pytest.mark.parametrize("value", [10.5, "10", True, float("inf"), [10]])
def test_what_is_no_integer_is_refused(service, value):
    client, _ = service
    for path in ("/v1/generate", "/v1/query"):
        assert send(client, path, json.dumps(GOOD[path] | {"max_tokens": value}).encode()).status_code == 422
