# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 10 One app, two runtimes
#
# A chat room works on uvicorn. On Ray Serve with two replicas, some of its members hear nothing, and there is no error.
# You will see why, and write apps that are right on both runtimes, with any number of replicas.
#
# Afterwards you can
#
# - run a FastAPI app on Ray Serve, built inside each replica,
# - tell which state breaks when a second replica is added, and move it to where it belongs,
# - say how many connections a replica accepts, and what happens to the next one,
# - keep a slow reader from filling the memory of Serve's proxy.
#
# The code runs in {{ minutes }} and needs at most {{ memory }} of memory. Allow 45 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("10.3")` runs everything before exercise 3.

# %%
from workshop.lab import bars, check, compare, hint, run_app
from workshop.lab import service_map, solution, start_at, start_serve, stop_all, stop_serve

service_map("10")

# %% [markdown]
# ## A room for everyone
#
# A chat room: what one member says, all members hear. The members are in a set. A new member is told which process it is
# connected to.

# %%
import os

from fastapi import FastAPI, WebSocket


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
# Eight members come in, and the first one says hello. For each process, we count the members and those who hear it.

# %%
import time
from collections import Counter
from contextlib import ExitStack, suppress

from websockets.sync.client import connect


# %%
def hears(socket):
    with suppress(TimeoutError):
        return socket.recv(timeout=1) == "hello"
    return False


# %%
def who_hears(url):
    with ExitStack() as seats:
        sockets = [seats.enter_context(connect(url)) for _ in range(8)]
        places = [socket.recv(timeout=10) for socket in sockets]
        time.sleep(1)
        sockets[0].send("hello")
        heard = [place for place, socket in zip(places, sockets, strict=True) if hears(socket)]
    return {place: {"members": n, "hear it": heard.count(place)} for place, n in Counter(places).items()}


# %%
with run_app(room(), name="lesson 10") as server:
    on_uvicorn = who_hears(server.url.replace("http", "ws") + "/room")
on_uvicorn

# %% [markdown]
# Everyone hears it. Now the same room on Ray Serve. This class tells Serve how a replica gets its app; the details follow.

# %%
from ray import serve

url = start_serve()
ws = url.replace("http", "ws")


# %%
class Room:
    def __serve_build_asgi_app__(self):
        return room()


two_doors = serve.deployment(serve.ingress()(Room)).options(num_replicas=2)

# %% [markdown]
# The room has two replicas, for twice the load. How many of the eight members will hear the first one?

# %%
guess = ...

# %%
serve.run(two_doors.bind(), name="room", route_prefix="/")
on_serve = who_hears(ws + "/room")
compare(guess, sum(counts["hear it"] for counts in on_serve.values()))

# %%
bars(on_serve, y="members", title="one room, two replicas")

# %% [markdown]
# ## What just happened?
#
# There was no error and no log line, and with one replica everything works. A connection stays in one process from its
# first byte to its last, and so do the variables of its endpoint. Two replicas have two sets of members.
#
# A client that comes back may reach another replica. Here are ten visits by the same client:


# %%
def visit(url):
    with connect(url) as socket:
        return socket.recv(timeout=10)


Counter(visit(ws + "/room") for _ in range(10))

# %% [markdown]
# ## How the app gets into a replica
#
# Serve's examples put `@serve.ingress(app)` over a class. Then the app is made here, pickled, and unpickled in each
# replica. An app that holds a lock, a client or a loaded model does not survive that.

# %% tags=["raises-exception"]
import threading

from ray import cloudpickle

app = FastAPI()
app.state.lock = threading.Lock()
cloudpickle.dumps(app)

# %% [markdown]
# `serve.ingress()` without an app works differently. Each replica makes an object of the class, and calls its
# `__serve_build_asgi_app__`. Only the class and the arguments of `bind` are pickled. The service does the same:

# %%
from starlette.types import ASGIApp

from workshop.api.app import create_app
from workshop.integration.serve_app import UnderWay, WithoutRequestId
from workshop.integration.services import Handles, build_services
from workshop.settings import Settings


# %% mirrors="workshop.integration.serve_app:Api"
class Api:
    def __init__(self, settings: Settings, handles: Handles) -> None:
        self._settings = settings
        self._handles = handles

    def __serve_build_asgi_app__(self) -> ASGIApp:
        application = create_app(build_services(self._settings, self._handles), self._settings)
        self._requests = UnderWay(WithoutRequestId(application))
        return self._requests

    async def end_requests(self) -> None:
        await self._requests.end()


