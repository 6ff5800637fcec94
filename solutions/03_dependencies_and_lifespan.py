# %% [markdown]
# # 03 Dependencies and lifespan
#
# A service loads its model at each request, and everyone pays for it, every time. You will load it once, hand it to the
# endpoints so that a test can replace it, close whatever was opened, and refuse to start with a broken model.
#
# Afterwards you can
#
# - open what a service needs when it starts, and close it when it stops, even if only half of it was opened,
# - hand it to endpoints, and give each request something of its own,
# - say when the clean-up of a request runs, and choose,
# - tell an orchestrator, such as Kubernetes, that a service is alive but not ready.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("03.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import check, compare, hint, load, marks, run_app
from workshop.lab import service_map, solution, start_at, stop_all, timeline

service_map("03")

# %% [markdown]
# ## A model for each request
#
# Our tumour classifier is tiny. A committee of a hundred such models does the same work, and is a little closer in size to
# what companies serve. We train one and save it. We also save a damaged artifact, for a start that fails.

# %%
import tempfile
from pathlib import Path

from workshop.lab.fixtures.lesson_03 import predict_label, save_committee, save_damaged, start_error, try_start
from workshop.models.tumours import TumourClassifier

folder = Path(tempfile.mkdtemp())
ARTIFACT, DAMAGED = save_committee(folder / "committee"), save_damaged(folder / "damaged")
loaded = TumourClassifier.load(ARTIFACT)

# %% [markdown]
# The first endpoint is the shortest one that works. The second uses the model that is already loaded. Both return the same
# label.

# %%
from fastapi import FastAPI

from workshop.api.middleware.timing import TimingMiddleware

app = FastAPI()


@app.get("/each/{row}")
def load_each_time(row: int):
    return {"label": predict_label(TumourClassifier.load(ARTIFACT), row)}


@app.get("/once/{row}")
def load_once(row: int):
    return {"label": predict_label(loaded, row)}


server = run_app(TimingMiddleware(app), name="lesson 03")

# %% [markdown]
# A single user sends ten requests, one after the other. How many milliseconds does a request take? Replace each `...`
# with your prediction.

# %%
guess = {"/each": ..., "/once": ...}

# %%
one_user = {path: load(f"{server.url}{path}/19", requests=10, concurrency=1) for path in guess}
compare(guess, {path: records.median_ms for path, records in one_user.items()}, "ms")
{record.body for records in one_user.values() for record in records}

# %% [markdown]
# And ten users at once? In the picture, each bar is a request, and blue is the time inside the application.

# %%
timeline({f"ten users, {path}": load(f"{server.url}{path}/19", requests=10) for path in guess})

# %% [markdown]
# ## What just happened?
#
# A load reads a file, compares its checksum and builds a hundred models out of it. That is computing. The threads of the
# server work on many loads at once, but Python computes in one thread at a time, so they slow each other down.
#
# ## The tempting fix: a global
#
# So the model has to be loaded earlier. The shortest way is a global variable of the module.

# %%
# %%writefile {folder}/global_app.py
from fastapi import FastAPI

from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings

model = TumourClassifier.load(Settings().artifact)
app = FastAPI()


@app.get("/version")
def version():
    return model.card.version


# %% [markdown]
# No request loads the model now. But whoever imports the module loads the model: each worker, each test, each tool that
# only wants the OpenAPI document.
#
# And if there is no model? For each command, predict whether it `"ends"`, or `"starts again"` without end. (A test may
# want to replace the model. Such a test first imports the module.)

# %%
guess = {"a test": ..., "uvicorn": ..., "uvicorn --workers 2": ...}

# %%
commands = {"a test": ["-c", "import global_app; print('test')"]}
commands["uvicorn"] = ["-m", "uvicorn", "global_app:app", "--port", "0"]
commands["uvicorn --workers 2"] = [*commands["uvicorn"], "--workers", "2"]

# %% start_at=false
tried = {name: try_start(command, folder, artifact=folder / "nothing") for name, command in commands.items()}
compare(guess, {name: attempt.outcome for name, attempt in tried.items()})
tried["a test"].lines[-1]

# %% [markdown]
# The test ends in its first line, before it can replace anything. With two workers, uvicorn replaces each worker that
# dies with a new one, forever: we stopped it after a few. No request would ever be answered, and an orchestrator sees a
# process that runs.
#
# ## Lifespan
#
# What we want is a place that runs when the service *starts*, not when somebody imports it. FastAPI calls it the
# lifespan: a context manager. What comes before its `yield` runs before the first request, what comes after it when the
# service stops.

