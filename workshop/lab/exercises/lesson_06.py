"""Lesson 06: WebSockets."""

import asyncio
import inspect
import json
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from fastapi import FastAPI, WebSocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import NotYet, comes_true, expect, show
from workshop.lab.registry import exercise

PATIENCE_S = 5.0
"""For a message that must come."""
SOON_S = 3.0
"""For what should be over at once."""


class _Talk:
    """One side of a conversation. What it sends and hears is shown with the verdict."""

    def __init__(self, answer: Answer, socket: ClientConnection, who: str) -> None:
        self.socket = socket
        self._answer = answer
        self._who = who
        self._past: list[str] = []

    def say(self, text: str | bytes) -> None:
        self._note(f"sends {show(text, 80)}")
        try:
            self.socket.send(text)
        except ConnectionClosed as closed:
            raise self._ended() from closed

    def hear(self) -> str:
        try:
            said = self.socket.recv(timeout=PATIENCE_S)
        except TimeoutError:
            raise NotYet("It hears nothing more.", got="silence") from None
        except ConnectionClosed as closed:
            raise self._ended() from closed
        self._note(f"hears {show(said, 80)}")
        return said if isinstance(said, str) else said.decode()

    def hear_json(self) -> Any:
        text = self.hear()
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise NotYet("That is no JSON.", got=show(text)) from None

    def ending(self) -> int:
        """The code, once the server has closed the connection. What is still said is left out."""
        try:
            while True:
                self.socket.recv(timeout=PATIENCE_S)
        except TimeoutError:
            raise NotYet("The connection stays open.") from None
        except ConnectionClosed:
            return int(self.socket.close_code or 0)

    def _ended(self) -> NotYet:
        code, reason = self.socket.close_code, self.socket.close_reason
        return NotYet("The conversation has ended.", got=f"code {int(code or 0)} {reason}".strip())

    def _note(self, what: str) -> None:
        if what.startswith("hears") and self._past and self._past[-1].startswith("hears"):
            del self._past[-1]
            if self._past[-1:] != ["hears …"]:
                self._past.append("hears …")
        self._past.append(what)
        self._answer.given = f"{self._who} that {', '.join(self._past[-6:])}"


@contextmanager
def _talking(answer: Answer, client: Client, path: str, who: str = "a client", **options: Any) -> Iterator[_Talk]:
    answer.given = f"{who} that connects to {path}"
    try:
        socket = connect(client.socket_url(path), open_timeout=PATIENCE_S, close_timeout=1, proxy=None, **options)
        entered = socket.__enter__()
    except InvalidStatus as refusal:
        got = f"HTTP {refusal.response.status_code}"
        raise NotYet("The connection was not accepted.", expected="a WebSocket", got=got) from None
    except InvalidHandshake as error:
        raise NotYet("The client gives up the handshake.", got=str(error)) from None
    except (TimeoutError, ConnectionClosed, EOFError, OSError) as error:
        raise NotYet("The connection was not accepted.", got=type(error).__name__) from None
    try:
        yield _Talk(answer, entered, who)
    finally:
        entered.close()


def _app(answer: Answer, *arguments: Any) -> FastAPI:
    """An app whose route `/ws` accepts the socket and leaves the rest to the learner's function."""
    if not callable(answer.value):
        raise NotYet("A function is needed here.", got=show(answer.value))
    app = FastAPI()

    @app.websocket("/ws")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        result = answer.value(socket, *arguments)
        if not inspect.isawaitable(result):
            raise TypeError("an `async def` function is needed here")
        await result

    return app


class _Model:
    """Answers with numbered words, and counts the answers under way."""

    def __init__(self) -> None:
        self.running = 0
        self.pause_s = 0.01
        self.length = 10

    async def words(self, question: str) -> AsyncIterator[str]:
        self.running += 1
        try:
            for number in range(self.length):
                await asyncio.sleep(self.pause_s)
                yield f"{question} {number}"
        finally:
            self.running -= 1

    def whole(self, question: str) -> list[str]:
        return [f"{question} {number}" for number in range(self.length)]


ENDS = ("done", "stopped")


def _answer_to(talk: _Talk) -> list[str]:
    said = [talk.hear()]
    while said[-1] not in ENDS:
        said.append(talk.hear())
    return said


