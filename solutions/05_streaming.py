# %% [markdown]
# # 05 Streaming
#
# A language model has its first word long before its last. You will send each word as soon as it is there, find out
# which layer on the way holds it back, and see what happens to a response after its client has gone.
#
# Afterwards you can
#
# - stream JSON lines and server-sent events, and choose between them,
# - find in a picture which layer holds a stream back,
# - tell a client that an answer failed although its status said 200,
# - slow down for a slow client, and stop when the client has left.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("05.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, curve, hint, in_parallel, load, marks
from workshop.lab import run_app, service_map, slow_model, solution, start_at

service_map("05")

# %% [markdown]
# ## One answer, two ways to send it
#
# A model of useful size generates 20 to 50 tokens a second. The service's own model is tiny and much faster, so we add a
# pause to each of its steps: at most 50 a second.
#
# What we start goes onto a stack, and the last cell closes the stack. You can jump there at any time.

# %%
from contextlib import AsyncExitStack

from workshop.contracts.generator import Message, Prompt

cleanup = AsyncExitStack()
model = slow_model(50)
cleanup.push_async_callback(model.aclose)
QUESTION = Prompt((Message("user", "How do I write an SSE endpoint in FastAPI?"),))

# %% [markdown]
# The first endpoint waits for the whole answer and returns it. The second yields: FastAPI sends each item at once, then
# asks for the next.

# %%
from fastapi import FastAPI

app = FastAPI()


@app.get("/whole")
async def whole():
    answer = await model.complete(QUESTION)
    return {"text": answer.text}


# %%
@app.get("/lines")
async def lines():
    async for chunk in model.stream(QUESTION):
        yield {"text": chunk.text}


# %%
server = cleanup.enter_context(run_app(app, name="lesson 05"))
load(server.url + "/whole", requests=1)[0].body.decode()

# %% [markdown]
# That is the whole answer. After how many milliseconds does the client have its first word, and its last? Replace each
# `...` with a number.

# %%
guess = {"/whole, first word": ..., "/whole, last word": ..., "/lines, first word": ..., "/lines, last word": ...}

# %%
asked = {path: load(server.url + path, requests=1)[0] for path in ("/whole", "/lines")}
times = {}
for path, record in asked.items():
    times |= {f"{path}, first word": record.first_ms, f"{path}, last word": record.ms}
compare(guess, times, "ms")

# %% [markdown]
# `load` keeps a record of each request: `first_ms` is the time to the first piece of the body, `ms` the time to the last.
# In the picture, each mark is a piece that arrives.


# %%
def arrivals(record):
    return [1000 * (moment - record.start) for moment in record.arrivals]


marks({path: arrivals(record) for path, record in asked.items()})

# %% [markdown]
# ## What just happened?
#
# The model did the same work for the same words: the times of the last word differ only by chance. Streaming changes when
# the user can begin to read: a person who reads along hardly waits at all.

# %%
print(f"The first word came after {asked['/lines'].first_ms / asked['/whole'].ms:.0%} of the whole time.")

# %% [markdown]
# With several users at once, the model computes a token for each of them in every step. With eight users at once, how
# many times longer does each one wait than a single user?

# %%
guess = {"/whole, first and last word": ..., "/lines, last word": ..., "/lines, first word": ...}

# %% start_at=false
from statistics import median

waits = {name: {} for name in guess}
for users in (1, 8):
    whole_ones, streams = (load(server.url + path, users) for path in ("/whole", "/lines"))
    waits["/whole, first and last word"][f"{users} at once"] = whole_ones.median_ms
    waits["/lines, last word"][f"{users} at once"] = streams.median_ms
    waits["/lines, first word"][f"{users} at once"] = median(record.first_ms for record in streams)

# %% start_at=false
compare(guess, {name: wait["8 at once"] / wait["1 at once"] for name, wait in waits.items()}, "times")
bars(waits, y="milliseconds (median)", title="How long a user waits for …")

# %% [markdown]
# The time to the first token is what a user feels. The time to the last token is how long the whole answer takes. The
# difference between the two is all that streaming can gain.
#
# ## On the wire
#
# What did the client receive? Each item of the generator became a line, and each line is JSON by itself.

# %%
print(asked["/lines"].body.decode()[:120])

# %% [markdown]
# This format is called JSON lines. The other common one is server-sent events, SSE for short. It takes the same kind of
# generator and another response class:

