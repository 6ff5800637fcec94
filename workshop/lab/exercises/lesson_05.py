"""Lesson 05: streaming."""

import gc
import json
import time
from collections import UserList
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, zip_longest
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent
from starlette.types import Message

from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_05 import (
    LONG,
    OTHER,
    REPORT,
    SOUND,
    UNFINISHED,
    WHOLE,
    Kitchen,
    Order,
    Speech,
    UnfinishedError,
    answers,
    described,
    doctor,
    recording,
)
from workshop.lab.registry import exercise

Item = TypeVar("Item")

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""


@exercise(
    "05.1",
    hints=[
        "An endpoint that yields dicts, without a `response_class`, is a stream of JSON lines.",
        "`async for word in dictation():` and count along, from 1. Yield in the loop.",
    ],
    right="A line per word, as soon as it is spoken.",
    seconds=LIMIT_S,
)
def streams_lines(answer: Answer) -> None:
    with answer.serve(seconds=8) as client:
        with doctor.saying(REPORT) as speech:
            _expect_lines(list(_lines(client, "/words", speech)), REPORT)
        with doctor.saying(OTHER) as speech, _given(answer, "GET /words by two clients at the same time"):
            for got in _in_turns(*(_lines(client, "/words", speech, number) for number in range(2))):
                _expect_lines(got, OTHER)


def _expect_lines(got: list[Any], words: tuple[str, ...]) -> None:
    for number, (line, word) in enumerate(zip(got, words, strict=False), 1):
        expect(line, {"number": number, "word": word}, why=f"Line {number}.")
    if len(got) != len(words):
        raise NotYet("One line per word.", expected=f"{len(words)} lines", got=f"{len(got)}")


@exercise(
    "05.2",
    hints=[
        "`response_class=EventSourceResponse` in the decorator makes an endpoint that yields a stream of events.",
        '`ServerSentEvent(event="chunk", id=str(number), data={"text": word})` is one; after the loop comes another.',
    ],
    right="A browser can tell the pieces from the end.",
    seconds=LIMIT_S,
)
def streams_events(answer: Answer) -> None:
    with answer.serve(seconds=8) as client:
        with doctor.saying(REPORT) as speech:
            _expect_events(list(_events(client, "/events", speech)), REPORT)
        with doctor.saying(OTHER) as speech, _given(answer, "GET /events by two clients at the same time"):
            for got in _in_turns(*(_events(client, "/events", speech, number) for number in range(2))):
                _expect_events(got, OTHER)


def _expect_events(events: list[ServerSentEvent], words: tuple[str, ...]) -> None:
    if not events:
        raise NotYet("No event came.")
    names = ["chunk"] * len(words) + ["complete"]
    expect([event.event for event in events], names, why="The names of the events.")
    for event in events:
        if isinstance(_parsed(event.data), str):
            raise NotYet("This data is JSON inside a JSON string.", got=event.data)
    *chunks, complete = events
    for number, (event, word) in enumerate(zip(chunks, words, strict=True), 1):
        expect(_parsed(event.data), {"text": word}, why="The data of a chunk.")
        expect(event.id, str(number), why="The id of a chunk.")
    expect(_parsed(complete.data), {"words": len(words)}, why="The data of `complete`.")


def _lines(client: Client, path: str, speech: Speech, listener: int = 0) -> Generator[Any, None, None]:
    """What the lines of a response hold, as they come."""
    with client.stream("GET", path) as response:
        expect(response.status_code, 200)
        _expect_media_type(response, "application/jsonl", "application/x-ndjson", "application/ndjson")
        lines = (line for line in response.iter_lines() if line)
        yield from map(_parsed, _in_time(lines, speech, listener))


def _events(client: Client, path: str, speech: Speech, listener: int = 0) -> Iterator[ServerSentEvent]:
    """The events of a response, as they come."""
    with client.stream("GET", path) as response:
        expect(response.status_code, 200)
        _expect_media_type(response, "text/event-stream")
        yield from _in_time(EventSource(response).iter_sse(), speech, listener)


def _in_time(items: Iterable[Item], speech: Speech, listener: int) -> Iterator[Item]:
    """The items, if each comes before the next piece is spoken."""
    for number, item in enumerate(items, 1):
        if (spoken := speech.hear(listener)) > number:
            raise NotYet(
                "A piece is held back until later ones are spoken.",
                expected=f"piece {number} as soon as it is spoken",
                got=f"piece {number} after piece {spoken} was spoken",
            )
        yield item


