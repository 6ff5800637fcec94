"""Lesson 05: streaming."""

import asyncio
import gc
import json
import threading
import time
from collections import UserList
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from httpx_sse import EventSource, ServerSentEvent
from starlette.types import Message, Receive, Scope, Send

from workshop.lab.answer import Answer, Client
from workshop.lab.app_server import run_app
from workshop.lab.expectations import NotYet, comes_true, expect, show
from workshop.lab.registry import exercise

REPORT = ("no", "sign", "of", "malignancy,", "next", "visit", "in", "a", "year")
OTHER = ("two", "lesions,", "both", "benign,", "the", "larger", "one", "of", "nine", "millimetres,", "no", "referral")


class _Speech:
    """Pieces of a text, spoken one by one to however many.

    Attributes:
        heard: set by a check that has received the first piece; with ``waits``, only three are spoken before.
        unheard: whether that took too long.
        running: how many times it is under way.
        spoken: pieces in all.
    """

    _BEFORE_WAITING = 3
    _PATIENCE_S = 2.0

    def __init__(self, pieces: tuple[str, ...], *, pause_s: float = 0.1, waits: bool = False) -> None:
        self._pieces, self._pause_s, self._waits = pieces, pause_s, waits
        self.heard = threading.Event()
        self.unheard = False
        self.running = self.spoken = 0

    async def speak(self) -> AsyncIterator[str]:
        self.running += 1
        try:
            for number, piece in enumerate(self._pieces):
                if self._waits and number == self._BEFORE_WAITING:
                    await self._until_heard()
                await asyncio.sleep(self._pause_s)
                self.spoken += 1
                yield piece
        finally:
            self.running -= 1

    async def _until_heard(self) -> None:
        end = time.monotonic() + self._PATIENCE_S
        while not self.heard.is_set():
            if time.monotonic() > end:
                self.unheard = True
                return
            await asyncio.sleep(0.01)

    def expect_heard(self) -> None:
        if self.unheard:
            why = "The first one comes only when the last one is spoken."
            raise NotYet(why, expected="each as soon as it is spoken")


class _Speaker:
    """Who speaks, and what: in a check, something else than for a learner who tries."""

    def __init__(self, pieces: tuple[str, ...]) -> None:
        self.speech = _Speech(pieces)

    @contextmanager
    def saying(self, pieces: tuple[str, ...], *, pause_s: float = 0.01, waits: bool = False) -> Iterator[_Speech]:
        """Say this for the length of the block."""
        usual, self.speech = self.speech, _Speech(pieces, pause_s=pause_s, waits=waits)
        try:
            yield self.speech
        finally:
            self.speech = usual


_doctor = _Speaker(REPORT)


def dictation() -> AsyncIterator[str]:
    """A doctor dictates a report: yields word by word."""
    return _doctor.speech.speak()


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip()


def _expect_media_type(response: httpx.Response, expected: str, *others: str) -> None:
    got = _media_type(response)
    if got not in (expected, *others):
        raise NotYet("The media type says something else.", expected=expected, got=got or "none")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise NotYet("This is no JSON.", got=show(text)) from None


def _lines(client: Client, path: str, speech: _Speech) -> Iterator[str]:
    """The lines of an answer as they come. The first one is noted as heard."""
    with client.stream("GET", path) as response:
        expect(response.status_code, 200)
        _expect_media_type(response, "application/jsonl", "application/x-ndjson", "application/ndjson")
        for line in response.iter_lines():
            speech.heard.set()
            if line:
                yield line


@exercise(
    "05.1",
    hints=[
        "An endpoint that yields dicts, without a `response_class`, is a stream of JSON lines.",
        "`async for word in dictation():` and count along, from 1. Yield in the loop.",
    ],
    right="A line per word, as soon as it is spoken.",
    seconds=30,
)
def streams_lines(answer: Answer) -> None:
    with answer.serve(seconds=10) as client:
        for words in (REPORT, OTHER):
            with _doctor.saying(words, waits=True) as speech:
                got = [_parsed(line) for line in _lines(client, "/words", speech)]
                for number, (line, word) in enumerate(zip(got, words, strict=False), 1):
                    expect(line, {"number": number, "word": word}, why=f"Line {number}.")
                if len(got) != len(words):
                    raise NotYet("One line per word.", expected=f"{len(words)} lines", got=f"{len(got)}")
                speech.expect_heard()


@exercise(
    "05.2",
    hints=[
        "`response_class=EventSourceResponse` in the decorator makes an endpoint that yields a stream of events.",
        '`ServerSentEvent(event="chunk", id=str(number), data={"text": word})` is one; after the loop comes another.',
    ],
    right="A browser can tell the pieces from the end.",
    seconds=30,
)
def streams_events(answer: Answer) -> None:
    with answer.serve(seconds=10) as client:
        for words in (REPORT, OTHER):
            with _doctor.saying(words, waits=True) as speech:
                _expect_events(list(_events(client, "/events", speech)), words)
                speech.expect_heard()


