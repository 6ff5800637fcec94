"""Answers to lesson 05: streaming."""

import asyncio
import json
import time
from collections.abc import AsyncIterable, Callable
from contextlib import aclosing, suppress
from http.client import HTTPException
from itertools import count
from typing import Annotated, Any
from urllib.request import ProxyHandler, build_opener

import anyio
import httpx
from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from httpx_sse import aconnect_sse, connect_sse
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response

from workshop.lab.fixtures.lesson_05 import UnfinishedError, dictation, voice


def app(path: str, endpoint: Callable[..., Any], **options: Any) -> FastAPI:
    made = FastAPI()
    made.get(path, **options)(endpoint)
    return made


# 05.1: a line per word


async def counts():
    number = 0
    async for word in dictation():
        number += 1
        yield {"number": number, "word": word}


async def formats_by_hand():
    async def text():
        number = 0
        async for word in dictation():
            number += 1
            yield json.dumps({"word": word, "number": number}) + "\n"

    return StreamingResponse(text(), media_type="application/x-ndjson")


class Word(BaseModel):
    number: int
    word: str


async def yields_models() -> AsyncIterable[Word]:
    numbers = count(1)
    async for word in dictation():
        yield Word(number=next(numbers), word=word)


async def returns_the_first():
    async for number, word in numbered():
        return {"number": number, "word": word}


async def loops_without_async():
    for number, word in enumerate(dictation(), start=1):
        yield {"number": number, "word": word}


async def returns_a_list():
    return [{"number": number, "word": word} async for number, word in numbered()]


async def numbered(first: int = 1):
    async for word in dictation():
        yield first, word
        first += 1


async def counts_from_zero():
    async for number, word in numbered(0):
        yield {"number": number, "word": word}


async def collects_first():
    for line in await returns_a_list():
        yield line


async def yields_text():
    async for number, word in numbered():
        yield json.dumps({"number": number, "word": word})


async def yields_the_one_before():
    before = None
    async for number, word in numbered():
        if before:
            yield before
        before = {"number": number, "word": word}
    yield before


async def yields_in_pairs():
    pair = []
    async for number, word in numbered():
        pair.append({"number": number, "word": word})
        if len(pair) == 2:
            for line in pair:
                yield line
            pair = []
    for line in pair:
        yield line


async def ends_lines_late():
    async def text():
        async for number, word in numbered():
            yield ("\n" if number > 1 else "") + json.dumps({"number": number, "word": word})

    return StreamingResponse(text(), media_type="application/jsonl")


shared = {"number": 0}


async def counts_for_everybody():
    async for word in dictation():
        shared["number"] += 1
        yield {"number": shared["number"], "word": word}


async def starts_everybody_anew():
    shared["number"] = 0
    async for word in dictation():
        shared["number"] += 1
        yield {"number": shared["number"], "word": word}


async def knows_the_text():
    for number, word in enumerate(["no", "sign", "of", "malignancy,", "next", "visit", "in", "a", "year"], 1):
        await asyncio.sleep(0.01)
        yield {"number": number, "word": word}


async def stops_early():
    async for number, word in numbered():
        if number == 5:
            return
        yield {"number": number, "word": word}


# 05.2: an event per word


async def sends_events():
    number = 0
    async for word in dictation():
        number += 1
        yield ServerSentEvent(event="chunk", id=str(number), data={"text": word})
    yield ServerSentEvent(event="complete", data={"words": number})


