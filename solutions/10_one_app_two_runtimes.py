# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 10 One app, two runtimes
#
# A chat room works on uvicorn. On Ray Serve with two replicas, some members hear nothing, and no error appears. You will
# see why, and write apps that work correctly on both runtimes, with any number of replicas.
#
# Afterwards you can
#
# - run a FastAPI app on Ray Serve, built inside each replica,
# - tell which state breaks when you add a second replica, and move it to where it belongs,
# - explain how many connections a replica accepts, and what happens to the next one,
# - keep a slow reader from filling the memory of Serve's proxy,
# - write the layer that connects FastAPI and Ray Serve, and name six mistakes that are made there.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("10.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, run_app
from workshop.lab import service_map, solution, start_at, start_serve, stop_all, stop_serve

service_map("10")

# %% [markdown]
# ## A room for everyone
#
# In this chat room, everyone hears what anyone says. The app keeps its members in a set. A member is a connection, and
# receives the ID of the process that serves it.

# %%
import os

from fastapi import FastAPI, WebSocket


# %%
async def listen_and_tell(socket, members):
    await socket.accept()
    members.add(socket)
    try:
        await socket.send_text(f"process {os.getpid()}")
        async for said in socket.iter_text():
            for member in list(members):
                await member.send_text(said)
    finally:
        members.discard(socket)


# %%
def room():
    app, members = FastAPI(), set()

    @app.websocket("/room")
    async def enter(socket: WebSocket):
        await listen_and_tell(socket, members)

    return app


# %% [markdown]
# Eight members join, and the first one says hello. For each process, we count its members and how many of them hear it.

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
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(url)) for _ in range(8)]
        processes = [socket.recv(timeout=10) for socket in sockets]
        time.sleep(1)  # until each of them can hear
        sockets[0].send("hello")
        heard = [process for process, socket in zip(processes, sockets, strict=True) if hears(socket)]
    return {process: {"members": n, "hear it": heard.count(process)} for process, n in Counter(processes).items()}


# %%
with run_app(room(), name="lesson 10") as server:
    heard_on_uvicorn = who_hears(server.url.replace("http", "ws") + "/room")
heard_on_uvicorn

# %% [markdown]
# Everyone hears it. Now the same room on Ray Serve. First, start Serve:

# %%
from ray import serve

url = start_serve()
ws = url.replace("http", "ws")


# %% [markdown]
# This class tells Serve how each replica gets its app. The details follow.


# %%
class Room:
    def __serve_build_asgi_app__(self):
        return room()


two_replicas = serve.deployment(serve.ingress()(Room)).options(num_replicas=2)

# %% [markdown]
# The room now has two replicas, so that it can handle twice the load. Serve spreads connections over them, not
# always evenly. About how many of the eight members will hear the hello?

# %%
guess = ...

# %%
serve.run(two_replicas.bind(), name="room", route_prefix="/")
heard_on_serve = who_hears(ws + "/room")
compare(guess, sum(counts["hear it"] for counts in heard_on_serve.values()))

# %%
bars(heard_on_serve, y="members", title="one room, two replicas")

# %% [markdown]
# ## What just happened?
#
# No error or log line reports it, and with one replica everything works. Serve's proxy assigns each connection to one
# replica for as long as it is open. The endpoint's variables exist only in that process: two replicas, two sets of members.
#
# A client that reconnects may reach a different replica. Here the same client connects ten times:


# %%
def visit(url):
    with connect(url) as socket:
        return socket.recv(timeout=10)


Counter(visit(ws + "/room") for _ in range(10))

# %% [markdown]
# ## How the app gets into a replica
#
# Most Serve examples decorate a class with `@serve.ingress(app)`. The app is then created in this process, pickled, and
# unpickled in each replica. An app that holds a lock or an open client cannot be pickled, and a loaded model makes the
# pickle huge.

# %% tags=["raises-exception"]
import threading

from ray import cloudpickle

app = FastAPI()
app.state.lock = threading.Lock()
cloudpickle.dumps(app)

