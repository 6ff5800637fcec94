# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 06 WebSockets
#
# Somebody presses Stop, and the model goes on. You will see why, build a conversation that can be interrupted, and find
# out how it ends, who is still there, and what two replicas do to it.
#
# Afterwards you can
#
# - read and answer on one connection at the same time,
# - answer a mistake without ending the conversation, and end it with a reason,
# - notice a client that is gone without a word, or does not read,
# - say where a conversation lives, and what follows for replicas.
#
# The code runs in {{ minutes }} and takes {{ memory }} at most. With the exercises, plan 100 minutes.

# %%
from workshop.lab import bars, check, hint, marks, run_app
from workshop.lab import service_map, solution, start_serve, stop_serve

service_map("06")

# %% [markdown]
# ## A conversation
#
# Lesson 05 streamed an answer to a client who could only listen. Where that is all, keep to it: it is plain HTTP. On a
# WebSocket both sides send whenever they like, over one connection that stays open.
#
# A language model of useful size makes 20 to 50 tokens a second. This stand-in says 25 words a second, and counts the
# answers that it is busy with.

# %%
TEXT = """A WebSocket is one connection that stays open. Either side may send at any time, and neither waits for the
other. That is what a chat needs: words flow to the reader, and the reader may interrupt them."""
WORDS = TEXT.split()

len(WORDS)

# %%
import asyncio
import time
from contextlib import suppress


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
# An answer is sent word by word, and then `done`. A client may leave in the middle. Then there is nobody to tell.

# %%
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app, model = FastAPI(), Model()


# %%
async def answer(socket, question):
    with suppress(WebSocketDisconnect):
        async for word in model.words(question):
            await socket.send_text(word)
        await socket.send_text("done")


# %% [markdown]
# Now the chat. `iter_text` yields what the client sends, until it leaves. Each text is a question, but for `stop`,
# which is noted and confirmed.

# %%
stops_seen = []


@app.websocket("/in-turn")
async def in_turn(socket: WebSocket):
    await socket.accept()
    async for said in socket.iter_text():
        if said == "stop":
            stops_seen.append(time.perf_counter())
            await socket.send_text("stopped")
        else:
            await answer(socket, said)


# %% [markdown]
# This lesson breaks things on purpose. `log_level` keeps the server from printing a traceback each time.

# %%
server = run_app(app, name="lesson 06", log_level="critical")
ws = server.url.replace("http", "ws")
ws

# %% [markdown]
# The client asks, presses Stop after a third of the words, and reads on until it hears `stopped`.

# %%
from websockets.sync.client import connect


# %%
def press_stop(url):
    heard, started = [], time.perf_counter()
    with connect(url) as socket:
        socket.send("What is a WebSocket?")
        while socket.recv(timeout=30) != "stopped":
            heard.append(time.perf_counter())
            if len(heard) == len(WORDS) // 3:
                socket.send("stop")
                pressed = time.perf_counter()
    return {"words heard": heard, "stop pressed": [pressed], "stop seen": stops_seen[-1:]}, started


# %% [markdown]
# How many words will it hear after it has pressed Stop?

# %%
guess = 0

# %%
in_turn_times, started = press_stop(ws + "/in-turn")
after_stop = sum(at > in_turn_times["stop pressed"][0] for at in in_turn_times["words heard"])
print(f"you said {guess}, it was {after_stop - 1}, and then `done`")

# %% [markdown]
# All of them. The server was not slow: look at when it sees the `stop`.


# %%
def in_ms(rows, started, name=""):
    return {name + row: [1000 * (at - started) for at in times] for row, times in rows.items()}


in_turn_rows = in_ms(in_turn_times, started)
marks(in_turn_rows, title="read, then answer, then read")

# %% [markdown]
# ## What just happened?
#
# The `stop` arrived at once and lay in the server's queue. The endpoint was in the middle of `answer`, and it reads
# again only when that is over. A WebSocket goes both ways. Our code went one way at a time.
#
# So answering must not stand in the way of reading. It gets a task of its own, and a task can be cancelled.


# %%
@app.websocket("/side-by-side")
async def side_by_side(socket: WebSocket):
    await socket.accept()
    answering = None
    async for said in socket.iter_text():
        if said != "stop":
            answering = asyncio.create_task(answer(socket, said))
        elif answering:
            stops_seen.append(time.perf_counter())
            answering.cancel()
            await socket.send_text("stopped")


# %% [markdown]
# `cancel` raises an error at the place where the task waits: inside the model. So the model stops, too.

# %%
both_rows = in_ms(*press_stop(ws + "/side-by-side"), "side by side: ")
marks(in_ms(in_turn_times, started, "in turn: ") | both_rows)

# %% [markdown]
# ## Whose task is it?
#
# A task that nobody owns has a life of its own. This model needs two seconds until its first word. The client asks, and
# leaves while the model thinks. Half a second later: is the model still busy?

