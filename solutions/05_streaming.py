# %% [markdown]
# # 05 Streaming
#
# A language model has its first word long before its last. You will pass each word on at once, find out who on the way
# keeps it back, and see what an answer does when nobody reads it any more.
#
# Afterwards you can
#
# - stream JSON lines and server-sent events, and choose between them,
# - find in a picture who holds a stream back,
# - tell a client that an answer failed although its status said 200,
# - slow down with a slow reader, and stop when the reader has left.
#
# The code runs in {{ minutes }} and takes {{ memory }} at most. With the exercises, plan 75 minutes.

# %%
from workshop.lab import bars, check, curve, hint, load, marks
from workshop.lab import run_app, service_map, slow_model, solution

service_map("05")

# %% [markdown]
# ## One answer, served in two ways
#
# A model of useful size gives 20 to 50 tokens a second. The service's own is tiny and much faster. So we put a pause into
# each of its steps: at most 50 a second.

# %%
from workshop.contracts.generator import Message, Prompt

model = slow_model(50)
QUESTION = Prompt((Message("user", "How do I write an SSE endpoint in FastAPI?"),))

# %% [markdown]
# The first endpoint waits for the answer and returns it. The second yields: FastAPI sends each item at once, and goes back
# for the next.

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
server = run_app(app, name="lesson 05")
load(server.url + "/whole", requests=1)[0].body.decode()

# %% [markdown]
# That is the whole answer. How many milliseconds until the client has its first word, and until it has the last? Change the
# numbers to what you believe.

# %%
guess = {"/whole": (1000, 1000), "/lines": (1000, 1000)}

# %%
asked = {path: load(server.url + path, requests=1)[0] for path in guess}
for path, record in asked.items():
    first, last = guess[path]
    print(f"{path:7} first word: you said {first:4} ms, it took {record.first_ms:5.0f} ms")
    print(f"{path:7} last word:  you said {last:4} ms, it took {record.ms:5.0f} ms")


# %% [markdown]
# Each mark below is a piece of an answer that arrives.


# %%
def arrivals(record):
    return [1000 * (moment - record.start) for moment in record.arrivals]


marks({path: arrivals(record) for path, record in asked.items()})

# %% [markdown]
# ## What just happened?
#
# The same model took the same time for the same words. Streaming makes nothing faster. It changes when the reader can begin,
# and whoever reads along hardly waits at all.

# %%
print(f"The first word came after {asked['/lines'].first_ms / asked['/whole'].ms:.0%} of the whole time.")

# %% [markdown]
# With several users at once the model computes a token for each of them in every step. Which of the three waits will grow
# with the number of users?

# %%
from statistics import median

waits = {"/whole: first and last word": {}, "/lines: last word": {}, "/lines: first word": {}}
for users in (1, 4, 8):
    whole_ones, streams = (load(server.url + path, users) for path in ("/whole", "/lines"))
    waits["/whole: first and last word"][users] = whole_ones.median_ms
    waits["/lines: last word"][users] = streams.median_ms
    waits["/lines: first word"][users] = median(record.first_ms for record in streams)

# %%
curve(waits, x="users at the same time", y="milliseconds (median)", title="How long a user waits for …")

# %% [markdown]
# The time to the first token is what a user feels. The time to the last is what the answer takes. Between the two upper lines
# and the lowest one lies all that streaming can give.
#
# ## On the wire
#
# What did the client read? An item of the generator became a line, and each line is JSON by itself.

# %%
print(asked["/lines"].body.decode()[:120])

# %% [markdown]
# This form is called JSON lines. The other form is called server-sent events, SSE for short. The same generator with another
# response class:

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
# An event is a few lines, up to an empty one. It can have a name and an id. A line that begins with a colon is a comment, and
# readers skip it.
#
# Comments are there to keep a silent connection from being cut. FastAPI sends one whenever a stream of events has been silent
# for so many seconds:

# %%
import fastapi.sse