@exercise(
    "06.1",
    hints=[
        "Each answer is a task of a `TaskGroup`, and the loop around `receive_text` goes on. `task.cancel()` ends it.",
        "Where does the `WebSocketDisconnect` go? Raised in the group's block, it cancels the tasks. Catch it around "
        "the group, with `except* WebSocketDisconnect: pass`.",
    ],
    right="Stop means stop, and whoever leaves takes the answer along.",
    seconds=60,
)
def stops_when_told(answer: Answer) -> None:
    model = _Model()
    with answer.serve(_app(answer, model)) as client:
        with _talking(answer, client, "/ws") as talk:
            talk.say("Why?")
            expect(_answer_to(talk), [*model.whole("Why?"), "done"], why="All words of the answer, and `done`.")
            model.pause_s, model.length = 0.05, 100
            talk.say("Who?")
            for _ in range(3):
                talk.hear()
            talk.say("stop")
            if _answer_to(talk)[-1] != "stopped":
                raise NotYet("The answer went on to its end.", expected="`stopped` in the place of `done`")
            if not comes_true(lambda: model.running == 0, SOON_S):
                raise NotYet("The model still works on the answer that was stopped.")
            model.pause_s, model.length = 0.01, 10
            talk.say("When?")
            expect(_answer_to(talk), [*model.whole("When?"), "done"], why="After a stop, the next question counts.")
        model.pause_s = 60
        with _talking(answer, client, "/ws", "a client that leaves while the model thinks, and") as talk:
            talk.say("Where?")
            comes_true(lambda: model.running == 1, SOON_S)
        if not comes_true(lambda: model.running == 0, SOON_S):
            raise NotYet("The client has left, and the model still works for it.")


NO_ORDERS: tuple[str | bytes, ...] = (
    "spend 30 tokens",
    '{"type": "spend", "tokens": ',
    '{"type": "spend"}',
    '{"type": "spend", "tokens": 0}',
    '{"type": "spend", "tokens": -30}',
    '{"type": "spend", "tokens": "many"}',
    '{"type": "shout"}',
    '{"tokens": 30}',
    "[]",
    "null",
    b"\xff\x00",
)


@exercise(
    "06.2",
    hints=[
        "Two models with a `Literal` for `type`, a union with a discriminator, and a `TypeAdapter` of it: "
        "`validate_json` returns one of the two or raises a `ValidationError`.",
        "`receive_text` fails at a binary frame. `Peer(socket).receive()` returns text or bytes, and `validate_json` "
        "takes both.",
    ],
    right="Nothing that a client says ends the conversation, and nothing wrong is counted.",
    seconds=60,
)
def counts_tokens(answer: Answer) -> None:
    with answer.serve() as client, _talking(answer, client, "/budget") as talk:

        def spend(tokens: int, total: int, why: str) -> None:
            talk.say(json.dumps({"type": "spend", "tokens": tokens}))
            expect(talk.hear_json(), {"type": "total", "tokens": total}, why=why)

        spend(30, 30, "The total so far.")
        total = 42
        spend(12, total, "The total grows.")
        for frame in NO_ORDERS:
            talk.say(frame)
            reply = talk.hear_json()
            if not isinstance(reply, dict) or reply.get("type") != "error":
                raise NotYet("This is no order.", expected='{"type": "error", …}', got=show(reply))
            total += 1
            spend(1, total, "A mistake changes nothing, and the next order counts.")
        talk.say('{"type": "reset"}')
        expect(talk.hear_json(), {"type": "total", "tokens": 0}, why="It begins at zero again.")
        spend(5, 5, "After a reset it counts on.")


def _bearing(*names: str) -> dict[str, Any]:
    return {"subprotocols": [Subprotocol(name) for name in names]}