# %% [markdown]
# The settings are an argument of `bind`, and so are the handles of the models. In lesson 09, `create_app` made the same
# app for `run_app`. When a replica stops, `UnderWay` ends its requests, which uvicorn does by itself.
#
# ### Exercise 1: from factory to application
#
# `on_serve(make_app, *arguments)` returns an application, ready for `serve.run`. Each replica builds
# `make_app(*arguments)` once, in its own process, and serves it. On uvicorn, the same factory would run as
# `run_app(make_app(*arguments))`. Do not name an attribute `app`: Serve adds a property of that name to the class.


# %% exercise="10.1"
def on_serve(make_app, *arguments):
    # solution (about 8 lines)
    class Ingress:
        def __init__(self, make_app, *arguments):
            self.make_app, self.arguments = make_app, arguments

        def __serve_build_asgi_app__(self):
            return self.make_app(*self.arguments)

    return serve.deployment(serve.ingress()(Ingress)).bind(make_app, *arguments)
    # starter
    # return ...
    # end


# %%
check("10.1", on_serve)

# %% [markdown]
# ## Where may state live?
#
# The set of members was a variable of the app. So were the tickets that this box office sold: a ticket is a random text,
# and a dictionary knows who bought it.

# %%
from secrets import token_hex

from fastapi import HTTPException


# %%
def box_office():
    app, sold = FastAPI(), {}

    @app.post("/tickets/{name}")
    async def sell(name: str):
        ticket = token_hex(8)
        sold[ticket] = name
        return {"ticket": ticket}

    @app.get("/holder")
    async def holder(ticket: str):
        if ticket not in sold:
            raise HTTPException(401, "not one of ours")
        return {"name": sold[ticket]}

    return app


# %% [markdown]
# Two servers stand for two replicas. Ada buys her ticket at the first, and shows it to both. Which status code does each
# of them respond with?

# %%
import httpx

client = httpx.Client(trust_env=False)
guess = {"first": ..., "second": ...}

# %%
with run_app(box_office(), name="first") as first, run_app(box_office(), name="second") as second:
    ticket = client.post(first.url + "/tickets/ada").json()
    servers = {"first": first, "second": second}
    shown = {name: client.get(server.url + "/holder", params=ticket) for name, server in servers.items()}
compare(guess, {name: response.status_code for name, response in shown.items()})

# %% [markdown]
# Behind Serve's proxy, about every second try would fail. Three places do not depend on the replica:
#
# | place | how a replica gets it | good for |
# |---|---|---|
# | the factory's arguments | all replicas have the same values | settings, keys |
# | the client | it comes with the request | sessions, cursors, the turns of a conversation |
# | a deployment of its own, a database | by a call | what clients share |
#
# A client can change what it keeps. A signature reveals that, since it takes the key to make one.

# %%
import hmac

signature = hmac.new(b"the key", b"ada", "sha256").hexdigest()
hmac.compare_digest(signature, hmac.new(b"a guess", b"ada", "sha256").hexdigest())

# %% [markdown]
# ### Exercise 2: a ticket for any door
#
# Write `stateless_office(key)`, a box office with the same two endpoints. All replicas get the same `key`, some bytes.
# Each accepts the tickets of the others, also after a restart. Everything else gets the status code 401: a changed
# ticket, a ticket that was signed with another key, nonsense. The name may be any text without a slash.


# %% exercise="10.2"
def stateless_office(key):
    app = FastAPI()
    # solution (about 14 lines)

    def ticket_for(name):
        return hmac.new(key, name.encode(), "sha256").hexdigest() + name

    @app.post("/tickets/{name}")
    async def sell(name: str):
        return {"ticket": ticket_for(name)}

    @app.get("/holder")
    async def holder(ticket: str):
        name = ticket[64:]
        if not hmac.compare_digest(ticket.encode(), ticket_for(name).encode()):
            raise HTTPException(401, "not one of ours")
        return {"name": name}

    # starter
    #
    # @app.post("/tickets/{name}")
    # async def sell(name: str):
    #     return ...
    #
    # @app.get("/holder")
    # async def holder(ticket: str):
    #     return ...
    #
    # end
    return app


# %%
check("10.2", stateless_office)

# %% [markdown]
# A signed ticket needs no memory, but it cannot be taken back before it expires. In the service's chat, the turns belong
# to the connection. If a replica dies, its clients connect to another one and begin a new conversation.
#
# ## How many fit in?
#
# An HTTP request leaves a replica after milliseconds. A WebSocket stays, and takes one of the replica's places for
# requests as long as it is open. Members enter the room until one of them has waited for three seconds. How many are
# inside?