def _in_turns(*streams: Iterator[Item]) -> list[list[Item]]:
    """Everything that each stream gives, when an item is taken from one after the other."""
    got: list[list[Item]] = [[] for _ in streams]
    for items in zip_longest(*streams):
        for own, item in zip(got, items, strict=True):
            own.extend([] if item is None else [item])
    return got


@contextmanager
def _given(answer: Answer, text: str) -> Iterator[None]:
    """Let the verdict on what happens in the block say what was given."""
    try:
        yield
    finally:
        answer.given = text


def _expect_media_type(response: httpx.Response, *expected: str) -> None:
    got = str(response.headers.get("Content-Type", "")).partition(";")[0].strip()
    if got not in expected:
        raise NotYet("This is the wrong media type.", expected=expected[0], got=got or "none")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise NotYet("This is not JSON.", got=show(text)) from None


@exercise(
    "05.3",
    hints=[
        "Wrap `send`, as `TimingMiddleware` does. What you measure with must belong to one request, not to `self`.",
        "Note once: at the first message of type `http.response.body`. Then send it on, like every other message.",
    ],
    right="It measures what the user feels, and holds nothing back.",
    seconds=LIMIT_S,
)
def notes_the_first_piece(answer: Answer) -> None:
    one, fast = Order(pause_s=0.3), Order(pause_s=0.2)
    orders = {"/stream": one, "/fast": fast, "/slow": Order(pause_s=0.2, after=fast)}
    kitchen = Kitchen(orders)
    notes: UserList[Any] = UserList()  # an answer gets a copy of a plain list
    app = answer.call(kitchen, notes)
    if not callable(app):
        raise NotYet("This is not an ASGI app.", got=show(app))
    _expect_untouched(answer, app, "lifespan", "startup", "shutdown")
    _expect_untouched(answer, app, "websocket", "connect")
    expect(list(notes), [], why="Only HTTP is noted.")
    with answer.serve(app, seconds=8) as client:
        with client.stream("GET", "/stream") as response:
            _expect_streamed(response, one)
        _expect_notes(notes, {"/stream": one})

        notes.clear()
        with _given(answer, "GET /slow, and GET /fast while it is under way"):
            with client.stream("GET", "/slow") as response:
                time.sleep(0.3)  # a start that the two share is wrong for one of them
                with client.stream("GET", "/fast") as other:
                    _expect_streamed(other, fast)
                _expect_streamed(response, orders["/slow"])
            _expect_notes(notes, {path: orders[path] for path in ("/slow", "/fast")})

        notes.clear()
        plain = client.get("/other")
        expect((plain.status_code, plain.text), (404, "nothing"), why="The response itself must stay the same.")
        _expect_one_note_each(notes, ["/other"])