fastapi.sse.KEEPALIVE_COMMENT, fastapi.sse._PING_INTERVAL

# %% [markdown]
# Who reads what? Lines are for programs: `curl`, `jq`, a log collector, `fetch`, any loop over lines. That is the whole
# client:

# %%
import json

import httpx

# %%
with httpx.stream("GET", server.url + "/lines") as answer:
    print("".join(json.loads(line)["text"] for line in answer.iter_lines()))

# %% [markdown]
# Events are for browsers: `new EventSource(url)` reads them, calls a function per event name, and comes back by itself when
# the connection breaks. Python has a library for it.

# %%
from httpx_sse import connect_sse

# %%
with httpx.Client() as client, connect_sse(client, "GET", server.url + "/events") as source:
    read = [(event.id, event.event, event.json()) for event in source.iter_sse()]
read[:3]

# %% [markdown]
# | | JSON lines | server-sent events |
# |---|---|---|
# | media type | `application/jsonl` | `text/event-stream` |
# | one item | one line | lines, up to an empty one |
# | names, ids, comments | none | `event:`, `id:`, `:` |
# | keeps the connection awake | no | yes |
# | comes back by itself | no | yes |
# | method | any | `EventSource`: GET only |
#
# ### Exercise 1: a line per word
#
# A doctor dictates a report. `GET /words` streams each word of `dictation()` as soon as it is spoken, as a JSON line:
# `{"number": 1, "word": "no"}` is the first.

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
# The same for a browser: `GET /events` sends an event `chunk` with `{"text": word}` per word, its id counted from 1. After the
# last word comes `complete` with `{"words": …}`, the number of words.

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
# Between an endpoint and its reader there are others. Three suspects. The first compresses answers: Starlette's
# `GZipMiddleware`. The second is a few lines that somebody wrote to log them.

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
# The third is a proxy such as nginx. It collects what an answer brings, since few large packets are cheaper than many small
# ones. A header of the answer can ask it not to. This stand-in has the same rule.


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


# %% [markdown]
# Which of the three holds back `/lines`, and which `/events`? Six answers, yes or no.

# %%
guess = {"gzip": (False, False), "log": (False, False), "proxy": (False, False)}

# %%
suspects = {
    "gzip": run_app(GZipMiddleware(app), name="gzip"),
    "log": run_app(BaseHTTPMiddleware(app, keep_log), name="log"),
    "proxy": run_app(buffering_proxy(app), name="proxy"),
}

# %%
behind = {
    f"{path}, {name}": load(suspect.url + path, requests=1)[0]
    for path in ("/lines", "/events")
    for name, suspect in suspects.items()
}
marks({name: arrivals(record) for name, record in behind.items()})

# %% [markdown]
# Gzip is innocent. Older texts say that it collects. Starlette's now empties the compressor after each piece. What that
# leaves of the compression is another matter, in bytes:

# %%
import gzip


# %%
def on_the_wire(path):
    with httpx.stream("GET", suspects["gzip"].url + path) as answer:
        return sum(map(len, answer.iter_raw()))


# %%
{
    "/lines": len(asked["/lines"].body),
    "/lines, each piece compressed": on_the_wire("/lines"),
    "/lines, compressed in one go": len(gzip.compress(asked["/lines"].body)),
    "/events": len(asked["/events"].body),
    "/events behind gzip": on_the_wire("/events"),
}

# %% [markdown]
# Small pieces have little in them to compress. Events are exempt: Starlette leaves `text/event-stream` as it is.
#
# The log is guilty of both. `body_iterator` ends when the answer ends, and only then does the first byte move on. A test that
# compares the body finds nothing wrong.
#
# The proxy held back the lines and let the events pass. Why?


# %%
def headers_of(path):
    with httpx.stream("GET", server.url + path) as answer:
        return dict(answer.headers)


# %%
headers_of("/lines"), headers_of("/events")

# %% [markdown]
# FastAPI adds `X-Accel-Buffering: no` to events, and not to lines. So we add it ourselves. The obvious way, and a prediction:
# will it pass the proxy?

