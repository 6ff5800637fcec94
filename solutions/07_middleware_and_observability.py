# %% [markdown]
# # 07 Middleware and observability
#
# A middleware was only meant to watch. It turns a stream into a long wait, hides a failure from the client, and does
# not notice a crash. You will see why, and build logs, metrics and traces that change nothing and miss nothing.
#
# Afterwards you can
#
# - write a middleware that leaves streams, errors and WebSockets as they are,
# - say which headers reach a 404, a 500 and a preflight, and put each middleware in its place,
# - give every line of the log the id of its request, and check an id that a client sends,
# - measure durations without an average, and without a series for each path,
# - follow one request through two services.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("07.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, load, marks, run_app, run_command
from workshop.lab import service_map, solution, start_at, stop_all, waterfall

service_map("07")

# %% [markdown]
# ## A middleware that only watches
#
# A ward asks a model. `/chat` streams its words, one every 40 ms. In `/cut` the model fails after ten of them. `/crash`
# has a bug, and `/talk` is a WebSocket.

# %%
from workshop.lab.fixtures.lesson_07 import outcome, talk, touched, ward

[route.path for route in ward().routes][-4:]

# %% [markdown]
# A colleague wants a record of each request, with its status, its seconds and the size of its body. FastAPI has
# `@app.middleware("http")` for that. The body is read to count its bytes, and then sent.

# %%
import asyncio
import time

from fastapi import FastAPI, Request, Response

records = []


async def watch(request: Request, call_next):
    start = time.perf_counter()
    response = await call_next(request)
    body = b"".join([piece async for piece in response.body_iterator])
    records.append((request.url.path, response.status_code, len(body), time.perf_counter() - start))
    return Response(body, response.status_code, response.headers)


# %% [markdown]
# `ward(watch)` adds the function to the app. We serve the ward without and with it. (The servers' own log is off, since the
# lesson breaks things on purpose.)


# %%
def serve(app, name):
    return run_app(app, name=f"lesson 07, {name}", log_level="critical")


plain, watched = serve(ward(), "plain"), serve(ward(watch), "watched")

# %% [markdown]
# After how many milliseconds does the client have the first word of `/chat`?

# %%
guess = {"plain, first word": ..., "watched, first word": ...}

# %% start_at=false
streams = {name: load(server.url + "/chat", 1)[0] for name, server in {"plain": plain, "watched": watched}.items()}
compare(guess, {f"{name}, first word": record.first_ms for name, record in streams.items()}, "ms")

# %% start_at=false
marks({name: [1000 * (at - record.start) for at in record.arrivals] for name, record in streams.items()})

# %% [markdown]
# That is the failure of lesson 05 again, and it is the smallest of three. For `/cut` and `/crash`, predict what the
# client gets: `"200, broken off"`, `"200, whole"` or `"500, whole"`. How many requests does the colleague's list then have?

# %%
guess = {"plain /cut": ..., "watched /cut": ..., "watched /crash": ..., "records": ...}

# %%
records.clear()
outcomes = {"plain /cut": outcome(plain, "/cut"), "watched /cut": outcome(watched, "/cut")}
compare(guess, outcomes | {"watched /crash": outcome(watched, "/crash"), "records": len(records)})
records

# %% [markdown]
# The client of the watched `/cut` takes half an answer for a whole one, and the record says the same: 200. And `/crash`
# has no record, because `call_next` raised its error.
#
# So let the middleware leave the body alone. How many seconds does it report for `/chat`? What does the client get of
# `/cut` now? And of four requests, one to each endpoint, how many are recorded?

# %%
glances = []


async def glance(request: Request, call_next):
    start = time.perf_counter()
    response = await call_next(request)
    glances.append((request.url.path, response.status_code, time.perf_counter() - start))
    return response


# %%
guess = {"seconds of /chat": ..., "/cut": ..., "recorded": ...}