# %%
guess = "no"


# %%
def ask_and_leave(path):
    model.pause_s = 2
    with connect(ws + path) as socket:
        socket.send("What is a WebSocket?")
        time.sleep(0.3)
    time.sleep(0.5)
    model.pause_s = 0.04
    return model.running


# %%
ask_and_leave("/side-by-side")

# %% [markdown]
# One answer is being computed for nobody. The endpoint has ended, and its task has not. A model on a GPU would keep a
# place busy that others wait for.
#
# A `TaskGroup` owns its tasks: if something in the block fails, it cancels them all. That the client has left is such a
# failure. Here a task wants to sleep for ten seconds.


# %%
async def group():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(10))
        await asyncio.sleep(0.1)
        raise WebSocketDisconnect(1001)


# %%
began = time.perf_counter()
try:
    await group()
except* WebSocketDisconnect as left:
    print(f"{left.exceptions} after {time.perf_counter() - began:.1f} s")

# %% [markdown]
# Several tasks may fail at once, so a group raises a group. `except*` catches by what is inside.
#
# One more thing is needed. `iter_text` ends quietly when the client leaves. `receive_text` raises
# `WebSocketDisconnect`, and that is what ends the group.
#
# ### Exercise 1: stop means stop
#
# Write the conversation on an accepted socket: a text is a question, answered with the words of `model.words(question)`
# and `done`. `stop` ends the answer under way with `stopped` in the place of `done`. When the client leaves, no answer
# runs on.


# %% exercise="06.1"
async def chat(socket, model):
    # solution (about 16 lines)
    answering = None

    async def answer(question):
        async for word in model.words(question):
            await socket.send_text(word)
        await socket.send_text("done")

    try:
        async with asyncio.TaskGroup() as tasks:
            while True:
                said = await socket.receive_text()
                if said != "stop":
                    answering = tasks.create_task(answer(said))
                elif answering and answering.cancel():
                    await socket.send_text("stopped")
    except* WebSocketDisconnect:
        pass
    # starter
    # await ...
    # end


# %%
check("06.1", chat)

# %% [markdown]
# ## Messages have a shape
#
# Is `stop` a command, or a question about stopping? Over HTTP, path and method would tell. Here every message has to
# say itself what it is. In the service each is a JSON object with a `type`, and a `cancel` names the answer that it
# means.

# %%
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# %% mirrors="workshop.api.schemas.chat:Id workshop.api.schemas.chat:_Message workshop.api.schemas.chat:Cancel workshop.api.schemas.chat:Ping"
Id = Annotated[str, Field(min_length=1, max_length=64)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cancel(_Message):
    type: Literal["cancel"] = "cancel"
    id: Id


class Ping(_Message):
    type: Literal["ping"] = "ping"
    id: Id | None = None


# %% [markdown]
# The other messages of a client are `ask`, `reset` and `pong`. A union with a discriminator looks at `type` first. So
# what it says of a mistake is about the one message that was meant, and not about all five.

# %%
from workshop.api.schemas.chat import Ask, Pong, Reset

# %% mirrors="workshop.api.schemas.chat:ClientMessage workshop.api.schemas.chat:CLIENT_MESSAGE"
ClientMessage: TypeAlias = Annotated[Ask | Cancel | Reset | Ping | Pong, Field(discriminator="type")]
CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)

# %%
CLIENT_MESSAGE.validate_json('{"type": "cancel", "id": "1"}')

# %% [markdown]
# This endpoint understands them. To keep it short, it answers everything with a `pong` that has the same `id`.


# %%
@app.websocket("/strict")
async def strict(socket: WebSocket):
    await socket.accept()
    while True:
        message = CLIENT_MESSAGE.validate_json(await socket.receive_text())
        await socket.send_text(Pong(id=message.id).model_dump_json())


# %% [markdown]
# Four clients make a mistake each. Then each of them sends a correct message. What does the second one get?

# %%
MISTAKES = {
    "a typo": '{"type": "pnig", "id": "1"}',
    "half a message": '{"type": "ping", "id": ',
    "a number for an id": '{"type": "ping", "id": 1}',
    "a binary frame": b'{"type": "ping", "id": "1"}',
}

# %%
from websockets.exceptions import ConnectionClosed


# %%
def send_two(path, mistake):
    with connect(ws + path) as socket:
        try:
            socket.send(mistake)
            first = socket.recv(timeout=10)
            socket.send('{"type": "ping", "id": "2"}')
            return f"{first} {socket.recv(timeout=10)}"
        except ConnectionClosed:
            return f"closed: {int(socket.close_code)}"


# %%
for name, mistake in MISTAKES.items():
    print(f"{name:20}", send_two("/strict", mistake))

