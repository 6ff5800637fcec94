"""The WebSocket chat with the real models, in every runtime."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.service import socket_url
from workshop import corpus

ENTRY = corpus.entries()[3]
LONG = {"temperature": 2.0, "max_tokens": 900}


@pytest.fixture
def socket(service) -> Iterator[ClientConnection]:
    with connect(socket_url(service)) as socket:
        assert receive(socket)["type"] == "ready"
        yield socket


def send(socket: ClientConnection, type: str, **fields: object) -> None:
    socket.send(json.dumps({"type": type} | fields))


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=30))


def answer_to(socket: ClientConnection, content: str, **options: object) -> tuple[str, dict[str, Any]]:
    """The text of an answer, and the message that ends it."""
    send(socket, "ask", id="1", content=content, **options)
    text = ""
    while (message := receive(socket))["type"] == "text":
        text += message["text"]
    return text, message


def test_a_question_is_answered_as_over_http(socket, reference):
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": ENTRY.held_out[0]}]}
    [choice] = reference.post("/v1/chat/completions", json=body).json()["choices"]
    text, end = answer_to(socket, ENTRY.held_out[0])
    assert (text, end["type"], end["finish_reason"]) == (choice["message"]["content"], "done", "stop")


def test_the_conversation_is_remembered_until_it_is_reset(socket):
    first = answer_to(socket, ENTRY.questions[0])[1]["usage"]["prompt_tokens"]
    assert answer_to(socket, ENTRY.questions[0])[1]["usage"]["prompt_tokens"] > 1.5 * first
    send(socket, "reset")
    assert receive(socket)["type"] == "ready"
    assert answer_to(socket, ENTRY.questions[0])[1]["usage"]["prompt_tokens"] == first


def test_a_running_answer_is_cancelled_and_the_next_one_comes(socket):
    send(socket, "ask", id="long", content=ENTRY.questions[0], **LONG)
    assert receive(socket)["type"] == "text"
    send(socket, "cancel", id="long")
    while (message := receive(socket))["type"] == "text":
        pass
    assert (message["type"], message["finish_reason"]) == ("done", "cancelled")
    assert answer_to(socket, ENTRY.questions[0])[1]["finish_reason"] == "stop"


MISTAKES = {
    "not JSON": "{",
    "no type": "{}",
    "an unknown type": '{"type": "sing"}',
    "a blank question": '{"type": "ask", "id": "1", "content": " "}',
    "an unknown model": '{"type": "ask", "id": "1", "content": "hi", "model": "gpt-17"}',
    "temperature above 2": '{"type": "ask", "id": "1", "content": "hi", "temperature": 2.1}',
    "a prompt longer than the context": json.dumps({"type": "ask", "id": "1", "content": "word " * 3000}),
    "a binary frame": b"hello",
}


def test_after_every_mistake_the_connection_stays_usable_and_all_runtimes_say_the_same(socket, reference):
    with connect(socket_url(reference)) as other:
        assert receive(other)["type"] == "ready"
        for name, mistake in MISTAKES.items():
            socket.send(mistake)
            other.send(mistake)
            error = receive(socket)
            assert error["type"] == "error", name
            assert error == receive(other), name
    assert answer_to(socket, ENTRY.questions[0])[0] == ENTRY.answer


def test_a_message_that_is_too_large_closes_the_connection_with_1009(socket):
    socket.send("x" * 300_000)
    with pytest.raises(ConnectionClosed) as caught:
        receive(socket)
    assert caught.value.rcvd.code == 1009


def test_connections_that_are_closed_immediately_do_no_harm(service):
    for _ in range(20):
        with connect(socket_url(service)):
            pass
    with connect(socket_url(service)) as socket:
        assert receive(socket)["type"] == "ready"
