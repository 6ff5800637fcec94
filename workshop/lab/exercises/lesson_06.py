"""Lesson 06: WebSockets."""

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import FastAPI, WebSocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_06 import ID, SCENES, Model, Server, UnansweredError
from workshop.lab.registry import exercise
from workshop.lab.tracebacks import is_learners_file

LIMIT_S = 7.0
"""A right answer takes less than half of it on an idle machine. With the clean-up, no check takes more than 10 s."""
PATIENCE_S = 3.0
"""How long to wait for a message that must come."""
SOON_S = 2.0
"""How long to wait for something to end."""


class _Talk:
    """A client's side of a conversation. Its last messages are shown with the verdict."""

    def __init__(self, answer: Answer, socket: ClientConnection, who: str) -> None:
        self.socket = socket
        self._answer = answer
        self._who = who
        self._past: list[str] = []

    @property
    def code(self) -> int | None:
        """The close code, or None while the connection is open."""
        return self.socket.close_code

    def say(self, text: str | bytes) -> None:
        self._note(f"sends {show(text, 80)}")
        try:
            self.socket.send(text)
        except ConnectionClosed as closed:
            raise self._ended() from closed

    def hear(self) -> str:
        try:
            message = self.socket.recv(timeout=PATIENCE_S)
        except TimeoutError:
            raise NotYet("No further message arrives.", got=f"nothing for {PATIENCE_S:.0f} s") from None
        except ConnectionClosed as closed:
            raise self._ended() from closed
        self._note(f"receives {show(message, 80)}")
        return message if isinstance(message, str) else message.decode()

    def hear_json(self) -> Any:
        text = self.hear()
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise NotYet("This is not JSON.", got=show(text)) from None

    def expect_silence(self, seconds: float, expected: str) -> None:
        """The server must neither send a message nor close the connection."""
        try:
            early = show(self.socket.recv(timeout=seconds))
        except TimeoutError:
            return
        except ConnectionClosed:
            early = f"close with {self.code}"
        raise NotYet("This is too early.", expected=expected, got=early)

    def expect_close(self, code: int, why: str) -> None:
        """The server must close the connection without another message."""
        try:
            message = self.socket.recv(timeout=PATIENCE_S)
        except TimeoutError:
            raise NotYet("The connection stays open.", expected=f"it is closed with {code}") from None
        except ConnectionClosed:
            expect(int(self.code or 0), code, why=why)
        else:
            raise NotYet("A message arrives first.", expected=f"close with {code}, no message", got=show(message))

    def _ended(self) -> NotYet:
        reason = self.socket.close_reason
        return NotYet("The connection has ended.", got=f"code {int(self.code or 0)} {reason}".strip())

    def _note(self, event: str) -> None:
        """Of several messages in a row that are received, keep the last."""
        if event.startswith("receives") and self._past and self._past[-1].startswith("receives"):
            del self._past[-1]
            if self._past[-1:] != ["receives …"]:
                self._past.append("receives …")
        self._past.append(event)
        self._answer.given = f"{self._who} that {', '.join(self._past[-6:])}"


@contextmanager
def _talking(answer: Answer, client: Client, path: str, who: str = "a client", **options: Any) -> Iterator[_Talk]:
    answer.given = f"{who} that connects to {path}"
    options |= {"open_timeout": PATIENCE_S, "close_timeout": 0.3, "proxy": None, "max_queue": None}
    try:
        socket = connect(client.socket_url(path), **options)
    except InvalidStatus as refusal:
        got = f"HTTP {refusal.response.status_code}"
        raise NotYet("The connection was not accepted.", expected="a WebSocket", got=got) from None
    except InvalidHandshake as error:
        raise NotYet("The client rejects the handshake.", got=str(error)) from None
    except (TimeoutError, ConnectionClosed, EOFError, OSError) as error:
        raise NotYet("The connection was not accepted.", got=type(error).__name__) from None
    with socket:
        yield _Talk(answer, socket, who)


