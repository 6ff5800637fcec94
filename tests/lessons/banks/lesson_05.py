"""Answers to lesson 05: streaming."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated, Any

import anyio
import httpx
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from httpx_sse import aconnect_sse, connect_sse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response

from workshop.lab.exercises.lesson_05 import UnfinishedError, dictation, voice


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


class HttpOnly(FirstPiece):
    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "lifespan"):
            await super().__call__(scope, receive, send)


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


async def loses_the_last(pieces: Annotated[Any, Depends(recorded)]):
    for _ in range(5):
        yield {"sound": await pieces.get()}


async def collects_the_pieces():
    for piece in [piece async for piece in voice()]:
        yield {"sound": piece}


# 05.5: read it well


def reads(url):
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


async def takes_the_last_event(url):
    async with httpx.AsyncClient() as client, aconnect_sse(client, "GET", url) as source:
        events = [event async for event in source.aiter_sse()]
    if not events or events[-1].event != "complete":
        raise UnfinishedError
    return events[-1].json()["content"]


def reads_lines(url):
    with httpx.stream("GET", url) as answer:
        event = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            if line.startswith("data: ") and event == "complete":
                return json.loads(line.removeprefix("data: "))["content"]
    raise UnfinishedError


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
    return text


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
        "right": [app("/words", counts), app("/words", formats_by_hand)],
        "wrong": [
            (app("/words", returns_a_list), "The media type says something else"),
            (app("/words", counts, response_class=EventSourceResponse), "text/event-stream"),
            (app("/words", counts_from_zero), "'number': 0"),
            (app("/words", collects_first), "only when the last one is spoken"),
            (app("/words", yields_text), "Line 1"),
            (app("/words", stops_early), "One line per word"),
            (app("/word", counts), "404"),
        ],
    },
    "05.2": {
        "right": [events_app(sends_events), app("/events", sends_events_by_hand)],
        "wrong": [
            (app("/events", sends_events), "The media type says something else"),
            (events_app(sends_data_alone), "The names of the events"),
            (events_app(does_not_complete), "The names of the events"),
            (events_app(sends_json_in_json), "text that holds JSON"),
            (events_app(sends_no_ids), "The id of a chunk"),
            (events_app(sends_all_at_the_end), "only when the last one is spoken"),
        ],
    },
    "05.3": {
        "right": [FirstPiece, first_piece_as_a_function, first_piece_by_base_middleware],
        "wrong": [
            (when_the_status_leaves, "before the first piece"),
            (when_all_is_there, "only with the last one"),
            (AtTheEnd, "long after the first piece"),
            (EveryPiece, "Each answer gets one note"),
            (OnlyOnce, "Each answer gets one note"),
            (HttpOnly, "What is not HTTP"),
        ],
    },
    "05.4": {
        "right": [app("/voice", endpoint) for endpoint in (plays, needs_no_queue, plays_from_a_group)],
        "wrong": [
            (app("/voice", forgets_the_task), "`voice` is still open"),
            (app("/voice", cleans_up_in_the_endpoint), "who stops reading, and leaves later"),
            (app("/voice", plays_without_limit), "piece after piece is made"),
            (app("/voice", loses_the_last), "Who stays gets every piece"),
            (app("/voice", collects_the_pieces), "only when the last one is spoken"),
        ],
    },
    "05.5": {
        "right": [reads, takes_the_last_event, reads_lines],
        "wrong": [
            (reads_to_the_end, "chunk, chunk, switch"),
            (ignores_the_switch, "No ideaA copy."),
            (takes_the_end_for_complete, "This answer is not whole"),
            (raises_something_else, "RuntimeError"),
            (forgets_return, "is a `return` missing"),
        ],
    },
}
