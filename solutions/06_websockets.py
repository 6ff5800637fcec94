# %% [markdown]
# # 06 WebSockets
#
# A user presses Stop, and the model keeps talking. You will see why, and build a conversation that can be interrupted,
# survives bad messages, and notices when the other side has gone.
#
# After this lesson you can
#
# - receive and send on one connection at the same time, and cancel an answer,
# - answer an invalid message without ending the conversation, and end it with a reason,
# - authenticate programs and browsers,
# - detect a client that has disappeared or stopped reading.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 75 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("06.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import check, compare, hint, marks, run_app
from workshop.lab import service_map, solution, start_at, stop_all

service_map("06")

# %% [markdown]
# ## A conversation
#
# In lesson 05 the server streamed, and the client could only listen. If that is all you need, stay with plain HTTP. On
# a WebSocket both sides send whenever they like, over one connection that stays open.
#
# This stand-in for a language model produces about 25 words per second. It counts the answers in progress.

# %%
import asyncio

TEXT = """A WebSocket is one connection that stays open. Either side may send at any time, and neither waits for the
other. That is what a chat needs: words flow to the reader, and the reader may interrupt them."""
WORDS = TEXT.split()


# %%
class Model:
    pause_s, running = 0.04, 0

    async def words(self, question):
        self.running += 1
        try:
            for word in WORDS:
                await asyncio.sleep(self.pause_s)
                yield word
        finally:
            self.running -= 1


# %% [markdown]
# The answer is sent word by word, followed by `done`. If the client disconnects midway, `send_text` raises
# `WebSocketDisconnect`. There is nobody left to send to, so we suppress it.

# %%
import time
from contextlib import suppress

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app, model = FastAPI(), Model()


async def answer(socket, question):
    with suppress(WebSocketDisconnect):
        async for word in model.words(question):
            await socket.send_text(word)
        await socket.send_text("done")


# %% [markdown]
# In the chat endpoint, `iter_text` yields each message until the client disconnects. Every message is a question,
# except `stop`. When the endpoint receives a `stop`, it records the time and replies `stopped`.

# %%
stops_seen = []


@app.websocket("/in-turn")
async def in_turn(socket: WebSocket):
    await socket.accept()
    async for message in socket.iter_text():
        if message == "stop":
            stops_seen.append(time.perf_counter())
            await socket.send_text("stopped")
        else:
            await answer(socket, message)


# %% [markdown]
# This lesson breaks things on purpose. `log_level` keeps the server from printing a traceback each time.

# %%
server = run_app(app, name="lesson 06", log_level="critical")
ws_url = server.url.replace("http", "ws")
ws_url

# %% [markdown]
# The client asks a question, sends `stop` after a third of the words, and keeps reading until it receives `stopped`.

# %%
from websockets.sync.client import connect


def press_stop(url):
    words, started = [], time.perf_counter()
    with connect(url) as socket:
        socket.send("What is a WebSocket?")
        while (message := socket.recv(timeout=30)) != "stopped":
            if message == "done":
                continue
            words.append(time.perf_counter())
            if len(words) == len(WORDS) // 3:
                socket.send("stop")
                pressed = time.perf_counter()
    return in_ms({"word received": words, "Stop pressed": [pressed], "Stop read by server": stops_seen[-1:]}, started)


def in_ms(rows, started):
    return {row: [1000 * (moment - started) for moment in moments] for row, moments in rows.items()}


# %% [markdown]
# How many words does the client receive after it has pressed Stop? Replace `...` with your prediction.

# %%
guess = ...

# %%
in_turn_rows = press_stop(ws_url + "/in-turn")
pressed = in_turn_rows["Stop pressed"][0]
compare(guess, sum(moment > pressed for moment in in_turn_rows["word received"]), f"of {len(WORDS)} words")

# %% [markdown]
# The client receives all the remaining words. The picture shows when Stop was pressed, and how late the endpoint read
# the message.

# %%
marks(in_turn_rows, title="receive, then answer, then receive again")

# %% [markdown]
# ## What just happened?
#
# The `stop` arrived at once and waited in the server's queue. The endpoint was inside `answer`, and does not receive
# again until `answer` returns. A WebSocket works in both directions at once, but our code used only one at a time.
#
# The answer must not keep the endpoint from receiving, so we run it in its own task, which can be cancelled.


# %%
@app.websocket("/side-by-side")
async def side_by_side(socket: WebSocket):
    await socket.accept()
    answering = None
    async for message in socket.iter_text():
        if message != "stop":
            answering = asyncio.create_task(answer(socket, message))
        elif answering:
            stops_seen.append(time.perf_counter())
            answering.cancel()
            await socket.send_text("stopped")