# %%
from contextlib import asynccontextmanager

from fastapi import Request

events = []


@asynccontextmanager
async def lifespan(app):
    events[:] = ["load"]
    app.state.model = TumourClassifier.load(ARTIFACT)
    yield
    events.append("release")


lasting = FastAPI(lifespan=lifespan)


@lasting.get("/label/{row}")
def label(row: int, request: Request):
    events.append("request")
    return {"label": predict_label(request.app.state.model, row)}


# %% [markdown]
# We start the service, send three requests, and stop it.

# %%
with run_app(lasting, name="lasting") as running:
    load(running.url + "/label/19", requests=3)
events

# %% [markdown]
# ## A start that fails half-way
#
# A service opens several parts. This one has opened its database, and then its model is damaged.


# %%
@asynccontextmanager
async def careless(app):
    events[:] = ["open database"]
    app.state.model = TumourClassifier.load(DAMAGED)
    yield
    events.append("close database")


start_error(FastAPI(lifespan=careless)), events

# %% [markdown]
# The service does not start, and its error says why. That is right: it could not answer anyway. But the database is
# still open: the lines after the `yield` never run if a line before it fails.
#
# An `AsyncExitStack` keeps a list of what is to be closed. At the end of its block, whatever
# ends it, it closes the last one first.

# %%
from contextlib import AsyncExitStack


@asynccontextmanager
async def careful(app):
    async with AsyncExitStack() as stack:
        events[:] = ["open database"]
        stack.callback(events.append, "close database")
        app.state.model = TumourClassifier.load(DAMAGED)
        yield


# %%
start_error(FastAPI(lifespan=careful)), events

# %% [markdown]
# ### Exercise 1: open and close
#
# `await open_database()` and `await open_model()` open two parts. Each part has a `number`, and an `aclose()` to be
# awaited. Open them when the service starts, in this order, and close them in reverse order when it stops.
#
# If a part cannot be opened, the start must fail with its error, and what was opened must be closed. One part that fails
# to close must not leave the other one open. `GET /parts` returns their numbers, such as `{"database": 1, "model": 2}`. If
# you are stuck, `hint("03.1")` and `solution("03.1")` help.

# %% exercise="03.1"
from workshop.lab.fixtures.lesson_03 import open_database, open_model


@asynccontextmanager
async def clinic_lifespan(app):
    # solution (about 6 lines)
    async with AsyncExitStack() as stack:
        app.state.database = await open_database()
        stack.push_async_callback(app.state.database.aclose)
        app.state.model = await open_model()
        stack.push_async_callback(app.state.model.aclose)
        yield
    # starter
    # yield
    # end


clinic = FastAPI(lifespan=clinic_lifespan)


@clinic.get("/parts")
async def parts(request: Request):
    # solution (about 2 lines)
    state = request.app.state
    return {"database": state.database.number, "model": state.model.number}
    # starter
    # return ...
    # end


# %%
check("03.1", clinic)

# %% [markdown]
# ## What happened to `on_event`?
#
# Older code starts with `@app.on_event("startup")`. FastAPI still has it, and warns that it is deprecated. Here it
# meets our lifespan. Which events does a start add to the list: `"load"`, `"on_event"`, or both?

# %%
both = FastAPI(lifespan=lifespan)
old_handler = both.on_event("startup")(lambda: events.append("on_event"))
guess = ...

# %%
with run_app(both, name="both"):
    compare(guess, ", ".join(events))

# %% [markdown]
# With a lifespan, the other handler never runs, and the warning does not say so. When you move a service to a lifespan,
# move all of its handlers.
#
# ## One clear line
#
# Whoever operates a service reads why it did not start, perhaps at night. Here is a lifespan whose model is damaged. How
# many lines does uvicorn print, and how many does our service print?

# %%
# %%writefile {folder}/lifespan_app.py
from contextlib import asynccontextmanager

from fastapi import FastAPI

from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings


@asynccontextmanager
async def lifespan(app):
    app.state.model = TumourClassifier.load(Settings().artifact)
    yield


app = FastAPI(lifespan=lifespan)

# %%
guess = {"uvicorn": ..., "uvicorn --workers 2": ..., "python -m workshop api": ...}