def _header(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


@exercise(
    "06.3",
    hints=[
        'A program\'s key is in `socket.headers.get("Authorization", "")`, a page\'s is one of the subprotocols. '
        "Look at both, and then decide.",
        'Accept in any case, with "workshop.chat" if it was offered. To refuse, raise `WebSocketException(1008)` '
        "or await `socket.close(1008)`.",
    ],
    right="Programs and pages get in, and strangers learn why they do not.",
    seconds=60,
)
def knows_who_knocks(answer: Answer) -> None:
    with answer.serve() as client:
        for who, options, owner in (
            ("a program with the header `Bearer key-1`", _header("key-1"), "ada"),
            ("a program with the header `Bearer key-2`", _header("key-2"), "grace"),
            ("a page with the key `key-2`", _bearing("workshop.chat", "bearer.key-2"), "grace"),
            ("a page with the key `key-1`", _bearing("bearer.key-1", "workshop.chat"), "ada"),
        ):
            with _talking(answer, client, "/door", who, **options) as talk:
                expect(talk.hear(), f"hello {owner}")
                if "subprotocols" in options and talk.socket.subprotocol != "workshop.chat":
                    why = "The page's browser would hang up: this is no subprotocol for it."
                    raise NotYet(why, expected="`workshop.chat` is picked", got=show(talk.socket.subprotocol))
        for who, options in (
            ("a program without a key", {}),
            ("a program with the header `Bearer key-3`", _header("key-3")),
            ("a page with the key `key-3`", _bearing("workshop.chat", "bearer.key-3")),
            ("a page without a key", _bearing("workshop.chat")),
        ):
            with _talking(answer, client, "/door", who, **options) as talk:
                expect(talk.ending(), 1008, why="The code with which a stranger is sent away.")


FORGIVEN = 10
"""Pings in a row. They may come while others are not answered yet, but not for ever."""


@exercise(
    "06.4",
    hints=[
        "Two things at the same time: a task that pings, and the loop that receives. An `asyncio.Event` lets the loop "
        "tell the task that a `pong` came.",
        "The task: sleep, `clear` the event, send `ping`, then `asyncio.wait_for(event.wait(), patience)`. "
        "At a `TimeoutError`: `socket.close(1011)`.",
    ],
    right="Who answers may stay, and who does not is let go.",
    seconds=90,
)
def keeps_a_heartbeat(answer: Answer) -> None:
    # Patience with the living is long, since this machine may be slow; with the silent it may be short.
    with (
        answer.serve(_app(answer, 0.2, 3.0)) as client,
        _talking(answer, client, "/ws", "a client, pinged every 0.2 s and given 3 s,") as talk,
    ):
        for number in range(4):
            text = f"message {number}"
            talk.say(text)
            heard: list[str] = []
            while not {text, "ping"}.issubset(heard):  # whichever comes first
                heard.append(_next(talk))
                if heard[-1] not in (text, "ping") or len(heard) > FORGIVEN:
                    why = "Every text is echoed, but for `pong`, and pings come between."
                    raise NotYet(why, expected=f"{text}, ping", got=", ".join(heard))
            time.sleep(0.5)
            talk.say("pong")
    with (
        answer.serve(_app(answer, 0.2, 0.6)) as client,
        _talking(answer, client, "/ws", "a client that never says `pong`, and") as talk,
    ):
        if _next(talk) != "ping":
            raise NotYet("A `ping` should come first.")
        pings = 1
        with suppress(NotYet):  # it is closed
            while pings < FORGIVEN:
                talk.say("I am here")
                while talk.hear() != "ping":
                    pass
                pings += 1
        if pings == FORGIVEN:
            raise NotYet("It goes on and on, though no `pong` comes.", expected="code 1011", got=f"{pings} pings")
        expect(talk.ending(), 1011, why="No `pong` came in time: this is the code of the end.")


def _next(talk: _Talk) -> str:
    try:
        return talk.hear()
    except NotYet as no:
        raise NotYet("No `ping` comes." if no.got == "silence" else no.message, got=no.got) from None


class _Bus:
    """A bus between event loops. What crosses it is pickled, as on the way to a replica."""

    def __init__(self) -> None:
        self._inboxes: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[bytes]]] = []

    @property
    def subscribers(self) -> int:
        return len(self._inboxes)

    async def publish(self, item: Any) -> None:
        pickled = pickle.dumps(item)
        for loop, queue in list(self._inboxes):
            loop.call_soon_threadsafe(queue.put_nowait, pickled)

    async def subscribe(self) -> AsyncIterator[Any]:
        inbox = asyncio.get_running_loop(), asyncio.Queue[bytes]()
        self._inboxes.append(inbox)
        try:
            while True:
                yield pickle.loads(await inbox[1].get())  # our own, from a line above
        finally:
            self._inboxes.remove(inbox)


@exercise(
    "06.5",
    hints=[
        "Publish more than the text: the room, and something that only this connection has, such as `token_hex(8)`. "
        "Whoever receives an item can then tell whether it is for its client.",
        "As in `room_on`: a task that iterates `bus.subscribe()`, beside the loop that reads. Cancel it at the end.",
    ],
    right="Many rooms, many doors, one bus.",
    seconds=60,
)
def keeps_rooms_apart(answer: Answer) -> None:
    bus = _Bus()
    with (
        answer.serve(answer.call(bus)) as one,
        answer.serve(answer.call(bus)) as other,
    ):
        with ExitStack() as seats:
            subscribed = [True]

            def enter(client: Client, room: str, who: str) -> _Talk:
                before = bus.subscribers
                talk = seats.enter_context(_talking(answer, client, f"/rooms/{room}", who))
                if all(subscribed):  # who does not subscribe is not waited for again
                    subscribed.append(comes_true(lambda: bus.subscribers > before or bool(client.errors), SOON_S))
                return talk

            ada = enter(one, "tea", "ada, in `tea`,")
            bob = enter(other, "tea", "bob, in `tea` at another app,")
            cleo = enter(one, "tea", "cleo, in `tea`,")
            dan = enter(other, "coffee", "dan, in `coffee`,")
            eve = enter(one, "coffee", "eve, in `coffee` at another app,")
            ada.say("Milk first?")
            for listener in (bob, cleo):
                expect(listener.hear(), "Milk first?", why="All others in `tea` hear what ada said in `tea`.")
            bob.say("Milk last.")
            # What comes first tells what did not come before: nobody has to wait for silence.
            expect(ada.hear(), "Milk last.", why="This is what ada should hear first. She does not hear herself.")
            expect(cleo.hear(), "Milk last.", why="Everything that is said, in its order.")
            eve.say("No milk.")
            expect(dan.hear(), "No milk.", why="This is what dan should hear first. What is said in `tea` stays there.")
        if not comes_true(lambda: bus.subscribers == 0, SOON_S):
            raise NotYet(
                "All have left, and the bus still works for them.",
                given="five clients that leave",
                expected="0 subscriptions",
                got=str(bus.subscribers),
            )