# %%
from fastapi.sse import EventSourceResponse, ServerSentEvent


@app.get("/events", response_class=EventSourceResponse)
async def events():
    number = 0
    async for chunk in model.stream(QUESTION):
        number += 1
        yield ServerSentEvent(event="chunk", id=str(number), data={"text": chunk.text})


# %%
asked["/events"] = load(server.url + "/events", requests=1)[0]
print(asked["/events"].body.decode()[:150])

# %% [markdown]
# An event is a few lines, and ends with an empty line. It can have a name and an id. A line that begins with a colon is
# a comment, which clients skip.
#
# Comments keep an idle connection open: some proxies close a connection on which nothing is sent. FastAPI sends this
# comment into a stream of events after this many seconds of silence:

# %%
import fastapi.sse

fastapi.sse.KEEPALIVE_COMMENT, fastapi.sse._PING_INTERVAL

# %% [markdown]
# Which format should you choose? Lines are for programs: `curl`, `jq`, a log collector, `fetch`, any loop over lines. A
# client is two lines long:

# %%
import json

import httpx

# %%
with httpx.stream("GET", server.url + "/lines") as response:
    print("".join(json.loads(line)["text"] for line in response.iter_lines()))

# %% [markdown]
# Events are for browsers: `new EventSource(url)` reads them, calls a function for each event name, and reconnects by
# itself when the connection breaks. In Python, the library `httpx-sse` reads them.

# %%
from itertools import islice

from httpx_sse import connect_sse

with httpx.Client() as client, connect_sse(client, "GET", server.url + "/events") as source:
    for event in islice(source.iter_sse(), 3):
        print(event.id, event.event, event.json())

# %% [markdown]
# | | JSON lines | server-sent events |
# |---|---|---|
# | media type | `application/jsonl` | `text/event-stream` |
# | one item | one line | lines, up to an empty one |
# | names, ids, comments | no | `event:`, `id:`, `:` |
# | FastAPI keeps an idle connection open | no | yes |
# | the browser reconnects by itself | no | yes |
# | HTTP method | any | `EventSource`: GET only |
#
# ### Exercise 1: a line per word
#
# A doctor dictates a report. `GET /words` streams each word of `dictation()` as soon as it is spoken, as a JSON line.
# The first one is `{"number": 1, "word": "no"}`. If you are stuck, `hint("05.1")` and `solution("05.1")` help.

# %%
from workshop.lab.fixtures.lesson_05 import dictation

[word async for word in dictation()]

# %% exercise="05.1"
desk = FastAPI()


@desk.get("/words")
async def words():
    # solution (about 4 lines)
    number = 0
    async for word in dictation():
        number += 1
        yield {"number": number, "word": word}
    # starter
    # return ...
    # end


# %%
check("05.1", desk)

# %% [markdown]
# ### Exercise 2: an event per word
#
# The same for a browser: for each word, `GET /events` sends an event `chunk` with the data `{"text": word}` and an id,
# counted from 1. (An id is a text.) After the last word it sends an event `complete` with the data `{"words": …}`, the
# number of words. That event may have an id or none.

# %% exercise="05.2"
board = FastAPI()


# solution (about 7 lines)
@board.get("/events", response_class=EventSourceResponse)
async def spoken():
    number = 0
    async for word in dictation():
        number += 1
        yield ServerSentEvent(event="chunk", id=str(number), data={"text": word})
    yield ServerSentEvent(event="complete", data={"words": number})


# starter
# @board.get("/events")
# async def spoken():
#     return ...
# end

# %%
check("05.2", board)

# %% [markdown]
# ## Who holds it back?
#
# There are layers between an endpoint and its client. We suspect three of them. The first compresses responses:
# Starlette's `GZipMiddleware`. The second is a few lines that somebody wrote to log responses.

# %%
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

log = []


async def keep_log(request, call_next):
    response = await call_next(request)
    body = b"".join([piece async for piece in response.body_iterator])
    log.append((request.url.path, len(body)))
    return Response(body, response.status_code, response.headers)


# %% [markdown]
# The third is a proxy such as nginx. It buffers a response, so that the server behind it is done quickly, however slow
# the client is. The header `X-Accel-Buffering: no` asks it not to. Our stand-in follows the same rule.