def _events(client: Client, path: str, speech: _Speech) -> Iterator[ServerSentEvent]:
    """The events of an answer as they come. The first one is noted as heard."""
    with client.stream("GET", path) as response:
        expect(response.status_code, 200)
        _expect_media_type(response, "text/event-stream")
        for event in EventSource(response).iter_sse():
            speech.heard.set()
            yield event


def _expect_events(events: list[ServerSentEvent], words: tuple[str, ...]) -> None:
    if not events:
        raise NotYet("No event came.")
    names = ["chunk"] * len(words) + ["complete"]
    expect([event.event for event in events], names, why="The names of the events.")
    for event in events:
        if isinstance(_parsed(event.data), str):
            raise NotYet("This data is a text that holds JSON, rather than JSON.", got=event.data)
    *chunks, complete = events
    for number, (event, word) in enumerate(zip(chunks, words, strict=True), 1):
        expect(_parsed(event.data), {"text": word}, why="The data of a chunk.")
        expect(event.id, str(number), why="The id of a chunk.")
    expect(_parsed(complete.data), {"words": len(words)}, why="The data of `complete`.")


class _Kitchen:
    """An ASGI app whose answer to ``/stream`` has pauses before its pieces, and knows when each was sent."""

    FIRST_S = 0.3
    BETWEEN_S = 0.6

    def __init__(self) -> None:
        self.others: list[str] = []  # scopes that are not HTTP
        self.first_s = self.first_out_s = 0.0
        self.received = threading.Event()
        self.held = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] != "http":
            self.others.append(scope["type"])
        elif scope["path"] == "/stream":
            await self._stream(send)
        else:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"7")]})
            await send({"type": "http.response.body", "body": b"nothing"})

    async def _stream(self, send: Send) -> None:
        start = time.perf_counter()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(self.FIRST_S)
        self.first_s = time.perf_counter() - start
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        self.first_out_s = time.perf_counter() - start
        end = time.monotonic() + 2.0
        while not self.received.is_set() and not self.held:
            self.held = time.monotonic() > end
            await asyncio.sleep(0.01)
        await asyncio.sleep(self.BETWEEN_S)
        for piece in (b"second ", b"third"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@exercise(
    "05.3",
    hints=[
        "Wrap `send`, as `TimingMiddleware` does. What you measure with must belong to one request, not to `self`.",
        "Note once: at the first message of type `http.response.body`. Then send it on, like every other message.",
    ],
    right="It measures what the user feels, and holds nothing back.",
    seconds=30,
)
def notes_the_first_piece(answer: Answer) -> None:
    kitchen = _Kitchen()
    notes: UserList[Any] = UserList()  # an answer gets a copy of a plain list
    wrapped = answer.call(kitchen, notes)
    if not callable(wrapped):
        raise NotYet("This gives no ASGI app.", got=show(wrapped))
    answer.given = "a WebSocket"
    scope = {"type": "websocket", "path": "/ws", "headers": []}
    answer.run(wrapped(scope, _nothing, _into_nothing))
    if kitchen.others != ["websocket"]:
        raise NotYet("What is not HTTP must go through untouched.", expected="the app gets it")
    expect(list(notes), [], why="Only HTTP is noted.")

    served = Answer(wrapped, 25)
    try:
        with served.serve(seconds=10) as client:
            for times in (1, 2):
                _expect_first_piece(client, kitchen, notes, times)
            plain = client.get("/other")
            expect((plain.status_code, plain.text), (404, "nothing"), why="The answer itself must stay the same.")
            comes_true(lambda: len(notes) >= 3, 2.0)
            expect([note[0] for note in notes], ["/stream", "/stream", "/other"], why="One note per answer.")
    finally:
        served.close()
        answer.given = served.given


def _expect_first_piece(client: Client, kitchen: _Kitchen, notes: UserList[Any], times: int) -> None:
    kitchen.received.clear()
    with client.stream("GET", "/stream") as response:
        pieces = response.iter_text()
        text = next(pieces, "")
        kitchen.received.set()
        text += "".join(pieces)
    expect(text, "first second third", why="The answer itself must stay the same.")
    if kitchen.held:
        raise NotYet("The first piece comes only with the last one.", expected="nothing is held back")
    comes_true(lambda: len(notes) >= times, 2.0)
    if len(notes) != times:
        raise NotYet(
            "Each answer gets one note.", given=f"{times} times GET /stream", expected=f"{times}", got=f"{len(notes)}"
        )
    try:
        path, seconds = notes[-1]
        soon, late = seconds < kitchen.first_s - 0.05, seconds > kitchen.first_out_s + _Kitchen.BETWEEN_S / 2
    except (TypeError, ValueError):
        raise NotYet("A note is a pair.", expected='("/stream", seconds)', got=show(notes[-1])) from None
    expect(path, "/stream")
    if soon or late:
        raise NotYet(
            "That is before the first piece of the body."
            if soon
            else "That is long after the first piece of the body.",
            expected=f"about {kitchen.first_s:.1f} s",
            got=f"{seconds:.1f} s",
        )


async def _nothing() -> Message:
    return {"type": "websocket.connect"}


async def _into_nothing(message: Message) -> None:
    pass


SOUND = tuple(f"{number}:" + "~" * 100_000 for number in range(12))
LONG = SOUND * 34

_recording = _Speaker(SOUND)


def voice() -> AsyncIterator[str]:
    """A doctor speaks: yields pieces of sound, 100 kB each."""
    return _recording.speech.speak()


@exercise(
    "05.4",
    hints=[
        "The end of a dependency always runs when the request is over. Let one make the queue and the task, and yield.",
        "In the dependency: `try: yield pieces`, `finally: task.cancel()`. The endpoint takes it with `Depends`.",
    ],
    right="No reader, no sound.",
    seconds=60,
)
def stops_with_its_reader(answer: Answer) -> None:
    with answer.serve(seconds=15) as client, _no_garbage_collection():
        with _recording.saying(SOUND, waits=True) as speech:
            got = [_parsed(line) for line in _lines(client, "/voice", speech)]
            if got != [{"sound": piece} for piece in SOUND]:
                pieces = f"{len(got)} times {show(got[0], 60)}" if got else "nothing"
                raise NotYet("Who stays gets every piece.", expected="12 times {'sound': …}", got=pieces)
            speech.expect_heard()
        _expect_silence(client, "who leaves after the first piece", pause_s=0.02, stalls=False)
        _expect_silence(client, "who stops reading, and leaves later", pause_s=0.005, stalls=True)


def _expect_silence(client: Client, reader: str, *, pause_s: float, stalls: bool) -> None:
    """A reader takes one piece and leaves, either at once or when the app has noticed that nothing more is taken."""
    with _recording.saying(LONG, pause_s=pause_s) as speech:
        lines = _lines(client, "/voice", speech)
        next(lines)
        given = f"GET /voice by a reader {reader}"
        if stalls and not _stalls(speech):
            raise NotYet(
                "The reader takes nothing more, and piece after piece is made.",
                given=given,
                expected="`voice` waits",
                got=f"{speech.spoken} pieces",
            )
        lines.close()  # type: ignore[attr-defined]
        if not comes_true(lambda: speech.running == 0, 3.0):
            raise NotYet(
                "The reader has left, and `voice` is still open.",
                given=given,
                expected="`voice` is closed at once",
                got="it is open three seconds later",
            )


def _stalls(speech: _Speech) -> bool:
    """Whether it waits at some time, rather than saying all that it has."""
    while speech.running:
        before = speech.spoken
        time.sleep(0.5)
        if speech.spoken == before:
            return speech.running > 0
    return False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What is closed by chance is not closed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class UnfinishedError(Exception):
    """An answer ended before it was whole."""


def _chunks(model: str, *texts: str) -> list[bytes]:
    return [_event("chunk", {"model": model, "text": text}) for text in texts]


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data))