async def sends_events_by_hand():
    async def text():
        last = 0
        async for number, word in numbered():
            last = number
            yield f"id: {number}\nevent: chunk\ndata: {json.dumps({'text': word})}\n\n"
        yield f'event: complete\nid: {last + 1}\ndata: {{"words": {last}}}\n\n'

    return StreamingResponse(text(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def sends_raw_data():
    words = 0
    async for words, word in numbered():
        yield ServerSentEvent(event="chunk", id=f"{words}", raw_data=json.dumps({"text": word}))
    yield ServerSentEvent(event="complete", id=f"{words + 1}", raw_data=json.dumps({"words": words}))


class Text(BaseModel):
    text: str


async def sends_models() -> AsyncIterable[ServerSentEvent]:
    ids = count(1)
    async for word in dictation():
        yield ServerSentEvent(event="chunk", id=str(next(ids)), data=Text(text=word))
    yield ServerSentEvent(event="complete", data={"words": next(ids) - 1})


async def sends_events_without_names():
    async for event in sends_events():
        if event.event == "chunk":
            event.event = None
        yield event


async def counts_one_too_many():
    number = 1
    async for word in dictation():
        yield ServerSentEvent(event="chunk", id=str(number), data={"text": word})
        number += 1
    yield ServerSentEvent(event="complete", data={"words": number})


async def sends_data_alone():
    async for word in dictation():
        yield {"text": word}


async def does_not_complete():
    async for number, word in numbered():
        yield ServerSentEvent(event="chunk", id=str(number), data={"text": word})


async def sends_json_in_json():
    async for event in sends_events():
        event.data = json.dumps(event.data)
        yield event


async def sends_no_ids():
    async for event in sends_events():
        event.id = None
        yield event


async def sends_all_at_the_end():
    for event in [event async for event in sends_events()]:
        yield event


async def sends_numbers_as_ids():
    async for number, word in numbered():
        yield ServerSentEvent(event="chunk", id=number, data={"text": word})
    yield ServerSentEvent(event="complete", data={"words": number})


async def sends_the_event_before():
    before = None
    async for event in sends_events():
        if before:
            yield before
        before = event
    yield before


async def counts_events_for_everybody():
    shared["number"] = 0
    async for word in dictation():
        shared["number"] += 1
        yield ServerSentEvent(event="chunk", id=str(shared["number"]), data={"text": word})
    yield ServerSentEvent(event="complete", data={"words": shared["number"]})


async def completes_each_word():
    async for number, word in numbered():
        yield ServerSentEvent(event="chunk", id=str(number), data={"text": word})
        yield ServerSentEvent(event="complete", data={"words": number})


async def completes_without_counting():
    async for event in sends_events():
        if event.event == "complete":
            event.data = {"words": 9}
        yield event


# 05.3: the first piece


class FirstPiece:
    def __init__(self, app, notes):
        self.app, self.notes = app, notes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, noted = time.perf_counter(), False

        async def note(message):
            nonlocal noted
            if message["type"] == "http.response.body" and not noted:
                noted = True
                self.notes.append((scope["path"], time.perf_counter() - start))
            await send(message)

        await self.app(scope, receive, note)


def first_piece_as_a_function(app, notes):
    async def wrapped(scope, receive, send):
        start, seconds = time.monotonic(), []

        async def note(message):
            await send(message)
            if message["type"] == "http.response.body":
                seconds.append(time.monotonic() - start)

        await app(scope, receive, note if scope["type"] == "http" else send)
        if seconds:
            notes.append([scope["path"], seconds[0]])

    return wrapped


def first_piece_by_base_middleware(app, notes):
    async def dispatch(request, call_next):
        start = time.perf_counter()
        response = await call_next(request)
        pieces = response.body_iterator

        async def noted():
            number = 0
            async for piece in pieces:
                if number == 0:
                    notes.append((request.url.path, time.perf_counter() - start))
                number += 1
                yield piece

        response.body_iterator = noted()
        return response

    return BaseHTTPMiddleware(app, dispatch)


def when_the_status_leaves(app, notes):
    async def dispatch(request, call_next):
        start = time.perf_counter()
        response = await call_next(request)
        notes.append((request.url.path, time.perf_counter() - start))
        return response

    return BaseHTTPMiddleware(app, dispatch)


def when_all_is_there(app, notes):
    async def dispatch(request, call_next):
        start = time.perf_counter()
        response = await call_next(request)
        body = b"".join([piece async for piece in response.body_iterator])
        notes.append((request.url.path, time.perf_counter() - start))
        return Response(body, response.status_code, response.headers)

    return BaseHTTPMiddleware(app, dispatch)


class AtTheEnd:
    def __init__(self, app, notes):
        self.app, self.notes = app, notes

    async def __call__(self, scope, receive, send):
        start = time.perf_counter()
        await self.app(scope, receive, send)
        if scope["type"] == "http":
            self.notes.append((scope["path"], time.perf_counter() - start))


class EveryPiece(FirstPiece):
    async def __call__(self, scope, receive, send):
        start = time.perf_counter()

        async def note(message):
            if message["type"] == "http.response.body":
                self.notes.append((scope["path"], time.perf_counter() - start))
            await send(message)

        await self.app(scope, receive, note)


class OnlyOnce(FirstPiece):
    noted = False

    async def __call__(self, scope, receive, send):
        start = time.perf_counter()

        async def note(message):
            if message["type"] == "http.response.body" and not self.noted:
                self.noted = True
                self.notes.append((scope["path"], time.perf_counter() - start))
            await send(message)

        await self.app(scope, receive, note)


class ForgetsAwait(FirstPiece):
    async def __call__(self, scope, receive, send):
        async def forward(message):
            send(message)

        await super().__call__(scope, receive, forward if scope["type"] == "http" else send)


class HttpOnly(FirstPiece):
    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "lifespan"):
            await super().__call__(scope, receive, send)


class AnswersForTheApp(FirstPiece):
    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)