# %%
from fastapi import Depends


@app.get("/lines/inside")
async def inside(response: Response):
    response.headers["X-Accel-Buffering"] = "no"
    async for chunk in model.stream(QUESTION):
        yield {"text": chunk.text}


# %%
def unbuffered(response: Response):
    response.headers["X-Accel-Buffering"] = "no"


@app.get("/lines/before", dependencies=[Depends(unbuffered)])
async def before():
    async for chunk in model.stream(QUESTION):
        yield {"text": chunk.text}


# %%
proxied = {path: load(suspects["proxy"].url + path, 1)[0] for path in ("/lines/inside", "/lines/before")}
marks({path: arrivals(record) for path, record in proxied.items()})

# %% [markdown]
# A generator's body runs when its first item is fetched. By then the headers are gone, and no error tells. A dependency runs
# before: headers and status of a stream belong there.
#
# ## Who measures it?
#
# The service's `TimingMiddleware` reports how long a request took. What will it say of an answer that takes a second?

# %%
import time

from workshop.api.middleware.timing import TimingMiddleware

# %%
timed = run_app(TimingMiddleware(app), name="timed")
{path: load(timed.url + path, 1)[0].worked_s for path in ("/whole", "/lines")}

# %% [markdown]
# `/lines` seems to take no time at all. The header has to leave with the status, and the status of a stream leaves before
# the model has begun. What to watch is the time to the first piece.
#
# An ASGI app sends messages: one `http.response.start`, then `http.response.body` for each piece. A middleware may look at
# each as it passes, if it hands it on at once.
#
# ### Exercise 3: the first piece
#
# Write `FirstPiece(app, notes)`. It appends `(path, seconds)` to the list `notes` for each HTTP answer, the seconds from the
# request to the first piece of the body. It holds nothing back.


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
# This model fails after ten tokens. The same generator, as lines and as events. The server's log would show a traceback; we
# look with the client's eyes and turn the log off.

# %%
import logging

from workshop.contracts.errors import ModelFailedError

server_log = logging.getLogger("uvicorn.error")
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
# Which status does the client get, and does it notice the error?

# %%
guess = {"/lines/failing": "500, notices", "/events/failing": "500, notices"}

# %%
failed = {path: load(server.url + path, requests=1) for path in guess}
failed

# %% [markdown]
# The status is 200 in both: it had left before the first word. Then the lines break off, and every HTTP client raises an
# error. The events end as if all were well.

# %%
print(failed["/events/failing"][0].body.decode()[-60:])

# %% [markdown]
# Half an answer, and nothing tells it from a whole one. FastAPI reads a generator of events in a task of its own. If that
# fails, the stream to the client is closed in good order, and only the log knows.
#
# Hence two rules. A stream ends with an event that says so, with some data, or browsers drop it. And the endpoint turns an
# error into an event.


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
# ## An error before the beginning
#
# Many errors come before the first word: the prompt is too long, the model is gone, the budget is spent. Must these be a 200
# too?

# %%
from typing import Annotated, Any


@app.get("/long")
async def long_prompt(words: int):
    async for chunk in model.stream(Prompt((Message("user", "replica " * words),))):
        yield {"text": chunk.text}


# %%
load(server.url + "/long?words=9000", requests=1)

# %% [markdown]
# A 200 for a prompt that no model ever saw. The service waits for the first item before it answers at all. This is how, as it
# stands in the package:

# %% mirrors="workshop.api.streams:Item workshop.api.streams:started"
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

Item = TypeVar("Item")


@asynccontextmanager
async def started(stream: AsyncGenerator[Item, None]) -> AsyncIterator[AsyncIterator[Item]]:
    async with aclosing(stream):
        first = await anext(stream)

        async def all_items() -> AsyncIterator[Item]:
            yield first
            async for item in stream:
                yield item

        yield all_items()