class _Endpoint:
    """The learner's function as the endpoint of an app, at `path`. `arguments` follow the accepted socket."""

    def __init__(self, answer: Answer, path: str, arguments: Callable[[WebSocket], tuple[Any, ...]]) -> None:
        if not callable(answer.value):
            raise NotYet("A function is needed here.", got=show(answer.value))
        self.app = FastAPI()
        self.app.websocket(path)(self._run)
        self._function = answer.value
        self._arguments = arguments
        self._calls = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _run(self, socket: WebSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls += 1
        try:
            await socket.accept()
            result = self._function(socket, *self._arguments(socket))
            if not inspect.isawaitable(result):
                raise TypeError("an `async def` function is needed here")
            await result
        finally:
            self._calls -= 1

    def has_ended(self) -> bool:
        """Whether neither a call of the function nor a task that the learner's code has started is left."""
        return not self._calls and not any(map(_is_learners, asyncio.all_tasks(self._loop)))


def _is_learners(task: "asyncio.Task[Any]") -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and is_learners_file(code.co_filename)


@exercise(
    "06.1",
    hints=[
        "Each answer is a task of a `TaskGroup`, and the loop around `receive_text` goes on. `task.cancel()` returns "
        "False if the task had already ended. `await asyncio.wait([task])` waits for its end.",
        "Where does `WebSocketDisconnect` go? Raised in the group's block, it cancels the tasks. Catch it around "
        "the group, with `except* WebSocketDisconnect: pass`.",
    ],
    right="Stop means stop, and no answer outlives its client.",
    seconds=LIMIT_S,
)
def stops_when_told(answer: Answer) -> None:
    model = Model()
    endpoint = _Endpoint(answer, "/ws", lambda socket: (model,))
    with answer.serve(endpoint.app) as client:
        with _talking(answer, client, "/ws") as talk:
            talk.say("Why?")
            _expect_whole(talk, model, "Why?", "All words of the answer, then `done`.")
            _stop_while_speaking(talk, model)
            talk.say("When?")
            _expect_whole(talk, model, "When?", "The next question after a `stop`.")
            _stop_while_thinking(talk, model)
            talk.say("Which?")
            _expect_whole(talk, model, "Which?", "The next question after a `stop`.")
            talk.say("stop")
            talk.say("How?")
            _expect_whole(talk, model, "How?", "No answer was running, so this `stop` is ignored.")
        _stop_one_of_two(answer, client, model)
        _leave_while_thinking(answer, client, model)


def _expect_whole(talk: _Talk, model: Model, question: str, why: str) -> None:
    expect(_answer_to(talk), [*model.whole(question), "done"], why=why)


def _answer_to(talk: _Talk) -> list[str]:
    messages = [talk.hear()]
    while messages[-1] not in ("done", "stopped"):
        messages.append(talk.hear())
    return messages


@contextmanager
def _paused(model: Model, pause_s: float, length: int = 10) -> Iterator[None]:
    """Within the block, answers are slow."""
    usual, (model.pause_s, model.length) = (model.pause_s, model.length), (pause_s, length)
    try:
        yield
    finally:
        model.pause_s, model.length = usual


def _stop_while_speaking(talk: _Talk, model: Model) -> None:
    with _paused(model, 0.05, length=60):
        talk.say("Who?")
        why = "Each word must be sent as soon as it is produced."
        try:
            words = [talk.hear(), talk.hear()]
        except NotYet as no:
            raise NotYet(f"{why} {no.message}", got=no.got) from None
        expect(words, model.whole("Who?")[:2], why=why)
        if model.running == 0:
            raise NotYet(why, got="all words at the end")
        talk.say("stop")
        if _answer_to(talk)[-1] != "stopped":
            raise NotYet("The answer went on to its end.", expected="`stopped` in place of `done`")
        _expect_idle(model)


def _stop_while_thinking(talk: _Talk, model: Model) -> None:
    with _paused(model, 60):
        talk.say("What?")
        becomes_true(lambda: model.running == 1, SOON_S)
        talk.say("stop")
        try:
            expect(talk.hear(), "stopped", why="The model has not said a word yet.")
        except NotYet as no:
            raise NotYet(f"`stop` arrives while the model is thinking. {no.message}", got=no.got) from None
        _expect_idle(model)


def _expect_idle(model: Model) -> None:
    if not becomes_true(lambda: model.running == 0, SOON_S):
        raise NotYet("The model still works on the answer that was stopped.")


def _stop_one_of_two(answer: Answer, client: Client, model: Model) -> None:
    with (
        _paused(model, 0.05),
        _talking(answer, client, "/ws", "a client, beside another one,") as ada,
        _talking(answer, client, "/ws", "another client") as bob,
    ):
        ada.say("Why?")
        ada.hear()
        bob.say("Who?")
        bob.hear()
        ada.say("stop")
        try:
            expect(_answer_to(bob)[-1], "done")
        except NotYet as no:
            given = "two clients that ask at the same time; the first one sends `stop`"
            why = "This ended the other client's answer."
            raise NotYet(why, given=given, expected="the other gets `done`", got=no.got) from None
        if _answer_to(ada)[-1] != "stopped":
            raise NotYet("Two clients ask at the same time, and the first one's answer cannot be stopped.")


def _leave_while_thinking(answer: Answer, client: Client, model: Model) -> None:
    with _paused(model, 60):
        with _talking(answer, client, "/ws", "a client that leaves while the model is thinking, and") as talk:
            talk.say("Where?")
            becomes_true(lambda: model.running == 1, SOON_S)
        if not becomes_true(lambda: model.running == 0, SOON_S):
            raise NotYet("The client has left, and the model still works for it.")


INVALID: tuple[str | bytes, ...] = (
    "spend 30 tokens",
    '{"type": "spend", "tokens": ',
    '{"type": "spend"}',
    '{"type": "spend", "tokens": 0}',
    '{"type": "spend", "tokens": -30}',
    '{"type": "spend", "tokens": 1.5}',
    '{"type": "spend", "tokens": true}',
    '{"type": "spend", "tokens": "30"}',
    '{"type": "spend", "tokens": null}',
    '{"type": "shout", "tokens": 30}',
    '{"tokens": 30}',
    "[]",
    "null",
    b"\xff\x00",
)


@exercise(
    "06.2",
    hints=[
        "Two models with a `Literal` for `type`, a union with a discriminator, and a `TypeAdapter` of it: "
        "`validate_json` returns one of the two or raises `ValidationError`. `Field(strict=True, ge=1)` is strict.",
        "`receive_text` fails for a binary frame. `Peer(socket).receive()` returns text or bytes, and `validate_json` "
        "takes both.",
    ],
    right="No message ends the conversation, and nothing invalid is counted.",
    seconds=LIMIT_S,
)
def counts_tokens(answer: Answer) -> None:
    with answer.serve() as client, _talking(answer, client, "/meter") as talk:
        _expect_total(talk, 30, 30, "The first total.")
        _expect_total(talk, 12, 42, "The total grows.")
        for count, frame in enumerate(INVALID, 1):
            talk.say(frame)
            _expect_error(talk.hear_json())
            _expect_total(talk, 1, 42 + count, "An invalid frame changes nothing, and the next one counts.")
        with _talking(answer, client, "/meter", "a second client") as other:
            _expect_total(other, 5, 5, "Each connection has its own total, starting at 0.")
        talk.say('{"type": "reset"}')
        expect(talk.hear_json(), {"type": "total", "tokens": 0}, why="A `reset` sets the total to 0.")
        _expect_total(talk, 5, 5, "It counts on after a `reset`.")


def _expect_total(talk: _Talk, tokens: int, total: int, why: str) -> None:
    talk.say(json.dumps({"type": "spend", "tokens": tokens}))
    expect(talk.hear_json(), {"type": "total", "tokens": total}, why=why)


def _expect_error(reply: Any) -> None:
    if not isinstance(reply, dict) or reply.get("type") != "error" or not isinstance(reply.get("message"), str):
        raise NotYet("This frame is invalid.", expected='{"type": "error", "message": "…"}', got=show(reply))


def _offering(*names: str) -> dict[str, Any]:
    return {"subprotocols": [Subprotocol(name) for name in names]}


def _header(value: str, *offered: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": value}} | (_offering(*offered) if offered else {})


KNOWN = (
    ("a program with the header `Bearer key-1`", _header("Bearer key-1"), "ada"),
    ("a program with the header `Bearer key-2`", _header("Bearer key-2"), "grace"),
    ("a program with the header `Bearer key-1` that offers", _header("Bearer key-1", "workshop.chat"), "ada"),
    ("a page that offers", _offering("workshop.chat", "bearer.key-2"), "grace"),
    ("a page that offers", _offering("bearer.key-1", "workshop.chat"), "ada"),
)
UNKNOWN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a program without a key", {}),
    ("a program with the header `Bearer key-3`", _header("Bearer key-3")),
    ("a program with the header `Bearer key-10`", _header("Bearer key-10")),
    ("a program with the header `Bearer key-`", _header("Bearer key-")),
    ("a program with the header `Bearer`", _header("Bearer ")),
    ("a program with the header `Basic key-1`", _header("Basic key-1")),
    ("a program with the header `key-1`", _header("key-1")),
    ("a page that offers", _offering("workshop.chat", "bearer.key-3")),
    ("a page that offers", _offering("workshop.chat", "bearer.key-10")),
    ("a page that offers", _offering("workshop.chat", "key-1")),
    ("a page that offers", _offering("workshop.chat")),
)


@exercise(
    "06.3",
    hints=[
        'A program\'s key is in `socket.headers.get("Authorization", "")`, a page\'s is one of the subprotocols. '
        'Look at both, then decide. `f"Bearer {key}" == header` compares scheme and key exactly.',
        'Accept in any case, with "workshop.chat" if it was offered. To refuse, raise `WebSocketException(1008)` '
        "or await `socket.close(1008)`.",
    ],
    right="Programs and pages get in, and everyone else learns why not.",
    seconds=LIMIT_S,
)
def knows_who_connects(answer: Answer) -> None:
    with answer.serve() as client:
        for who, options, owner in KNOWN:
            with _talking(answer, client, "/door", _with_offer(who, options), **options) as talk:
                expect(talk.hear(), f"hello {owner}")
                _expect_selected(talk, options)
        for who, options in UNKNOWN:
            with _talking(answer, client, "/door", _with_offer(who, options), **options) as talk:
                talk.expect_close(1008, why="The code for a client that is not allowed in.")
                _expect_selected(talk, options)


def _with_offer(who: str, options: dict[str, Any]) -> str:
    return f"{who} {', '.join(f'`{name}`' for name in options.get('subprotocols', ()))}".strip()


def _expect_selected(talk: _Talk, options: dict[str, Any]) -> None:
    selected = talk.socket.subprotocol
    if "subprotocols" in options and selected != "workshop.chat":
        why = "This is not the subprotocol to select: a browser would close the connection."
        raise NotYet(why, expected="`workshop.chat` is selected", got=show(selected))


@exercise(
    "06.4",
    hints=[
        "Two things at the same time: a task that pings, and the loop that receives. With an `asyncio.Event`, the loop "
        "tells the task that a `pong` has arrived.",
        "The task: sleep, `clear` the event, send `ping`, then wait for the event in `async with "
        "asyncio.timeout(patience)`. On `TimeoutError`: `socket.close(1011)`.",
    ],
    right="A client that answers stays, and one that does not is disconnected.",
    seconds=LIMIT_S,
)
def keeps_a_heartbeat(answer: Answer) -> None:
    def seconds(socket: WebSocket) -> tuple[float, ...]:
        return float(socket.path_params["every"]), float(socket.path_params["patience"])

    endpoint = _Endpoint(answer, "/every/{every}/patience/{patience}", seconds)
    with answer.serve(endpoint.app) as client:
        _expect_no_ping_yet(answer, client)
        if not becomes_true(endpoint.has_ended, SOON_S):
            raise NotYet("The client has left, and a task still runs.", given="a client, pinged every 4 s, that leaves")
        _expect_patience(answer, client)
        _expect_that_only_pongs_count(answer, client)


def _expect_no_ping_yet(answer: Answer, client: Client) -> None:
    who = "a client, pinged every 4 s and given 0.2 s,"
    with _talking(answer, client, "/every/4/patience/0.2", who) as talk:
        talk.expect_silence(0.4, "nothing for 4 s")
        _expect_echo(talk)


def _expect_patience(answer: Answer, client: Client) -> None:
    who = "a client, pinged every 0.1 s and given 60 s, that takes 0.4 s for a pong and"
    with _talking(answer, client, "/every/0.1/patience/60", who) as talk:
        for _ in range(2):
            _hear_ping(talk)
            _expect_echo(talk)
            talk.expect_silence(0.4, "nothing before it says `pong`")
            talk.say("pong")
        _hear_ping(talk)


def _expect_that_only_pongs_count(answer: Answer, client: Client) -> None:
    path = "/every/0.1/patience/0.8"
    with (
        _talking(answer, client, path, "a client that answers each ping, beside others that do not,") as faithful,
        _talking(answer, client, path, "a client that never says `pong`, beside one that does,") as talker,
        _talking(answer, client, path, "a client that says `pong` 50 times to its first ping, then never,") as once,
    ):
        _hear_ping(once)
        for _ in range(50):
            once.say("pong")
        deadline = time.monotonic() + PATIENCE_S
        while None in (talker.code, once.code) and time.monotonic() < deadline:
            _hear_ping(faithful)
            faithful.say("pong")
            with suppress(ConnectionClosed):  # that is what it waits for
                talker.socket.send("I am here")
        for silent in (talker, once):
            if silent.code is None:
                silent.say("I am here")
                raise NotYet("It stays connected, though a `pong` is missing.", expected="close with 1011")
            expect(int(silent.code), 1011, why="A `pong` is missing: this is the close code.")
        _hear_ping(faithful)
        _expect_echo(faithful)


def _hear_ping(talk: _Talk) -> None:
    try:
        message = talk.hear()
    except NotYet as no:
        raise NotYet(f"No `ping` arrives. {no.message}", got=no.got) from None
    expect(message, "ping", why="Nothing else should arrive here.")


def _expect_echo(talk: _Talk) -> None:
    talk.say("hello")
    expect(talk.hear(), "hello", why="Every text except `pong` is echoed.")


@exercise(
    "06.5",
    hints=[
        "`json.loads(socket.recv())` in a loop, and a branch for each `type`. A ping is for the connection: reply "
        "whatever its `id`. For the others, compare `id` first.",
        "`socket.recv()` raises `ConnectionClosed` for every close code. A `for` loop over the socket ends silently "
        "after code 1000.",
    ],
    right="It returns complete answers only, and keeps its connection alive.",
    seconds=LIMIT_S,
)
def reads_an_answer(answer: Answer) -> None:
    server = Server()
    with answer.serve(server.app()) as client:
        for number, scene in enumerate(SCENES):
            with connect(client.socket_url(f"/{number}"), close_timeout=0.3, proxy=None) as socket:
                try:
                    if scene.answer is None:
                        answer.raises(UnansweredError, socket, ID, why="There is no complete answer.")
                    else:
                        expect(answer.call(socket, ID), scene.answer)
                except (Exception, NotYet):
                    if server.wrong_pong is not None:
                        why = "A ping did not get its own pong."
                        raise NotYet(why, expected='{"type": "pong", "id": …}', got=server.wrong_pong) from None
                    raise
                finally:
                    answer.given = f"read_answer(socket, {ID!r}), while the server sends {scene}"