# %%
guess = ...


# %%
def fill(url):
    with ExitStack() as seats:
        for taken in range(50):
            try:
                seats.enter_context(connect(url, open_timeout=3))
            except TimeoutError:
                return taken
    return "50 or more"


# %%
compare(guess, fill(ws + "/room"))
two_doors.max_ongoing_requests

# %% [markdown]
# That is how many places each of the two replicas has, for HTTP requests and WebSockets together. The next client is not
# refused: its handshake waits in line, and it learns nothing.
#
# So a deployment that accepts WebSockets needs a large `max_ongoing_requests`. The service's API has a large one, and it
# ends a chat in which nobody has asked anything for ten minutes.

# %%
Settings().deployments.api.max_ongoing_requests

# %%
serve.delete("room")

# %% [markdown]
# ## A client that does not read
#
# The runtimes differ in one more way. An endpoint sends pages of ten thousand characters without a pause, up to twenty
# million characters, to a client that reads none of them. The first version simply sends.

# %%
from fastapi import WebSocketDisconnect

PAGE = token_hex(5_000)


# %%
async def plain(socket, sent):
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while sent["/plain"] < 20e6:
            await socket.send_text(PAGE)
            sent["/plain"] += len(PAGE)


# %% [markdown]
# The second version uses the service's `Peer` of lesson 06. `connection` provides it, and runs its heartbeat. After each
# page the endpoint awaits `drain`.

# %%
from workshop.api.schemas.chat import Ping, Text
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
# The app counts what it has sent. That is state in a variable, too, and it is right as long as there is one replica.


# %%
class Pages:
    def __serve_build_asgi_app__(self):
        return pages()


serve.run(serve.deployment(serve.ingress()(Pages)).bind(), name="pages", route_prefix="/")


# %% [markdown]
# The client connects, and for two seconds does nothing. How many thousand characters can each endpoint send?

# %%
guess = {"uvicorn": ..., "Serve": ..., "uvicorn, with Peer": ..., "Serve, with Peer": ...}


# %%
def unread(base, path):
    with connect(base.replace("http", "ws") + path, max_queue=1, compression=None, close_timeout=0.1):
        time.sleep(2)
        return client.get(base + "/sent").json()[path] / 1000


# %%
with run_app(pages(), name="lesson 10") as server:
    bases = {"uvicorn": server.url, "Serve": url}
    sent = {name: unread(base, "/plain") for name, base in bases.items()}
    sent |= {f"{name}, with Peer": unread(base, "/peer") for name, base in bases.items()}

# %%
compare(guess, sent, "thousand")
bars({name: {"sent": kilos} for name, kilos in sent.items()}, y="thousand characters", title="sent, and read by nobody")

# %% [markdown]
# On uvicorn, `send` waits as soon as the buffers of the two operating systems are full. On Serve it never waits. The
# replica hands everything to the proxy, which keeps it in memory, for every slow client of every replica.
#
# `Peer` counts. What was sent before a ping has been read when its pong arrives. Once more characters than a window are
# unconfirmed, `drain` waits, and the heartbeat pings at once.


# %% mirrors="workshop.api.sockets:Peer._ping_and_wait"
async def _ping_and_wait(self) -> None:
    self._ping = Ping(id=token_hex(4))  # random, so that only a peer that has read the ping can answer it
    self._pong_received.clear()
    sent_before = self._unread
    await self.send(self._ping)
    await self._pong_received.wait()
    self._count(-sent_before)


# %%
from workshop.api import sockets

{name: getattr(sockets, name) for name in ("HEARTBEAT_S", "PONG_TIMEOUT_S", "WINDOW")}

# %% [markdown]
# One message does two jobs on both runtimes: it detects clients that are gone, and it slows the endpoint down for slow
# ones. While `drain` waits, the chat takes no more words from its model.

# %%
serve.delete("pages")

# %% [markdown]
# ## A place that all replicas share
#
# Back to the room. Its messages are for several clients, so no client can keep them for the others. They need a place
# that all replicas can reach: an object that passes messages on. As a plain class it is short.