# %% [markdown]
# `anext` fetches the first item, and raises what happens before it. A dependency does that, where an error still becomes a
# response. What `aclosing` is for, a later section will show.
#
# `PromptTooLongError` gets its status from a handler, as in lesson 04.

# %%
from fastapi.responses import JSONResponse

from workshop.contracts.errors import PromptTooLongError

careful = FastAPI()


@careful.exception_handler(PromptTooLongError)
async def too_long(request, error):
    return JSONResponse({"error": str(error)}, 400)


# %%
async def opened(words: int):
    async with started(model.stream(Prompt((Message("user", "replica " * words),)))) as chunks:
        yield chunks


@careful.get("/long")
async def long_prompt_carefully(chunks: Annotated[Any, Depends(opened)]):
    async for chunk in chunks:
        yield {"text": chunk.text}


# %%
careful_server = run_app(TimingMiddleware(careful), name="careful")
[load(f"{careful_server.url}/long?words={words}", requests=1)[0].status for words in (3, 9000)]

# %% [markdown]
# The reader waits no longer than before: the first item is what they wait for anyway. And `X-Process-Time` now tells what it
# should.

# %%
record = load(f"{careful_server.url}/long?words=3", requests=1)[0]
{"X-Process-Time": 1000 * record.worked_s, "first piece": record.first_ms, "last piece": record.ms}

# %% [markdown]
# ## A reader who leaves
#
# A user closes the tab after half a second. Does the model know? It counts what it does.

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
async def tokens_made(path):
    earlier = await model.activity()
    await leave(path)
    for _ in range(100):
        await asyncio.sleep(0.1)
        if not (await model.activity()).running:
            break
    return (await model.activity()).generated_tokens - earlier.generated_tokens


# %% [markdown]
# The third endpoint is a pattern that many services have: a task fills a queue, and the endpoint empties it. There are good
# reasons, such as two models that answer at the same time.


# %%
tasks = set()


@app.get("/queue")
async def queue():
    texts = asyncio.Queue()

    async def fill():
        async for chunk in model.stream(QUESTION):
            await texts.put(chunk.text)
        await texts.put(None)

    tasks.add(asyncio.create_task(fill()))
    while (text := await texts.get()) is not None:
        yield {"text": text}


# %% [markdown]
# First, how many tokens does the whole answer have? And how many of them are made in each case, if the reader leaves after
# half a second?

# %%
(await model.complete(QUESTION)).usage.completion_tokens

# %%
guess = {"/whole": 20, "/lines": 20, "/events": 20, "/queue": 20}

# %%
made = {path: {"tokens made": await tokens_made(path)} for path in guess}
bars(made, y="tokens", title="The reader has left after half a second")

# %% [markdown]
# ## Who told the model?
#
# uvicorn notices that the connection is closed. Starlette then cancels the stream where it waits: in the `async for`. The
# cancellation goes up through the generators into the model's own `finally`, and the model stops.
#
# `/whole` is no stream, so nobody looks at the connection. The answer is computed to its end, for nobody. (Ray Serve does
# look, and cancels; lesson 10 compares.)
#
# `/queue` is a stream, and still goes on. The endpoint was cancelled, at `get`. The task is nobody's child: it fills a queue
# that nobody empties. Somebody has to cancel it. Who, and when, a slow reader will show.
#
# ## A reader who is slow
#
# A hospital exports 300 scans as JSON lines. They are made quickly; a reader on a bad line takes four times as long for each.
# We note when a scan is made, and when the generator ends.

# %%
made_at, closed_at = [], []


@app.get("/export")
async def scans():
    try:
        for number in range(300):
            await asyncio.sleep(0.005)
            made_at.append(time.perf_counter())
            yield {"scan": number, "pixels": "x" * 100_000}
    finally:
        closed_at.append(time.perf_counter())


# %% [markdown]
# And the same through a queue, with a limit or without. The queue and its task come from a dependency, which cancels the task
# when the request is over.