# %% [markdown]
# Nothing: the conversation is over. A failed HTTP request costs the client one answer. An error that leaves a WebSocket
# endpoint costs the connection, and all that was said on it. One typo, and twenty turns are gone.
#
# A mistake deserves an answer. The service has a message for it, `error`.

# %%
from pydantic import ValidationError

from workshop.api.schemas.chat import Error


# %%
def reply_to(frame):
    try:
        message = CLIENT_MESSAGE.validate_json(frame)
    except ValidationError as error:
        return Error(error="ValidationError", message=error.errors()[0]["msg"][:60])
    return Pong(id=message.id)


# %%
@app.websocket("/patient")
async def patient(socket: WebSocket):
    await socket.accept()
    async for frame in socket.iter_text():
        await socket.send_text(reply_to(frame).model_dump_json(exclude={"details"}, exclude_none=True))


# %%
for name, mistake in MISTAKES.items():
    print(f"{name:20}", send_two("/patient", mistake))

# %% [markdown]
# Three of the four. `receive_text` and `iter_text` want a text frame; one binary frame, and they raise a `KeyError`.
# The service takes the event as it comes, and looks. The length is checked here, too.

# %%
from fastapi import WebSocketException, status

from workshop.api.sockets import MAX_MESSAGE_BYTES


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
# It is a method of `Peer`, the service's wrapper of a socket. More of it follows. With it, the fourth gets its second
# answer, too.

# %%
from workshop.api.sockets import Peer


# %%
@app.websocket("/kind")
async def kind(socket: WebSocket):
    await socket.accept()
    peer = Peer(socket)
    with suppress(WebSocketDisconnect):
        while True:
            await peer.send(reply_to(await peer.receive()))


# %%
send_two("/kind", MISTAKES["a binary frame"])

# %% [markdown]
# ### Exercise 2: a budget
#
# `{"type": "spend", "tokens": 30}` adds tokens, one at least; `{"type": "reset"}` begins at zero again. Both are
# answered with `{"type": "total", "tokens": 30}`. Whatever else comes is answered with `{"type": "error", …}`, and the
# total stays.

# %% exercise="06.2"
budget = FastAPI()


# solution (about 22 lines)
class Spend(BaseModel):
    type: Literal["spend"]
    tokens: Annotated[int, Field(ge=1)]


class StartAgain(BaseModel):
    type: Literal["reset"]


ORDER = TypeAdapter(Annotated[Spend | StartAgain, Field(discriminator="type")])


@budget.websocket("/budget")
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
# @budget.websocket("/budget")
# async def count(socket: WebSocket):
#     await socket.accept()
#     total = 0
#     while True:
#         await socket.receive_text()
#         await socket.send_json(...)
# end

# %%
check("06.2", budget)

# %% [markdown]
# ## How it ends
#
# Whoever ends a conversation can say why: with a code and a few words. Here are four endings of our own.


# %%
@app.websocket("/returns")
async def returns(socket: WebSocket):
    await socket.accept()


@app.websocket("/bug")
async def bug(socket: WebSocket):
    await socket.accept()
    raise ValueError("a bug")


# %%
@app.websocket("/refused-late")
async def refused_late(socket: WebSocket):
    await socket.accept()
    raise WebSocketException(1008, "who are you?")


@app.websocket("/refused-early")
async def refused_early(socket: WebSocket):
    raise WebSocketException(1008, "who are you?")


# %% [markdown]
# And what does the other side learn? Which of these four endings does a client see as an error, and which tells it the
# reason?

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
        return f"HTTP {refusal.response.status_code}"


# %%
endings = {path: ending(ws + path) for path in ("/returns", "/bug", "/refused-late", "/refused-early")}
endings

# %% [markdown]
# Two surprises. An endpoint that simply returns looks like one that crashed: both end without a word, and 1006 is what
# the client calls that. Nobody sends it.
#
# And who is refused early gets no code at all. Before `accept`, this is still HTTP, and the refusal is a status. A
# browser does not show it to the page: there, too, all is 1006. So accept first, and then refuse.
#
# Two endings come from the server itself: a message beyond 16 MiB, and a stop.

# %%
endings["too long a message"] = ending(ws + "/kind", "a" * (2**24 + 1))

# %%
other = run_app(app, name="lesson 06 stops")
with connect(other.url.replace("http", "ws") + "/kind") as socket, suppress(ConnectionClosed):
    other.stop()
    socket.recv(timeout=10)
endings["the server stops"] = int(socket.close_code), socket.close_reason
endings