# %% [markdown]
# `serve.ingress()` without an app works differently. Each replica creates an instance of the class and calls its
# `__serve_build_asgi_app__` method. Only the class and the arguments of `bind` are pickled.
#
# The service does this too, with three wrappers around its app. `WithoutRequestId` removes the header `X-Request-ID`,
# because Serve's proxy adds it again. `WithinTrace` lets a trace go on that the proxy has begun. `RequestTracker` ends the
# requests in progress when a replica stops; uvicorn does that by itself.

# %%
from starlette.types import ASGIApp

from workshop.api.app import create_app
from workshop.integration.serve_app import RequestTracker, WithinTrace, WithoutRequestId
from workshop.integration.services import Handles, build_services
from workshop.settings import Settings


# %% mirrors="workshop.integration.serve_app:Api"
class Api:
    def __init__(self, settings: Settings, handles: Handles) -> None:
        self._settings = settings
        self._handles = handles

    def __serve_build_asgi_app__(self) -> ASGIApp:
        application = create_app(build_services(self._settings, self._handles), self._settings)
        self._requests = RequestTracker(WithinTrace(WithoutRequestId(application)))
        return self._requests

    async def end_requests(self) -> None:
        await self._requests.end()


# %% [markdown]
# The settings and the handles of the models are arguments of `bind`. `create_app` is the one that you ran with `run_app`
# in lesson 09.
#
# ### Exercise 1: from factory to Serve application
#
# `on_serve(make_app, *arguments)` returns a Serve application: what `bind` returns, ready for `serve.run`. Each replica
# calls `make_app(*arguments)` exactly once, in its own process, and serves the app that it gets. The arguments are plain
# values, such as settings. Do not name an attribute `app`: Serve adds a property with that name to the class.
#
# On uvicorn, you would run the same factory with `run_app(make_app(*arguments))`.


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
# The set of members was a variable of the app. This box office keeps its tickets the same way: a ticket is a random
# string, and a dictionary maps it to the name of the buyer.

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
# Two servers play the part of two replicas. Ada buys a ticket from the first, and shows it to both. Which status code
# does each one return?

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
# Behind Serve's proxy, about half of all attempts would fail. State can live in three places that do not depend on the
# replica:
#
# | place | how a replica gets it | good for |
# |---|---|---|
# | the factory's arguments | when it starts, the same for all | settings, keys |
# | the client | with each request | sessions, cursors |
# | a deployment of its own, a database | with a call | state that clients share |
#
# A client can tamper with what it stores. A signature reveals that, because nobody can create a valid one without the key.

# %%
import hmac

signature = hmac.new(b"the key", b"ada", "sha256").digest()
hmac.compare_digest(signature, hmac.new(b"a guess", b"ada", "sha256").digest())

# %% [markdown]
# ### Exercise 2: a ticket that every replica accepts
#
# Write `stateless_office(key)`, a box office with the same endpoints, requests and responses. All replicas get the same
# `key` (a `bytes` object). Each accepts the tickets that the others sold, even after a restart. The name may be any text
# without a slash. Two tickets for one name may be equal.
#
# Respond with 401 to any other ticket: one that was changed in any character, one that was signed with another key, an
# empty one, or nonsense, which may contain any characters.


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
# A signed ticket needs no storage, but it cannot be revoked. Real ones carry an expiry time.
#
# The service's chat does something simpler: the turns of a conversation last as long as its connection. If a replica dies,
# its clients reconnect to another replica and start a new conversation.
#
# ## How many connections fit?
#
# Most HTTP requests are finished within milliseconds or seconds. A WebSocket occupies one of the replica's request slots
# for as long as it is open. Members join the room until one has to wait for more than three seconds. How many got in?

# %%
guess = ...


# %%
def fill(url):
    with ExitStack() as stack:
        for taken in range(50):
            try:
                stack.enter_context(connect(url, open_timeout=3))
            except TimeoutError:
                return taken
    return "50 or more"


# %% start_at=false
compare(guess, fill(ws + "/room"))
two_replicas.max_ongoing_requests