# %%
commands = {"uvicorn": ["-m", "uvicorn", "lifespan_app:app", "--port", "0"]}
commands["uvicorn --workers 2"] = [*commands["uvicorn"], "--workers", "2"]
commands["python -m workshop api"] = ["-m", "workshop", "api", "--port", "0"]

# %% start_at=false
tried = {name: try_start(command, folder, artifact=DAMAGED) for name, command in commands.items()}
compare(guess, {name: len(attempt.lines) for name, attempt in tried.items()}, "lines")
{name: (attempt.outcome, attempt.status, attempt.lines[-1]) for name, attempt in tried.items()}

# %% [markdown]
# All three end: uvicorn does not replace a worker whose *lifespan* has failed. But look at the exit status, the number. With
# two workers it is 0, as if all were well. And neither of uvicorn's last lines names the reason.
#
# Our service loads its models before it makes the app, and prints one line for an error that an operator can do something
# about. Every other error keeps its traceback.
#
# ## A dependency instead of a global
#
# Where does an endpoint get the model from? It could reach into `request.app.state`. Better, it asks for what it needs,
# and one function knows where that is.

# %%
from typing import Annotated

from fastapi import Depends, HTTPException


async def get_model(request: Request) -> TumourClassifier:
    return request.app.state.model


ModelDep = Annotated[TumourClassifier, Depends(get_model)]


@lasting.get("/version")
async def version(model: ModelDep):
    return model.card.version


lasting_server = run_app(lasting, name="lasting")
load(lasting_server.url + "/version", requests=1)[0].body

# %% [markdown]
# We pass `get_model`, without calling it: FastAPI calls it, once for each request. That is how the service does it,
# from the bundle of all its services to one classifier. A dependency may have dependencies.

# %% mirrors="workshop.api.dependencies:get_services workshop.api.dependencies:get_classifier workshop.api.dependencies:ClassifierDep"
from typing import cast

from starlette.requests import HTTPConnection

from workshop.contracts.classifier import Classifier
from workshop.contracts.services import Services


async def get_services(connection: HTTPConnection) -> Services:
    return cast(Services, connection.app.state.services)


async def get_classifier(services: Annotated[Services, Depends(get_services)]) -> Classifier:
    return services.classifier


ClassifierDep = Annotated[Classifier, Depends(get_classifier)]

# %% [markdown]
# ## Once per request
#
# A dependency needs a row of measurements, and the endpoint needs the same one. `get_row` records each call.

# %%
from workshop.models.tumours import training_data

rows, _ = training_data()
calls = []


async def get_row(row: int):
    calls.append(row)
    return rows[row]


RowDep = Annotated[object, Depends(get_row)]


async def get_radius(measurements: RowDep):
    return float(measurements[0])


# %%
@app.get("/shape/{row}")
async def shape(radius: Annotated[float, Depends(get_radius)], measurements: RowDep):
    return {"radius": radius, "area": float(measurements[3])}


@app.get("/fresh/{row}")
async def fresh(
    radius: Annotated[float, Depends(get_radius)], measurements: Annotated[object, Depends(get_row, use_cache=False)]
):
    return {"radius": radius, "area": float(measurements[3])}


# %% [markdown]
# `/fresh` differs only in `use_cache=False`. How often is `get_row` called for one request to each? And for three requests
# to `/shape`?

# %%
guess = {"/shape": ..., "/fresh": ..., "/shape, 3 requests": ...}

# %%
called = {}
for name, path, requests in (("/shape", "/shape", 1), ("/fresh", "/fresh", 1), ("/shape, 3 requests", "/shape", 3)):
    calls.clear()
    load(f"{server.url}{path}/19", requests)
    called[name] = len(calls)
compare(guess, called, "calls")

# %% [markdown]
# FastAPI keeps a dependency's result for the rest of the request, and calls it again for the next one. So a dependency can
# make something that belongs to one request alone.
#
# ## Any callable
#
# A class is a callable: FastAPI fills its arguments from the request, and the endpoint gets an object. An *instance* can
# be one, too: with `__call__`, it is a dependency with a parameter of its own.


# %%
class Page:
    def __init__(self, start: int = 0, size: int = 3):
        self.rows = range(start, start + size)


class AtMost:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, page: Annotated[Page, Depends()]):
        if len(page.rows) > self.limit:
            raise HTTPException(422, f"at most {self.limit} rows")
        return page