# %%
async def filled(size: int):
    waiting = asyncio.Queue(size)

    async def fill():
        async for scan in scans():
            await waiting.put(scan)
        await waiting.put(None)

    task = asyncio.create_task(fill())
    try:
        yield waiting
    finally:
        task.cancel()


# %%
@app.get("/export/queue")
async def queued(waiting: Annotated[Any, Depends(filled)]):
    while (scan := await waiting.get()) is not None:
        yield scan


# %%
def growth(moments, start):
    """How many there were, at each tenth of a second."""
    return {tenth / 10: sum(moment < start + tenth / 10 for moment in moments) for tenth in range(21)}


# %%
def read_slowly(path):
    made_at.clear()
    start, read_at = time.perf_counter(), []
    with httpx.stream("GET", server.url + path) as answer:
        for _ in answer.iter_lines():
            read_at.append(time.perf_counter())
            time.sleep(0.02)
            if read_at[-1] > start + 2:
                return growth(made_at, start), growth(read_at, start)


# %% [markdown]
# The reader leaves after two seconds. How many scans has each endpoint made by then: directly, through a queue without a
# limit, and through one of eight?

# %%
guess = {"/export": 100, "/export/queue?size=0": 100, "/export/queue?size=8": 100}

# %%
exports = {path: read_slowly(path) for path in guess}
drawn = {f"made: {path}": made_then for path, (made_then, _) in exports.items()}
curve(drawn | {"read": exports["/export"][1]}, x="seconds", y="scans")

# %% [markdown]
# Two of the three wait for their reader. The third makes everything as fast as it can, and what is not read lies in our
# memory. In megabytes, for a single reader:

# %%
{path: (made_then[2.0] - read_then[2.0]) / 10 for path, (made_then, read_then) in exports.items()}

# %% [markdown]
# When the network's buffers are full, uvicorn lets `send` wait. The generator is not asked for the next item before `send`
# returns: its `yield` takes as long as its reader. That is back-pressure, and it costs nothing.
#
# A queue without a limit cuts it off. `maxsize` restores it: `put` waits. What the waiting ones are ahead of their reader lies
# in the network's own buffers.
#
# A model need not wait at all. Ours gives a slow reader several tokens at a time:


# %%
async def read_model_slowly():
    async for chunk in model.stream(QUESTION):
        yield len(chunk.tokens)
        await asyncio.sleep(0.2)


# %%
[tokens async for tokens in read_model_slowly()]

# %% [markdown]
# ## Who cleans up?
#
# A reader stops reading, and a second later it is gone. `scans` has a `finally`. When does it run? We look again after half a
# second.


# %%
def stop_reading(path):
    closed_at.clear()
    with httpx.stream("GET", server.url + path) as answer:
        lines_of_answer = answer.iter_lines()
        next(lines_of_answer)
        time.sleep(1)
    left = time.perf_counter()
    time.sleep(0.5)
    return [f"{1000 * (moment - left):.0f} ms after the reader" for moment in closed_at] or "still open"


# %% [markdown]
# Python's garbage collector comes by now and then. We keep it away, so that luck has no part. In `/export` the endpoint itself
# is `scans`, in `/export/queue` the dependency's task reads it.

# %%
guess = {"/export": "at once", "/export/queue?size=8": "at once"}

# %%
import gc

gc.disable()
ended = {path: stop_reading(path) for path in guess}
ended

# %% [markdown]
# The endpoint's `finally` has not run. Starlette was cancelled while it waited in `send`. There the generator sleeps at its
# `yield`, and nobody wakes it, until the garbage collector finds it:

# %%
closed_at.clear()
gc.collect()
gc.enable()
time.sleep(0.1)
len(closed_at)

# %% [markdown]
# The end of a dependency is part of the request. It runs when the request is over, whatever the reason. So what must be
# cleaned up is opened in a dependency. For a generator, such as a model's stream, the service's `started` does the rest: its
# block ends with `aclosing`.


