"""The WebSocket chat on uvicorn: messages, errors, the end of connections, and the prompts that the model gets."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.stand_ins import PROMPT_TOKENS, StandInClassifier, StandInModel, StandInRetriever
from workshop.api import sockets
from workshop.api.app import create_app
from workshop.api.routers import chat
from workshop.api.schemas.chat import SERVER_MESSAGE
from workshop.contracts.errors import (
    DeadlineExceededError,
    ModelFailedError,
    OverloadedError,
    PromptTooLongError,
    UnavailableError,
)
from workshop.contracts.generator import Chunk, GeneratorCard, Prompt
from workshop.contracts.services import LanguageServices, Services
from workshop.lab.app_server import Server, run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import SqlUsageStore

pytestmark = pytest.mark.slow

SECRET = "SECRET-internals"
KEYS = {"key-1": "ada"}

Received = dict[str, Any]


@dataclass
class Model(StandInModel):
    """A prompt with more than ``max_messages`` messages is too long. A ``silent`` model never sends its first token."""

    max_messages: int = 99
    context_length: int = 1024
    silent: bool = False
    card_error: Exception | None = None

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        if len(prompt.messages) > self.max_messages:
            self.prompts.append(prompt)
            raise PromptTooLongError("it does not fit", 99, 50)
        async for chunk in super().stream(prompt):
            if self.silent:
                await asyncio.Event().wait()
            yield chunk

    async def card(self) -> GeneratorCard:
        if self.card_error is not None:
            raise self.card_error
        return GeneratorCard(self.name, self.context_length)


class Talk:
    """A chat client."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, type: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": type} | fields))

    def ask(self, content: str = "What is Ray Serve?", id: str = "1", **fields: object) -> None:
        self.send("ask", id=id, content=content, **fields)

    def receive(self) -> Received:
        text = self.socket.recv(timeout=60)
        SERVER_MESSAGE.validate_json(text)
        return json.loads(text)

    def receive_message(self) -> Received:
        """The next message that is not a ping. Answers pings."""
        while (received := self.receive())["type"] == "ping":
            self.send("pong", id=received["id"])
        return received

    def answer(self) -> tuple[str, Received]:
        """The text of an answer, and what it ends with."""
        text = ""
        while (received := self.receive_message())["type"] == "text":
            text += received["text"]
        return text, received

    def question(self, content: str, id: str = "1", **fields: object) -> tuple[str, Received]:
        self.ask(content, id, **fields)
        return self.answer()

    def wait_for_text(self) -> Received:
        received = self.receive_message()
        assert received["type"] == "text"
        return received

    def is_usable(self) -> bool:
        """Whether the connection is alive and no other message is waiting."""
        self.send("ping", id="still there?")
        return self.receive_message() == {"type": "pong", "id": "still there?"}

    def close_code_and_reason(self) -> tuple[int, str]:
        """The close code and reason, once the server has closed the connection."""
        with suppress(ConnectionClosed):
            while True:
                self.socket.recv(timeout=60)
        return self.socket.close_code, self.socket.close_reason


@pytest.fixture
def serve(tmp_path):
    """Start the service with these models, and return the server."""
    servers: list[Server] = []
    url = f"sqlite+aiosqlite:///{tmp_path}/service.sqlite"

    def serve(*models: StandInModel, **values) -> Server:
        language = LanguageServices(
            generators={model.name: model for model in models},
            prices={model.name: 0.0 for model in models},
            default_model=models[-1].name if models else "none",
            cascade=None,
            retriever=StandInRetriever(),
            embedding="stand-in",
            rag=None,
            usage=SqlUsageStore(url),
        )
        services = Services(StandInClassifier(), SqlCaseStore(url), language)
        servers.append(run_app(create_app(services, Settings(**values))))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@contextmanager
def talk_to(server: Server, **options) -> Iterator[Talk]:
    with connect(f"{server.url.replace('http', 'ws')}/v1/chat/ws", **options) as socket:
        talk = Talk(socket)
        yield talk


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def talk(serve, model) -> Iterator[Talk]:
    with talk_to(serve(model)) as talk:
        assert talk.receive_message()["type"] == "ready"
        yield talk


def contents(prompt: Prompt) -> list[str]:
    return [message.content for message in prompt.messages]