# %%
@app.get("/page")
async def page(page: Annotated[Page, Depends(AtMost(10))]):
    return list(page.rows)


# %%
[load(server.url + path, requests=1)[0].body for path in ("/page?start=7", "/page?size=11")]

# %% [markdown]
# ### Exercise 2: a journal for each request
#
# `Journal` has `write(line)` and `lines`. Each request has a journal of its own, for its dependencies and its endpoint.
#
# `below(limit)` makes a dependency that takes `row` from the path. It writes a line such as `"row 3 of 10"`, and returns
# the row, or raises a 404 if there is no such row. `GET /few/{row}` has limit 10, `GET /all/{row}` has 569. Each awaits
# `measure(row)`, then writes `"measured"` into the journal, and returns `{"row": …, "journal": [both lines]}`.

# %% exercise="03.2"
from workshop.lab.fixtures.lesson_03 import Journal, measure

desk = FastAPI()

# solution (about 1 line)
JournalDep = Annotated[Journal, Depends(Journal)]
# starter
# JournalDep = ...
# end


def below(limit: int):
    # solution (about 6 lines)
    async def row_below(row: int, journal: JournalDep):
        if row not in range(limit):
            raise HTTPException(404)
        journal.write(f"row {row} of {limit}")
        return row

    return row_below
    # starter
    # return ...
    # end


# solution (about 10 lines)
@desk.get("/few/{row}")
async def few(row: Annotated[int, Depends(below(10))], journal: JournalDep):
    await measure(row)
    journal.write("measured")
    return {"row": row, "journal": journal.lines}


@desk.get("/all/{row}")
async def every(row: Annotated[int, Depends(below(569))], journal: JournalDep):
    await measure(row)
    journal.write("measured")
    return {"row": row, "journal": journal.lines}


# starter
# @desk.get("/few/{row}")
# async def few(row: int):
#     return ...
# end

# %%
check("03.2", (desk, below))

# %% [markdown]
# ## Clean-up
#
# A dependency that yields is a context manager around the request. When exactly does its second half run? This session
# takes 0.2 s to close, and a background task takes as long.

# %%
import asyncio
import time

import httpx
from fastapi import BackgroundTasks

moments = {}


async def get_timed_session():
    yield "session"
    await asyncio.sleep(0.2)
    moments["session closed"] = time.perf_counter()


async def send_mail():
    await asyncio.sleep(0.2)
    moments["mail sent"] = time.perf_counter()


# %%
@app.get("/by-request")
async def by_request(session: Annotated[str, Depends(get_timed_session)], tasks: BackgroundTasks):
    tasks.add_task(send_mail)


@app.get("/by-function")
async def by_function(session: Annotated[str, Depends(get_timed_session, scope="function")], tasks: BackgroundTasks):
    tasks.add_task(send_mail)


# %%
def watch(path):
    """Milliseconds from the request to each event."""
    moments.clear()
    start = time.perf_counter()
    httpx.get(server.url + path)
    moments["response"] = time.perf_counter()
    while len(moments) < 3:
        time.sleep(0.01)
    return {name: 1000 * (moment - start) for name, moment in sorted(moments.items(), key=lambda item: item[1])}


# %% [markdown]
# The two endpoints differ in the `scope` of their dependency. In which order do the `response`, `mail sent` and `session
# closed` come? Predict two texts such as `"mail sent, response, session closed"`.

# %%
guess = {"/by-request": ..., "/by-function": ...}

# %%
watched = {path: watch(path) for path in guess}
compare(guess, {path: ", ".join(times) for path, times in watched.items()})
marks({f"{path}: {name}": [ms] for path, times in watched.items() for name, ms in times.items()})

# %% [markdown]
# By default, the clean-up belongs to the *request*. It runs last: after the response, and after the background tasks.
# The client does not wait for it, but cannot learn that it failed either.
#
# With `scope="function"`, the clean-up runs when the *endpoint* has returned, before the response leaves. An error in
# it can still become a status. A `commit` needs that, as you will see in exercise 3. What does a stream need?


# %%
class Session:
    state = "open"


async def get_open_session():
    session = Session()
    yield session
    session.state = "closed"


@app.get("/stream-by-request")
async def stream_by_request(session: Annotated[Session, Depends(get_open_session)]):
    yield session.state


@app.get("/stream-by-function")
async def stream_by_function(session: Annotated[Session, Depends(get_open_session, scope="function")]):
    yield session.state