# %% [markdown]
# | code | what it says | come back? |
# |---|---|---|
# | 1000 | all is said | when there is more |
# | 1006 | nothing: no goodbye came | yes, after a pause |
# | 1008 | not you, or not like this | no |
# | 1009 | too long | not with this message |
# | 1011 | something went wrong here | yes, after a pause |
# | 1012, 1013 | the server stops; too busy now | yes, after a pause |
#
# The last column is for the client's code. Everybody's pause should grow, and be partly random: else all clients of a
# server that starts again come back in the same moment.
#
# ## Who is there?
#
# A program sends its key in a header. A page cannot: `new WebSocket(url, protocols)` sets no headers. All it can choose
# is the list of subprotocols, in which the key travels along:
#
# ```js
# new WebSocket("wss://…/v1/chat/ws", ["workshop.chat", "bearer.key-1"])
# ```
#
# An endpoint finds the list in the `scope`. It picks one with `accept(subprotocol)`.


# %%
@app.websocket("/offered")
async def offered(socket: WebSocket):
    await socket.accept("workshop.chat")
    await socket.send_json(socket.scope["subprotocols"])


# %%
with connect(ws + "/offered", subprotocols=["workshop.chat", "bearer.key-1"]) as socket:
    print(socket.recv(timeout=10), "and this one was picked:", socket.subprotocol)

# %% [markdown]
# A browser that has offered subprotocols ends the connection if none of them is picked. And what is picked stands in
# the answer, so it must not be the key.
#
# Why so roundabout? An address ends up in logs, so a key has no place there. And a cookie would come along with the
# WebSocket of any page in the world: the browser's rules against that, CORS, do not hold for WebSockets.
#
# ### Exercise 3: who are you?
#
# `KEYS` says whose key is whose. Greet the owner with `hello ada`, whichever way the key came: in the header
# `Authorization: Bearer key-1`, or as a subprotocol beside `workshop.chat`. For anybody else, close with 1008.

# %% exercise="06.3"
KEYS = {"key-1": "ada", "key-2": "grace"}
door = FastAPI()


@door.websocket("/door")
async def knock(socket: WebSocket):
    # solution (about 8 lines)
    offered = socket.scope["subprotocols"]
    await socket.accept("workshop.chat" if "workshop.chat" in offered else None)
    keys = [socket.headers.get("Authorization", "").removeprefix("Bearer ")]
    keys += [name.removeprefix("bearer.") for name in offered]
    owner = next((KEYS[key] for key in keys if key in KEYS), None)
    if owner is None:
        raise WebSocketException(1008, "who are you?")
    await socket.send_text(f"hello {owner}")
    # starter
    # await socket.accept()
    # await socket.send_text(...)
    # end


# %%
check("06.3", door)

# %% [markdown]
# In the service this is a dependency, `accept_socket`. It gives the chat its `principal`, as `get_principal` gives it
# to HTTP endpoints. The chat itself does not know that there are two ways.
#
# ## Who is still there?
#
# So far everyone said goodbye, or at least hung up. A laptop that is closed, or a phone in a tunnel, does neither. This
# program listens to the news, and we freeze it.

# %%
import tempfile

folder = tempfile.mkdtemp()

# %%
# %%writefile {folder}/listener.py
import sys

from websockets.sync.client import connect

with connect(sys.argv[1]) as socket:
    for _ in socket:
        pass

# %%
sent = []


@app.websocket("/news")
async def news(socket: WebSocket):
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await socket.send_text("news")
            sent.append(time.perf_counter())
            await asyncio.sleep(0.05)


# %%
import sys

import psutil


# %%
def start_listener(url):
    listener = psutil.Popen([sys.executable, f"{folder}/listener.py", url])
    while not sent and listener.is_running():
        time.sleep(0.01)
    return listener


# %%
def freeze_a_listener(name, **options):
    sent.clear()
    with run_app(app, log_level="critical", **options) as other:
        listener = start_listener(other.url.replace("http", "ws") + "/news")
        time.sleep(0.5)
        listener.suspend()
        rows = {"frozen": [time.perf_counter()], "sent": sent}
        time.sleep(2)
        listener.kill(), listener.wait()
        return in_ms(rows, sent[0], name)


# %% [markdown]
# After half a second the listener is frozen; two seconds later it is killed. When does the server notice that it talks
# to nobody?

# %%
without = freeze_a_listener("no pings: ", ws_ping_interval=None)
marks(without)

# %% [markdown]
# Only at the kill. A frozen program's operating system goes on receiving, and confirms every byte. TCP has nothing to
# complain about. Even of a machine that is gone without a trace, it can take many minutes to learn.
#
# So one has to ask. The protocol has a frame for it: a ping, which the other side's library answers with a pong.

# %%
pings = freeze_a_listener("pings: ", ws_ping_interval=0.5, ws_ping_timeout=0.5)
marks(without | pings)

# %% [markdown]
# Half a second at most until the next ping, half a second of patience. uvicorn does this by itself, in its own time:

# %%
import uvicorn

uvicorn.Config(app).ws_ping_interval, uvicorn.Config(app).ws_ping_timeout