def _complete(text: str) -> bytes:
    return _event("complete", {"content": text, "model_used": "main", "cost": 0.001})


_SWITCH = _event("switch", {"from_model": "draft", "to_model": "main", "quality": 0.4, "threshold": 0.9})
_PING = b": ping\n\n"
_PROBLEM = _event("error", {"title": "Gateway Timeout", "status": 504, "detail": "the model took too long"})

_ANSWERS: dict[str, list[bytes]] = {
    "kept": [*_chunks("draft", "One", " of", " several."), _complete("One of several.")],
    "switched": [*_chunks("draft", "No", " idea"), _SWITCH, *_chunks("main", "A", " copy."), _complete("A copy.")],
    "slow": [_PING, *_chunks("draft", "Yes"), _PING, *_chunks("draft", "."), _PING, _complete("Yes.")],
    "cut": _chunks("draft", "One", " of"),
    "cut-after-switch": [*_chunks("draft", "No"), _SWITCH],
    "failed": [*_chunks("main", "One", " of"), _PROBLEM],
    "failed-at-once": [_PROBLEM],
}


def _answers() -> FastAPI:
    app = FastAPI()

    @app.get("/{name}")
    async def stream(name: str) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in _ANSWERS[name]:
                yield piece
                await asyncio.sleep(0.01)

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


@exercise(
    "05.5",
    hints=[
        "Add up the texts of `chunk`; begin anew at `switch`; return at `complete`.",
        "Whoever comes out of the loop has seen no `complete`: `raise UnfinishedError`.",
    ],
    right="It shows what holds, and nothing that is only half an answer.",
    seconds=30,
)
def reads_an_answer(answer: Answer) -> None:
    with run_app(_answers()) as server:
        whole = {"kept": "One of several.", "switched": "A copy.", "slow": "Yes."}
        for name, text in whole.items():
            given = f"the events {_names(name)}"
            expect(answer.call(f"{server.url}/{name}"), text, given=given)
        for name in ("cut", "cut-after-switch", "failed", "failed-at-once"):
            url = f"{server.url}/{name}"
            try:
                answer.raises(UnfinishedError, url, why="This answer is not whole.")
            except NotYet as no:
                no.given = f"the events {_names(name)}"
                raise


def _names(name: str) -> str:
    lines = b"".join(_ANSWERS[name]).decode().splitlines()
    return ", ".join(line.removeprefix("event: ") for line in lines if line.startswith("event: "))