# %% [markdown]
# By default, `max_ongoing_requests` is five: each of the two replicas has five slots, for HTTP requests and WebSockets
# together. The next client is not refused. Its handshake waits in a queue, and the client is not told why.
#
# So a deployment that accepts WebSockets needs a large `max_ongoing_requests`. The service's API sets a high limit, and
# closes any chat that has been idle for ten minutes.

# %%
Settings().deployments.api.max_ongoing_requests

# %%
serve.delete("room")

# %% [markdown]
# ## A client that does not read
#
# The runtimes differ in one more way. This endpoint sends page after page of 10,000 characters, up to 20 million in all,
# to a client that reads nothing. The first version simply sends.

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
# The second version uses the service's `Peer` from lesson 06. `connection` creates it, and runs its heartbeat. After each
# page, the endpoint awaits `drain`, which returns when at most `WINDOW` characters are unread.

# %%
from workshop.api import sockets
from workshop.api.schemas.chat import Ping, Text
from workshop.api.sockets import connection

# %%
{name: getattr(sockets, name) for name in ("HEARTBEAT_S", "PONG_TIMEOUT_S", "WINDOW")}


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
# The app counts what it has sent. That is also state in a variable. It is correct here only because there is a single
# replica.


# %%
class Pages:
    def __serve_build_asgi_app__(self):
        return pages()


# %% start_at=false
serve.run(serve.deployment(serve.ingress()(Pages)).bind(), name="pages", route_prefix="/")


# %% [markdown]
# The client connects and does nothing for two seconds. How many characters, in thousands, can each endpoint send?

# %%
guess = {"uvicorn": ..., "Serve": ..., "uvicorn, with Peer": ..., "Serve, with Peer": ...}


# %%
def unread(base, path):
    with connect(base.replace("http", "ws") + path, max_queue=1, compression=None, close_timeout=0.1):
        time.sleep(2)
        return client.get(base + "/sent").json()[path] / 1000


# %% start_at=false
with run_app(pages(), name="lesson 10") as server:
    bases = {"uvicorn": server.url, "Serve": url}
    sent = {name: unread(base, "/plain") for name, base in bases.items()}
    sent |= {f"{name}, with Peer": unread(base, "/peer") for name, base in bases.items()}

# %% start_at=false
compare(guess, sent, "thousand")

# %% start_at=false
bars({name: {"sent": kilos} for name, kilos in sent.items()}, y="thousand characters", title="sent, and read by nobody")

# %% [markdown]
# On uvicorn, `send` waits as soon as the buffers between server and client are full. On Serve it never waits. The replica
# hands everything to the proxy, which buffers it in memory, for every slow client of every replica.
#
# `Peer` counts the characters that no pong has confirmed. If they exceed the window, `drain` waits, and the heartbeat
# calls this method of `Peer` at once. Messages arrive in order: when the pong comes, the client has read everything sent
# before the ping, so those characters are subtracted.


# %% mirrors="workshop.api.sockets:Peer._ping_and_wait"
async def _ping_and_wait(self) -> None:
    self._ping = Ping(id=token_hex(4))  # random, so that only a peer that has read the ping can answer it
    self._pong_received.clear()
    sent_before = self._unread
    await self.send(self._ping)
    await self._pong_received.wait()
    self._count(-sent_before)


# %% [markdown]
# On both runtimes, the ping does two jobs: it detects clients that have gone, and it slows the endpoint down to the speed
# of a slow client. While `drain` waits, the chat reads no more words from the model.

# %% start_at=false
serve.delete("pages")

# %% [markdown]
# ## A place that all replicas share
#
# Back to the room. Its messages go to several clients, so no single client can hold them. They need something that every
# replica can reach and that passes messages on. As a plain class, it is short:

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
# A room on a bus keeps no set of members. Each connection publishes what its client says, and forwards what arrives on
# the bus. Both run at the same time, so one of them is a task.