# %%
def buffering_proxy(app):
    async def forward(scope, receive, send):
        held, holds = bytearray(), True

        async def hold(message):
            nonlocal holds
            if message["type"] == "http.response.start":
                holds = (b"x-accel-buffering", b"no") not in message["headers"]
            elif message["type"] == "http.response.body" and holds:
                held.extend(message["body"])
                if message.get("more_body") and len(held) < 4096:
                    return
                message = message | {"body": bytes(held)}
                held.clear()
            await send(message)

        await app(scope, receive, hold)

    return forward


# %%
apps = {"gzip": GZipMiddleware(app), "log": BaseHTTPMiddleware(app, keep_log), "proxy": buffering_proxy(app)}
suspects = {name: cleanup.enter_context(run_app(suspect, name=name)) for name, suspect in apps.items()}

# %% [markdown]
# Which of the three holds back `/lines`, and which `/events`? Predict `"held back"` or `"passed on"`, six times.

# %%
guess = {"/lines, gzip": ..., "/lines, log": ..., "/lines, proxy": ...}
guess |= {"/events, gzip": ..., "/events, log": ..., "/events, proxy": ...}

# %%
from functools import partial


def ask_all(urls):
    """One request to each, all at the same time."""
    loads = in_parallel(*(partial(load, url, 1) for url in urls.values()))
    return {name: records[0] for name, records in zip(urls, loads, strict=True)}


def fate(record):
    return "held back" if record.first_ms > record.ms / 2 else "passed on"


# %% start_at=false
urls = {f"{path}, {name}": suspects[name].url + path for path in ("/lines", "/events") for name in suspects}
records = ask_all(urls)
compare(guess, {name: fate(record) for name, record in records.items()})
marks({name: arrivals(record) for name, record in records.items()})

# %% [markdown]
# Gzip is innocent: pieces arrive while the model works. Older texts say that it collects them, but Starlette now flushes
# the compressor after each, and so compresses less. Events are not compressed at all: Starlette leaves
# `text/event-stream` as it is.
#
# The log is guilty of both. `body_iterator` ends when the response ends, and only then does the first byte move on. A
# test that compares the body finds nothing wrong.
#
# The proxy held back the lines and let the events pass. Why?

# %%
for path in ("/lines", "/events"):
    with httpx.stream("GET", server.url + path) as response:
        print(path, dict(response.headers))

# %% [markdown]
# FastAPI adds `X-Accel-Buffering: no` to events, but not to lines, so we add it ourselves: once in the endpoint, and
# once in a dependency.

# %%
from fastapi import Depends


@app.get("/lines/endpoint")
async def header_in_endpoint(response: Response):
    response.headers["X-Accel-Buffering"] = "no"
    async for chunk in model.stream(QUESTION):
        yield {"text": chunk.text}


# %%
def unbuffered(response: Response):
    response.headers["X-Accel-Buffering"] = "no"


@app.get("/lines/dependency", dependencies=[Depends(unbuffered)])
async def header_in_dependency():
    async for chunk in model.stream(QUESTION):
        yield {"text": chunk.text}


# %% [markdown]
# Which of the two does the proxy hold back?

# %%
guess = {"/lines/endpoint": ..., "/lines/dependency": ...}

# %% start_at=false
records = ask_all({path: suspects["proxy"].url + path for path in guess})
compare(guess, {path: fate(record) for path, record in records.items()})
marks({path: arrivals(record) for path, record in records.items()})

# %% [markdown]
# The body of a generator runs when its first item is requested. By then FastAPI has already read the headers: your
# change is lost without an error. A dependency runs earlier: set the headers and the status of a stream there.
#
# ## Who measures it?
#
# The service's `TimingMiddleware` reports how long a request took. How many seconds will it report for each endpoint? A
# record has them as `worked_s`.

# %%
guess = {"/whole": ..., "/lines": ...}

# %%
import time

from workshop.api.middleware.timing import TimingMiddleware

timed = cleanup.enter_context(run_app(TimingMiddleware(app), name="timed"))
records = ask_all({path: timed.url + path for path in guess})
compare(guess, {path: f"{record.worked_s:.4f}" for path, record in records.items()}, "s")