# %% [markdown]
# Seconds, until the ping and for the pong.
#
# ## A server that does not listen
#
# The very first chat, `/in-turn`, gets pings now, twice a second. Its client is alive and answers each of them. Once it
# just reads, and once it presses Stop early. What is the difference?


# %%
def read_until_done(url, stops):
    heard = 0
    with connect(url) as socket, suppress(ConnectionClosed):
        socket.send("What is a WebSocket?")
        while socket.recv(timeout=10) != "done":
            heard += 1
            if stops and heard == 5:
                socket.send("stop")
    return f"{heard} words", int(socket.close_code), socket.close_reason


# %%
with run_app(app, log_level="critical", ws_ping_interval=0.5, ws_ping_timeout=0.5) as other:
    url = other.url.replace("http", "ws") + "/in-turn"
    patient_client, stopping_client = (read_until_done(url, stops) for stops in (False, True))
patient_client, stopping_client

# %% [markdown]
# The second answer broke off, for a reason that is not true: the client did send its pongs. But while an endpoint
# leaves a message lying, the server stops reading from the connection. The pongs lie behind the `stop`, and nobody sees
# them.
#
# With uvicorn's usual times it takes a long answer, and somebody who presses Stop.
#
# ## Pings of our own
#
# The protocol's pings have a limit: the library answers them, or a proxy on the way, even if the program behind it
# reads no more. And the endpoint learns nothing of them. So the service has `ping` and `pong` among its messages.
#
# ### Exercise 4: a heartbeat
#
# `watch` gets an accepted socket. It echoes every text. Every `every` seconds it sends `ping`, and the client has to
# say `pong`, which is not echoed, within `patience` seconds. If it does not, close with 1011.


# %% exercise="06.4"
async def watch(socket, every, patience):
    # solution (about 18 lines)
    ponged = asyncio.Event()

    async def heartbeat():
        while True:
            await asyncio.sleep(every)
            ponged.clear()
            await socket.send_text("ping")
            try:
                await asyncio.wait_for(ponged.wait(), patience)
            except TimeoutError:
                return await socket.close(1011, "no pong came")

    beating = asyncio.create_task(heartbeat())
    async for said in socket.iter_text():
        if said == "pong":
            ponged.set()
        else:
            await socket.send_text(said)
    beating.cancel()
    # starter
    # await ...
    # end


# %%
check("06.4", watch)

# %% [markdown]
# ## On Ray Serve
#
# Serve runs a class in processes of its own, the replicas. A proxy takes the requests, and passes each on to one of
# them. Lesson 09 takes that apart; here we only ask what becomes of connections. Starting it takes a while.

# %%
from ray import serve

serve_url = start_serve().replace("http", "ws")

# %% [markdown]
# Each replica builds its app for itself, as in the service. `Api` only says how: it calls the function that it was
# given. `bind` will give it one.


# %%
class Api:
    def __init__(self, make_app, *arguments):
        self.make_app, self.arguments = make_app, arguments

    def __serve_build_asgi_app__(self):
        return self.make_app(*self.arguments)


api = serve.deployment(serve.ingress()(Api))

# %% [markdown]
# ## A reader who does not read
#
# Pages are sent without a pause to a client who takes none of them: ten thousand characters each, twenty million in
# all. The first endpoint simply sends.

# %%
from secrets import token_hex

PAGE = token_hex(5_000)


# %%
async def plain(socket, sent):
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while sent["/plain"] < 20e6:
            await socket.send_text(PAGE)
            sent["/plain"] += len(PAGE)


# %% [markdown]
# The second does it as the service does, with `Peer`. `connection` gives it one, with a heartbeat beside it. After each
# page it waits for `drain`.

# %%
from workshop.api.schemas.chat import Text
from workshop.api.sockets import connection


# %%
async def with_peer(socket, sent):
    await socket.accept()
    async with connection(socket) as (peer, tasks):
        tasks.create_task(peer.receive())
        while sent["/peer"] < 20e6:
            await peer.send(Text(id="1", text=PAGE))
            sent["/peer"] += len(PAGE)
            await peer.drain()


# %%
def pages():
    app, sent = FastAPI(), {"/plain": 0, "/peer": 0}
    app.get("/sent")(lambda: sent)

    @app.websocket("/{way}")
    async def flood(socket: WebSocket, way: str):
        await (plain if way == "plain" else with_peer)(socket, sent)

    return app


# %% [markdown]
# The client connects, and for two seconds does nothing. How many characters does the endpoint get rid of: on uvicorn,
# on Serve, and on Serve with `Peer`?

# %%
import httpx


# %%
def not_read(ws_url, path):
    with connect(ws_url + path, max_queue=1, compression=None, close_timeout=0.1):
        time.sleep(2)
        return httpx.get(ws_url.replace("ws", "http", 1) + "/sent", trust_env=False).json()[path] / 1000