# %%
async def forward(socket, bus):
    with suppress(WebSocketDisconnect):  # the client has left
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
        try:
            async for said in socket.iter_text():
                await bus.publish(said)
        finally:
            forwarding.cancel()

    return app


# %% [markdown]
# A connection hears what is said after its subscription has started, shortly after `accept`. That is why `who_hears`
# waits for a second.
#
# On Serve, the bus is a deployment, and callers reach it through a handle. An adapter gives that handle the methods of
# the class. A subscription is a call with `stream=True` that runs until it is cancelled.


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
# The app is the same on both runtimes. Only its argument differs: `room_on(Bus())` on uvicorn, and this on Serve:


# %%
class RoomOnBus:
    def __init__(self, bus):
        self.bus = bus

    def __serve_build_asgi_app__(self):
        return room_on(HandleBus(self.bus))


# %% [markdown]
# A member occupies one slot in a replica, and its subscription one slot in the bus. So we raise both limits: to a hundred
# in each replica, and to a thousand in the one bus. How many of the eight members hear the hello now?

# %%
guess = ...

# %% start_at=false
bus = serve.deployment(Bus).options(max_ongoing_requests=1000).bind()
room_api = serve.deployment(serve.ingress()(RoomOnBus)).options(num_replicas=2, max_ongoing_requests=100)
serve.run(room_api.bind(bus), name="room on a bus", route_prefix="/")
heard_on_the_bus = who_hears(ws + "/room")
compare(guess, sum(counts["hear it"] for counts in heard_on_the_bus.values()))

# %% start_at=false
bars(heard_on_the_bus, y="members", title="one room, two replicas, one bus")

# %% [markdown]
# Everyone hears it, on both replicas. By now all of them have left. The bus still has this many subscriptions:

# %% start_at=false
await asyncio.sleep(2)
await serve.get_deployment_handle("Bus", "room on a bus").subscribers.remote()

# %% [markdown]
# None is left. Cancelling the task runs the adapter's `finally`. That cancels the call, which ends the generator in the
# bus's process.
#
# The bus has a single replica, because two buses would mean two rooms again. That makes it a single point of failure, and
# limits it to the speed of one process. If that is not enough, replace it with Redis: its `PUBLISH` and `SUBSCRIBE` do the
# same job, but you have to serialize the items yourself.
#
# ### Exercise 3: rooms with names
#
# Write `rooms(bus)`, an app with many rooms on one bus. A text sent to `/rooms/tea` reaches all other connections in
# `tea`, on every replica, unchanged and in order. It does not reach its sender, or any other room. A text may be empty,
# and contain any characters; so may a name, except for a slash.
#
# The bus accepts any item that can be pickled. As above, a connection hears what is said after its subscription has
# started. Connections come and go, and some break. The bus must never keep more subscriptions than there are connections.


# %% exercise="10.3"
def rooms(bus):
    app = FastAPI()

    @app.websocket("/rooms/{name}")
    async def enter(socket: WebSocket, name: str):
        await socket.accept()
        # solution (about 15 lines)
        me = token_hex(8)

        async def forward():
            with suppress(WebSocketDisconnect):
                async for room, speaker, said in bus.subscribe():
                    if room == name and speaker != me:
                        await socket.send_text(said)

        forwarding = asyncio.create_task(forward())
        try:
            async for said in socket.iter_text():
                await bus.publish((name, me, said))
        finally:
            forwarding.cancel()
        # starter
        # await ...
        # end

    return app


# %%
check("10.3", rooms)

# %% [markdown]
# ## The layer between
#
# `HandleBus` and `RoomOnBus` are an integration layer: the room knows no Ray, the bus knows no FastAPI, and these two
# classes know both. The layer is thin, and yet most mistakes happen there. Three of them, one by one.
#
# The first one finds its model by name. `Price` is the model of a shop, and the API asks Serve for its handle.

# %% start_at=false
serve.delete("room on a bus")


# %%
class Price:
    def __init__(self, per_letter):
        self.per_letter = per_letter

    async def of(self, item):
        return len(item) * self.per_letter