# %% [markdown]
# In which state does each stream find its session?

# %%
guess = {"/stream-by-request": ..., "/stream-by-function": ...}

# %%
compare(guess, {path: httpx.get(server.url + path).json() for path in guess})

# %% [markdown]
# The body of a stream is made after the endpoint's function has returned its generator. A session of the function is
# closed by then.
#
# ## If something goes wrong
#
# An error in the endpoint is raised in the dependency, at its `yield`. Here are three sessions. The endpoint of each
# raises a 404.

# %%
from contextlib import contextmanager, suppress

closed = []


async def without_finally():
    yield
    closed.append("without finally")


async def with_finally():
    try:
        yield
    finally:
        closed.append("with finally")


async def swallowing():
    with suppress(Exception):
        yield
    closed.append("swallowing")


# %%
def add_failing(name, dependency):
    @app.get(f"/failing/{name}", dependencies=[Depends(dependency)])
    async def failing():
        raise HTTPException(404)


for dependency in (without_finally, with_finally, swallowing):
    add_failing(dependency.__name__.replace("_", " "), dependency)

# %% [markdown]
# For each, predict the status and what becomes of the session: a text such as `"200, closed"` or `"200, left open"`.
# We turn the server's log off: one of them prints a long traceback.

# %%
guess = {"without finally": ..., "with finally": ..., "swallowing": ...}

# %%
import logging

server_log = logging.getLogger("uvicorn.error")
server_log.setLevel(logging.CRITICAL)
statuses = {name: httpx.get(f"{server.url}/failing/{name}").status_code for name in guess}
server_log.setLevel(logging.NOTSET)
compare(guess, {name: f"{status}, {'closed' if name in closed else 'left open'}" for name, status in statuses.items()})

# %% [markdown]
# Without `finally`, each error leaves a session open, until no more can be opened. A dependency that swallows the error
# takes away the response, too: FastAPI finds that nothing was sent, and makes it a 500. Clean up, and let the error
# through.
#
# ## A client that leaves
#
# What if the client goes away after half a second? One endpoint needs two seconds for its answer, the other one streams
# for as long. The clean-up itself has to wait for something.


# %%
from threading import Event

session_closed = Event()


async def get_slow_session():
    try:
        yield
    finally:
        await asyncio.sleep(0.1)
        session_closed.set()


@app.get("/slow", dependencies=[Depends(get_slow_session)])
async def slow():
    await asyncio.sleep(2)


@app.get("/streaming", dependencies=[Depends(get_slow_session)])
async def streaming():
    for number in range(40):
        await asyncio.sleep(0.05)
        yield number


# %%
async def seconds_until_closed(path):
    session_closed.clear()
    async with httpx.AsyncClient() as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.get(server.url + path)
    left = time.perf_counter()
    await asyncio.to_thread(session_closed.wait, 10)
    return time.perf_counter() - left


# %% [markdown]
# How many seconds after the client has left is each session closed?

# %%
guess = {"/slow": ..., "/streaming": ...}

# %% start_at=false
compare(guess, {path: await seconds_until_closed(path) for path in guess}, "s")

# %% [markdown]
# Both are closed. A stream is cancelled when its client leaves, and FastAPI protects the clean-up, so that it may `await`.
# An endpoint that returns runs to its end, for nobody, and is cleaned up then.
#
# ### Exercise 3: a session for each request
#
# `await open_session()` gives a session with `add(text)`, `commit()` and `aclose()`, all to be awaited. The database
# allows five open sessions. Complete `get_session`, and give it the right scope for each endpoint:
#
# - Each request opens one session, and it is closed at the end, whatever happens.
# - If the endpoint succeeds, the note is committed. If it fails, whatever the error, the note is not, and the client
#   gets the endpoint's error.
# - A client with status 200 can rely on its note: if the commit fails, the status is 500.
# - `GET /notes` streams all notes.

# %% exercise="03.3"
from workshop.lab.fixtures.lesson_03 import open_session

book = FastAPI()


async def get_session():
    # solution (about 6 lines)
    session = await open_session()
    try:
        yield session
        await session.commit()
    finally:
        await session.aclose()
    # starter
    # return ...
    # end


# solution (about 2 lines)
WritingDep = Annotated[object, Depends(get_session, scope="function")]
ReadingDep = Annotated[object, Depends(get_session)]
# starter
# WritingDep = Annotated[object, Depends(get_session)]
# ReadingDep = Annotated[object, Depends(get_session)]
# end