def test_the_service_sends_the_first_message(serve):
    with talk_to(serve(Model("small"), Model("big", context_length=50))) as talk:
        assert talk.receive_message() == {
            "type": "ready",
            "principal": "anonymous",
            "models": [{"name": "small", "context_length": 1024}, {"name": "big", "context_length": 50}],
            "limits": {"max_message_bytes": 2**18, "max_turns": 16, "idle_s": 600.0},
        }


def test_an_answer_is_streamed_and_ends_with_reason_and_usage(talk):
    talk.ask(id="q")
    assert [talk.receive_message() for _ in range(4)] == [
        {"type": "text", "id": "q", "text": "It"},
        {"type": "text", "id": "q", "text": " is"},
        {"type": "text", "id": "q", "text": " so."},
        {
            "type": "done",
            "id": "q",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 3, "total_tokens": PROMPT_TOKENS + 3},
        },
    ]


def test_the_conversation_is_remembered(talk, model):
    talk.question("What is Ray?")
    talk.question("And Serve?")
    assert contents(model.prompts[1]) == ["What is Ray?", "It is so.", "And Serve?"]
    assert [message.role for message in model.prompts[1].messages] == ["user", "assistant", "user"]


def test_each_connection_has_a_conversation_of_its_own(serve, model):
    server = serve(model)
    with talk_to(server) as one, talk_to(server) as other:
        one.receive_message(), other.receive_message()
        one.question("What is Ray?")
        other.question("What is FastAPI?")
    assert contents(model.prompts[1]) == ["What is FastAPI?"]


def test_a_reset_forgets_the_conversation(talk, model):
    talk.question("What is Ray?")
    talk.send("reset")
    assert talk.receive_message()["type"] == "ready"
    talk.question("And Serve?")
    assert contents(model.prompts[1]) == ["And Serve?"]


def test_no_more_turns_are_remembered_than_the_limit_says(serve, model, monkeypatch):
    monkeypatch.setattr(chat, "MAX_TURNS", 2)
    with talk_to(serve(model)) as talk:
        talk.receive_message()
        for question in "abcd":
            talk.question(question)
    assert contents(model.prompts[-1]) == ["b", "It is so.", "c", "It is so.", "d"]


def test_the_oldest_turns_are_forgotten_until_the_prompt_fits(talk, model):
    for question in "abc":
        talk.question(question)
    model.max_messages = 3
    text, end = talk.question("d")
    assert (text, end["type"]) == ("It is so.", "done")
    assert contents(model.prompts[-1]) == ["c", "It is so.", "d"]


def test_the_oldest_turn_is_forgotten_when_the_conversation_fills_half_of_the_context(serve):
    model = Model(context_length=2 * PROMPT_TOKENS)
    with talk_to(serve(model)) as talk:
        talk.receive_message()
        for question in "abc":
            talk.question(question)
    assert contents(model.prompts[-1]) == ["b", "It is so.", "c"]


def test_a_question_that_does_not_fit_by_itself_is_an_error_and_changes_nothing(talk, model):
    talk.question("What is Ray?")
    model.max_messages = 0
    _, received = talk.question("long", id="q")
    assert (received["id"], received["error"], received["message"]) == ("q", "PromptTooLongError", "it does not fit")
    model.max_messages = 3
    talk.question("And Serve?")
    assert contents(model.prompts[-1]) == ["What is Ray?", "It is so.", "And Serve?"]


def test_the_last_model_answers_unless_another_is_named(serve):
    small, big = Model("small", words=["small"]), Model("big", words=["big"])
    with talk_to(serve(small, big)) as talk:
        talk.receive_message()
        assert talk.question("Who?")[0] == "big"
        assert talk.question("Who?", model="small")[0] == "small"


def test_limits_and_temperature_reach_the_model(talk, model):
    talk.question("What is Ray?", max_tokens=7, temperature=0.5)
    assert (model.prompts[0].max_tokens, model.prompts[0].temperature) == (7, 0.5)


ASK = {"type": "ask", "id": "1", "content": "What is Ray?"}