# %%
def shop(price):
    app = FastAPI()
    app.get("/price/{item}")(price)
    return app


class ShopByName:
    def __init__(self, price):
        self.unused = price

    def __serve_build_asgi_app__(self):
        handle = serve.get_deployment_handle("Price", "shop")

        async def price(item: str):
            return await handle.of.remote(item)

        return shop(price)


# %% [markdown]
# It works. Then somebody deploys the same code a second time, under another name, to try other prices: a hundred per
# letter.


# %%
def run_shop(name, per_letter):
    api = serve.deployment(serve.ingress()(ShopByName)).options(ray_actor_options={"num_cpus": 0.1})
    serve.run(api.bind(serve.deployment(Price).bind(per_letter)), name=name, route_prefix=f"/{name}")
    return client.get(f"{url}/{name}/price/tea").json()


# %% start_at=false
run_shop("shop", 1)

# %% [markdown]
# What does tea cost in the second shop?

# %%
guess = ...

# %% start_at=false
compare(guess, run_shop("test-shop", 100))

# %% [markdown]
# The second shop asks the model of the first. Nothing fails, and the trial has tried nothing. A handle that comes with
# `bind` cannot belong to another application.
#
# The second mistake concerns the lifespan. FastAPI passes what it yields to each request, as `request.state`. It can
# also put things on `app.state`.

# %% start_at=false
for name in ("shop", "test-shop"):
    serve.delete(name)

# %%
from contextlib import asynccontextmanager

from fastapi import Request


# %%
@asynccontextmanager
async def lifespan(app):
    app.state.greeting = "hello"
    yield {"greeting": "hello"}


# %%
def greetings():
    app = FastAPI(lifespan=lifespan)
    app.get("/yielded")(greeting_yielded)
    app.get("/kept")(greeting_kept)
    return app


async def greeting_yielded(request: Request):
    return request.state.greeting


async def greeting_kept(request: Request):
    return request.app.state.greeting


# %% [markdown]
# Which status code does each of the two return, on uvicorn and on Serve?

# %%
guess = {"uvicorn /yielded": ..., "uvicorn /kept": ..., "Serve /yielded": ..., "Serve /kept": ...}


# %%
class Greetings:
    def __serve_build_asgi_app__(self):
        return greetings()


# %% start_at=false
serve.run(serve.deployment(serve.ingress()(Greetings)).bind(), name="greetings", route_prefix="/greetings")

# %% start_at=false
with run_app(greetings(), name="lesson 10") as server:
    bases = {"uvicorn": server.url, "Serve": f"{url}/greetings"}
    statuses = {
        f"{name} {path}": client.get(base + path).status_code
        for name, base in bases.items()
        for path in ("/yielded", "/kept")
    }
compare(guess, statuses)

# %% [markdown]
# Serve runs the lifespan itself, and does not pass on what it yields. `app.state` works on both runtimes.
#
# The third mistake: `serve.ingress` also takes a function that makes the app. A `functools.partial` of one is not a
# function for Serve. It takes the object for an app, which fails only when a request comes.

# %%
from functools import partial


# %%
class Partial:
    pass


# %% start_at=false
serve.run(
    serve.deployment(serve.ingress(partial(greetings))(Partial)).bind(), name="greetings", route_prefix="/greetings"
)
client.get(f"{url}/greetings/kept").status_code

# %% start_at=false
serve.delete("greetings")