# %%
with run_app(pages()) as other:
    unread = {"uvicorn": not_read(other.url.replace("http", "ws"), "/plain")}

# %%
serve.run(api.bind(pages), name="pages", route_prefix="/")
unread |= {"Serve": not_read(serve_url, "/plain"), "Serve, with Peer": not_read(serve_url, "/peer")}
serve.delete("pages")

# %%
bars({name: {"sent": kilos} for name, kilos in unread.items()}, y="thousand characters that nobody reads")

# %% [markdown]
# On uvicorn `send` waits when the buffers of the two operating systems are full. On Serve it never waits: the replica
# hands everything to the proxy, and that keeps it in memory, for every slow reader of every replica.
#
# `Peer` counts. What was sent before a ping has been read when its pong comes. When the characters that are not yet
# confirmed exceed a window, `drain` waits, and `heartbeat` pings at once.


# %% mirrors="workshop.api.sockets:Peer._ping_and_wait"
async def _ping_and_wait(self) -> None:
    self._ping = Ping(id=token_hex(4))  # nobody can answer it who has not read it
    self._pong_received.clear()
    sent_before = self._unread
    await self.send(self._ping)
    await self._pong_received.wait()
    self._count(-sent_before)


# %%
from workshop.api import sockets

{name: getattr(sockets, name) for name in ("HEARTBEAT_S", "PONG_TIMEOUT_S", "WINDOW")}

# %% [markdown]
# So one message does two jobs: it finds the dead, and it slows down for the slow. While `drain` waits, the chat takes no
# more words from its model.
#
# ## A room with two doors
#
# A chat room: what one member says, all hear. The members are in a set. A new member is told in which process it sits.

# %%
import os


# %%
async def listen_and_tell(socket, members):
    await socket.accept()
    members.add(socket)
    await socket.send_text(f"process {os.getpid()}")
    async for said in socket.iter_text():
        for member in list(members):
            await member.send_text(said)
    members.discard(socket)


# %%
def room():
    app, members = FastAPI(), set()

    @app.websocket("/room")
    async def enter(socket: WebSocket):
        await listen_and_tell(socket, members)

    return app


# %% [markdown]
# Eight members come in, and the first one says hello. We count by process who is there, and who hears it.


# %%
def hears(socket):
    with suppress(TimeoutError):
        return socket.recv(timeout=1) == "hello"
    return False


# %%
from collections import Counter
from contextlib import ExitStack


# %%
def who_hears(url, members=8):
    with ExitStack() as seats:
        sockets = [seats.enter_context(connect(url)) for _ in range(members)]
        places = [socket.recv(timeout=10) for socket in sockets]
        time.sleep(1.5)
        sockets[0].send("hello")
        heard = [place for place, socket in zip(places, sockets, strict=True) if hears(socket)]
    return {place: {"members": n, "hear it": heard.count(place)} for place, n in Counter(places).items()}


# %%
with run_app(room()) as other:
    on_uvicorn = who_hears(other.url.replace("http", "ws") + "/room")
on_uvicorn

# %% [markdown]
# All hear all. The same room on Serve, with two replicas: how many of the eight will hear it?

# %%
guess = 8

# %%
two_doors = api.options(num_replicas=2)
serve.run(two_doors.bind(room), name="room", route_prefix="/")
on_serve = who_hears(serve_url + "/room")
print(f"you said {guess}, it was {sum(counts['hear it'] for counts in on_serve.values())}")

# %%
bars(on_serve, y="members", title="one room, two replicas")

# %% [markdown]
# No error, no log line, and in a test with one replica all is well. A connection lives in one process from its first
# byte to its last, and so does everything that its endpoint keeps in variables. Two replicas are two sets of members.
#
# And whoever comes back need not come back to the same place. Ten visits of the same client:


# %%
def visit(url):
    with connect(url) as socket:
        return socket.recv(timeout=10)


Counter(visit(serve_url + "/room") for _ in range(10))

# %% [markdown]
# ## How many fit in?
#
# An HTTP request leaves a replica after milliseconds. A connection stays, and all the time it takes one of the places
# that a replica has for requests. People keep coming, until somebody waits in vain for two seconds. How many are
# inside?

# %%
guess = 1000


# %%
def fill(url):
    with ExitStack() as seats:
        for taken in range(50):
            try:
                seats.enter_context(connect(url, open_timeout=2))
            except TimeoutError:
                return taken
    return "50 or more"


# %%
print(f"you said {guess}, it was {fill(serve_url + '/room')}: {api.max_ongoing_requests} for each replica")

# %% [markdown]
# The next one is not refused, and hears nothing: its handshake waits in line. A deployment that accepts WebSockets
# needs a large `max_ongoing_requests`; the service's API has 1000. And since silent guests take places, too, the
# service ends a chat in which nobody has asked for ten minutes, with code 1000.