def _expect_untouched(answer: Answer, app: Any, kind: str, *events: str) -> None:
    """What is not HTTP reaches the wrapped app, and what the app says comes back."""
    received, sent = iter(events), list[str]()
    scope = {"type": kind, "headers": []} | ({"path": "/ws"} if kind == "websocket" else {})

    async def receive() -> Message:
        return {"type": f"{kind}.{next(received)}"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    answer.given = f'a scope of type "{kind}"'
    answer.run(app(scope, receive, send))
    if len(sent) != len(events):
        expected = f"{len(events)} message{'s' if len(events) > 1 else ''} from the app"
        raise NotYet("What is not HTTP must pass through to the app.", expected=expected, got=f"{len(sent)}")


def _expect_streamed(response: httpx.Response, order: Order) -> None:
    text = ""
    for piece in response.iter_text():
        text += piece
        order.received += 1
    expect(text, "first second third", why="The response itself must stay the same.")
    if order.held:
        raise NotYet(f"Piece {order.held} of the body is held back.", expected="each piece is sent on at once")


def _expect_one_note_each(notes: UserList[Any], paths: list[str]) -> list[tuple[str, float]]:
    becomes_true(lambda: len(notes) >= len(paths), 2.0)
    try:
        pairs = sorted((str(path), float(seconds)) for path, seconds in notes)
    except (TypeError, ValueError):
        raise NotYet("A note is a pair.", expected="(path, seconds)", got=show(list(notes))) from None
    expect([path for path, _ in pairs], paths, why="Each response gets one note.")
    return pairs


def _expect_notes(notes: UserList[Any], orders: dict[str, Order]) -> None:
    for path, seconds in _expect_one_note_each(notes, sorted(orders)):
        order = orders[path]
        early, late = seconds < order.first_s - 0.05, seconds > order.first_out_s + Kitchen.BETWEEN_S / 2
        if early or late:
            raise NotYet(
                f"That is {'less' if early else 'more'} than the first piece of the body took.",
                expected=f"{path}: about {order.first_s:.1f} s",
                got=f"{path}: {seconds:.1f} s",
            )


@exercise(
    "05.4",
    hints=[
        "The end of a dependency always runs when the request is over. Let one make the queue and the task, and yield.",
        "In the dependency: `try: yield pieces`, `finally: task.cancel()`. The endpoint takes it with `Depends`.",
    ],
    right="When the client leaves, the voice falls silent.",
    seconds=LIMIT_S,
)
def stops_with_its_client(answer: Answer) -> None:
    with answer.serve(seconds=8) as client, _no_garbage_collection():
        with recording.saying(SOUND) as speech:
            _expect_every_piece(_lines(client, "/voice", speech))
        two = "GET /voice by two clients at the same time, and one leaves"
        with recording.saying(SOUND) as speech, _given(answer, two):
            staying, leaving = (_lines(client, "/voice", speech, number) for number in range(2))
            first = next(staying, None)
            becomes_true(lambda: speech.spoken[0] > 1, 2.0)  # the next piece is on its way, so the app waits for more
            next(leaving, None)
            leaving.close()
            _expect_every_piece(chain([first], staying))
        given = "GET /voice by a client that leaves after the first piece"
        with recording.saying(LONG, pause_s=0.02, waits=False) as speech, _given(answer, given):
            with client.stream("GET", "/voice") as response:
                next(response.iter_lines())
            _expect_silence(speech)
        given = "GET /voice by a client that stops reading, and leaves later"
        with recording.saying(LONG, pause_s=0.005, waits=False) as speech, _given(answer, given):
            with client.stream("GET", "/voice") as response:
                _read_one_and_stop(response, speech)
            _expect_silence(speech)
        given = "GET /voice by a client that stops reading for a while"
        with recording.saying(LONG, pause_s=0.005, waits=False) as speech, _given(answer, given):
            with client.stream("GET", "/voice") as response:
                rest = _read_one_and_stop(response, speech)
                speech.end()  # while pieces are still in a queue, if there is one
                got = 1 + sum(1 for _ in rest)
            if got != speech.spoken.total():
                expected = f"{speech.spoken.total()} pieces, as many as `voice` has yielded"
                raise NotYet("The last pieces are lost.", expected=expected, got=f"{got}")


def _expect_every_piece(lines: Iterable[Any]) -> None:
    got: list[Any] = []
    with suppress(httpx.TimeoutException):
        got.extend(line.get("sound") if isinstance(line, dict) else line for line in lines)
    if got != list(SOUND):
        numbers = ", ".join(str(piece).partition(":")[0][:20] for piece in got)
        expected = f"pieces 0 to {len(SOUND) - 1}, each as {{'sound': piece}}"
        raise NotYet("A client that stays gets every piece.", expected=expected, got=numbers or "nothing")


def _read_one_and_stop(response: httpx.Response, speech: Speech) -> Iterator[str]:
    """Take one line, and no more until the speech waits. Returns the other lines; the response ends with them."""
    lines = (line for line in response.iter_lines() if line)
    next(lines)
    if not _stalls(speech):
        raise NotYet(
            "The client takes nothing more, and still piece after piece is made.",
            expected="`voice` waits",
            got=f"{speech.spoken.total()} pieces",
        )
    return lines


def _stalls(speech: Speech) -> bool:
    """Whether it waits at some time, rather than saying all that it has."""
    while speech.running:
        before = speech.spoken.total()
        time.sleep(0.8)
        if speech.spoken.total() == before:
            return speech.running > 0
    return False


def _expect_silence(speech: Speech) -> None:
    if not becomes_true(lambda: speech.running == 0, 3.0):
        raise NotYet(
            "The client has left, and `voice` is still open.",
            expected="`voice` is closed at once",
            got="it is open three seconds later",
        )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Nothing is closed by chance."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@exercise(
    "05.5",
    hints=[
        "Add up the texts of `chunk`; start again at `switch`; return at `complete`.",
        "Leaving the loop without a `complete` means `raise UnfinishedError`. A broken connection raises an "
        "`httpx.TransportError` in the loop: catch or `suppress` it.",
    ],
    right="It returns whole answers only.",
    seconds=LIMIT_S,
)
def reads_an_answer(answer: Answer) -> None:
    with answer.serve(answers(), allow_500=True, seconds=8) as client:
        for name, text in WHOLE.items():
            with _given(answer, described(name)):
                expect(answer.call(str(client.base_url.join(name))), text)
        for name in UNFINISHED:
            with _given(answer, described(name)):
                url = str(client.base_url.join(name))
                answer.raises(UnfinishedError, url, why="This answer is not complete.")