# %% [markdown]
# With three others that you have seen, the list is complete:
#
# | mistake | what happens | instead |
# |---|---|---|
# | a decorated class in a module (lesson 09) | it is pickled with all that the module holds | decorate in the layer |
# | state in a variable of the app | each replica has its own | the client, or a deployment |
# | state that the lifespan yields | it is missing on Serve | `app.state` |
# | a handle that is looked up by name | it may be another application's | `bind` |
# | a factory that is not a function | each request fails | `__serve_build_asgi_app__` |
# | an error that cannot be unpickled (lesson 09) | another error arrives | all arguments to `super().__init__` |
#
# ### Exercise 4: write the layer
#
# The API team has written `create_app(model)`, the other one a class `Model` without Ray. Write
# `integrate(create_app, Model, **options)`. It returns a Serve application with two deployments: `Model`, made without
# arguments and with these options, and the API, in which each replica serves `create_app(model)`.
#
# `await model.predict(row)` returns what `Model.predict` returns. Ray's errors stay outside:
#
# - What `Model.predict` raises is raised, as it was: no class of Ray's.
# - If the model's queue is full, `Busy` is raised.
# - If the model cannot be reached, because its replica has died, `Unavailable` is raised.

# %%
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError


class Busy(Exception):
    """Try again in a moment."""


class Unavailable(Exception):
    """Try again later."""


# %% exercise="10.4"
def integrate(create_app, Model, **options):
    # solution (about 22 lines)
    class Adapter:
        def __init__(self, handle):
            self.handle = handle

        async def predict(self, row):
            try:
                return await self.handle.predict.remote(row)
            except RayTaskError as error:
                raise error.cause from None
            except BackPressureError as error:
                raise Busy from error
            except RayError as error:
                raise Unavailable from error

    class Api:
        def __init__(self, create_app, model):
            self.create_app, self.model = create_app, model

        def __serve_build_asgi_app__(self):
            return self.create_app(Adapter(self.model))

    model = serve.deployment(Model).options(**options).bind()
    return serve.deployment(serve.ingress()(Api)).bind(create_app, model)
    # starter
    # return ...
    # end


# %%
check("10.4", integrate)

# %% [markdown]
# ## Quiz
#
# **1.** A room that keeps its members in a set works on a laptop. With three replicas, users complain that messages get
# lost. Which messages?
# <details><summary>Answer</summary>Those from members on other replicas. Only about a third of the members hear each
# message, because every replica has its own set.</details>
#
# **2.** Why does the service build its FastAPI app in <code>__serve_build_asgi_app__</code>, and not at the top of a
# module?
# <details><summary>Answer</summary>No part of the app has to be pickled, so it may hold clients, locks and models. It also
# receives its handles as arguments, so the same <code>create_app</code> runs on uvicorn with different ones.</details>
#
# **3.** An app counts its requests in a variable. When is that correct with three replicas?
# <details><summary>Answer</summary>When each replica reports its own count, and something else adds them up. That is how
# metrics work. It is wrong for an overall rate limit: three replicas would let in three times as many
# requests.</details>
#
# **4.** A deployment has two replicas and the default <code>max_ongoing_requests</code>. Ten clients hold a WebSocket
# open. What response does an eleventh client get from the app's <code>/health</code>?
# <details><summary>Answer</summary>Nothing, until a client leaves: all ten slots are taken, so the request waits in the
# queue.</details>
#
# **5.** In the room that uses a set, one member's network connection hangs. Who notices?
# <details><summary>Answer</summary>On uvicorn the whole room, once the buffers are full: whoever speaks, their endpoint
# waits in the hung member's <code>send_text</code>, and no longer reads. On Serve nobody does, and the proxy's memory
# grows. On both, give each member a sending task with a bounded queue.</details>
#
# ## Recap
#
# | on uvicorn | on Serve | what works on both |
# |---|---|---|
# | one process has the app | each replica builds its own | a factory with arguments |
# | all requests share a variable | only one replica's requests share it | state at the client, or in its own deployment |
# | as many connections as memory allows | `max_ongoing_requests` per replica | a high limit, and an idle timeout |
# | `send` waits for a slow reader | `send` never waits | a window of unconfirmed data, confirmed by pongs |
# | `Bus()` | `HandleBus(handle)` | an app that uses only the methods they share |
# | errors are raised | Ray's errors are raised | a layer that raises the contract's |
#
# You can now write an app that does not depend on its runtime, or on how many replicas it has. Next, in lesson 11, you
# choose how many replicas to run.
#
# ## Tear-down

# %%
client.close()
stop_all()
stop_serve()