# %%
serve.delete("room")

# %% [markdown]
# ## What to do
#
# **Share nothing.** In the service's chat, a conversation belongs to its connection. Any replica will do, and if one
# dies, its clients come back to another and begin anew. Most endpoints need no more.
#
# **Share a place.** What all members must know goes where all replicas can reach it: one object that passes messages
# on. As a plain class it is a few lines.


# %%
class Bus:
    def __init__(self):
        self.queues = set()

    async def publish(self, item):
        for queue in self.queues:
            queue.put_nowait(item)

    async def subscribe(self):
        queue = asyncio.Queue()
        self.queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.queues.discard(queue)

    async def subscribers(self):
        return len(self.queues)


# %% [markdown]
# The room on a bus has no members. Each connection publishes what its client says, and forwards what the bus brings.
# Again two things at the same time.


# %%
async def forward(socket, bus):
    async for said in bus.subscribe():
        await socket.send_text(said)


# %%
def room_on(bus):
    app = FastAPI()

    @app.websocket("/room")
    async def enter(socket: WebSocket):
        await socket.accept()
        await socket.send_text(f"process {os.getpid()}")
        forwarding = asyncio.create_task(forward(socket, bus))
        async for said in socket.iter_text():
            await bus.publish(said)
        forwarding.cancel()

    return app


# %% [markdown]
# Now the bus runs in a process of its own, as a second deployment. What the others have of it is a handle: `remote`
# calls a method over there. An adapter gives the handle the methods of the class. A subscription is a call that yields
# and does not end, until we cancel it.


# %%
class HandleBus:
    def __init__(self, handle):
        self.handle = handle

    async def publish(self, item):
        await self.handle.publish.remote(item)

    async def subscribe(self):
        items = self.handle.options(stream=True).subscribe.remote()
        try:
            async for item in items:
                yield item
        finally:
            items.cancel()


# %% [markdown]
# Two API replicas with room for a hundred members each, and one bus with room for a thousand subscriptions.

# %%
bus = serve.deployment(Bus).options(max_ongoing_requests=1000).bind()
roomy = two_doors.options(max_ongoing_requests=100)
serve.run(roomy.bind(room_on, HandleBus(bus)), name="room", route_prefix="/")

# %%
on_the_bus = who_hears(serve_url + "/room")
bars(on_the_bus, y="members", title="one room, two replicas, one bus")

# %% [markdown]
# Everybody hears it, wherever they sit. And now that they have all left?

# %%
await serve.get_deployment_handle("Bus", "room").subscribers.remote()

# %% [markdown]
# No subscription is left behind: the `finally` of an adapter in one process has ended a generator in another.
#
# One replica of the bus is one point of failure, and one process's speed. Where that is not enough, Redis takes its
# place: `PUBLISH` and `SUBSCRIBE` are the same two methods. The room would not notice.
#
# ### Exercise 5: rooms with names
#
# Write `rooms(bus)`, an app with many rooms on one bus. What somebody says in `/rooms/tea` reaches all others in `tea`,
# whichever app they are connected to; not the speaker, and nobody in other rooms. Any item may be published. Who
# leaves, leaves no subscription behind.


# %% exercise="06.5"
def rooms(bus):
    app = FastAPI()

    @app.websocket("/rooms/{name}")
    async def enter(socket: WebSocket, name: str):
        await socket.accept()
        # solution (about 12 lines)
        me = token_hex(8)

        async def forward():
            async for room, speaker, said in bus.subscribe():
                if room == name and speaker != me:
                    await socket.send_text(said)

        forwarding = asyncio.create_task(forward())
        async for said in socket.iter_text():
            await bus.publish((name, me, said))
        forwarding.cancel()
        # starter
        # await ...
        # end

    return app


# %%
check("06.5", rooms)

# %% [markdown]
# Ray has done its part.

# %%
serve.delete("room")
stop_serve()

# %% [markdown]
# ## The service's chat
#
# The service puts all of this together. Whatever happens on a connection comes out of `connection`, which turns it into
# a close code. The heartbeat and the answer are tasks of one group.

# %%
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

logger = logging.getLogger("lesson 06")


# %% mirrors="workshop.api.sockets:connection"
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
# And this decides what a message does. `_start` makes a task in that group, `_cancel` cancels it and says how far it
# came.


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
# Now the service itself, on uvicorn, with a database of its own. Its main model gets the pause in each step that you
# know from lesson 05.

# %%
from dataclasses import replace

from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.lab import slow_model
from workshop.settings import Settings

# %%
settings = Settings(database_url=f"sqlite+aiosqlite:///{folder}/chat.sqlite")
services = build_services(settings)
models = dict(services.language.generators) | {"workshop-main": slow_model(25)}
services = replace(services, language=replace(services.language, generators=models))