# %%
import asyncio


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
# A room on a bus has no members. Each connection publishes what its client says, and forwards what the bus brings. That
# is two things at the same time, so one of them is a task.


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
# On Serve the bus is a deployment, and its callers have a handle. An adapter gives the handle the methods of the class. A
# subscription is a call with `stream=True` that does not end until it is cancelled.


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
# So the app is the same on both runtimes, and only what it is given differs: `room_on(Bus())` on uvicorn, and this on Serve.


# %%
class RoomOnBus:
    def __init__(self, bus):
        self.bus = bus

    def __serve_build_asgi_app__(self):
        return room_on(HandleBus(self.bus))


# %% [markdown]
# A subscription takes a place, too. There are two replicas of the API with a hundred places each, and one bus with a
# thousand. How many of the eight hear the first one now?

# %%
guess = ...

# %%
bus = serve.deployment(Bus).options(max_ongoing_requests=1000).bind()
room_api = serve.deployment(serve.ingress()(RoomOnBus)).options(num_replicas=2, max_ongoing_requests=100)
serve.run(room_api.bind(bus), name="room on a bus", route_prefix="/")
on_the_bus = who_hears(ws + "/room")
compare(guess, sum(counts["hear it"] for counts in on_the_bus.values()))

# %%
bars(on_the_bus, y="members", title="one room, two replicas, one bus")

# %% [markdown]
# Everyone hears it, in either replica. Meanwhile all have left. How many subscriptions does the bus still have?

# %%
await asyncio.sleep(2)
await serve.get_deployment_handle("Bus", "room on a bus").subscribers.remote()

# %% [markdown]
# No subscription is left behind: the `finally` of an adapter in one process has ended a generator in another.
#
# The bus has one replica, since two buses would again be two rooms. It is a single point of failure, and as fast as one
# process. Where that is not enough, Redis takes its place: `PUBLISH` and `SUBSCRIBE` are the same two methods.
#
# ### Exercise 3: rooms with names
#
# Write `rooms(bus)`, an app with many rooms on one bus. What somebody says in `/rooms/tea` reaches everyone else in
# `tea`, whichever replica they are connected to. It does not reach the speaker, or anyone in another room. A text may
# hold any characters, and so may a name, except for a slash; the bus takes any item that can be pickled. Members come
# and go at any time. Whoever leaves, leaves no subscription behind.


# %% exercise="10.3"
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
check("10.3", rooms)

# %% [markdown]
# ## Quiz
#
# **1.** A room for all users works on a laptop. With three replicas, people complain that some messages are lost. Which
# ones?
# <details><summary>Answer</summary>Those of members who are connected to other replicas. About a third of the members
# hear each message, since every replica has a set of its own.</details>
#
# **2.** Why does the service build its FastAPI app in <code>__serve_build_asgi_app__</code>, and not at the top of a
# module?
# <details><summary>Answer</summary>Nothing of the app has to be pickled, so it may hold clients, locks and models. And it
# gets its handles as arguments, so that the same <code>create_app</code> runs on uvicorn with other
# arguments.</details>
#
# **3.** A counter of requests is a variable of the app. When is that right with three replicas?
# <details><summary>Answer</summary>When each replica reports its own count, and somebody adds them up. That is how
# metrics work. For a limit on all requests it is wrong: three replicas would let in three times as many.</details>
#
# **4.** A deployment has two replicas and the default <code>max_ongoing_requests</code>. Ten clients hold a WebSocket
# open. What does the health check at <code>/health</code> say?
# <details><summary>Answer</summary>Nothing, until somebody leaves: all places are taken, and it waits in
# line.</details>
#
# **5.** In the room with the set, one member's network hangs. Who notices?
# <details><summary>Answer</summary>On uvicorn everyone, as soon as the buffers are full: the loop over the members waits
# in that member's <code>send_text</code>. On Serve nobody does, and the proxy's memory grows. A task per member, with a
# limit to what may wait, helps on both.</details>
#
# ## Recap
#
# | on uvicorn | on Serve | what is right on both |
# |---|---|---|
# | one process has the app | each replica builds its own | a factory with arguments |
# | a variable is seen by all requests | by those of one replica | state at the client, or in a place of its own |
# | as many connections as there is memory | `max_ongoing_requests` per replica | room for all, and an end for the silent |
# | `send` waits for a slow reader | `send` never waits | pongs that confirm, and a window |
# | `Bus()` | `HandleBus(handle)` | an app that knows only their methods |
#
# You can now write an app that does not know which runtime it is on, nor how many replicas it has. Next: lesson 11
# chooses their number.
#
# ## Tear-down

# %%
client.close()
stop_all()
stop_serve()
