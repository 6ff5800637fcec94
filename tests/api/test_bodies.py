"""Bodies that are hard to parse: whatever they contain, the response is a clear error and comes quickly."""

import asyncio
import gzip
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

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}
CHAT = {"model": "main", "messages": [{"role": "user", "content": "What is a replica?"}]}
QUERY = {"query": "What is a replica?"}
TENSORS = {"inputs": [{"name": "rows", "shape": [1, 30], "datatype": "FP64", "data": list(RECORD.values())}]}
VALID = {
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
    "/invocations": {"dataframe_records": [RECORD]},
    "/v2/models/{name}/infer": TENSORS,
    "/v2/models/{name}/versions/{version}/infer": TENSORS,
    "/predict": RECORD,
    "/batch-predict": {"records": [RECORD]},
    "/api/query": QUERY,
    "/chat": CHAT,
    "/batch": ["What is a replica?"],
}
LONGEST = "a word of я " * 8333 + "end."
TEXTS = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/chat/stream": lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
    "/v1/generate": lambda text: {"prompt": text},
    "/v1/embeddings": lambda text: {"model": "stand-in", "input": [text]},
    "/chat": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/batch": lambda text: [text],
}
SURROGATE = b'"\\ud800"'


class Heartbeat:
    """Measures the longest time that the event loop was blocked."""

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
    method = "PUT" if "{case_id}" in path else "POST"
    url = path.format(case_id="0" * 32, name="stand-in", version="1")
    return client.request(method, url, content=content, headers=JSON)


def test_every_route_with_a_json_body_is_tested(service):
    client, _ = service
    paths = client.get("/openapi.json").json()["paths"]
    with_body = {
        path
        for path, item in paths.items()
        if any("application/json" in operation.get("requestBody", {}).get("content", {}) for operation in item.values())
    }
    assert with_body == set(VALID)


def has_422(path: str) -> bool:
    """Protocols that were defined elsewhere have not."""
    return not path.startswith(("/v1/chat/completions", "/v1/embeddings", "/invocations", "/v2"))


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize(
    "content",
    [SURROGATE, b'{"a": ' + SURROGATE + b"}", b"{" + SURROGATE + b": 1}", b'"\\udc00\\ud800"', b"[" * 10**5, b"\xff"],
    ids=["text", "value", "name", "wrong order", "too deep", "not UTF-8"],
)
def test_text_that_cannot_be_encoded_is_rejected(service, path, content):
    client, _ = service
    answer = send(client, path, content)
    assert answer.status_code == (422 if has_422(path) else 400)
    assert "JSON decode error" in answer.text


@pytest.mark.parametrize("path", VALID)
def test_a_surrogate_in_any_text_is_rejected(service, path):
    client, _ = service
    valid = json.dumps(VALID[path]).encode()
    for text in (b'"main"', b'"What is a replica?"', b'"text"', b'"user"', b'"query"', b'"mean_radius"', b'"stand-in"'):
        if text in valid:
            assert send(client, path, valid.replace(text, SURROGATE)).status_code in (400, 422), text


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize("coding", ["gzip", "GZip", "br", "identity, gzip", "nonsense"])
def test_a_compressed_body_is_rejected_before_it_is_read(service, path, coding):
    client, _ = service
    bomb = gzip.compress(json.dumps(VALID[path]).encode())
    method = "PUT" if "{case_id}" in path else "POST"
    url = path.format(case_id="0" * 32, name="stand-in", version="1")
    answer = client.request(method, url, content=bomb, headers=JSON | {"Content-Encoding": coding})
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")


def test_a_body_that_says_that_it_is_not_compressed_is_read(service):
    client, _ = service
    for coding in ("identity", ""):
        answer = client.post("/v1/query", json=QUERY, headers={"Content-Encoding": coding})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", VALID)
def test_a_body_in_chunks_is_cut_off_at_the_limit(service, path):
    client, _ = service
    method = "PUT" if "{case_id}" in path else "POST"
    url = path.format(case_id="0" * 32, name="stand-in", version="1")
    chunks = (b" " * 2**16 for _ in range(65))
    assert client.request(method, url, content=chunks, headers=JSON).status_code == 413


def test_a_message_that_is_too_deep_is_a_mistake_like_any_other(service):
    client, _ = service
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws") as socket:
        assert json.loads(socket.recv(timeout=60))["type"] == "ready"
        for message in ("[" * 10**5, '{"type":' * 10**4, '{"id": "1", "content": ' + "[" * 10**5):
            socket.send(message)
            answer = json.loads(socket.recv(timeout=60))
            assert (answer["type"], answer["error"]) == ("error", "ValidationError")
        socket.send('{"type": "ping", "id": "still there"}')
        assert json.loads(socket.recv(timeout=60))["type"] == "pong"


def test_a_pair_of_surrogates_is_a_character(service):
    client, _ = service
    answer = send(client, "/v1/query", b'{"query": "\\ud83d\\ude00"}')
    assert answer.status_code == 200