@book.post("/notes/{text}")
async def add_note(text: str, session: WritingDep):
    await session.add(text)
    if text in [stored async for stored in session.texts()]:
        raise HTTPException(409, "there is such a note")
    return {"stored": text}


@book.get("/notes")
async def all_notes(session: ReadingDep):
    async for text in session.texts():
        yield {"text": text}


# %%
check("03.3", book)

# %% [markdown]
# ## Without a value
#
# Some dependencies only have to run: they check a key, or count. They are given to the decorator, a router or the app,
# and then belong to all its routes.

# %%
from fastapi import APIRouter, Header

asked = []


async def count_request(request: Request):
    asked.append(request.url.path)


async def require_key(x_key: Annotated[str, Header()] = ""):
    if x_key != "secret":
        raise HTTPException(401)


# %%
guarded = FastAPI(dependencies=[Depends(count_request)])
private = APIRouter(dependencies=[Depends(require_key)])
guarded.get("/public")(lambda: "open to all")
private.get("/private")(lambda: "with a key only")
guarded.include_router(private)

# %%
with run_app(guarded, name="guarded") as running:
    statuses = [httpx.get(running.url + path).status_code for path in ("/public", "/private")]
statuses, asked

# %% [markdown]
# The refused request was counted, too: the dependency of the app runs before that of the router.
#
# ## A stand-in for a test
#
# A test of `/version` needs no real model. Because the endpoint asks for its model, a test can answer instead: the app
# has a dictionary of overrides. The key is the dependency, the value is what FastAPI calls instead.

# %%
from types import SimpleNamespace

STAND_IN = SimpleNamespace(card=SimpleNamespace(version="stand-in"))


def served_version():
    return httpx.get(lasting_server.url + "/version").json()


# %%
lasting.dependency_overrides[get_model] = lambda: STAND_IN
served_version()

# %%
lasting.dependency_overrides.clear()
served_version()

# %% [markdown]
# That was the running server, whose lifespan has loaded its model nevertheless. FastAPI's `TestClient` runs the lifespan only
# in a `with` block. Without one, and with the override, a test needs no model at all.

# %%
from fastapi.testclient import TestClient

events.clear()
lasting.dependency_overrides[get_model] = lambda: STAND_IN
TestClient(lasting).get("/version").json(), list(events)

# %%
lasting.dependency_overrides.clear()
with TestClient(lasting) as client:
    print(client.get("/version").json(), events)

# %% [markdown]
# ## The leak
#
# Each of these two tests is right. But the overrides belong to the app, and the app outlives a test.


# %%
def test_with_a_stand_in():
    lasting.dependency_overrides[get_model] = lambda: STAND_IN
    assert served_version() == "stand-in"


def test_the_real_version():
    assert served_version() == "2.0.0"


# %%
def verdicts(*tests):
    passed = []
    lasting.dependency_overrides.clear()
    for test in tests:
        with suppress(AssertionError):
            test()
            passed.append(test.__name__)
    return f"{len(passed)} of {len(tests)} pass"


# %% [markdown]
# We run them in both orders, and then each alone. How many pass in each order?

# %%
guess = {"stand-in first": ..., "real first": ...}

# %%
orders = {"stand-in first": (test_with_a_stand_in, test_the_real_version)}
orders["real first"] = orders["stand-in first"][::-1]
compare(guess, {name: verdicts(*tests) for name, tests in orders.items()})

# %%
[verdicts(test) for test in orders["stand-in first"]]

# %% [markdown]
# ### Exercise 4: for one block only
#
# Write `replaced(app, dependency, stand_in)`, to be used as `with replaced(…):`. In the block, the app uses the
# stand-in for the dependency. After the block it is as it was before, whatever error ends the block (`pytest.fail`
# raises one that is not an `Exception`), and even if there was an override already. The overrides of other dependencies
# stay.


# %% exercise="03.4"
# solution (about 9 lines)
@contextmanager
def replaced(app, dependency, stand_in):
    overrides = app.dependency_overrides
    before = dict(overrides)
    overrides[dependency] = stand_in
    try:
        yield
    finally:
        overrides.clear()
        overrides.update(before)


# starter
# def replaced(app, dependency, stand_in):
#     return ...
# end

# %%
check("03.4", replaced)