# %%
async def opened_scans():
    async with started(scans()) as all_scans:
        yield all_scans


@app.get("/export/opened")
async def export_opened(all_scans: Annotated[Any, Depends(opened_scans)]):
    async for scan in all_scans:
        yield scan


# %%
gc.disable()
ended = stop_reading("/export/opened")
gc.enable()
ended

# %% [markdown]
# ### Exercise 4: nobody listens
#
# `voice()` yields pieces of sound, and `fill` puts them into a queue. The endpoint below forgets its task. Mend it: who stays
# gets every piece, and as soon as a reader leaves, a slow one too, `voice` is closed.

# %%
from workshop.lab.fixtures.lesson_05 import voice


async def fill(pieces):
    async for piece in voice():
        await pieces.put(piece)
    await pieces.put(None)


# %% exercise="05.4"
clinic = FastAPI()


# solution (about 12 lines)
async def recorded():
    pieces = asyncio.Queue(maxsize=4)
    task = asyncio.create_task(fill(pieces))
    try:
        yield pieces
    finally:
        task.cancel()


@clinic.get("/voice")
async def play(pieces: Annotated[Any, Depends(recorded)]):
    while (piece := await pieces.get()) is not None:
        yield {"sound": piece}


# starter
# @clinic.get("/voice")
# async def play():
#     pieces = asyncio.Queue(maxsize=4)
#     tasks.add(asyncio.create_task(fill(pieces)))
#     while (piece := await pieces.get()) is not None:
#         yield ...
# end

# %%
check("05.4", clinic)

# %% [markdown]
# ## A reader who comes back
#
# A browser's `EventSource` connects again when a stream ends, whatever the reason. It sends the id of the last event that it
# got. Here is one in Python, patient for three rounds.


# %%
def event_source(url, rounds=3):
    last, statuses = "", []
    for _ in range(rounds):
        with httpx.Client() as client, connect_sse(client, "GET", url, headers={"Last-Event-ID": last}) as source:
            statuses.append(source.response.status_code)
            if source.response.status_code != 200:
                break
            last = [event.id for event in source.iter_sse()][-1]
    return statuses


# %% [markdown]
# The user asked once. How many answers does the model give?

# %%
earlier = await model.activity()
statuses = event_source(server.url + "/events")
statuses, (await model.activity()).completed - earlier.completed

# %% [markdown]
# One per round, until the tab is closed, and each is paid for. A page should close its `EventSource` at `complete`, but a
# service cannot count on it. It answers a reader who comes back with 204: the browser then stays away.
#
# ## The service's own streams
#
# The final service has both forms, and all of this in them. We run it with a database of its own, its models at full speed.

# %%
import tempfile

from workshop.api.app import create_app
from workshop.integration.local import local_services
from workshop.settings import Settings

