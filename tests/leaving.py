"""Clients that leave in the middle of an answer, and the counters that show how the models react."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from httpx_sse import connect_sse
from websockets.sync.client import connect

from tests.service import concurrently, socket_url


class Watch:
    """The counters of all replicas of a model, by process id."""

    def __init__(self, client: httpx.Client, model: str) -> None:
        self._client, self._model = client, model
        self._replicas: dict[int, dict] = {}

    def look(self, times: int = 12) -> "Watch":
        # Any replica may answer; of requests at once, some reach those that are busy.
        for answer in concurrently(lambda _: self._client.get("/v1/activity"), range(times), at_once=4):
            assert answer.status_code == 200, answer.text
            activity = answer.json()[self._model]
            self._replicas[activity["process"]] = activity
        return self

    def total(self, counter: str) -> int:
        return sum(replica[counter] for replica in self._replicas.values())


LONG = {"temperature": 2.0, "max_tokens": 900}
HOT_QUESTION = "What is a deployment handle?"


def leave_chat(client: httpx.Client) -> None:
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": HOT_QUESTION}], "stream": True} | LONG
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for _, _ in zip(range(3), answer.iter_lines(), strict=False):
            pass


def leave_events(client: httpx.Client) -> None:
    query = {"query": HOT_QUESTION, "force_direct": True} | LONG
    with connect_sse(client, "GET", "/v1/query/stream", params=query) as source:
        next(source.iter_sse())


def leave_lines(client: httpx.Client) -> None:
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": HOT_QUESTION}]} | LONG
    with client.stream("POST", "/v1/chat/stream", json=body) as answer:
        next(answer.iter_lines())


def leave_socket(client: httpx.Client) -> None:
    with connect(socket_url(client), additional_headers={"Authorization": client.headers["Authorization"]}) as chat:
        assert json.loads(chat.recv(timeout=60))["type"] == "ready"
        chat.send(json.dumps({"type": "ask", "id": "1", "content": HOT_QUESTION} | LONG))
        assert json.loads(chat.recv(timeout=60))["type"] == "text"


@contextmanager
def leaving(client: httpx.Client, method: str, path: str, **options: Any) -> Iterator[socket.socket]:
    """Send a request, and close the connection at the end of the block without waiting for the answer."""
    request = client.build_request(method, path, **options)
    url = request.url
    head = f"{method} {url.raw_path.decode()} HTTP/1.1\r\n"
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(f"{head}{headers}\r\n".encode() + request.read())
        yield connection


def has_answer(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


QUESTION = {"query": HOT_QUESTION, "force_direct": True} | LONG
TURNS = {"model": "workshop-main", "messages": [{"role": "user", "content": HOT_QUESTION}]} | LONG
WHOLE_ANSWERS = {
    "/v1/query": ("POST", {"json": QUESTION}),
    "/v1/query by GET": ("GET", {"params": QUESTION}),
    "/v1/batch": ("POST", {"json": {"queries": [QUESTION]}}),
    "/v1/generate": ("POST", {"json": {"model": "workshop-main", "prompt": HOT_QUESTION} | LONG}),
    "/v1/chat/completions": ("POST", {"json": TURNS}),
}
"""Requests with long answers that are not streamed."""

LEAVES = [leave_chat, leave_events, leave_lines, leave_socket]