# %% [markdown]
# `/lines` seems to take almost no time. The time is reported in a header, headers leave with the status, and the status
# of a stream leaves before the model has begun. For a stream, measure the time to the first piece instead.
#
# An ASGI app sends messages: one `http.response.start`, then one `http.response.body` for each piece. A middleware may
# look at each message as it passes, as long as it sends it on at once.
#
# ### Exercise 3: the first piece
#
# Write `FirstPiece(app, notes)`, an ASGI middleware: a class, or a function that returns an app. For each HTTP response
# it appends `(path, seconds)` to the list `notes`, at the latest when the response ends. The seconds run from the request
# to the first message `http.response.body`, even an empty one.
#
# It holds nothing back. Several requests may be under way at once, and `lifespan` and `websocket` scopes pass through.


# %% exercise="05.3"
class FirstPiece:
    def __init__(self, app, notes):
        self.app, self.notes = app, notes

    async def __call__(self, scope, receive, send):
        # solution (about 12 lines)
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
        # starter
        # return ...
        # end


# %%
check("05.3", FirstPiece)

# %% [markdown]
# ## An error in the middle
#
# This model fails after ten chunks, once as lines and once as events. The server's log would show a traceback. We want
# to see what the client sees, so we turn the log off.

# %%
import logging

from workshop.contracts.errors import ModelFailedError

server_log = logging.getLogger("uvicorn.error")
cleanup.callback(server_log.setLevel, logging.NOTSET)
server_log.setLevel(logging.CRITICAL)


# %%
@app.get("/lines/failing")
@app.get("/events/failing", response_class=EventSourceResponse)
async def failing():
    items = 0
    async for chunk in model.stream(QUESTION):
        items += 1
        if items > 10:
            raise ModelFailedError("the model failed")
        yield {"text": chunk.text}


# %% [markdown]
# Which status does the client get, and does it get an error? Predict a text such as `"500, error"` or `"500, no error"`.

# %%
guess = {"/lines/failing": ..., "/events/failing": ...}

# %%
failures = ask_all({path: server.url + path for path in guess})
compare(
    guess, {path: f"{record.status}, {'error' if record.error else 'no error'}" for path, record in failures.items()}
)

# %% [markdown]
# The status is 200 in both: it was sent before the first word. Then the lines break off, and the HTTP client reports an
# error. The event stream ends as if nothing had gone wrong.

# %%
print(failures["/events/failing"].body.decode()[-60:])

# %% [markdown]
# Part of an answer has arrived, and the client cannot tell it from a whole one. FastAPI runs the generator of events in a
# task of its own. If that task fails, the stream to the client is closed normally, and only the log knows.
#
# This leads to two rules. Always end an event stream with an event that marks the end. (It needs some data, or browsers
# ignore it.) And turn an error of the model into an event.


# %%
@app.get("/events/honest", response_class=EventSourceResponse)
async def honest():
    try:
        async for item in failing():
            yield ServerSentEvent(event="chunk", data=item)
        yield ServerSentEvent(event="complete", data={})
    except ModelFailedError as error:
        yield ServerSentEvent(event="error", data={"message": str(error)})


# %%
print(load(server.url + "/events/honest", requests=1)[0].body.decode()[-110:])

# %% [markdown]
# Any other exception would still end the stream quietly. In a browser, `EventSource` also calls the listener for `error`
# when the connection breaks; only the service's own event has data.
#
# ## An error before the first word
#
# Many errors come before the first word: the prompt is too long, the model is down, the budget is spent. Must these
# errors also arrive with status 200?

# %%
from typing import Annotated, Any


@app.get("/long")
async def long_prompt(words: int):
    async for chunk in model.stream(Prompt((Message("user", "replica " * words),))):
        yield {"text": chunk.text}


# %%
load(server.url + "/long?words=9000", requests=1)

# %% [markdown]
# A 200, for a prompt that no model has seen. The service waits for the first item before it sends the status. This is
# the code in the package:

# %% mirrors="workshop.api.streams:Item workshop.api.streams:open_stream"
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

Item = TypeVar("Item")


@asynccontextmanager
async def open_stream(stream: AsyncGenerator[Item, None]) -> AsyncIterator[AsyncIterator[Item]]:
    async with aclosing(stream):
        first = await anext(stream)

        async def all_items() -> AsyncIterator[Item]:
            yield first
            async for item in stream:
                yield item

        yield all_items()


# %% [markdown]
# `anext` waits for the first item (there must be one), and raises any error that comes before it. We call it in a
# dependency, where an error can still become a response. A later section shows what `aclosing` is for.
#
# An exception handler gives `PromptTooLongError` its status.