class TakesAllForHttp(FirstPiece):
    async def __call__(self, scope, receive, send):
        path, start, seconds = scope["path"], time.perf_counter(), []

        async def note(message):
            if message["type"] == "http.response.body" and not seconds:
                seconds.append(time.perf_counter() - start)
                self.notes.append((path, seconds[0]))
            await send(message)

        await self.app(scope, receive, note)


class OneStart(FirstPiece):
    async def __call__(self, scope, receive, send):
        self.start, noted = time.perf_counter(), []

        async def note(message):
            if message["type"] == "http.response.body" and not noted:
                noted.append(True)
                self.notes.append((scope["path"], time.perf_counter() - self.start))
            await send(message)

        await self.app(scope, receive, note if scope["type"] == "http" else send)


class OneFlag(FirstPiece):
    async def __call__(self, scope, receive, send):
        start, self.noted = time.perf_counter(), False

        async def note(message):
            if message["type"] == "http.response.body" and not self.noted:
                self.noted = True
                self.notes.append((scope["path"], time.perf_counter() - start))
            await send(message)

        await self.app(scope, receive, note if scope["type"] == "http" else send)


class OneSend(FirstPiece):
    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.path, start, noted = scope["path"], time.perf_counter(), []

        async def note(message):
            if message["type"] == "http.response.body" and not noted:
                noted.append(True)
                self.notes.append((self.path, time.perf_counter() - start))
            await send(message)

        await self.app(scope, receive, note)


class OneTooLate(FirstPiece):
    async def __call__(self, scope, receive, send):
        before = []

        async def late(message):
            if message["type"] == "http.response.start":
                await send(message)
                return
            before.append(message)
            if len(before) > 1:
                await send(before.pop(0))
            if not message.get("more_body"):
                await send(before.pop(0))

        await super().__call__(scope, receive, late if scope["type"] == "http" else send)


class NotesMilliseconds(FirstPiece):
    async def __call__(self, scope, receive, send):
        await FirstPiece(self.app, Thousandfold(self.notes))(scope, receive, send)


class Thousandfold:
    def __init__(self, notes):
        self.notes = notes

    def append(self, note):
        self.notes.append((note[0], 1000 * note[1]))


class NotesSecondsAlone(FirstPiece):
    async def __call__(self, scope, receive, send):
        await FirstPiece(self.app, Alone(self.notes))(scope, receive, send)