# %%
glancing = serve(ward(glance), "glancing")
seen = {path: outcome(glancing, path) for path in ("/chat", "/cut", "/crash")} | {"/talk": talk(glancing)}
compare(guess, {"seconds of /chat": f"{glances[0][2]:.3f}", "/cut": seen["/cut"], "recorded": f"{len(glances)} of 4"})

# %% [markdown]
# ## What just happened?
#
# `call_next` returns when a response *starts*. So a stream of almost a second seems to take a few milliseconds. The pieces
# after that are passed on by Starlette, which ends the response properly even if the app has failed. The crash skips our
# line, and a WebSocket is no HTTP request.
#
# Below this convenience is ASGI. An app is called with a `scope`, what is known at the start, and with `receive` and
# `send`. Each call of `send` is a message. Here is what `/cut` sends:


# %%
def spy(app, messages):
    async def spying(scope, receive, send):
        async def note(message):
            messages.append(message)
            await send(message)

        await app(scope, receive, note if scope["type"] == "http" else send)

    return spying


# %%
messages = []
outcome(serve(spy(ward(), messages), "spied on"), "/cut")
*messages[:2], messages[-1]

# %% [markdown]
# Every message passes by. A response is over with the body message whose `more_body` is false or absent. Here it never
# comes. A middleware that looks and sends on, and waits until the app returns or raises, knows everything.
#
# ### Exercise 1: a record of each request
#
# Write `Access(app, records)`, an ASGI middleware: a class, or a function that returns an app. When an HTTP request has
# ended, `records` gets a dict such as
# `{"path": "/chat", "status": 200, "bytes": 370, "seconds": 0.8, "complete": True}`.
#
# - `bytes` counts the body. A body message may lack `body`. `complete` is whether the last message was sent.
# - If the app raises before it sends a status, the status is 500. Its own error goes on to the caller. A request may also
#   be cancelled (`asyncio.CancelledError`). It still gets its one record.
# - Nothing is held back, and no request waits for another. `lifespan` and `websocket` scopes pass through.
#
# If you are stuck, `hint("07.1")` helps, and after three tries `solution("07.1")`.


# %% exercise="07.1"
class Access:
    def __init__(self, app, records):
        self.app, self.records = app, records

    async def __call__(self, scope, receive, send):
        # solution (about 17 lines)
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = {"path": scope["path"], "status": 500, "bytes": 0, "complete": False}
        start = time.perf_counter()

        async def note(message):
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
            elif message["type"] == "http.response.body":
                record["bytes"] += len(message.get("body", b""))
                record["complete"] = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            self.records.append(record | {"seconds": time.perf_counter() - start})
        # starter
        # return ...
        # end


# %%
check("07.1", Access)

# %% [markdown]
# ## Who is outermost?
#
# A middleware is an app around an app, so their order matters. This one adds a header with its own name. We add it
# before and after the one for CORS, which lets pages of another origin read a response.