@pytest.mark.parametrize(
    ("message", "field", "rule"),
    [
        ("{", "body", "json_invalid"),
        ("", "body", "json_invalid"),
        ("[" * 10_000, "body", "json_invalid"),
        (json.dumps(ASK)[:-1] + r', "model": "\ud800"}', "body", "json_invalid"),
        (json.dumps(ASK).encode(), "body", "binary_frame"),
        ("[]", "body", "dict_type"),
        ("{}", "type", "union_tag_not_found"),
        ('{"type": "shout"}', "type", "union_tag_invalid"),
        ('{"type": "cancel"}', "id", "missing"),
        ('{"type": "reset", "id": "1"}', "id", "extra_forbidden"),
        (ASK | {"content": None}, "content", "string_type"),
        (ASK | {"content": " \n\t"}, "content", "value_error"),
        (ASK | {"content": "a" * 100_001}, "content", "string_too_long"),
        (ASK | {"id": ""}, "id", "string_too_short"),
        (ASK | {"id": 1}, "id", "string_type"),
        (ASK | {"max_tokens": 0}, "max_tokens", "greater_than_equal"),
        (ASK | {"max_tokens": "5"}, "max_tokens", "int_type"),
        (ASK | {"temperature": 2.1}, "temperature", "less_than_equal"),
        (ASK | {"temperature": float("nan")}, "temperature", "less_than_equal"),
        (ASK | {"tokens": 5}, "tokens", "extra_forbidden"),
    ],
)
def test_a_mistake_is_reported_before_any_model_is_asked_and_changes_nothing(talk, model, message, field, rule):
    talk.socket.send(json.dumps(message) if isinstance(message, dict) else message)
    received = talk.receive_message()
    assert (received["type"], received["error"]) == ("error", "ValidationError")
    assert [(detail["field"], detail["rule"]) for detail in received["details"]] == [(field, rule)]
    assert not model.prompts
    assert talk.question("What is Ray?")[0] == "It is so."


def test_the_error_has_the_id_of_the_invalid_message(talk):
    talk.ask(id="q", max_tokens=0)
    assert talk.receive_message()["id"] == "q"
    talk.socket.send("{")
    assert "id" not in talk.receive_message()


def test_all_mistakes_in_a_message_are_reported(talk):
    talk.ask("", max_tokens=0, temperature=-1)
    assert [detail["field"] for detail in talk.receive_message()["details"]] == ["content", "max_tokens", "temperature"]


@given(st.text() | st.binary() | st.builds(json.dumps, st.dictionaries(st.sampled_from(["type", "id"]), st.text())))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_the_connection_stays_usable(talk, frame):
    talk.socket.send(frame)
    assert talk.receive_message()["type"] in ("error", "ready")
    assert talk.is_usable()


def test_the_error_for_an_unknown_model_lists_the_available_ones(talk, model):
    talk.ask(id="q", model="large")
    received = talk.receive_message()
    assert (received["id"], received["error"]) == ("q", "NotFoundError")
    assert model.name in received["message"]
    assert not model.prompts


@pytest.mark.parametrize("kind", [str, str.encode], ids=["text", "binary"])
@pytest.mark.parametrize("size", [2**18 + 1, 2**24 + 1], ids=["over our limit", "over uvicorn's limit"])
def test_too_large_a_message_closes_the_connection(talk, model, kind, size):
    talk.socket.send(kind("a" * size))
    assert talk.close_code_and_reason()[0] == 1009
    assert not model.prompts


@pytest.mark.parametrize("text", ["\x01" * 2**15, "я" * 100_000], ids=["escaped", "of two bytes each"])
def test_a_very_long_question_fits(talk, model, text):
    message = json.dumps(ASK | {"content": text}, ensure_ascii=False)
    assert 2**17 < len(message.encode()) <= 2**18
    talk.socket.send(message)
    assert talk.answer()[0] == "It is so."
    assert model.prompts[-1].messages[-1].content == text


@pytest.mark.parametrize("message", [{"type": "ask", "id": "2", "content": "And Serve?"}, {"type": "reset"}])
def test_nothing_else_is_started_during_an_answer(talk, model, message):
    model.endless = True
    talk.ask(id="1")
    talk.wait_for_text()
    talk.socket.send(json.dumps(message))
    while (received := talk.receive_message())["type"] == "text":
        pass
    assert (received["error"], received.get("id")) == ("Conflict", message.get("id"))
    assert talk.wait_for_text()["id"] == "1"
    assert len(model.prompts) == 1


def test_cancelling_an_answer_stops_the_model_and_reports_its_usage(talk, model):
    model.endless = True
    talk.ask(id="1")
    talk.wait_for_text()
    talk.send("cancel", id="1")
    _, end = talk.answer()
    assert (end["type"], end["id"], end["finish_reason"]) == ("done", "1", "cancelled")
    assert end["usage"]["completion_tokens"] == model.generated_tokens
    assert (model.running, model.cancelled) == (0, 1)