class Alone(Thousandfold):
    def append(self, note):
        self.notes.append(note[1])


class ForgetsToSend(FirstPiece):
    async def __call__(self, scope, receive, send):
        start = time.perf_counter()
        noted = []

        async def note(message):
            if message["type"] == "http.response.body" and not noted:
                noted.append(True)
                self.notes.append((scope["path"], time.perf_counter() - start))
            else:
                await send(message)

        await self.app(scope, receive, note)


# 05.4: nobody listens


async def fill(pieces):
    async for piece in voice():
        await pieces.put(piece)
    await pieces.put(None)


async def recorded(size: int = 4):
    pieces = asyncio.Queue(size)
    task = asyncio.create_task(fill(pieces))
    try:
        yield pieces
    finally:
        task.cancel()


async def plays(pieces: Annotated[Any, Depends(recorded)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def open_voice():
    async with aclosing(voice()) as opened:
        yield opened


async def needs_no_queue(opened: Annotated[Any, Depends(open_voice)]):
    async for piece in opened:
        yield {"sound": piece}


async def in_a_group():
    pieces = asyncio.Queue(2)
    async with anyio.create_task_group() as group:
        group.start_soon(fill, pieces)
        yield pieces
        group.cancel_scope.cancel()


async def plays_from_a_group(pieces: Annotated[Any, Depends(in_a_group)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def yields_text_alone(pieces: Annotated[Any, Depends(recorded)]):
    while (piece := await pieces.get()) is not None:
        yield piece


async def formats_sound(pieces: Annotated[Any, Depends(recorded)]):
    async def text():
        while (piece := await pieces.get()) is not None:
            yield json.dumps({"sound": piece}) + "\n"

    return StreamingResponse(text(), media_type="application/x-ndjson")


tasks = set()


async def forgets_the_task():
    pieces = asyncio.Queue(4)
    tasks.add(asyncio.create_task(fill(pieces)))
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def cleans_up_in_the_endpoint():
    pieces = asyncio.Queue(4)
    tasks.add(task := asyncio.create_task(fill(pieces)))
    try:
        while (piece := await pieces.get()) is not None:
            yield {"sound": piece}
    finally:
        task.cancel()


async def recorded_without_limit():
    async for pieces in recorded(0):
        yield pieces


async def plays_without_limit(pieces: Annotated[Any, Depends(recorded_without_limit)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def recorded_with_task():
    pieces = asyncio.Queue(4)
    task = asyncio.create_task(fill(pieces))
    try:
        yield pieces, task
    finally:
        task.cancel()


async def ends_with_the_task(recording: Annotated[Any, Depends(recorded_with_task)]):
    pieces, task = recording
    while not task.done():
        if (piece := await pieces.get()) is None:
            break
        yield {"sound": piece}


async def waits_for_the_task():
    pieces = asyncio.Queue(4)
    task = asyncio.create_task(fill(pieces))
    try:
        yield pieces
    finally:
        await task


async def plays_and_waits(pieces: Annotated[Any, Depends(waits_for_the_task)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def returns_the_queue():
    pieces = asyncio.Queue(4)
    tasks.add(asyncio.create_task(fill(pieces)))
    return pieces


async def plays_what_is_returned(pieces: Annotated[Any, Depends(returns_the_queue)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def loses_the_last(pieces: Annotated[Any, Depends(recorded)]):
    for _ in range(5):
        yield {"sound": await pieces.get()}


async def collects_the_pieces():
    for piece in [piece async for piece in voice()]:
        yield {"sound": piece}


async def asks_whether_it_is_alone(request: Request):
    pieces = asyncio.Queue(4)
    tasks.add(task := asyncio.create_task(fill(pieces)))
    while (piece := await pieces.get()) is not None:
        if await request.is_disconnected():
            task.cancel()
            break
        yield {"sound": piece}


async def closes_the_voice_in_the_endpoint():
    async with aclosing(voice()) as opened:
        async for piece in opened:
            yield {"sound": piece}


async def cancels_everybody():
    pieces = asyncio.Queue(4)
    tasks.add(asyncio.create_task(fill(pieces)))
    try:
        yield pieces
    finally:
        for task in tasks:
            task.cancel()


async def plays_until_anybody_leaves(pieces: Annotated[Any, Depends(cancels_everybody)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


class OneQueue:
    def __init__(self):
        self.pieces = asyncio.Queue(4)

    async def __call__(self):
        task = asyncio.create_task(fill(self.pieces))
        try:
            yield self.pieces
        finally:
            task.cancel()


one_queue = OneQueue()


async def plays_from_one_queue(pieces: Annotated[Any, Depends(one_queue)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


async def plays_the_piece_before(pieces: Annotated[Any, Depends(recorded)]):
    before = await pieces.get()
    while (piece := await pieces.get()) is not None:
        yield {"sound": before}
        before = piece
    yield {"sound": before}


async def forgets_the_first(pieces: Annotated[Any, Depends(recorded)]):
    await pieces.get()
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


# 05.5: read a stream


def reads(url):
    text = ""
    with suppress(httpx.TransportError), httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk":
                text += event.json()["text"]
            elif event.event == "switch":
                text = ""
            elif event.event == "complete":
                return text
    raise UnfinishedError(text)


def reads_strictly(url):
    parts = []
    try:
        with httpx.Client() as client, connect_sse(client, "GET", url) as source:
            source.response.raise_for_status()
            for event in source.iter_sse():
                match event.event:
                    case "chunk":
                        parts.append(event.json()["text"])
                    case "switch":
                        parts.clear()
                    case "error":
                        raise UnfinishedError(event.json()["detail"])
                    case "complete":
                        return "".join(parts)
    except httpx.HTTPError as error:
        raise UnfinishedError(str(error)) from error
    raise UnfinishedError("no complete")


async def takes_the_last_event(url):
    events = []
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient() as client, aconnect_sse(client, "GET", url) as source:
            async for event in source.aiter_sse():
                events.append(event)
    if not events or events[-1].event != "complete":
        raise UnfinishedError
    return events[-1].json()["content"]


def reads_without_httpx(url):
    parts, name = [], ""
    try:
        with build_opener(ProxyHandler({})).open(url) as response:
            for line in response:
                field, _, value = line.decode().strip().partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == "chunk":
                    parts.append(json.loads(value)["text"])
                elif field == "data" and name == "switch":
                    parts = []
                elif field == "data" and name == "complete":
                    return "".join(parts)
    except (OSError, HTTPException) as error:
        raise UnfinishedError from error
    raise UnfinishedError


def reads_lines(url):
    with suppress(httpx.RemoteProtocolError), httpx.stream("GET", url) as answer:
        event = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            if line.startswith("data: ") and event == "complete":
                return json.loads(line.removeprefix("data: "))["content"]
    raise UnfinishedError


def takes_packets_for_events(url):
    text = ""
    with suppress(httpx.TransportError), httpx.stream("GET", url) as response:
        for packet in response.iter_text():
            name, _, data = packet.partition("\n")
            if name == "event: chunk":
                text += json.loads(data.strip().removeprefix("data: "))["text"]
            elif name == "event: switch":
                text = ""
            elif name == "event: complete":
                return text
    raise UnfinishedError


def takes_an_error_for_complete(url):
    text = ""
    with suppress(httpx.TransportError), httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk":
                text += event.json()["text"]
            elif event.event == "switch":
                text = ""
            elif event.event in ("complete", "error"):
                return text
    raise UnfinishedError


def keeps_its_parts(url, parts=[]):  # noqa: B006 - this is the mistake to be found
    with suppress(httpx.TransportError), httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk":
                parts.append(event.json()["text"])
            elif event.event == "switch":
                parts.clear()
            elif event.event == "complete":
                return "".join(parts)
    raise UnfinishedError


def reads_on_after_complete(url):
    try:
        with httpx.Client() as client, connect_sse(client, "GET", url) as source:
            events = list(source.iter_sse())
    except httpx.HTTPError as error:
        raise UnfinishedError from error
    if not events or events[-1].event != "complete":
        raise UnfinishedError
    return events[-1].json()["content"]


def reads_to_the_end(url):
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        return "".join(event.json()["text"] for event in source.iter_sse() if event.event == "chunk")


def ignores_the_switch(url):
    text = ""
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk":
                text += event.json()["text"]
            elif event.event == "complete":
                return text
    raise UnfinishedError(text)


def takes_the_end_for_complete(url):
    text = ""
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk":
                text += event.json()["text"]
            elif event.event == "switch":
                text = ""
            elif event.event == "error":
                raise UnfinishedError(text)
            elif event.event == "complete":
                break
    return text


def shows_what_came(url):
    text = ""
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        try:
            for event in source.iter_sse():
                if event.event == "chunk":
                    text += event.json()["text"]
                elif event.event == "switch":
                    text = ""
                elif event.event == "complete":
                    return text
        except httpx.TransportError:
            return text
    raise UnfinishedError(text)


def expects_a_stream_to_end_well(url):
    text = ""
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk":
                text += event.json()["text"]
            elif event.event == "switch":
                text = ""
            elif event.event == "complete":
                return text
    raise UnfinishedError(text)


def expects_a_stream(url):
    with httpx.Client() as client, connect_sse(client, "GET", url) as source:
        source.response.raise_for_status()
    return reads(url)


def keeps_the_draft_out(url):
    text = ""
    with suppress(httpx.TransportError), httpx.Client() as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            if event.event == "chunk" and event.json()["model"] == "main":
                text += event.json()["text"]
            elif event.event == "complete":
                return text
    raise UnfinishedError(text)


def raises_something_else(url):
    try:
        return reads(url)
    except UnfinishedError as error:
        raise RuntimeError("the answer is not whole") from error


def forgets_return(url):
    reads(url)


def events_app(endpoint: Callable[..., Any]) -> FastAPI:
    return app("/events", endpoint, response_class=EventSourceResponse)


BANK = {
    "05.1": {
        "right": [app("/words", endpoint) for endpoint in (counts, formats_by_hand, yields_models)],
        "wrong": [
            (app("/words", returns_a_list), "This is the wrong media type"),
            (app("/words", counts, response_class=EventSourceResponse), "text/event-stream"),
            (app("/words", counts_from_zero), "'number': 0"),
            (app("/words", collects_first), "held back until later ones are spoken"),
            (app("/words", yields_the_one_before), "held back until later ones are spoken"),
            (app("/words", yields_in_pairs), "held back until later ones are spoken"),
            (app("/words", ends_lines_late), "held back until later ones are spoken"),
            (app("/words", yields_text), "Line 1"),
            (app("/words", returns_the_first), "This is the wrong media type"),
            (app("/words", loops_without_async), "'async_generator' object is not iterable"),
            (app("/words", stops_early), "One line per word"),
            (app("/words", knows_the_text), "'word': 'two'"),
            (app("/words", counts_for_everybody), "'number': 10"),
            (app("/words", starts_everybody_anew), "two clients at the same time"),
            (app("/word", counts), "404"),
        ],
    },
    "05.2": {
        "right": [
            app("/events", sends_events_by_hand),
            *(events_app(endpoint) for endpoint in (sends_events, sends_raw_data, sends_models)),
        ],
        "wrong": [
            (app("/events", sends_events), "This is the wrong media type"),
            (events_app(sends_data_alone), "The names of the events"),
            (events_app(does_not_complete), "The names of the events"),
            (events_app(completes_each_word), "The names of the events"),
            (events_app(completes_without_counting), "The data of `complete`"),
            (events_app(counts_one_too_many), "The data of `complete`"),
            (events_app(sends_events_without_names), "The names of the events"),
            (events_app(sends_json_in_json), "JSON inside a JSON string"),
            (events_app(sends_no_ids), "The id of a chunk"),
            (events_app(sends_numbers_as_ids), "Input should be a valid string"),
            (events_app(sends_all_at_the_end), "held back until later ones are spoken"),
            (events_app(sends_the_event_before), "held back until later ones are spoken"),
            (events_app(counts_events_for_everybody), "two clients at the same time"),
        ],
    },
    "05.3": {
        "right": [FirstPiece, first_piece_as_a_function, first_piece_by_base_middleware],
        "wrong": [
            (when_the_status_leaves, "less than the first piece of the body took"),
            (when_all_is_there, "Piece 1 of the body is held back"),
            (OneTooLate, "Piece 1 of the body is held back"),
            (AtTheEnd, "more than the first piece of the body took"),
            (NotesMilliseconds, "more than the first piece of the body took"),
            (NotesSecondsAlone, "A note is a pair"),
            (ForgetsToSend, "The response itself must stay the same"),
            (ForgetsAwait, "is an `await` missing"),
            (EveryPiece, "Each response gets one note"),
            (OnlyOnce, "Each response gets one note"),
            (OneFlag, "while it is under way"),
            (OneStart, "less than the first piece of the body took"),
            (OneSend, "while it is under way"),
            (HttpOnly, 'a scope of type "websocket"'),
            (AnswersForTheApp, 'a scope of type "lifespan"'),
            (TakesAllForHttp, "KeyError: 'path'"),
        ],
    },
    "05.4": {
        "right": [
            app("/voice", endpoint)
            for endpoint in (plays, needs_no_queue, plays_from_a_group, yields_text_alone, formats_sound)
        ],
        "wrong": [
            (app("/voice", forgets_the_task), "`voice` is still open"),
            (app("/voice", cleans_up_in_the_endpoint), "`voice` is still open"),
            (app("/voice", closes_the_voice_in_the_endpoint), "`voice` is still open"),
            (app("/voice", asks_whether_it_is_alone), "`voice` is still open"),
            (app("/voice", plays_and_waits), "`voice` is still open"),
            (app("/voice", plays_what_is_returned), "`voice` is still open"),
            (app("/voice", plays_without_limit), "piece after piece is made"),
            (app("/voice", ends_with_the_task), "The last pieces are lost"),
            (app("/voice", plays_until_anybody_leaves), "two clients at the same time, and one leaves"),
            (app("/voice", plays_from_one_queue), "two clients at the same time, and one leaves"),
            (app("/voice", loses_the_last), "got      0, 1, 2, 3, 4"),
            (app("/voice", forgets_the_first), "held back until later ones are spoken"),
            (app("/voice", plays_the_piece_before), "held back until later ones are spoken"),
            (app("/voice", collects_the_pieces), "held back until later ones are spoken"),
        ],
    },
    "05.5": {
        "right": [reads, reads_strictly, takes_the_last_event, reads_lines, reads_without_httpx],
        "wrong": [
            (reads_to_the_end, "chunk, chunk, switch"),
            (ignores_the_switch, "No ideaA copy."),
            (keeps_the_draft_out, "'One of several.'"),
            (takes_the_end_for_complete, "This answer is not complete"),
            (takes_an_error_for_complete, "chunk, chunk, error"),
            (takes_packets_for_events, "in packets that end anywhere"),
            (reads_on_after_complete, "complete, then the connection breaks"),
            (keeps_its_parts, "'A copy.Yes.'"),
            (shows_what_came, "then the connection breaks"),
            (expects_a_stream_to_end_well, "RemoteProtocolError"),
            (expects_a_stream, "HTTPStatusError"),
            (raises_something_else, "RuntimeError"),
            (forgets_return, "is a `return` missing"),
        ],
    },
}