# %%
class Mark:
    def __init__(self, app, name):
        self.app, self.name = app, name

    async def __call__(self, scope, receive, send):
        async def mark(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-mark", self.name.encode())]
            await send(message)

        await self.app(scope, receive, mark)


# %%
from fastapi.middleware.cors import CORSMiddleware

PAGE = "https://ward.example"

stacked = ward()
stacked.add_middleware(Mark, name="first")
stacked.add_middleware(CORSMiddleware, allow_origins=[PAGE])
stacked.add_middleware(Mark, name="last")

# %% [markdown]
# Before a page may send certain requests, the browser asks for permission, in a *preflight*: an `OPTIONS` request. Which
# of the three touch each response? Predict lists of `"first"`, `"CORS"` and `"last"`, from the inside out.

# %%
guess = {"GET /chat": ..., "GET /nothing": ..., "OPTIONS /chat": ..., "GET /crash": ...}

# %%
stacked_server = serve(stacked, "stacked")
compare(guess, {request: touched(stacked_server, PAGE, *request.split()) for request in guess})

# %% [markdown]
# The one that was added last is the outermost. CORS answered the preflight itself, so "first" never saw it. And the 500
# has nothing, not even CORS: a page cannot read it, and its developer believes that CORS is broken.
#
# Walk through the layers to see why:

# %%
from workshop.lab.fixtures.lesson_07 import layers

layers(stacked)

# %% [markdown]
# Starlette writes the 500 in `ServerErrorMiddleware`, and that is outside of everything you add. A 404 comes from the
# router, which is innermost. What must be on *every* response goes around the whole app. (The service goes another way: its
# innermost middleware, `unexpected_errors.py`, responds to bugs.)

# %%
around = Mark(CORSMiddleware(ward(), allow_origins=[PAGE]), "last")
touched(serve(around, "around"), PAGE, "GET", "/crash")

# %% [markdown]
# ## Which request was it?
#
# Twenty requests are under way, and each writes lines into one log. For the lines to say whose they are, a middleware
# leaves an id somewhere, and the logger finds it there. There are three candidates for that place:

# %%
import threading
from contextvars import ContextVar
from types import SimpleNamespace

shared, local, context = SimpleNamespace(number=None), threading.local(), ContextVar("number", default=None)
places = {
    "a global": (lambda number: setattr(shared, "number", number), lambda: shared.number),
    "threading.local": (lambda number: setattr(local, "number", number), lambda: getattr(local, "number", None)),
    "ContextVar": (context.set, context.get),
}

# %% [markdown]
# The middleware puts the request's number into all of them, and into `request.state`, which is never wrong. Each
# endpoint takes 0.3 s, and then looks.

# %%
from itertools import count

numbers = count(1)


def numbering(app):
    async def numbered(scope, receive, send):
        if scope["type"] == "http":
            scope.setdefault("state", {})["number"] = number = next(numbers)
            for put, _ in places.values():
                put(number)
        await app(scope, receive, send)

    return numbered


# %%
found, busy = [], FastAPI()


def look(request):
    found.append({name: get() == request.state.number for name, (_, get) in places.items()})


@busy.get("/async-def")
async def in_the_loop(request: Request):
    await asyncio.sleep(0.3)
    look(request)


@busy.get("/def")
def in_a_thread(request: Request):
    time.sleep(0.3)
    look(request)


# %% [markdown]
# Twenty requests come at once. How many of them find a wrong number, or none?

# %%
guess = {f"{name}, {path}": ... for path in ("/async-def", "/def") for name in places}

# %%
busy_server = serve(numbering(busy), "busy")
wrong = {}
for path in ("/async-def", "/def"):
    found.clear()
    load(busy_server.url + path, 20)
    wrong |= {f"{name}, {path}": sum(not right[name] for right in found) for name in places}
compare(guess, wrong, "of 20")
groups = {name: {path: wrong[f"{name}, {path}"] for path in ("/async-def", "/def")} for name in places}
bars(groups, y="wrong, of 20 requests", title="Where a request's id is kept")

# %% [markdown]
# All requests share a global, and the last one wins. A thread-local is a global for all that runs in the event loop's
# thread, and unknown to the threads that run `def` endpoints. Each task has a *context* of its own, and FastAPI takes it
# along into the thread.
#
# Now a malicious client. The log is text, one line each. How many lines does it have after this one request?

# %%
import logging
import sys

journal = logging.Logger("ward", logging.INFO)
journal.addHandler(handler := logging.StreamHandler(sys.stdout))


@busy.get("/patients/{name}")
async def find(name: str):
    journal.info("no patient %s", name)


handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
forged = busy_server.url + "/patients/7%0AINFO all records of ward 3 deleted by admin"
load(forged, 1)

# %% [markdown]
# Nobody has deleted anything. `%0A` in a path is a line break. As JSON, a line stays one line, whatever it contains. And
# fields that are not in the message can be searched for.

# %%
import json


class JsonLines(logging.Formatter):
    def format(self, record):
        line = {"level": record.levelname, "message": record.getMessage()}
        return json.dumps(line | {"request_id": getattr(record, "request_id", "-")})


handler.setFormatter(JsonLines())
load(forged, 1)

# %% [markdown]
# ### Exercise 2: one id in everything
#
# Write `RequestId(app, logger)`, a middleware for HTTP and WebSockets.
#
# - The client may send an `X-Request-ID` of 1 to 64 letters (a to z, A to Z), digits, dots, hyphens and underscores.
#   For any other, or none, make a new one each time.
# - It is in `request.state.request_id`, beside what the app's lifespan has put into the state, and in the
#   `X-Request-ID` of every response, a 500 included. A WebSocket's response is the message `websocket.accept`. All else passes through unchanged: other headers, errors, lifespan.
# - Every record logged with `logger` has it as `record.request_id`, and `"-"` outside of requests. A filter can do that:
#   `logger.addFilter(function)` calls the function with each record. It must return `True`.

# %% exercise="07.2"
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders

request_id = ContextVar("request_id", default="-")


# solution (about 25 lines)
class RequestId:
    def __init__(self, app, logger):
        self.app = app
        logger.addFilter(self.mark)

    def mark(self, record):
        record.request_id = request_id.get()
        return True

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("X-Request-ID", "")
        own = sent if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", sent) else str(uuid4())
        scope.setdefault("state", {})["request_id"] = own
        request_id.set(own)

        async def send_with_id(message):
            if message["type"] in ("http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)["X-Request-ID"] = own
            await send(message)

        await self.app(scope, receive, send_with_id)


# starter
# class RequestId:
#     def __init__(self, app, logger):
#         self.app = app
#
#     async def __call__(self, scope, receive, send):
#         return ...
# end


# %%
check("07.2", RequestId)

# %% [markdown]
# The service's middleware is the same, in `workshop/api/middleware/request_id.py`.
#
# The id goes down into the app. Does anything come up? A dependency finds out who the caller is. Afterwards, a
# middleware wants the name for its line: one time an ASGI middleware, the other time a function with `call_next`.

# %%
caller = ContextVar("caller", default="nobody")


async def in_the_task():
    caller.set("Anna")


def in_a_thread_of_its_own():
    caller.set("Anna")


# %%
async def who(request, call_next):
    response = await call_next(request)
    callers.append(caller.get())
    return response


def who_in_asgi(app):
    async def asking(scope, receive, send):
        await app(scope, receive, send)
        if scope["type"] == "http":
            callers.append(caller.get())

    return asking


# %% [markdown]
# The dependency is once an `async def`, and once a `def`, which runs in a thread. Which name does each middleware find,
# `"Anna"` or `"nobody"`?

# %%
guess = {"ASGI, async def": ..., "ASGI, def": ..., "call_next, async def": ..., "call_next, def": ...}

# %%
from fastapi import Depends
from starlette.middleware.base import BaseHTTPMiddleware  # behind @app.middleware("http")

callers = []
for middleware in (who_in_asgi, lambda app: BaseHTTPMiddleware(app, who)):
    for dependency in (in_the_task, in_a_thread_of_its_own):
        app = FastAPI(dependencies=[Depends(dependency)])
        app.get("/")(lambda: None)
        with serve(middleware(app), "who") as server:
            load(server.url, 1)
compare(guess, dict(zip(guess, callers, strict=True)))

# %% [markdown]
# `call_next` runs the app in a task of its own, and a thread gets a copy of the context. What is set there, stays there.
# `request.state` belongs to the request, so all of them see it. But a logger has no request.
#
# ## How slow is it?
#
# A log tells of one request, a metric of all. These two endpoints sleep for about 60 ms, on average.

# %%
turns = count(1)


@busy.get("/even")
async def even():
    await asyncio.sleep(0.06)


@busy.get("/uneven")
async def uneven():
    await asyncio.sleep(1 if next(turns) % 20 == 0 else 0.0105)


# %% [markdown]
# A hundred requests go to each, ten at a time. How many milliseconds does the average one take, how many the median one,
# and how many the slowest?

# %%
guess = {f"{path}, {what}": ... for path in ("/even", "/uneven") for what in ("average", "median", "slowest")}

# %% start_at=false
busy_server = serve(numbering(busy), "busy")
durations = {path: [r.ms for r in load(busy_server.url + path, 100, concurrency=10)] for path in ("/even", "/uneven")}

# %% start_at=false
from statistics import mean, median

summaries = {"average": mean, "median": median, "slowest": max}
compare(guess, {f"{path}, {name}": of(ms) for path, ms in durations.items() for name, of in summaries.items()}, "ms")

# %% [markdown]
# `/uneven` has the lower median, and yet a user who asks twenty times waits a second once. The average does not show that
# either. So keep the durations in *buckets*: a histogram counts how many were at most as long as each limit. Buckets can be added up, over minutes and over
# processes. Averages and medians cannot.

# %% start_at=false
LIMITS = (0.02, 0.05, 0.1, 0.5, 2.5)

buckets = {
    f"{limit} s": {path: sum(took <= 1000 * limit for took in durations[path]) for path in durations}
    for limit in LIMITS
}
bars(buckets, y="requests", title="Requests that took at most …")

# %% [markdown]
# Each limit, and each combination of labels, is a time series of its own in Prometheus. Somebody uses the path as a label.
# A client asks for 100 cases, and a scanner for 100 paths that do not exist. How many lines does each metric have after
# that?

# %%
guess = {"labelled by path": ..., "labelled by route": ...}

# %% [markdown]
# The route is the path's template, such as `/v1/cases/{case}`, which the router leaves in the scope. `scope["route"]` would
# lack the prefixes of the routers around it, so the service looks deeper:

# %% mirrors="workshop.api.middleware.observation:_route"
from starlette.types import Scope

from workshop.api.metrics import OTHER


def _route(scope: Scope) -> str:
    context = scope.get("fastapi", {}).get("effective_route_context")
    route = getattr(context, "starlette_route", None) or context
    return getattr(route, "path_format", None) or OTHER


# %%
from prometheus_client import CollectorRegistry, Histogram, generate_latest

registry = CollectorRegistry()
by_path, by_route = (Histogram(name, "Seconds.", ["label"], registry=registry) for name in ("by_path", "by_route"))


def counting(app):
    async def counted(scope, receive, send):
        await app(scope, receive, send)
        if scope["type"] == "http":
            by_path.labels(scope["path"]).observe(0.01)
            by_route.labels(_route(scope)).observe(0.01)

    return counted


# %% start_at=false
from workshop.lab.fixtures.lesson_07 import clinic, scan

with serve(counting(clinic()), "clinic") as server:
    scan(server)
text = generate_latest(registry).decode()
compare(guess, {f"labelled by {name}": text.count(f"\nby_{name}_") for name in ("path", "route")}, "lines")

# %% [markdown]
# For each label, the histogram has one line for each of its 15 buckets, and three more: count, sum and time of creation.
# Whoever can choose a label can fill your monitoring. A path, a method, a header, a name of a model: never use as a
# label what a client makes up.
#
# ### Exercise 3: durations of all requests
#
# Write `Measure(app, durations)`. `durations` is a `Histogram` with the labels `method`, `route` and `status`. When an HTTP
# request has ended, observe its seconds.
#
# - A stream ends with its last piece. An error is a 500 if no status was sent. A cancelled request counts, too.
# - Nothing is held back or hidden, and no request waits for another.
# - The route is that of `_route`, when the app has run. A method that is not in `METHODS` becomes `"other"`.
# - The status is a text such as `"200"`. `lifespan` and `websocket` scopes pass through.

# %% exercise="07.3"
from workshop.api.metrics import METHODS


class Measure:
    def __init__(self, app, durations):
        self.app, self.durations = app, durations

    async def __call__(self, scope, receive, send):
        # solution (about 15 lines)
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def note(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            series = self.durations.labels(method=method, route=_route(scope), status=str(status))
            series.observe(time.perf_counter() - start)
        # starter
        # return ...
        # end


# %%
check("07.3", Measure)

# %% [markdown]
# ## Two processes, one service
#
# This app counts its requests, in its own memory or in a database. The classes are the package's: `MetricStore` is a
# contract with two implementations.

# %%
import os
import tempfile
from unittest.mock import patch

folder = tempfile.mkdtemp()

# %%
# %%writefile {folder}/counting_app.py
import os
import time
from contextlib import asynccontextmanager

from fastapi import FastAPI

from workshop.contracts.metrics import ProcessMetrics, Series
from workshop.storage.metrics import SqlMetricStore

ASKED, url = Series.of("asked"), os.environ.get("COUNTS")
store = SqlMetricStore(url) if url else ProcessMetrics()


@asynccontextmanager
async def lifespan(app):
    yield
    await store.aclose()


app = FastAPI(lifespan=lifespan)


@app.get("/ask")
async def ask():
    time.sleep(0.02)  # while one worker is busy, the other one accepts
    store.add(ASKED)


@app.get("/metrics")
async def metrics():
    return (await store.totals()).get(ASKED, 0)


# %% [markdown]
# Uvicorn starts two workers. 41 requests come, eight at a time. Then somebody asks for the metrics, as Prometheus does,
# fifty times. What do the answers say: `"always 41"` or `"less than 41"`?

# %%
guess = {"in memory": ..., "in the database": ...}

# %% start_at=false
urls = {"in memory": "", "in the database": f"sqlite+aiosqlite:///{folder}/counts.sqlite"}


def totals(name, url):
    with patch.dict(os.environ, COUNTS=url):
        workers = run_command("uvicorn counting_app:app --workers 2 --port {port}", name=name, folder=folder)
    load(workers.url + "/ask", 41, concurrency=8)
    time.sleep(3)
    return sorted({float(answer.body) for answer in load(workers.url + "/metrics", 50, concurrency=1)})


# %% start_at=false
found = {name: totals(name, url) for name, url in urls.items()}
compare(guess, {name: "always 41" if each == [41] else "less than 41" for name, each in found.items()})
found

# %% [markdown]
# Each worker knows its own requests, and chance decides which of them Prometheus asks. So the values above come in any
# order, and the counter seems to fall. The service collects increments for a second,
# and adds them to one row of its database. So the sums are right for any
# number of processes.
#
# ## One request, two services
#
# A *span* is a piece of work with a start, an end and a parent. All spans of one request are a *trace*. FastAPI makes a
# span for each request, if it has a provider. This one keeps them in memory:

# %%
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
tracer = provider.get_tracer("lesson 07")
TRACES = {"tracer_provider": provider, "operation_spans": False, "metrics": False, "logs": False}

# %% [markdown]
# A gateway asks the draft model, and then the main model, in another service. It does so in two ways. In one of them, it
# sends along the header that `inject` writes.

# %%
from workshop.lab.fixtures.lesson_07 import two_models

models_server = serve(two_models(TRACES), "models")

# %%
import httpx
from opentelemetry.propagate import inject

gateway = FastAPI(telemetry=TRACES)


@gateway.get("/{way}")
async def ask_models(way: str):
    headers = {}
    if way == "traced":
        inject(headers)
    async with httpx.AsyncClient(base_url=models_server.url, headers=headers, trust_env=False) as client:
        await client.get("/draft")
        await client.get("/main")
    return headers


# %% [markdown]
# Each way makes three spans. How many traces do they belong to?

# %%
guess = {"/plain": ..., "/traced": ...}

# %%
gateway_server, traces = serve(gateway, "gateway"), {}
for path in guess:
    spans.clear()
    print(load(gateway_server.url + path, 1)[0].body.decode())
    for _ in range(500):  # at most 5 s
        if len(spans.get_finished_spans()) == 3:
            break
        time.sleep(0.01)
    traces[path] = spans.get_finished_spans()
compare(guess, {path: len({span.context.trace_id for span in traces[path]}) for path in guess}, "traces")

# %% [markdown]
# The header is called `traceparent`, and holds the trace's id and the caller's span. Who receives it continues the trace.
# This gives the picture that you open first when a request was slow: which call took the time, and when.

# %% start_at=false
rows = sorted(traces["/traced"], key=lambda span: span.start_time)
times = {span.name: (span.start_time, span.end_time) for span in rows}
waterfall({name: [(t - rows[0].start_time) / 1e6 for t in pair] for name, pair in times.items()}, title="One trace")

# %% [markdown]
# Inside a process, the trace is in a `ContextVar`, like your request id. So it is lost where a context is lost. Here work
# is started in five ways: `work` is an `async def`, and `trace_id` a `def`. In which of them does it find the request's
# trace? Predict `True` or `False`.

# %%
guess = {"await": ..., "create_task": ..., "asyncio.to_thread": ..., "run_in_executor": ..., "copy_context": ...}

# %%
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from workshop.lab.fixtures.lesson_07 import trace_id, work

with tracer.start_as_current_span("request"), ThreadPoolExecutor(1) as pool:
    got = {"await": await work(), "create_task": await asyncio.create_task(work())}
    got["asyncio.to_thread"] = await asyncio.to_thread(trace_id)
    loop = asyncio.get_running_loop()
    got["run_in_executor"] = await loop.run_in_executor(pool, trace_id)
    got["copy_context"] = await loop.run_in_executor(pool, copy_context().run, trace_id)
    compare(guess, {way: found_id == trace_id() for way, found_id in got.items()})

# %% [markdown]
# An executor of your own gets no context, unless you hand it one: `copy_context().run` calls a function in a copy.
# `asyncio.to_thread` does just that.
#
# ### Exercise 4: a call with a trace
#
# Write `fetch(tracer, client, path)`. It sends a `GET` with the `httpx.AsyncClient`, and returns the JSON of the response.
#
# - The call has a span of its own: its name is `"GET "` and the path, its kind `SpanKind.CLIENT`. It begins before the request,
#   and ends when the whole response is there.
# - The other service gets one request, with a `traceparent` that names this span. Several calls may be under way at once,
#   with one client.
# - The status is the attribute `http.response.status_code`.
# - A status of 400 or more raises (`raise_for_status`), and so does a lost connection. Then the span's status is an error.

# %% exercise="07.4"
from opentelemetry.trace import SpanKind


async def fetch(tracer, client, path):
    # solution (about 6 lines)
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()
    # starter
    # return ...
    # end


# %%
check("07.4", fetch)

# %% [markdown]
# ## The service
#
# The finished service has all of this. We start it without its language models, and send three requests. The first has
# a line break in its path, and a good id. The others have bad ids.

# %% start_at=false
settings = {"WORKSHOP_LANGUAGE_MODELS": "0", "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/service.sqlite"}
with patch.dict(os.environ, settings):
    finished = run_command("workshop api --port {port}", name="finished service")

# %% start_at=false
for path, sent in (("/v1/cases/7%0AINFO", "case-7"), ("/v1/model/metadata", "a b"), ("/nothing", "x" * 300)):
    reply = httpx.get(finished.url + path, headers={"X-Request-ID": sent}, trust_env=False)
    print(reply.status_code, reply.headers["X-Request-ID"])

# %% start_at=false
print(*finished.output.splitlines()[-3:], sep="\n\n")

# %% start_at=false
metrics = httpx.get(finished.url + "/metrics", trust_env=False).text
print(*(line for line in metrics.splitlines() if line.startswith("http_requests_total")), sep="\n")

# %% [markdown]
# The log has one line for each request, with the good id and no bad one. The metrics have routes instead of paths. A further
# series, `other` with 200, is the request with which `run_command` saw that the service was up.
# `workshop/logs.py` writes the lines, with the trace's id if there is one. `workshop/traces.py` sets up traces, also for Ray Serve.
#
# Requests are not all that counts. For an answer of the cascade, the service also keeps what it cost:

# %% mirrors="workshop.api.metrics:count_answer"
from workshop.api.metrics import ANSWERS, COSTS, MetricsCollector
from workshop.contracts.metrics import MetricStore, ProcessMetrics


def count_answer(store: MetricStore, model: str, cost: float, seconds: float) -> None:
    ANSWERS.observe(store, seconds, model)
    COSTS.observe(store, cost)


# %% start_at=false
store = ProcessMetrics()
for model, cost, seconds in (("draft", 0.00002, 0.2), ("draft", 0.00003, 0.3), ("main", 0.004, 1.5)):
    count_answer(store, model, cost, seconds)

# %% start_at=false
cascade = CollectorRegistry()
cascade.register(MetricsCollector(await store.totals(), model_loaded=True, uptime_s=0, cascades=["cascade"]))
lines = generate_latest(cascade).decode().splitlines()
print(*(line for line in lines if line.startswith("cascade_") and "_bucket" not in line), sep="\n")

# %% [markdown]
# ### Exercise 5: the whole stack
#
# Back to the colleague's task. Write `observe(app, logger, durations)`: it returns an ASGI app that does for the FastAPI
# app what `watch` should have done. Use your classes, or others.
#
# - All that exercise 2 says of ids, and all that exercise 3 says of durations.
# - When an HTTP request has ended, one record is logged, with the attributes `path`, `status` and `complete`, as in
#   exercise 1. No query appears in the log.
# - Only pages of the origin `https://ward.example` may read responses, each with its `X-Request-ID`.
# - Every response has an `X-Process-Time`, in seconds. A 404, a 500 and a preflight have all headers, a record and a
#   duration, too.
# - A stream stays a stream, and one that breaks off, breaks off.

# %% exercise="07.5"
from workshop.api.middleware.timing import TimingMiddleware


# solution (about 11 lines)
class Lines:
    def __init__(self, logger):
        self.logger = logger

    def append(self, record):
        self.logger.info("%s %s", record["path"], record["status"], extra=record)


def observe(app, logger, durations):
    app = CORSMiddleware(app, allow_origins=["https://ward.example"], expose_headers=["X-Request-ID"])
    app = Measure(TimingMiddleware(app), durations)
    return RequestId(Access(app, Lines(logger)), logger)


# starter
# def observe(app, logger, durations):
#     return ...
# end

# %%
check("07.5", observe)

# %% [markdown]
# ## Quiz
#
# **1.** A page in a browser reports a CORS error, but only sometimes, and CORS is set up. What do you look for?
# <details><summary>Answer</summary>For a 500 in the log at that time. It is written outside of the CORS middleware, so
# the page may not read it.</details>
#
# **2.** Why does the list of <code>glance</code> not show the crash?
# <details><summary>Answer</summary><code>call_next</code> raises the app's error, and the line after it does not run.
# Note it in a <code>finally</code>.</details>
#
# **3.** The average duration has not changed for weeks, and users complain. Is that possible?
# <details><summary>Answer</summary>Yes. A few slow requests disappear in an average, the more so if others have become
# quicker. Look at the buckets.</details>
#
# **4.** Prometheus shows a counter that falls and rises. It has never been reset. Why?
# <details><summary>Answer</summary>Several processes answer in turn, each with a sum of its own.</details>
#
# **5.** Why does the service replace a request id of 300 characters, rather than refuse the request?
# <details><summary>Answer</summary>The id only helps to find lines in a log. A request that is otherwise fine need not fail
# because of it.</details>
#
# ## Recap
#
# | what happens | a function with `call_next` | an ASGI middleware |
# |---|---|---|
# | a stream | held back, or its end not seen | passes, its end seen |
# | a stream that breaks off | becomes a whole response | breaks off |
# | an error | skips the line after `call_next` | `finally` |
# | a context variable set in the app | not seen | seen, if it was set in the same task |
# | a WebSocket | not seen | a scope of its own |
#
# | to know | keep | beware of |
# |---|---|---|
# | which request it was | an id in a `ContextVar` | ids from outside, line breaks |
# | how slow it is | a histogram by route | averages, labels that clients choose, several processes |
# | where the time went | a trace, with `traceparent` | executors of your own |
#
# The package's middleware is in `workshop/api/middleware/`, one concern in each file. Next: lesson 08 asks who may send
# a request at all, and how many.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