# %%
from fastapi.responses import JSONResponse

from workshop.contracts.errors import PromptTooLongError

careful = FastAPI()


@careful.exception_handler(PromptTooLongError)
async def too_long(request, error):
    return JSONResponse({"error": str(error)}, 400)


# %%
async def open_chunks(words: int):
    async with open_stream(model.stream(Prompt((Message("user", "replica " * words),)))) as chunks:
        yield chunks


@careful.get("/long")
async def long_prompt_carefully(chunks: Annotated[Any, Depends(open_chunks)]):
    async for chunk in chunks:
        yield {"text": chunk.text}


# %%
careful_server = cleanup.enter_context(run_app(TimingMiddleware(careful), name="careful"))
records = [load(f"{careful_server.url}/long?words={words}", requests=1)[0] for words in (3, 9000)]
[record.status for record in records]

# %% [markdown]
# The first word still leaves when the model has it. The price: until then nothing is sent, no keep-alive comment either,
# so a proxy may give up on a slow model. And `X-Process-Time` now includes the wait for the first piece. In milliseconds:

# %%
short = records[0]
{"X-Process-Time": 1000 * short.worked_s, "first piece": short.first_ms, "last piece": short.ms}

# %% [markdown]
# ## A client that leaves
#
# A user closes the tab after half a second. Does the model notice? It keeps count of its work:

# %%
await model.activity()

# %%
import asyncio
from contextlib import suppress


async def leave(path):
    async with httpx.AsyncClient() as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.get(server.url + path)


# %%
async def count_tokens(path):
    earlier = await model.activity()
    await leave(path)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if not (await model.activity()).running:
            break
    return (await model.activity()).generated_tokens - earlier.generated_tokens


# %% [markdown]
# We compare the three endpoints that we have with a fourth. In `/queue`, a task fills a queue and the endpoint empties
# it. Many services use this pattern, for example to merge the answers of two models. (A real one also passes errors on:
# if this model failed, nobody would put the `None`, and the client would wait for ever.)


# %%
tasks = set()


@app.get("/queue")
async def through_a_queue():
    texts = asyncio.Queue()

    async def fill():
        async for chunk in model.stream(QUESTION):
            await texts.put(chunk.text)
        await texts.put(None)

    tasks.add(asyncio.create_task(fill()))
    while (text := await texts.get()) is not None:
        yield {"text": text}


# %% [markdown]
# First, how many tokens does the whole answer have? Then, how many of them does the model generate for each endpoint if
# the client leaves after half a second?

# %%
(await model.complete(QUESTION)).usage.completion_tokens

# %%
guess = {"/whole": ..., "/lines": ..., "/events": ..., "/queue": ...}

# %% start_at=false
generated = {path: await count_tokens(path) for path in guess}
compare(guess, generated, "tokens")
bars({path: {"tokens": count} for path, count in generated.items()}, y="tokens", title="For a client that has left")

# %% [markdown]
# ## Who told the model?
#
# For `/lines` and `/events`, uvicorn notices that the connection is closed. Starlette then cancels the response where it
# waits: in the `async for`. The cancellation passes through the generators into the model's own `finally`, and the
# model stops.
#
# `/whole` is not a stream, so nothing looks at the connection. The answer is computed to its end, for nobody.
#
# `/queue` is a stream, and its model still goes on. The endpoint was cancelled, at `get`. But the task is independent
# of it, and fills a queue that nobody empties. Something has to cancel the task. The next two sections show what, and
# when.
#
# ## A client that is slow
#
# A hospital exports 300 scans as JSON lines. A scan takes at least 5 ms to make. A client on a slow line takes at
# least 20 ms for each. We note when each scan is made, and when the generator ends.

# %%
SCAN_BYTES = 100_000
made_at, closed_at = [], []


@app.get("/export")
async def scans():
    try:
        for number in range(300):
            await asyncio.sleep(0.005)
            made_at.append(time.perf_counter())
            yield {"scan": number, "pixels": "x" * SCAN_BYTES}
    finally:
        closed_at.append(time.perf_counter())


# %% [markdown]
# Then the same through a queue, with or without a size limit. A dependency makes the queue and its task, and cancels
# the task when the request is over. Its `size` comes from the query string, like an argument of the endpoint. (The
# decorator has left `scans` unchanged, so we can also call it ourselves.)