# %% [markdown]
# `cancel` raises `CancelledError` at the `await` where the task is suspended. That is nearly always inside the model,
# so the model stops too.


# %%
def one_above_another(runs):
    return {f"{name}: {row}": times for name, rows in runs.items() for row, times in rows.items()}


marks(one_above_another({"in turn": in_turn_rows, "side by side": press_stop(ws_url + "/side-by-side")}))

# %% [markdown]
# ## Who owns the task?
#
# `side_by_side` has a bug that is easy to see: it replies `stopped` even if the answer has already ended. Another is
# easy to miss.
#
# Now the model needs two seconds for its first word. The client asks a question and leaves while the model is thinking.
# How many answers is the model working on half a second later?

# %%
guess = ...


# %%
def ask_and_leave(path):
    model.pause_s = 2
    with connect(ws_url + path) as socket:
        socket.send("What is a WebSocket?")
        time.sleep(0.3)
    time.sleep(0.5)
    model.pause_s = 0.04
    return model.running


compare(guess, ask_and_leave("/side-by-side"), "for a client that has left")

# %% [markdown]
# The endpoint has returned, but its task keeps running. On a GPU, it would occupy a slot that other users are waiting
# for.
#
# A `TaskGroup` owns its tasks: if its block raises, it cancels them all. A disconnect counts as such an error. In this
# example, the task would otherwise sleep for ten seconds.


# %%
async def group():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(10))
        await asyncio.sleep(0.1)
        raise WebSocketDisconnect(1001)


began = time.perf_counter()
try:
    await group()
except* WebSocketDisconnect as left:
    print(f"{left.exceptions} after {time.perf_counter() - began:.1f} s")

# %% [markdown]
# Several tasks can fail at once, so a group raises an `ExceptionGroup`. `except*` matches the exceptions inside the
# group.
#
# One detail matters: `iter_text` ends silently when the client leaves, so the group would wait for its tasks.
# `receive_text` raises `WebSocketDisconnect`, which ends the group.
#
# `cancel` only requests the end of a task; `asyncio.wait` waits for it. If a task has already ended, `cancel` returns
# `False`, and `done` returns `True`.

# %%
task = asyncio.create_task(asyncio.sleep(10))
requested, ended = task.cancel(), task.done()
await asyncio.wait([task])
requested, ended, task.done(), task.cancel()

# %% [markdown]
# ### Exercise 1: stop means stop
#
# Write `chat`. The `socket` has already been accepted. Many clients share one `model`, which is passed in; each has its
# own connection. Our `answer` asks the notebook's model, so write a new one.
#
# - `stop` is the only command; every other text is a question. Send each word of `model.words(question)` as soon as it
#   is produced, then `done`. You can assume that a client waits for one answer to end before it asks the next question.
# - `stop` ends the running answer at once, even while the model is thinking: send `stopped` in place of `done`. The
#   model stops working on the answer, and the client may ask its next question.
# - If no answer is running, ignore `stop`.
# - When the client disconnects, end its answer within a second. `chat` may then return or raise.


# %% exercise="06.1"
async def chat(socket, model):
    # solution (about 17 lines)
    answering = None

    async def answer(question):
        async for word in model.words(question):
            await socket.send_text(word)
        await socket.send_text("done")

    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                message = await socket.receive_text()
                if message != "stop":
                    answering = tasks.create_task(answer(message))
                elif answering and answering.cancel():
                    await asyncio.wait([answering])
                    await socket.send_text("stopped")
    except* WebSocketDisconnect:
        pass
    # starter
    # await ...
    # end


# %%
check("06.1", chat)

# %% [markdown]
# ## Typed messages
#
# Is `stop` a command, or a question about stopping? Over HTTP, the method and path tell requests apart. On a WebSocket,
# each message has to say what it is. In the service, each is a JSON object with a `type`, and `cancel` names the answer
# that it ends.

# %% mirrors="workshop.api.schemas.chat:Id workshop.api.schemas.chat:_Message workshop.api.schemas.chat:Cancel"
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from workshop.api.schemas.chat import Ask, Ping, Pong, Reset