folder = tempfile.mkdtemp()
settings = Settings(database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite")
service = run_app(create_app(local_services(settings), settings), name="service")

# %% [markdown]
# `POST /v1/chat/stream` answers in JSON lines, for programs. The last one says why the answer ended. A reader who gets no
# such line knows that the rest is missing.

# %%
body = {"model": "workshop-main", "messages": [{"role": "user", "content": "What is a replica?"}]}
read = load(f"{service.url}/v1/chat/stream", 1, method="POST", json=body)[0].body.decode().splitlines()
read[0], read[-1]

# %% [markdown]
# `GET /v1/query/stream` sends events. A cheap draft model answers first. If it was sure enough, that is the answer. If not, a
# `switch` says so, and the main model answers from the start.


# %%
def ask(question):
    url, start = f"{service.url}/v1/query/stream", time.perf_counter()
    with httpx.Client() as client, connect_sse(client, "GET", url, params={"query": question}) as source:
        return [(1000 * (time.perf_counter() - start), event) for event in source.iter_sse()]


def kind(event):
    return f"{event.event} {event.json().get('model', '')}".strip()


# %%
kept = ask("Can you explain server-sent events?")
switched = ask("When is a StreamingResponse the right choice?")

# %%
from collections import Counter

[Counter(kind(event) for _, event in events) for events in (kept, switched)]

# %%
rows = {kind(event): [ms for ms, other in switched if kind(other) == kind(event)] for _, event in switched}
marks(rows, title="When is a StreamingResponse the right choice?")

# %% [markdown]
# What did the reader see before the switch, and what at the end? The last event has the whole answer, by whom, and what it
# cost.

# %%
"".join(event.json()["text"] for _, event in switched if kind(event) == "chunk workshop-draft")

# %%
switched[-1][1].json()

# %% [markdown]
# And a browser that comes back?


# %%
def answers_given():
    return httpx.get(f"{service.url}/v1/stats").json()["total_queries"]


# %%
earlier = answers_given()
statuses = event_source(f"{service.url}/v1/query/stream?query=Can you explain server-sent events?")
statuses, answers_given() - earlier

# %% [markdown]
# One question, one answer, one charge. A dependency, `open_answer`, sees the `Last-Event-ID` and sets the 204. The same one
# waits for the first event. When the reader leaves, it closes the answer, and what was made is charged.
#
# ### Exercise 5: read it well
#
# Write the client: `read_answer(url)` returns the text of an answer of such a stream. What came before a `switch` is void. If
# the stream fails, or ends without `complete`, raise `UnfinishedError`.

# %%
from workshop.lab.fixtures.lesson_05 import UnfinishedError


# %% exercise="05.5"
def read_answer(url: str) -> str:
    # solution (about 9 lines)
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
    # starter
    # return ...
    # end


# %%
check("05.5", read_answer)

# %% [markdown]
# ## Quiz
#
# **1.** A stream arrives all at once in production, and piece by piece on your laptop. Where do you look?
# <details><summary>Answer</summary>At what is between: a proxy that collects, which <code>X-Accel-Buffering: no</code>
# prevents, or a middleware that reads the body.</details>
#
# **2.** An endpoint that yields sets a response header in its first line. What happens?
# <details><summary>Answer</summary>Nothing, and nobody says so. The headers were taken before the generator ran. A dependency
# runs early enough.</details>
#
# **3.** Why does a stream of events need an event such as `complete`?
# <details><summary>Answer</summary>Its end proves nothing: an endpoint that fails ends it in the same way, with status
# 200.</details>
#
# **4.** A reader leaves. Which of your work goes on?
# <details><summary>Answer</summary>Tasks that you started and nobody cancels; on uvicorn, every endpoint that returns instead
# of yielding. And a generator that was left at its <code>yield</code> stays open until the garbage collector comes.</details>
#
# **5.** A generator makes 200 items a second, and its reader takes 50. What happens without a queue, and what with one?
# <details><summary>Answer</summary>Without, the generator waits at its <code>yield</code>. With an unlimited queue, 150 items
# a second pile up in memory.</details>
#
# ## Recap
#
# | what goes wrong | what you see | write |
# |---|---|---|
# | the answer waits for its last word | one mark, late | an endpoint that yields |
# | somebody collects the pieces | one mark, late, only from outside | pure ASGI; `X-Accel-Buffering: no` from a dependency |
# | an error before the first word | 200, and nothing | `started`, in a dependency |
# | an error in the middle | half an answer, well ended | an `error` event, and `complete` |
# | the reader leaves | tokens for nobody | a dependency that cleans up after its `yield` |
# | the reader is slow | memory grows | `asyncio.Queue(maxsize=…)`, or no queue |
# | the reader comes back | a second charge | 204 on `Last-Event-ID` |
#
# You can now read a picture of arrivals: a row of marks is a stream, a single late one is not. Next: lesson 06 lets the
# reader talk back while the answer comes.
#
# ## Tear-down

# %%
for running in (server, timed, careful_server, service, *suspects.values()):
    running.stop()

# %%
await model.aclose()
server_log.setLevel(logging.NOTSET)