# %%
async def scan_queue(size: int):
    queue = asyncio.Queue(size)

    async def fill():
        async for scan in scans():
            await queue.put(scan)
        await queue.put(None)

    task = asyncio.create_task(fill())
    try:
        yield queue
    finally:
        task.cancel()


# %%
@app.get("/export/queue")
async def export_through_a_queue(queue: Annotated[Any, Depends(scan_queue)]):
    while (scan := await queue.get()) is not None:
        yield scan


# %%
def growth(moments, start):
    """How many there were, at each tenth of a second."""
    return {tenth / 10: sum(moment < start + tenth / 10 for moment in moments) for tenth in range(16)}


def read_slowly(path):
    made_at.clear()
    start, read_at = time.perf_counter(), []
    with httpx.stream("GET", server.url + path) as response:
        for _ in response.iter_lines():
            read_at.append(time.perf_counter())
            time.sleep(0.02)
            if read_at[-1] > start + 1.5:
                return growth(made_at, start), growth(read_at, start)


# %% [markdown]
# The client leaves after 1.5 seconds. How many scans has each endpoint made by then: directly, through a queue without
# a limit (`size=0`), and through a queue of eight?

# %%
guess = {"/export": ..., "/export/queue?size=0": ..., "/export/queue?size=8": ...}

# %% start_at=false
exports = {path: read_slowly(path) for path in guess}
compare(guess, {path: made[1.5] for path, (made, _) in exports.items()}, "scans")
drawn = {f"made: {path}": made for path, (made, _) in exports.items()}
curve(drawn | {"read": exports["/export"][1]}, x="seconds", y="scans")

# %% [markdown]
# `/export` and the queue of eight run ahead of their client for a moment, and then wait for it. The queue without a
# limit never waits. What has been made and not yet read takes up memory. In megabytes, for one client:

# %% start_at=false
{path: (made[1.5] - read[1.5]) * SCAN_BYTES / 1e6 for path, (made, read) in exports.items()}

# %% [markdown]
# When the network's buffers are full, uvicorn makes `send` wait. The generator is not asked for its next item until
# `send` returns, so each `yield` lasts until the client has caught up. This is back-pressure, and it costs nothing.
#
# A queue without a limit removes it. `maxsize` restores it, since `put` then waits. Most megabytes that remain are
# in the network's buffers; the queue holds at most eight scans.
#
# ## Who cleans up?
#
# A client stops reading, and leaves a little later. `scans` has a `finally`. When does it run? We wait for half a
# second after the client has left.


# %%
def stop_reading(path):
    closed_at.clear()
    with httpx.stream("GET", server.url + path) as response:
        response_lines = response.iter_lines()  # kept: the connection closes with it
        next(response_lines)
        time.sleep(0.8)
        left = time.perf_counter()
    time.sleep(0.5)
    return "closed" if any(moment > left for moment in closed_at) else "still open"


# %% [markdown]
# Python's garbage collector runs now and then, and would close the generator by chance, so we turn it off. In
# `/export`, `scans` is the endpoint itself. In `/export/queue`, the dependency's task reads it. Predict `"closed"` or
# `"still open"`.

# %%
guess = {"/export": ..., "/export/queue?size=8": ...}

# %% start_at=false
import gc

gc.collect()
gc.disable()
cleanup.callback(gc.enable)
compare(guess, {path: stop_reading(path) for path in guess})

# %% [markdown]
# What differs is where the cancellation arrives.
#
# | what is cancelled waits | the generator | its `finally` |
# |---|---|---|
# | inside the generator, as for `/lines` before | is running | runs at once |
# | in `send`, as in `/export` | is suspended at its `yield` | does not run |
# | in `put`, as the task of `/export/queue` | loses its last reference, so Python closes it | runs at once |
#
# In `/export`, a reference cycle keeps the generator alive until the garbage collector finds it:

# %% start_at=false
closed_at.clear()
gc.collect()
time.sleep(0.5)
f"{len(closed_at)} closed"

# %% [markdown]
# The code after a dependency's `yield` is part of the request. It runs when the request is over, for whatever reason.
# So open in a dependency whatever needs cleaning up. For a generator, such as a model's stream, the service's `open_stream`
# does the rest, because `aclosing` closes the generator at the end of the block.


# %%
async def open_scans():
    async with open_stream(scans()) as all_scans:
        yield all_scans