Id = Annotated[str, Field(min_length=1, max_length=64)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cancel(_Message):
    type: Literal["cancel"] = "cancel"
    id: Id


# %% [markdown]
# A client's other messages are `ask`, `reset`, `ping` and `pong`. A union with a discriminator looks at `type` first.
# Its errors therefore concern only the message type that the client meant, not all five.

# %% mirrors="workshop.api.schemas.chat:ClientMessage workshop.api.schemas.chat:CLIENT_MESSAGE"
ClientMessage: TypeAlias = Annotated[Ask | Cancel | Reset | Ping | Pong, Field(discriminator="type")]
CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
CLIENT_MESSAGE.validate_json('{"type": "cancel", "id": "1"}')

# %% [markdown]
# The next endpoint validates messages this way. To keep it short, it replies to everything with a `pong` of the same
# `id`.


# %%
@app.websocket("/strict")
async def strict(socket: WebSocket):
    await socket.accept()
    while True:
        message = CLIENT_MESSAGE.validate_json(await socket.receive_text())
        await socket.send_text(Pong(id=message.id).model_dump_json())


# %% [markdown]
# Four clients send an invalid message each, followed by a valid one. `send_two` returns the replies.

# %%
import json

INVALID = {
    "a typo": '{"type": "pnig", "id": "1"}',
    "half a message": '{"type": "ping", "id": ',
    "a number as id": '{"type": "ping", "id": 1}',
    "a binary frame": b'{"type": "ping", "id": "1"}',
}

# %%
from websockets.exceptions import ConnectionClosed


def send_two(path, invalid):
    replies = []
    with connect(ws_url + path) as socket, suppress(ConnectionClosed):
        for message in (invalid, '{"type": "ping", "id": "2"}'):
            socket.send(message)
            replies.append(socket.recv(timeout=10))
    return replies


# %% [markdown]
# How many replies does each client receive: 2, 1 or 0?

# %%
guess = {"a typo": ..., "half a message": ..., "a number as id": ..., "a binary frame": ...}

# %%
compare(guess, {name: len(send_two("/strict", invalid)) for name, invalid in INVALID.items()}, "replies")

# %% [markdown]
# Nobody gets a reply. A failed HTTP request loses one response. An exception that escapes from a WebSocket endpoint
# loses the connection and, with it, the conversation.
#
# An invalid message should get a reply. The service has a message type for this, `error`.

# %%
from pydantic import ValidationError

from workshop.api.schemas.chat import Error


def reply_to(frame):
    try:
        message = CLIENT_MESSAGE.validate_json(frame)
    except ValidationError as error:
        return Error(error="ValidationError", message=error.errors()[0]["msg"][:60])
    return Pong(id=message.id)


# %%
@app.websocket("/tolerant")
async def tolerant(socket: WebSocket):
    await socket.accept()
    async for frame in socket.iter_text():
        await socket.send_text(reply_to(frame).model_dump_json(exclude={"details"}, exclude_none=True))


# %%
for name, invalid in INVALID.items():
    print(f"{name:15}", *send_two("/tolerant", invalid))

# %% [markdown]
# That works for three of the four. `receive_text` and `iter_text` expect text frames and raise `KeyError` on a binary
# one. The service receives the raw event and handles both kinds. This is also where it limits the message length.

# %%
from fastapi import WebSocketException, status

from workshop.api.sockets import MAX_MESSAGE_BYTES, Peer


# %% mirrors="workshop.api.sockets:Peer.receive"
async def receive(self) -> str | bytes:
    event = await self._websocket.receive()
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", status.WS_1005_NO_STATUS_RCVD))
    message: str | bytes = event["text"] if event.get("text") is not None else event["bytes"]
    n_bytes = len(message.encode() if isinstance(message, str) else message)
    if n_bytes > MAX_MESSAGE_BYTES:
        reason = f"a message may have at most {MAX_MESSAGE_BYTES} bytes"
        raise WebSocketException(status.WS_1009_MESSAGE_TOO_BIG, reason)
    return message


# %% [markdown]
# It is a method of `Peer`, the service's wrapper around a socket; its `send` takes a pydantic model. `/robust` is the
# version to keep: the fourth client gets two replies as well.


# %%
@app.websocket("/robust")
async def robust(socket: WebSocket):
    await socket.accept()
    peer = Peer(socket)
    with suppress(WebSocketDisconnect):
        while True:
            await peer.send(reply_to(await peer.receive()))


send_two("/robust", INVALID["a binary frame"])

# %% [markdown]
# ### Exercise 2: a token meter
#
# Write the endpoint `/meter`. For each connection, it keeps a running total of tokens, starting at 0.
#
# - `{"type": "spend", "tokens": 30}` adds to the total. `tokens` is a JSON integer, at least 1: not `true`, `1.5` or
#   `"30"`.
# - `{"type": "reset"}` sets the total to 0.
# - The reply to both is the new total: `{"type": "total", "tokens": 30}`.
# - The reply to every other frame, text or binary, is `{"type": "error", "message": "…"}` with a text of your choice.
#   The total stays as it is, and the conversation goes on.
#
# These cases are up to you: extra fields, `30.0`, a valid message in a binary frame, and frames that are very long or
# deeply nested. You may use `Peer`.

# %% exercise="06.2"
meter = FastAPI()


# solution (about 22 lines)
class Spend(BaseModel):
    type: Literal["spend"]
    tokens: Annotated[int, Field(strict=True, ge=1)]


class StartAgain(BaseModel):
    type: Literal["reset"]


ORDER = TypeAdapter(Annotated[Spend | StartAgain, Field(discriminator="type")])


@meter.websocket("/meter")
async def count(socket: WebSocket):
    await socket.accept()
    peer, total = Peer(socket), 0
    while True:
        try:
            order = ORDER.validate_json(await peer.receive())
        except ValidationError as error:
            await socket.send_json({"type": "error", "message": str(error)})
        else:
            total = total + order.tokens if order.type == "spend" else 0
            await socket.send_json({"type": "total", "tokens": total})


# starter
# @meter.websocket("/meter")
# async def count(socket: WebSocket):
#     await socket.accept()
#     total = 0
#     while True:
#         await socket.receive_text()
#         await socket.send_json(...)
# end

# %%
check("06.2", meter)

# %% [markdown]
# ## How a connection ends
#
# Either side can close a connection and give a reason: a code and a short text. Here are four endpoints that end in
# different ways.


# %%
@app.websocket("/returns")
async def returns(socket: WebSocket):
    await socket.accept()


# %%
@app.websocket("/bug")
async def bug(socket: WebSocket):
    await socket.accept()
    raise ValueError("a bug")


# %%
@app.websocket("/refused-late")
async def refused_late(socket: WebSocket):
    await socket.accept()
    raise WebSocketException(1008, "unknown key")


# %%
@app.websocket("/refused-early")
async def refused_early(socket: WebSocket):
    raise WebSocketException(1008, "unknown key")


# %%
from websockets.exceptions import InvalidStatus


# %%
def ending(url, message="hello?"):
    try:
        with connect(url) as socket, suppress(ConnectionClosed):
            socket.send(message)
            while True:
                socket.recv(timeout=10)
        return int(socket.close_code), socket.close_reason
    except InvalidStatus as refusal:
        return refusal.response.status_code, refusal.response.reason_phrase


# %% [markdown]
# What does the client learn from each? Predict a number: 1000 (finished), 1006 (no close frame), 1008 (not allowed),
# 1011 (an error in the server), or 403, an HTTP status.

# %%
guess = {"/returns": ..., "/bug": ..., "/refused-late": ..., "/refused-early": ...}

# %%
endings = {path: ending(ws_url + path) for path in ("/returns", "/bug", "/refused-late", "/refused-early")}
compare(guess, {path: number for path, (number, _) in endings.items()})
endings

# %% [markdown]
# On uvicorn, an endpoint that simply returns looks like one that crashed. In both cases the connection ends without a
# close frame. The client then reports 1006, a code that nobody sends.
#
# A client that is refused before `accept` gets no code either. Until then the exchange is plain HTTP, so the refusal is
# an HTTP status. A browser hides that status from the page and reports 1006 again. So accept first, then close.
#
# The server can also end a connection by itself. Two examples: it shuts down, or a message exceeds 16 MiB.

# %%
other = run_app(app, name="lesson 06 stops")
with connect(other.url.replace("http", "ws") + "/robust") as socket, suppress(ConnectionClosed):
    other.stop()
    socket.recv(timeout=10)
int(socket.close_code)

# %%
ending(ws_url + "/robust", "a" * (2**24 + 1))

# %% [markdown]
# | code | meaning | should the client reconnect? |
# |---|---|---|
# | 1000 | finished | only when it needs a new conversation |
# | 1001 | the client leaves: its page was closed | no, it has gone |
# | 1006 | unknown: no close frame was received | yes, after a pause |
# | 1008 | not allowed | no |
# | 1009 | the message is too long | yes, but without that message |
# | 1011 | an error in the server | yes, after a pause |
# | 1012 | the server shuts down | yes, after a pause |
# | 1013 | the server is overloaded | yes, after a pause |
#
# The pause should grow with each attempt and be partly random (exponential backoff with jitter). Otherwise all clients
# reconnect at the same moment after a restart.
#
# ## Who is connecting?
#
# A program sends its key in a header. A web page cannot: `new WebSocket(url, protocols)` sets no headers. It can choose
# the list of subprotocols, so the key travels there:
#
# ```js
# new WebSocket("wss://…/v1/chat/ws", ["workshop.chat", "bearer.key-1"])
# ```
#
# The endpoint finds the list in `socket.scope["subprotocols"]` and selects one with `accept(subprotocol)`.


# %%
@app.websocket("/offered")
async def offered(socket: WebSocket):
    await socket.accept("workshop.chat")
    await socket.send_json(socket.scope["subprotocols"])


# %%
with connect(ws_url + "/offered", subprotocols=["workshop.chat", "bearer.key-1"]) as socket:
    print("offered", socket.recv(timeout=10), "selected", socket.subprotocol)

# %% [markdown]
# A browser that has offered subprotocols closes the connection if none of them is selected. The selected one is sent
# back in the response, so it must not be the key.
#
# Why not put the key in the URL or in a cookie? URLs end up in logs. Depending on its `SameSite` attribute, a cookie is
# also sent when a page of another site opens the WebSocket. CORS does not prevent that, so the server would have to
# check `Origin` itself.
#
# ### Exercise 3: check the key
#
# `KEYS` maps each key to its owner. Write the endpoint `/door`.
#
# - A key is in the header `Authorization: Bearer key-1`, or in the subprotocol `bearer.key-1`; a client sends at most
#   one. The scheme and the prefix are required, and the key must match exactly. You may ignore the case of `Bearer` in
#   the header, as HTTP does.
# - Always accept. A client that offers subprotocols always offers `workshop.chat`: select it. If a client offers none,
#   select none.
# - Send `hello ada` to the owner of a known key. A real endpoint would go on from here; yours may return.
# - Close every other connection with 1008, without sending a message.

# %%
KEYS = {"key-1": "ada", "key-2": "grace"}

# %% exercise="06.3"
door = FastAPI()


@door.websocket("/door")
async def knock(socket: WebSocket):
    # solution (about 8 lines)
    offered = socket.scope["subprotocols"]
    await socket.accept("workshop.chat" if "workshop.chat" in offered else None)
    header = socket.headers.get("Authorization")
    owners = [owner for key, owner in KEYS.items() if header == f"Bearer {key}" or f"bearer.{key}" in offered]
    if not owners:
        raise WebSocketException(1008, "unknown key")
    await socket.send_text(f"hello {owners[0]}")
    # starter
    # await socket.accept()
    # await socket.send_text(...)
    # end


# %%
check("06.3", door)

# %% [markdown]
# In the service this is a dependency, `accept_socket`. It also checks `Origin`, and tells the chat who the caller is.
# The chat does not know that there are two ways to authenticate.
#
# ## Who is still there?
#
# So far, every connection was closed by the server, the client or its operating system. A laptop that goes to sleep, or
# a phone in a tunnel, closes nothing. This endpoint sends news and records the time of each message.

# %%
sent = []


# %%
@app.websocket("/news")
async def news(socket: WebSocket):
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await socket.send_text("news")
            sent.append(time.perf_counter())
            await asyncio.sleep(0.05)


# %% [markdown]
# `listener` starts a separate process that receives the news. We freeze it after half a second; two seconds later the
# block ends and the process is killed.

# %%
from workshop.lab.fixtures.lesson_06 import listener


# %%
def freeze_a_listener(**options):
    sent.clear()
    with run_app(app, log_level="critical", **options) as other:
        with listener(other.url.replace("http", "ws") + "/news") as program:
            time.sleep(0.5)
            program.suspend()
            frozen = time.perf_counter()
            time.sleep(2)
        return in_ms({"news sent": sent, "frozen": [frozen]}, sent[0])


# %% [markdown]
# In the first run the server sends no pings. In the second it sends a ping every half second and waits half a second
# for the pong. For how many milliseconds does it keep sending to the frozen process?

# %%
guess = {"no pings": ..., "pings": ...}

# %% start_at=false
frozen_rows = {
    "no pings": freeze_a_listener(ws_ping_interval=None),
    "pings": freeze_a_listener(ws_ping_interval=0.5, ws_ping_timeout=0.5),
}
compare(guess, {name: rows["news sent"][-1] - rows["frozen"][0] for name, rows in frozen_rows.items()}, "ms")

# %% start_at=false
marks(one_above_another(frozen_rows))

# %% [markdown]
# Without pings, the server notices only when the process is killed. The operating system keeps receiving for a frozen
# process and acknowledges every byte, so TCP sees no problem. If the client's machine loses power, TCP can take many
# minutes to notice.
#
# With pings, the server notices within about a second. A ping is a frame defined by the WebSocket protocol, and the
# library at the other end answers it with a pong. uvicorn sends pings by default, but less often:

# %%
import uvicorn

uvicorn.Config(app).ws_ping_interval, uvicorn.Config(app).ws_ping_timeout

# %% [markdown]
# Both are in seconds: the interval between pings, and the time allowed for the pong.
#
# ## A server that does not receive
#
# The first chat, `/in-turn`, now runs on a server that pings twice a second. Its client is alive, and its library
# answers each ping. In one run the client only reads; in the other it also presses Stop after five words. How many of
# the 38 words does it receive in each run?

# %%
guess = {"only reads": ..., "presses Stop": ...}


# %%
def read_until_done(url, stop_after):
    n_words = 0
    with connect(url) as socket, suppress(ConnectionClosed):
        socket.send("What is a WebSocket?")
        while socket.recv(timeout=10) != "done":
            n_words += 1
            if n_words == stop_after:
                socket.send("stop")
    return n_words, int(socket.close_code), socket.close_reason


# %% start_at=false
with run_app(app, log_level="critical", ws_ping_interval=0.5, ws_ping_timeout=0.5) as other:
    url = other.url.replace("http", "ws") + "/in-turn"
    ends = {"only reads": read_until_done(url, None), "presses Stop": read_until_done(url, 5)}

# %% start_at=false
compare(guess, {run: n_words for run, (n_words, _, _) in ends.items()}, f"of {len(WORDS)} words")
ends

# %% [markdown]
# The second conversation was cut off, and the stated reason is wrong: the client did send its pongs. While a message
# waits in the endpoint's queue, uvicorn stops reading from the connection. The pongs are stuck behind the `stop`.
#
# With uvicorn's defaults of 20 seconds each, all it takes to trigger this is a long answer and a user who presses Stop.
#
# ## Pings as messages
#
# A library, or a proxy on the way, can answer protocol pings although the program behind it has stopped reading. The
# endpoint never sees them either. This is why the service defines its own `ping` and `pong` messages.
#
# Waiting for a pong needs two tools. One is an `asyncio.Event`: a task waits for it, and another sets it. The other is
# `async with asyncio.timeout(seconds):`, which raises `TimeoutError` if its block takes longer.
#
# The older `asyncio.wait_for(event.wait(), seconds)` does the same. But in Python 3.11, a task that is cancelled just as
# the event is set goes on as if nothing had happened.

# %%
event = asyncio.Event()
asyncio.get_running_loop().call_later(0.1, event.set)
await event.wait()

# %% [markdown]
# ### Exercise 4: a heartbeat
#
# Write `watch`. The `socket` has already been accepted, and there are many connections at the same time.
#
# - Echo every text except `pong`, at any time.
# - Send the first `ping` after `every` seconds, and each later one `every` seconds after the `pong` to the previous
#   `ping`. Only a `pong` received after a `ping` answers it, and only that `ping`.
# - If no `pong` arrives within `patience` seconds of a `ping`, close with 1011. Call `socket.close`: FastAPI does not
#   find a `WebSocketException` inside the `ExceptionGroup` of a `TaskGroup`.
# - When the connection has ended, end all tasks that you have started. `watch` may return, or raise
#   `WebSocketDisconnect`.


# %% exercise="06.4"
async def watch(socket, every, patience):
    # solution (about 19 lines)
    ponged = asyncio.Event()

    async def heartbeat():
        while True:
            await asyncio.sleep(every)
            ponged.clear()
            await socket.send_text("ping")
            try:
                async with asyncio.timeout(patience):
                    await ponged.wait()
            except TimeoutError:
                return await socket.close(1011, "no pong received")

    beating = asyncio.create_task(heartbeat())
    async for message in socket.iter_text():
        if message == "pong":
            ponged.set()
        else:
            await socket.send_text(message)
    beating.cancel()
    # starter
    # await ...
    # end


# %%
check("06.4", watch)

# %% [markdown]
# ## A client that stops reading
#
# This endpoint sends two thousand pages of ten thousand characters, without a pause. Its client connects and reads
# nothing for two seconds. How many of the 20 million characters does the endpoint manage to send? Answer in millions.

# %%
guess = ...

# %%
PAGE = "x" * 10_000
pages_sent = []


@app.websocket("/pages")
async def pages(socket: WebSocket):
    await socket.accept()
    with suppress(WebSocketDisconnect):
        for _ in range(2_000):
            await socket.send_text(PAGE)
            pages_sent.append(PAGE)


# %% start_at=false
pages_sent.clear()
with connect(ws_url + "/pages", max_queue=1, compression=None, close_timeout=0.1):
    time.sleep(2)
    compare(guess, sum(map(len, pages_sent)) / 1e6, "million characters")

# %% [markdown]
# `send_text` waits when the buffers of both operating systems are full. That protects the server's memory. But when
# `send_text` returns, you do not know whether anything has been read: the user may not have seen a single page.
#
# A `pong` message tells you more: everything sent before its `ping` has been read. `Peer.send` adds each message to
# the number of unread characters, and a pong subtracts what it confirms.


# %% mirrors="workshop.api.sockets:Peer._ping_and_wait"
from secrets import token_hex


async def _ping_and_wait(self) -> None:
    self._ping = Ping(id=token_hex(4))  # random, so that only a peer that has read the ping can answer it
    self._pong_received.clear()
    sent_before = self._unread
    await self.send(self._ping)
    await self._pong_received.wait()
    self._count(-sent_before)


# %% [markdown]
# Between two pieces, the answer awaits `drain`. While more than `WINDOW` characters are unread, it waits there, and the
# model with it. `Peer` pings every `HEARTBEAT_S` seconds, and whenever the window is full.


# %% mirrors="workshop.api.sockets:Peer.drain workshop.api.sockets:Peer._count"
async def drain(self) -> None:
    await self._has_room.wait()


def _count(self, characters: int) -> None:
    self._unread += characters
    if self._unread > WINDOW:
        self._is_full.set()
        self._has_room.clear()
    else:
        self._is_full.clear()
        self._has_room.set()


# %%
from workshop.api.sockets import HEARTBEAT_S, PONG_TIMEOUT_S, WINDOW

HEARTBEAT_S, PONG_TIMEOUT_S, WINDOW

# %% [markdown]
# So one message does two jobs: it detects clients that have gone and slows the answer down for slow readers. On Ray
# Serve, `send` does not wait, and each connection stays on one of several replicas. Lesson 10 shows the consequences.
#
# ## The service's chat
#
# The service puts all of this together. `connection` turns whatever ends a conversation into a close code, also from
# inside an `ExceptionGroup`. The heartbeat and the answer are tasks of its group.

# %% mirrors="workshop.api.sockets:connection"
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

logger = logging.getLogger("lesson 06")


@asynccontextmanager
async def connection(websocket: WebSocket) -> AsyncIterator[tuple[Peer, asyncio.TaskGroup]]:
    peer = Peer(websocket)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(peer.heartbeat())
            yield peer, tasks
    except ExceptionGroup as group:
        match group.exceptions[0]:
            case WebSocketDisconnect():
                pass
            case WebSocketException(code=code, reason=reason):
                await peer.close(code, reason)
            case error:
                logger.error("%s: %s", websocket.url.path, error, exc_info=error)
                await peer.close(status.WS_1011_INTERNAL_ERROR, "something went wrong in the service")


# %% [markdown]
# This method handles a message. `_start` creates a task in that group. `_cancel` cancels it, waits for it, and reports
# how far the answer got.


# %% mirrors="workshop.api.routers.chat:Chat._handle"
async def _handle(self, message: ClientMessage) -> None:
    match message:
        case Ask():
            self._start(message)
        case Cancel():
            await self._cancel(message)
        case Reset():
            self._require_idle()
            self._turns = []
            await self._greet()
        case Ping():
            await self._peer.send(Pong(id=message.id))
        case Pong():
            self._peer.pong(message)


# %% [markdown]
# Now run the service itself on uvicorn, with its own database. Its main model is slowed down as in lesson 05.

# %%
import tempfile
from dataclasses import replace

from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.lab import slow_model
from workshop.settings import Settings

settings = Settings(database_url=f"sqlite+aiosqlite:///{tempfile.mkdtemp()}/chat.sqlite")
services = build_services(settings)
models = dict(services.language.generators) | {"workshop-main": slow_model(25)}
services = replace(services, language=replace(services.language, generators=models))

# %%
service = run_app(create_app(services, settings), name="lesson 06 service")
chat_url = service.url.replace("http", "ws") + "/v1/chat/ws"

# %% [markdown]
# A client for it is short. An answer is a series of `text` messages followed by a `done` that says how it ended.


# %%
def send(socket, type, **fields):
    socket.send(json.dumps({"type": type} | fields))


def receive_json(socket):
    return json.loads(socket.recv(timeout=30))


def read_text(socket):
    text = ""
    while (message := receive_json(socket))["type"] == "text":
        text += message["text"]
    return text, message


# %%
def ask(socket, question):
    send(socket, "ask", id="1", content=question)
    return read_text(socket)


# %% [markdown]
# The service speaks first. We then ask two questions on one connection. The second makes sense only after the first, so
# for comparison we ask it again on a new connection.

# %% start_at=false
with connect(chat_url) as socket:
    ready = receive_json(socket)
    answers = [ask(socket, "What is a WebSocket?"), ask(socket, "How does it begin?")]
with connect(chat_url) as socket:
    receive_json(socket)
    answers.append(ask(socket, "How does it begin?"))
for text, done in answers:
    print(f"{done['usage']['prompt_tokens']:3} tokens in the prompt: {text}")
ready

# %% [markdown]
# On the first connection, the prompt of the second question includes the first question and its answer. Next, we send
# an invalid message, then a question that we cancel after three pieces of the answer, and then the same question again.

# %% start_at=false
with connect(chat_url) as socket:
    receive_json(socket)
    send(socket, "aks", id="1", content="What is Ray Serve?")
    error = receive_json(socket)
    send(socket, "ask", id="2", content="What is Ray Serve?")
    begun = "".join(receive_json(socket)["text"] for _ in range(3))
    send(socket, "cancel", id="2")
    _, cancelled = read_text(socket)
    whole, _ = ask(socket, "What is Ray Serve?")

# %% start_at=false
print(f"{begun} …\n{whole}")
error, cancelled

# %% [markdown]
# The conversation survives the mistake and the cancelled answer. When it does end, it gives a reason. Here a message is
# too long:

# %% start_at=false
ending(chat_url, "a" * 2**19)

# %% [markdown]
# ### Exercise 5: a robust client
#
# The client above assumes that nothing goes wrong. Write `read_answer(socket, id)`, which reads the answer to the
# question with this `id`. `socket.recv()` returns the next message, `socket.send(text)` sends one. Both raise
# `ConnectionClosed` when the connection has ended, with any code.
#
# - Every message is a JSON object with a `type`. Some have no `id`.
# - Join the `text` of all messages `{"type": "text", "id": id, "text": "…"}`. Return it at `{"type": "done", …}` with
#   this `id`, regardless of its other fields.
# - Reply to each `{"type": "ping", "id": "x"}` with `{"type": "pong", "id": "x"}`. A ping has its own `id`, not that of
#   a question.
# - Ignore messages with the `id` of another question, an `error` without an `id`, and all other types.
# - Raise `UnansweredError("…")`, with any text, for an `error` with this `id`, or if the connection ends before `done`.

# %% exercise="06.5"
from workshop.lab.fixtures.lesson_06 import UnansweredError


def read_answer(socket, id):
    # solution (about 15 lines)
    text = ""
    with suppress(ConnectionClosed):
        while True:
            message = json.loads(socket.recv())
            match message["type"], message.get("id"):
                case "ping", ping_id:
                    socket.send(json.dumps({"type": "pong", "id": ping_id}))
                case "text", text_id if text_id == id:
                    text += message["text"]
                case "done", done_id if done_id == id:
                    return text
                case "error", error_id if error_id == id:
                    raise UnansweredError(message["message"])
    raise UnansweredError("the connection was closed")
    # starter
    # return ...
    # end


# %%
check("06.5", read_answer)

# %% [markdown]
# ## Quiz
#
# **1.** A chat endpoint answers inside its receive loop. A user closes the page in the middle of an answer that takes a
# minute. When does the endpoint notice?
# <details><summary>Answer</summary>When it sends the next word, at the earliest. While the model is thinking and
# nothing is sent, it does not notice. An endpoint that keeps receiving in the meantime would notice at once.</details>
#
# **2.** A client's log shows code 1006 again and again. What did the server say?
# <details><summary>Answer</summary>Nothing. The client itself reports 1006 when a connection ends without a close
# frame: the endpoint returned or crashed, or a proxy or the network cut the connection.</details>
#
# **3.** uvicorn pings every connection. Why does the service send its own pings as well?
# <details><summary>Answer</summary>A library, or a proxy, can answer protocol pings although the program does not read.
# A <code>pong</code> message confirms that everything before its ping was read, so the service knows how much is
# unread.</details>
#
# **4.** The chat keeps its turns in a variable of the endpoint. The server restarts, and the client connects again.
# What does the model know about the conversation?
# <details><summary>Answer</summary>Nothing. The variable belonged to the old connection. The client can send the turns
# again, or the service can store them where all its processes reach them.</details>
#
# **5.** A chat room sends each message to all members in a loop: `await member.send_text(…)`. One member's network
# hangs. Who notices?
# <details><summary>Answer</summary>Everyone, once that member's buffers are full: the loop waits in its
# <code>send_text</code>. Give each member a task and a bounded queue.</details>
#
# ## Recap
#
# | what happened | why | what helps |
# |---|---|---|
# | Stop came too late | the endpoint received only between answers | a task for the answer |
# | the model worked for nobody | the task outlived the connection | `TaskGroup`, and a `receive` that raises |
# | one typo ended the conversation | an exception left the endpoint | a union of messages, and a reply to mistakes |
# | clients saw only 1006 | no close frame | accept, then close with a code |
# | a page cannot send a header | the browser's WebSocket API | the key as a subprotocol |
# | news was sent to a frozen client | TCP acknowledged every byte | pings |
# | megabytes went to a client that did not read | `send` fills buffers first | pongs that confirm reading, a window |
#
# You can now hold a conversation that both sides can interrupt, and that ends with a reason. Next: lesson 07 puts
# middleware around it, and logs and measures what the service does.
#
# ## Tear-down

# %%
stop_all()