@pytest.mark.parametrize("path", TEXTS)
def test_a_text_may_have_a_hundred_thousand_characters(service, path):
    client, _ = service
    assert len(LONGEST) == 100_000
    assert client.post(path, json=TEXTS[path](LONGEST)).status_code == 200
    assert client.post(path, json=TEXTS[path](LONGEST + ".")).status_code == (422 if has_422(path) else 400)


def conversation(n_messages: int) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "word " * 20_000}] * n_messages}).encode()


def names(n: int) -> bytes:
    return b"{" + b",".join(b'"%x" : 0' % i for i in range(n)) + b"}"


HEAVY = {
    "very many names": ("/v1/predict", names(350_000), 413),
    "many names": ("/v1/predict", names(MAX_NAMES), 422),
    "many names in an item": ("/v1/batch-predict", b'{"records": [%b]}' % names(MAX_NAMES - 1), 422),
    "many names in many items": ("/v1/batch-predict", b'{"records": [%b]}' % b",".join([names(45)] * 1000), 422),
    "many empty items": ("/v1/batch-predict", b'{"records": [%b]}' % b",".join([b"{}"] * 1000), 422),
    "too many items": ("/v1/batch-predict", b'{"records": [%b]}' % b",".join([b"{}"] * 10**6), 422),
    "many wrong parts": (
        "/v1/chat/stream",
        b'{"messages": [%b]}' % b",".join([b'{"content": [%b]}' % b",".join([b"{}"] * 64)] * 256),
        422,
    ),
    "many wrong cells": (
        "/invocations",
        b'{"inputs": [%b]}' % b",".join([b"[%b]" % b",".join([b'""'] * 30)] * 9000),
        400,
    ),
    "many wrong rows": ("/invocations", b'{"dataframe_records": [%b]}' % b",".join([b"1"] * 10**6), 400),
    "many columns": ("/invocations", b'{"inputs": %b}' % names(MAX_NAMES - 1), 400),
    "many wrong numbers": (
        "/v2/models/{name}/infer",
        json.dumps({"inputs": [TENSORS["inputs"][0] | {"data": [""] * 500_000}]}).encode(),
        400,
    ),
    "many wrong parameters": (
        "/v2/models/{name}/infer",
        json.dumps(TENSORS | {"parameters": {f"{i:x}": [] for i in range(MAX_NAMES - 10)}}).encode(),
        400,
    ),
    "many tensors": (
        "/v2/models/{name}/infer",
        json.dumps({"inputs": TENSORS["inputs"] * 5000}).encode(),
        400,
    ),
    "many long texts": ("/v1/chat/completions", conversation(40), 200),
    "very many long texts": ("/v1/chat/completions", conversation(256), 413),
    "many names for OpenAI": ("/v1/chat/completions", names(MAX_NAMES), 400),
}


@pytest.mark.parametrize("case", HEAVY)
def test_a_body_with_very_many_mistakes_blocks_others_no_longer_than_a_large_valid_one(service, case):
    client, heartbeat = service
    path, content, status = HEAVY[case]

    def blocked_s(path: str, content: bytes, expected: int) -> float:
        """The shortest of three tries, so that a pause of the machine does not count."""
        times = []
        for _ in range(3):
            heartbeat.longest = 0.0
            assert send(client, path, content).status_code == expected
            client.get("/version")
            times.append(heartbeat.longest)
        return min(times)

    valid = blocked_s("/v1/batch-predict", json.dumps({"records": [RECORD] * 1000}).encode(), 200)
    assert blocked_s(path, content, status) < 3 * valid + 0.05


def test_at_most_ten_unknown_names_are_reported(service):
    client, _ = service
    for n, reported in ((3, 3), (10, 10), (5000, 10)):
        answer = client.post("/v1/query", json=QUERY | {f"unknown-{i}": 0 for i in range(n)})
        assert answer.status_code == 422
        assert [detail["rule"] for detail in answer.json()["details"]] == ["extra_forbidden"] * reported
        assert answer.json()["details"][0]["field"] == "unknown-0"


def test_very_many_mistakes_in_a_message_are_reported_as_one(service):
    client, _ = service
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws") as socket:
        assert json.loads(socket.recv(timeout=60))["type"] == "ready"
        socket.send(json.dumps({"type": "cancel", "id": "1"} | {f"{i:x}": 0 for i in range(20_000)}))
        message = json.loads(socket.recv(timeout=60))
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
    assert client.post(path, json=VALID[path] | {name: value}).status_code == 200


@pytest.mark.parametrize("value", [10.5, "10", True, float("inf"), [10]])
def test_a_value_that_is_not_an_integer_is_rejected(service, value):
    client, _ = service
    for path in ("/v1/generate", "/v1/query"):
        assert send(client, path, json.dumps(VALID[path] | {"max_tokens": value}).encode()).status_code == 422