def test_a_cancelled_answer_is_part_of_the_conversation(talk, model):
    model.endless = True
    talk.ask("What is Ray?")
    first = talk.wait_for_text()["text"]
    talk.send("cancel", id="1")
    rest, _ = talk.answer()
    model.endless = False
    talk.question("And Serve?")
    assert contents(model.prompts[1]) == ["What is Ray?", first + rest, "And Serve?"]


def test_an_answer_can_be_cancelled_before_its_first_token(talk, model):
    model.silent = True
    talk.ask("What is Ray?")
    assert talk.is_usable()
    talk.send("cancel", id="1")
    text, end = talk.answer()
    assert (text, end["finish_reason"], end["usage"]["total_tokens"]) == ("", "cancelled", 0)
    assert model.cancelled == 1
    model.silent = False
    talk.question("And Serve?")
    assert contents(model.prompts[-1]) == ["And Serve?"]


def test_a_question_may_be_cancelled_immediately(talk, model):
    model.endless = True
    for number in range(20):
        talk.ask(id=str(number))
        talk.send("cancel", id=str(number))
        _, end = talk.answer()
        assert (end["id"], end["finish_reason"]) == (str(number), "cancelled")
    assert model.running == 0


def test_only_an_answer_in_progress_can_be_cancelled(talk):
    talk.question("What is Ray?")
    talk.send("cancel", id="1")
    received = talk.receive_message()
    assert (received["id"], received["error"]) == ("1", "NotFoundError")


def leave_politely(talk: Talk) -> None:
    talk.socket.close()


def leave_abruptly(talk: Talk) -> None:
    talk.socket.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("leave", [leave_politely, leave_abruptly])
def test_the_model_stops_when_the_client_leaves(talk, model, leave):
    model.endless = True
    talk.ask()
    talk.wait_for_text()
    leave(talk)
    assert model.over.wait(10)
    assert (model.running, model.completed, model.cancelled) == (0, 0, 1)


def test_the_model_stops_when_the_server_stops(serve, model):
    model.endless = True
    server = serve(model)
    with talk_to(server) as talk:
        talk.receive_message()
        talk.ask()
        talk.wait_for_text()
        server.stop()
        assert talk.close_code_and_reason()[0] == 1012
    assert not server.thread.is_alive()
    assert (model.running, model.cancelled) == (0, 1)


def test_a_ping_is_answered_with_its_id(talk):
    talk.send("ping", id="7")
    assert talk.receive_message() == {"type": "pong", "id": "7"}
    talk.send("ping")
    assert talk.receive_message() == {"type": "pong"}


def test_a_client_that_answers_pings_stays_connected(serve, model, monkeypatch):
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.01)
    with talk_to(serve(model)) as talk:
        talk.receive_message()
        for _ in range(20):
            ping = talk.receive()
            assert ping["type"] == "ping"
            talk.send("pong", id=ping["id"])