@app.get("/export/clean")
async def export_cleanly(all_scans: Annotated[Any, Depends(open_scans)]):
    async for scan in all_scans:
        yield scan


# %% start_at=false
outcome = stop_reading("/export/clean")
gc.enable()
outcome

# %% [markdown]
# ### Exercise 4: nobody listens
#
# `voice()` yields pieces of sound, and `fill` puts them into a queue. The endpoint below sends them as `{"sound":
# piece}`, but it forgets its task, as `/queue` did. Fix it, with or without the queue.
#
# - A client that stays gets every piece, even if it reads slowly, and whoever else leaves.
# - While a client is not reading, `voice` waits, after a few pieces that buffers hold.
# - As soon as a client leaves, even one that has stopped reading, its `voice` is closed.

# %%
from workshop.lab.fixtures.lesson_05 import voice


async def fill(pieces):
    async for piece in voice():
        await pieces.put(piece)
    await pieces.put(None)


# %% exercise="05.4"
clinic = FastAPI()


# solution (about 12 lines)
async def voice_queue():
    pieces = asyncio.Queue(maxsize=4)
    task = asyncio.create_task(fill(pieces))
    try:
        yield pieces
    finally:
        task.cancel()


@clinic.get("/voice")
async def play(pieces: Annotated[Any, Depends(voice_queue)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


# starter
# @clinic.get("/voice")
# async def play():
#     pieces = asyncio.Queue(maxsize=4)
#     task = asyncio.create_task(fill(pieces))
#     while (piece := await pieces.get()) is not None:
#         yield {"sound": ...}
# end

# %%
check("05.4", clinic)

# %% [markdown]
# ## A client that comes back
#
# A browser's `EventSource` reconnects when a stream ends, whatever the reason, and sends the id of the last event that
# it got. Here is one in Python that gives up after two connections.


# %%
def event_source(url, connections=2):
    last, statuses = "", []
    for _ in range(connections):
        with httpx.Client() as client, connect_sse(client, "GET", url, headers={"Last-Event-ID": last}) as source:
            statuses.append(source.response.status_code)
            if source.response.status_code != 200:
                break
            last = [event.id for event in source.iter_sse()][-1]
    return statuses


# %% [markdown]
# The user asked once. How many answers does the model give?

# %%
guess = ...

# %% start_at=false
earlier = await model.activity()
statuses = event_source(server.url + "/events")
compare(guess, (await model.activity()).completed - earlier.completed, "answers")

# %% [markdown]
# The model gives one answer for each connection, until the tab is closed, and each answer is paid for. A page should
# close its `EventSource` at `complete`, but a service cannot rely on that. When a client reconnects, the service can
# respond with status 204, which tells the browser to stop. The price: a client whose connection broke half-way never
# gets the rest. (To resume, a service has to store its answers.)
#
# ## The service's own streams
#
# The final service streams in both formats, and does everything that you have seen here. We run it with a database of
# its own, and its models at full speed.

# %%
from tempfile import TemporaryDirectory

from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.settings import Settings

folder = cleanup.enter_context(TemporaryDirectory())
settings = Settings(database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite")
service = cleanup.enter_context(run_app(create_app(build_services(settings), settings), name="service"))

# %% [markdown]
# `POST /v1/chat/stream` sends JSON lines to a client that accepts them, otherwise events. The last line says why the
# answer ended. A client that gets no such line knows that the rest is missing.

# %% start_at=false
body = {"model": "workshop-main", "messages": [{"role": "user", "content": "What is a replica?"}]}
read = httpx.post(f"{service.url}/v1/chat/stream", json=body, headers={"Accept": "application/jsonl"}).text.splitlines()
read[0], read[-1]

# %% [markdown]
# `GET /v1/query/stream` sends events. A cheap draft model answers first. If it is sure enough, its answer stands. If
# not, a `switch` event says so, and the main model answers from the beginning.


# %%
def ask(question):
    url, start = f"{service.url}/v1/query/stream", time.perf_counter()
    with httpx.Client() as client, connect_sse(client, "GET", url, params={"query": question}) as source:
        return [(1000 * (time.perf_counter() - start), event) for event in source.iter_sse()]


def kind(event):
    return f"{event.event} {event.json().get('model', '')}".strip()


# %% start_at=false
from collections import Counter

kept, switched = ask("Can you explain server-sent events?"), ask("When is a StreamingResponse the right choice?")
[Counter(kind(event) for _, event in events) for events in (kept, switched)]

# %% start_at=false
rows = {kind(event): [ms for ms, other in switched if kind(other) == kind(event)] for _, event in switched}
marks(rows, title="When is a StreamingResponse the right choice?")

# %% [markdown]
# What did the reader see before the switch, and what at the end? The last event holds the whole answer, which model
# gave it, and what it cost.

# %% start_at=false
draft = "".join(event.json()["text"] for _, event in switched if kind(event) == "chunk workshop-draft")
draft, switched[-1][1].json()

# %% [markdown]
# And a browser that reconnects? These are its statuses, and the number of answers given:


# %% start_at=false
def answers_given():
    return httpx.get(f"{service.url}/v1/stats").json()["total_queries"]


earlier = answers_given()
statuses = event_source(f"{service.url}/v1/query/stream?query=Can you explain server-sent events?")
time.sleep(1)  # the record of an answer is written after its response
statuses, answers_given() - earlier

# %% [markdown]
# One question, one answer, one charge. In `workshop/api/routers/queries.py`, the dependency `open_answer` sees the
# `Last-Event-ID` and sets the 204. It also waits for the first event, and closes the answer when the client leaves, so
# that only what was generated is charged.
#
# ### Exercise 5: read a stream
#
# Write the client: `read_answer(url)` returns the text of the answer in a stream like that of `/v1/query/stream`. Its
# events are `chunk` with `{"text": …}`, `switch`, `complete` with `{"content": …}`, the whole text, and `error`.
#
# A `switch` discards everything before it. An answer is whole as soon as its `complete` has come. Otherwise raise
# `UnfinishedError`: on an `error` event, when the stream just ends, when the connection breaks, or when the status is
# not 200.

# %% exercise="05.5"
from workshop.lab.fixtures.lesson_05 import UnfinishedError


def read_answer(url: str) -> str:
    # solution (about 9 lines)
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
    # starter
    # return ...
    # end


# %%
check("05.5", read_answer)

# %% [markdown]
# ## Quiz
#
# **1.** A stream arrives all at once in production, and piece by piece on your laptop. Where do you look?
# <details><summary>Answer</summary>At the layers in between: a proxy that buffers, which <code>X-Accel-Buffering:
# no</code> prevents, or a middleware that reads the body.</details>
#
# **2.** An endpoint that yields sets a response header in its first line. What happens?
# <details><summary>Answer</summary>The header is missing, and there is no error. The headers were read before the
# generator ran. A dependency runs early enough.</details>
#
# **3.** Why does a stream of events need an event such as `complete`?
# <details><summary>Answer</summary>The end of the stream proves nothing: when an endpoint fails, the stream ends in the
# same way, with status 200.</details>
#
# **4.** A client leaves. Which work continues?
# <details><summary>Answer</summary>Tasks that you started and that nothing cancels, and, on uvicorn, every endpoint
# that returns instead of yielding. A generator that is suspended at its <code>yield</code> stays open until the garbage
# collector finds it.</details>
#
# **5.** A generator makes 200 items a second, and its client takes 50. What happens without a queue, and what with one?
# <details><summary>Answer</summary>Without a queue, the generator waits at its <code>yield</code>. With an unlimited
# queue, 150 items a second pile up in memory.</details>
#
# ## Recap
#
# | what goes wrong | what you see | write |
# |---|---|---|
# | the answer waits for its last word | one late mark | an endpoint that yields |
# | a layer holds the pieces back | one late mark, only from outside | pure ASGI; `X-Accel-Buffering` in a dependency |
# | an error before the first word | status 200 and no word | `open_stream`, in a dependency |
# | an error in the middle | lines break off; events end normally | an `error` event, and `complete` |
# | the client leaves | tokens for nobody | a dependency that cleans up after its `yield` |
# | the client is slow | memory grows | `asyncio.Queue(maxsize=…)`, or no queue |
# | the client comes back | a second charge | 204 on `Last-Event-ID` |
#
# You can now read a picture of arrivals: a row of marks is a stream, a single late mark is not. Next: lesson 06 lets
# the client talk back while the answer comes.
#
# ## Tear-down
#
# The stack closes what the cells above have started, in reverse order, however far you came.

# %%
await cleanup.aclose()