# %% [markdown]
# ## Alive is not ready
#
# An orchestrator asks two questions. Is the process alive, or should I restart it? Is it ready for requests, or should
# they go elsewhere? We watch both answers during a start in which the model takes a second to load.


# %%
def add_probes(app):
    @app.get("/liveness")
    async def liveness():
        return "alive"

    @app.get("/readiness")
    async def readiness():
        if not app.state.ready:
            raise HTTPException(503)
        return "ready"

    return app


# %% [markdown]
# `watch_start(app)` starts an app and asks both probes ten times a second. First, the lifespan loads before its `yield`, as
# above. What does `/liveness` answer meanwhile?

# %%
from workshop.lab.fixtures.lesson_03 import watch_start


@asynccontextmanager
async def loads_first(app):
    await asyncio.sleep(1)
    app.state.ready = True
    yield


# %%
guess = ...

# %% start_at=false
first = watch_start(add_probes(FastAPI(lifespan=loads_first)))
compare(guess, next(iter(first)).removeprefix("/liveness: "))
marks(first, title="loads before the yield")

# %% [markdown]
# There is nobody to answer: the server opens its port when the start is over. No request can reach a service without a
# model, which is good. But a liveness probe that counts failures restarts a service whose model takes long.
#
# So orchestrators have a third probe, for the start. Or the lifespan loads in a task, and lets the server answer:


# %%
@asynccontextmanager
async def loads_behind(app):
    async def load_model():
        await asyncio.sleep(1)
        app.state.ready = True

    app.state.ready = False
    task = asyncio.create_task(load_model())
    yield
    task.cancel()


# %% start_at=false
marks(watch_start(add_probes(FastAPI(lifespan=loads_behind))), title="loads in a task")

# %% [markdown]
# Alive from the first answer, ready about a second after the start. The price: the start can no longer fail. What if
# the model is damaged?

# %%
from workshop.models.artifacts import ArtifactError


@asynccontextmanager
async def fails_behind(app):
    app.state.ready = False
    loading = asyncio.create_task(asyncio.to_thread(TumourClassifier.load, DAMAGED))
    yield
    with suppress(ArtifactError):
        await loading


# %% start_at=false
marks(watch_start(add_probes(FastAPI(lifespan=fails_behind))), title="fails in a task")

# %% [markdown]
# Alive, but not ready, and it stays so: nobody restarts it. So check before the `yield` whatever can be checked there,
# and load in a task only what takes long. The final service loads its models first. Its readiness asks the parts,
# because a model in another process can also go away later.

# %%
from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.settings import Settings