# %%
service = run_app(create_app(services, settings), name="lesson 06 service")
chat_url = service.url.replace("http", "ws") + "/v1/chat/ws"

# %% [markdown]
# A client of it is short. It answers pings, and takes the text of an answer together.

# %%
import json


# %%
def say(socket, kind, **fields):
    socket.send(json.dumps({"type": kind} | fields))


def hear(socket):
    while (said := json.loads(socket.recv(timeout=30)))["type"] == "ping":
        say(socket, "pong", id=said["id"])
    return said


# %%
def rest_of_answer(socket):
    text = ""
    while (said := hear(socket))["type"] == "text":
        text += said["text"]
    return text, said


def ask(socket, question):
    say(socket, "ask", id="1", content=question)
    return rest_of_answer(socket)


# %% [markdown]
# The service speaks first, and says what there is. Then two questions, on one connection.

# %%
with connect(chat_url) as socket:
    ready = hear(socket)
    first, first_end = ask(socket, "What is a WebSocket?")
    second, second_end = ask(socket, "How does it begin?")
ready

# %% [markdown]
# The second question makes sense only after the first. We sent it alone. Does the service put the first turn before it?
# The same question on a new connection will tell.

# %%
with connect(chat_url) as socket:
    hear(socket)
    alone, alone_end = ask(socket, "How does it begin?")

# %%
for text, end in ((first, first_end), (second, second_end), (alone, alone_end)):
    print(f"{end['usage']['prompt_tokens']:3} tokens in the prompt: {text}")

# %% [markdown]
# The prompt of the second question is longer, by the first turn. Now a mistake, a question, and Stop after three pieces
# of the answer. Each is answered, and the conversation goes on.

# %%
with connect(chat_url) as socket:
    hear(socket)
    say(socket, "aks", id="1", content="What is Ray Serve?")
    mistake = hear(socket)
    say(socket, "ask", id="2", content="What is Ray Serve?")
    begun = "".join(hear(socket)["text"] for _ in range(3))
    say(socket, "cancel", id="2")
    _, cancelled_end = rest_of_answer(socket)
    whole, whole_end = ask(socket, "What is Ray Serve?")

# %%
mistake, cancelled_end

# %%
print(f"{begun} …\n{whole}")

# %% [markdown]
# And it knows how to end.

# %%
ending(chat_url, "a" * 2**19)

# %% [markdown]
# ## Quiz
#
# **1.** A chat endpoint answers within its reading loop. A user closes the page in the middle of an answer that takes a
# minute. When does the endpoint know?
# <details><summary>Answer</summary>When it sends the next word, at best: its reading would have told it at once. While
# the model thinks and nothing is sent, it knows nothing.</details>
#
# **2.** A client's log says 1006 again and again. What has the server said?
# <details><summary>Answer</summary>Nothing. 1006 is the client's own word for an end without a goodbye: the endpoint
# has returned or crashed, a proxy has cut the line, or the network has.</details>
#
# **3.** uvicorn pings every connection. Why does the service send pings of its own?
# <details><summary>Answer</summary>The library, or a proxy, answers the protocol's pings, whether or not the program
# reads. A pong as a message says that all before its ping has been read: so the service knows how much is unread, also
# where <code>send</code> never waits.</details>
#
# **4.** A room for all users works on a laptop. With three replicas, people complain that some messages are lost. Which
# ones?
# <details><summary>Answer</summary>Those of members in other replicas. About a third of the members hear each message:
# the members are kept in a variable, of which every process has one.</details>
#
# **5.** In the room with the set, one member's network hangs. Who notices?
# <details><summary>Answer</summary>On uvicorn everybody, as soon as its buffers are full: the loop over the members
# waits in that member's <code>send_text</code>. On Serve the proxy's memory. A task per member, with a limit to what
# may wait, helps in both.</details>
#
# ## Recap
#
# | what happened | why | what helps |
# |---|---|---|
# | Stop came too late | the endpoint read only between answers | a task for the answer, a group for the tasks |
# | the model worked for nobody | the task outlived the connection | `TaskGroup`, and a `receive` that raises |
# | a typo ended the conversation | an error left the endpoint | a union of messages; a mistake is answered |
# | 1006, and nobody knows why | no close frame | accept, then close with a code |
# | news for a frozen client | TCP does not ask | pings |
# | memory for a slow reader | `send` does not wait on Serve | pongs that say what was read, and a window |
# | half of the room heard nothing | a connection lives in one process | share nothing, or share a bus |
#
# You can now hold a conversation that both sides can interrupt, and that any replica can have. Next: lesson 07 puts
# middleware around it, and logs and measures what the service does.
#
# ## Tear-down

# %%
service.stop()
server.stop()
stop_serve()