def test_a_client_that_does_not_answer_pings_is_disconnected_and_the_model_stops(serve, model, monkeypatch):
    monkeypatch.setattr(sockets, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(sockets, "PONG_TIMEOUT_S", 0.1)
    model.endless = True
    with talk_to(serve(model)) as talk:
        talk.ask()
        talk.send("pong", id="guessed")
        assert talk.close_code_and_reason() == (1011, "no pong received")
    assert (model.running, model.cancelled) == (0, 1)


@pytest.mark.parametrize("questions", [0, 1])
def test_an_idle_connection_is_closed(serve, model, monkeypatch, questions):
    monkeypatch.setattr(chat, "IDLE_LIMIT_S", 0.5)
    with talk_to(serve(model)) as talk:
        talk.receive_message()
        for _ in range(questions):
            talk.question("What is Ray?")
        assert talk.close_code_and_reason() == (1000, "no question was asked for a while")


def test_a_connection_is_not_idle_during_a_long_answer(serve, model, monkeypatch):
    monkeypatch.setattr(chat, "IDLE_LIMIT_S", 0.5)
    model.endless = True
    with talk_to(serve(model)) as talk:
        talk.receive_message()
        talk.ask()
        for _ in range(600):  # a millisecond each, at least
            talk.wait_for_text()


LONG_WORD = "a" * 1000


def test_the_model_waits_for_a_client_that_does_not_read(serve, monkeypatch):
    monkeypatch.setattr(sockets, "PONG_TIMEOUT_S", 1.0)
    model = Model(words=[LONG_WORD], endless=True)
    with talk_to(serve(model), close_timeout=0) as talk:
        talk.receive_message()
        talk.ask()
        assert model.over.wait(10)
    assert model.generated_tokens * len(LONG_WORD) < sockets.WINDOW + 2 * len(LONG_WORD)


def test_a_reader_that_answers_gets_everything(serve):
    words = [f"{number:04} {LONG_WORD}" for number in range(200)]
    with talk_to(serve(Model(words=words))) as talk:
        talk.receive_message()
        text, end = talk.question("Everything?")
    assert text == "".join(words)
    assert end["finish_reason"] == "stop"


def test_an_answer_that_waits_for_its_reader_can_be_cancelled(serve):
    model = Model(words=[LONG_WORD], endless=True)
    with talk_to(serve(model)) as talk:
        talk.receive_message()
        talk.ask()
        while (ping := talk.receive())["type"] == "text":
            pass
        assert ping["type"] == "ping"
        talk.send("cancel", id="1")
        assert talk.receive_message()["finish_reason"] == "cancelled"
        talk.send("pong", id=ping["id"])
        assert talk.is_usable()


def test_a_client_that_sends_without_reading_is_disconnected(talk, monkeypatch):
    monkeypatch.setattr(sockets, "MAX_UNREAD", 2**15)
    with suppress(ConnectionClosed):  # it may be closed before everything is sent
        for _ in range(500):
            talk.socket.send("mistake")
    assert talk.close_code_and_reason() == (1008, "too many unread messages")


def test_a_client_that_makes_many_mistakes_but_reads_stays_connected(talk, monkeypatch):
    monkeypatch.setattr(sockets, "MAX_UNREAD", 2**15)
    for _ in range(1000):
        talk.socket.send("mistake")
        assert talk.receive_message()["type"] == "error"


@pytest.mark.parametrize(
    "options",
    [
        {"additional_headers": {"Authorization": "Bearer key-1"}},
        {"subprotocols": ["workshop.chat", "bearer.key-1"]},
    ],
    ids=["header", "subprotocol"],
)
def test_a_key_identifies_the_caller(serve, model, options):
    with talk_to(serve(model, api_keys=KEYS), **options) as talk:
        assert talk.receive_message()["principal"] == "ada"
        assert talk.socket.subprotocol == ("workshop.chat" if "subprotocols" in options else None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer other"}},
        {"subprotocols": ["workshop.chat", "bearer.other"]},
        {"subprotocols": ["workshop.chat"]},
    ],
    ids=["no key", "header", "subprotocol", "only our subprotocol"],
)
def test_without_a_known_key_the_connection_is_closed_at_once(serve, model, options):
    with talk_to(serve(model, api_keys=KEYS), **options) as talk:
        assert talk.close_code_and_reason() == (1008, "this request requires a valid API key or token")
    assert not model.prompts


@pytest.mark.parametrize(
    "error",
    [
        ModelFailedError("the model failed"),
        UnavailableError("no replica is up"),
        OverloadedError("too much is waiting"),
        DeadlineExceededError("too slow", 1.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_question_whose_answer_fails_is_forgotten(talk, model, error):
    model.error = error
    text, end = talk.question("What is Ray?", id="q")
    assert (text, end["type"], end["id"]) == ("It is so.", "error", "q")
    assert (end["error"], end["message"]) == (type(error).__name__, error.message)
    model.error = None
    talk.question("And Serve?")
    assert contents(model.prompts[1]) == ["And Serve?"]


def test_a_bug_closes_the_connection_and_only_the_log_says_why(talk, model, caplog):
    model.error = KeyError(SECRET)
    talk.ask()
    assert talk.close_code_and_reason() == (1011, "something went wrong in the service")
    assert SECRET in caplog.text
    assert "Traceback" in caplog.text


def test_there_is_no_chat_while_no_model_is_available(serve, model):
    server = serve(model)
    model.card_error = UnavailableError("gone")
    with talk_to(server) as talk:
        assert talk.close_code_and_reason() == (1013, "no model is available")
    model.card_error = None
    with talk_to(server) as talk:
        assert talk.receive_message()["type"] == "ready"