settings = Settings(database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite", language_models=False)
final = create_app(build_services(settings), settings)
service_server = run_app(final, name="service")
{path: httpx.get(service_server.url + path).status_code for path in ("/liveness", "/readiness")}

# %% [markdown]
# To see it without its classifier, we do what you have learned: we override a dependency, the one that checks the parts.

# %%
from workshop.api.dependencies import get_health
from workshop.contracts.errors import UnavailableError
from workshop.contracts.services import Health

logging.getLogger("workshop").setLevel(logging.CRITICAL)  # we want to see what a client sees
final.dependency_overrides[get_health] = lambda: Health({"classifier": UnavailableError("no replica", 5.0)}, {})
not_ready = httpx.get(service_server.url + "/readiness")
final.dependency_overrides.clear()
not_ready.status_code, not_ready.headers["Retry-After"], not_ready.json()["detail"]

# %% [markdown]
# ## Where to keep it
#
# `app.state` is one place. A lifespan may also yield a dictionary: each request finds it in `request.state`. Is that shared
# by all requests, or does each get its own?

# %%
import json


@asynccontextmanager
async def sharing_lifespan(app):
    yield {"note": "from the start", "seen": []}


sharing = FastAPI(lifespan=sharing_lifespan)


@sharing.get("/{text}")
async def keep(text: str, request: Request):
    note, request.state.note = request.state.note, text
    request.state.seen.append(text)
    return {"note": note, "seen": request.state.seen}


# %% [markdown]
# Anna sends a request, then Ben. Each sets the note, and appends to the list. What does Ben's request find?

# %%
guess = {"note": ..., "seen": ...}

# %%
with run_app(sharing, name="sharing") as running:
    load(running.url + "/Anna", requests=1)
    compare(guess, json.loads(load(running.url + "/Ben", requests=1)[0].body))

# %% [markdown]
# Each request has a copy of the dictionary, but not of what is in it: there is one list for all. So put there what is meant to
# be shared, such as a model or a pool, and nothing that a request changes.
#
# The service uses `app.state`. A comment in its lifespan says why:

# %%
from workshop.lab.fixtures.lesson_03 import source_inside

print(source_inside(create_app, "lifespan"))

# %% [markdown]
# ### Exercise 5: your own service
#
# This service has every fault of this lesson. `async with scanner() as model:` opens its model and closes it at the end,
# or raises an error if the model is damaged. `await model.label(row)` gives a label, and `model.ready` says whether it
# can do that now.
#
# - The model is opened once, at the start, and closed at the stop. A damaged one stops the start.
# - `get_scanner` returns it, and does nothing else. Endpoints and the check of `ready` get the model only from there, so
#   that a test can replace it for both.
# - `GET /predict?row=3&row=5` returns `{"labels": [two labels]}`, in the order of the rows.
# - `/predict` and `/readiness` have status 503 while the model is not ready; `/liveness` always has 200.

# %% exercise="03.5"
from fastapi import Query

from workshop.lab.fixtures.lesson_03 import scanner


# solution (about 28 lines)
@asynccontextmanager
async def service_lifespan(app):
    async with scanner() as model:
        app.state.scanner = model
        yield


async def get_scanner(request: Request):
    return request.app.state.scanner


async def require_ready(model: Annotated[object, Depends(get_scanner)]):
    if not model.ready:
        raise HTTPException(503, headers={"Retry-After": "1"})


service = FastAPI(lifespan=service_lifespan)


@service.get("/predict", dependencies=[Depends(require_ready)])
async def predict(row: Annotated[list[int], Query()], model: Annotated[object, Depends(get_scanner)]):
    return {"labels": [await model.label(number) for number in row]}


@service.get("/liveness")
async def liveness():
    return {"status": "alive"}


@service.get("/readiness", dependencies=[Depends(require_ready)])
async def readiness():
    return {"status": "ready"}


# starter
# service = FastAPI()
# labels = []
# get_scanner = ...
#
#
# @service.get("/predict")
# async def predict(row: Annotated[list[int], Query()]):
#     async with scanner() as model:
#         for number in row:
#             labels.append(await model.label(number))
#     return {"labels": labels}
#
#
# @service.get("/liveness")
# @service.get("/readiness")
# async def readiness():
#     return {"status": "ready"}
# end

# %%
check("03.5", (service, get_scanner))

# %% [markdown]
# ## Quiz
#
# **1.** A lifespan opens a database, then a model. The model is missing. What can close the database?
# <details><summary>Answer</summary>A <code>finally</code>, a <code>with</code> block or an exit stack around the line that
# opens the model. A line after the <code>yield</code> cannot: the start never gets that far.</details>
#
# **2.** An endpoint has `model: Annotated[Model, Depends(get_model())]`. What is wrong?
# <details><summary>Answer</summary>It calls <code>get_model</code> once, when the module is imported, and passes its
# result. <code>Depends</code> needs the function itself.</details>
#
# **3.** A dependency commits after its `yield`, with the default scope. The commit fails. What does the client get?
# <details><summary>Answer</summary>The response with status 200, which has left by then. With
# <code>scope="function"</code> it gets a 500.</details>
#
# **4.** A test fails, but only after another one has run. What do you look for?
# <details><summary>Answer</summary>State that outlives a test, such as <code>app.dependency_overrides</code> that nobody has
# cleared.</details>
#
# **5.** A service whose model takes a minute to load is restarted again and again. Why?
# <details><summary>Answer</summary>Its liveness probe gets no answer while the lifespan loads. Give the probe more time
# at the start, or load in a task and let readiness say 503.</details>
#
# ## Recap
#
# | what | where | its end |
# |---|---|---|
# | shared by all requests: models, pools | lifespan, in `app.state` | after the `yield`, in a `finally` or an exit stack |
# | of one request: sessions, journals | a dependency | after its `yield`, in `finally` |
# | must be known before the response leaves | a dependency with `scope="function"` | before the response |
# | needed by a stream or a background task | a dependency with the default scope | after both |
# | a check without a value | `dependencies=[…]` of a route, router or app | none |
# | a stand-in | `dependency_overrides`, for one block | restored in `finally` |
#
# The model is loaded once, whoever asks, and a broken one is noticed before the first user. Next: lesson 04 gives the
# service its routes, versions and errors.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
