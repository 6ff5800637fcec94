# %% [markdown]
# # 01 Async and sync
#
# One word too many in an endpoint makes ten users wait for each other. You will cause that, see it, measure it and cure it.
#
# Afterwards you can
#
# - tell from a timeline whether an endpoint blocks the event loop,
# - choose between `async def`, `def` and a thread, and say why,
# - find the limit of the thread pool by measuring,
# - tell work that waits from work that computes, and know what helps each.
#
# The code runs in {{ minutes }} and takes {{ memory }} at most. With the exercises, plan 45 minutes.

# %%
from workshop.lab import check, hint, load, run_app, service_map, solution, timeline

service_map("01")

# %% [markdown]
# ## Three endpoints, one answer
#
# A sleep stands for the model, so that every number below can be explained. The three endpoints do the same. Only the
# way they wait differs.

# %%
import asyncio
import time

from fastapi import FastAPI

app = FastAPI()


# %%
@app.get("/def")
def plain(seconds: float = 0.1):
    time.sleep(seconds)
    return {"label": "benign"}


# %%
@app.get("/async")
async def awaiting(seconds: float = 0.1):
    await asyncio.sleep(seconds)
    return {"label": "benign"}


# %%
@app.get("/mixed")
async def mixed(seconds: float = 0.1):
    time.sleep(seconds)
    return {"label": "benign"}


# %% [markdown]
# One more endpoint does nothing but answer. Remember it: it will suffer for something that it has not done.


# %%
@app.get("/ping")
async def ping():
    return "pong"


# %% [markdown]
# `run_app` serves an app on a free port, in a thread beside this notebook. It is a real server: you can open the address
# in a browser, with `/docs` behind it.

# %%
server = run_app(app, name="lesson 01")
server.url

# %% [markdown]
# `load` sends requests and keeps a record of each. First a single request to each endpoint.

# %%
PATHS = ["/def", "/async", "/mixed"]
{path: load(server.url + path, requests=1) for path in PATHS}

# %% [markdown]
# No difference. A test that sends one request, as most tests do, finds nothing wrong with any of the three.
#
# Ten requests, each sent when the one before has been answered, take ten times as long. That is our yardstick.

# %%
one_by_one = load(server.url + "/async", requests=10, concurrency=1)
one_by_one

# %% [markdown]
# ## Ten users at once
#
# Before you measure: how many milliseconds pass until all of ten simultaneous requests are answered? Change the numbers
# to what you believe.

# %%
guess = {"/def": 100, "/async": 100, "/mixed": 100}

# %%
loads = {path: load(server.url + path, requests=10) for path in PATHS}
for path, records in loads.items():
    print(f"{path:7} you said {guess[path]:5} ms, it took {records.total_ms:5.0f} ms")

# %% [markdown]
# One of them is out of line. Each bar below is one request, from the moment it was sent to the moment its answer came.

# %%
timeline({"one by one": one_by_one} | loads)

# %% [markdown]
# ## What just happened?
#
# Everything that is `async def` shares one thread: the event loop. It runs one piece of code at a time, and it moves on
# to the next request only where the code says `await`.
#
# `time.sleep` does not say `await`. In `/mixed` it holds the loop, and the other nine requests stand in a line. All ten
# were sent at once, yet they take as long as one by one. That makes a staircase.
#
# `await asyncio.sleep` gives the loop away while it waits. And a plain `def` endpoint never runs on the loop: FastAPI
# gives it to a thread of a pool.
#
# ## It is not only your own endpoint
#
# The loop belongs to the whole process. So we send ten requests to `/mixed`, and a moment later a single one to `/ping`,
# which has nothing to wait for.

# %%
from workshop.lab import in_parallel


def ping_a_moment_later():
    time.sleep(0.25)
    return load(server.url + "/ping", requests=1)


# %%
_, disturbed = in_parallel(lambda: load(server.url + "/mixed", requests=10), ping_a_moment_later)
undisturbed = load(server.url + "/ping", requests=1)
print(f"ping alone {undisturbed.total_ms:.0f} ms, beside /mixed {disturbed.total_ms:.0f} ms")

# %% [markdown]
# The ping had to wait for every request that was in line before it. If a health check waits beyond its time-out, an
# orchestrator restarts a service that was only busy. One blocking line puts every endpoint of the process at risk.
#
# ## Who waits, and who works?
#
# The bars do not say whether a request was inside the application or stood in line for it. The service can say it. This
# middleware is the final service's own: it adds the header `X-Process-Time`, the seconds from coming in to answering.

# %% mirrors="workshop.api.middleware.timing:TimingMiddleware"
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.middleware.timing import HEADER


class TimingMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()

        async def send_with_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = f"{time.perf_counter() - start:.6f}"
            await send(message)

        await self.app(scope, receive, send_with_time)


# %% [markdown]
# An ASGI app is anything that can be called with `scope`, `receive` and `send`. So a middleware is an app around an app,
# and we can put this one around ours.

# %%
server = run_app(TimingMiddleware(app), name="lesson 01")
timeline({path: load(server.url + path, requests=10) for path in PATHS})

# %% [markdown]
# In `/mixed` each request is inside the application as briefly as in the others. The rest of its bar is grey: time in
# line for the loop, which no log of the endpoint's own shows.
#
# ## Cures
#
# **Await.** If the library offers `await`, use it: `httpx` instead of `requests`, an async database driver instead of a
# blocking one. One thread then serves thousands of waiting requests.
#
# **Plain `def`.** If it does not, drop the `async`. FastAPI runs the endpoint in a thread.
#
# **A thread for the one line.** If an endpoint awaits some things and must block for another, send just the blocking call
# to a thread, and await that.

# %%
from anyio import to_thread


@app.get("/thread")
async def in_thread(seconds: float = 0.1):
    await to_thread.run_sync(time.sleep, seconds)
    return {"label": "benign"}


# %%
cures = {"await": "/async", "plain def": "/def", "to_thread": "/thread"}
timeline({name: load(server.url + path, requests=10) for name, path in cures.items()})

# %% [markdown]
# The fourth cure takes the work out of the process altogether: a Ray Serve deployment. To the endpoint it looks like the
# first one: `return await model.predict.remote(row)`. Lesson 09 builds it.
#
# ### Exercise 1: cure a service
#
# This service looks up a patient, which can be awaited, and then asks an old library, which only blocks:
# `return old_library(record)` makes ten users wait for each other. Call the library so that they do not.


# %%
async def look_up(patient: int):
    await asyncio.sleep(0.05)
    return {"patient": patient}


def old_library(record: dict):
    time.sleep(0.1)
    return record | {"label": "benign"}


# %% exercise="01.1"
clinic = FastAPI()


@clinic.get("/diagnosis/{patient}")
async def diagnosis(patient: int):
    record = await look_up(patient)
    # solution (about 1 line)
    return await to_thread.run_sync(old_library, record)
    # starter
    # return ...
    # end


# %%
check("01.1", clinic)

# %% [markdown]
# `hint("01.1")` shows a hint, and then a stronger one. After a right answer, or three that were not yet right,
# `solution("01.1")` shows ours.
#
# ## How far do threads go?
#
# `/def` answered ten users as fast as one. Will it do the same for a hundred? Say what you expect before you run this.

# %%
from workshop.lab import curve

users = [1, 10, 20, 30, 40, 50, 60, 80, 100]
totals = {n: load(f"{server.url}/def?seconds=0.3", n).total_ms for n in users}
curve({"/def": totals}, x="requests at the same time", y="ms until the last answer", title="300 ms of waiting in each")

# %% [markdown]
# It holds up to about forty users, then it jumps, and beyond eighty it jumps again. The timeline of sixty requests shows
# where the first jump comes from.

# %%
sixty = load(f"{server.url}/def?seconds=0.3", requests=60)
timeline({"/def": sixty})

# %% [markdown]
# The grey part, alike for all, is the time it takes to open sixty connections at once. The blue part comes in two lengths:
# some requests stay inside twice as long, because they wait there for a thread. Count the ones that did not.

# %%
sum(record.worked_s < 1.5 * 0.3 for record in sixty)

# %% [markdown]
# About forty: the size of the thread pool. It is one pool for all `def` endpoints, all `def` dependencies and
# `to_thread.run_sync` of the process. You can read the exact number, too.


# %%
async def pool_size():
    return to_thread.current_default_thread_limiter().total_tokens


await pool_size()

# %% [markdown]
# `/async` has no such limit, because nothing stands behind a waiting coroutine but a little memory. Its line has no jump,
# only a slope: one loop accepts and answers every request, and shares the processor with the program that sends them.

# %%
awaited = {n: load(f"{server.url}/async?seconds=0.3", n).total_ms for n in users}
curve({"/def": totals, "/async": awaited}, x="requests at the same time", y="ms until the last answer")

# %% [markdown]
# ### Exercise 2: a limit of its own
#
# Sixty reports may be made at once, and they must not take the forty threads that everything else needs. Give them a
# limiter of their own: `to_thread.run_sync` takes one as `limiter=`. `make_report` counts how many run at the same time.

# %%
from workshop.lab.exercises.lesson_01 import make_report

# %% exercise="01.2"
from anyio import CapacityLimiter

office = FastAPI()
# solution (about 1 line)
sixty_at_once = CapacityLimiter(60)
# starter
# sixty_at_once = ...
# end


@office.get("/report")
async def report():
    # solution (about 1 line)
    return await to_thread.run_sync(make_report, limiter=sixty_at_once)
    # starter
    # return ...
    # end


# %%
check("01.2", office)

# %% [markdown]
# ## Try it yourself
#
# Move the sliders. Which pattern gets worse with more requests, and from which number on? How small must the delay be
# until `/mixed` does not hurt?

# %%
from workshop.lab import explore

explore(server.url, {"async def + time.sleep": "/mixed", "def": "/def", "async def + await": "/async"})

# %% [markdown]
# ## Waiting is not computing
#
# So far everything waited. A model computes. Here are two functions: one sleeps for 100 ms, one adds up a fixed amount of
# numbers in pure Python. How long the second takes depends on your machine.

# %%
from workshop.lab.work import burn, wait


def milliseconds(run):
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


{"wait": milliseconds(wait), "burn": milliseconds(burn)}

# %% [markdown]
# We want four of each: one after the other, in four threads, and in two processes.


# %%
def in_turn(work):
    return milliseconds(lambda: [work() for _ in range(4)])


def in_threads(work):
    return milliseconds(lambda: in_parallel(work, work, work, work))


# %% [markdown]
# A process has a Python of its own. Processes are slow to start, so they are started once and used often, like the worker
# processes of a server.

# %%
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

processes = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
_ = list(processes.map(wait, [200, 200]))  # start them


# %%
def in_processes(work):
    return milliseconds(lambda: list(processes.map(work, [100] * 4)))


# %% [markdown]
# For `wait` and for `burn`: which way is the fastest, and by how much? Write it down, then look.

# %%
from workshop.lab import bars

ways = {"one by one": in_turn, "4 threads": in_threads, "2 processes": in_processes}
measured = {name: {"wait": way(wait), "burn": way(burn)} for name, way in ways.items()}
bars(measured, y="ms for four")

# %% [markdown]
# Threads overlap waiting and do nothing for computing: only one thread at a time may run Python code. The lock that sees
# to this is called the GIL. Processes have one each, so they can compute side by side, if there is a core for each.

# %%
from workshop.machine import usable_cores

usable_cores()

# %% [markdown]
# So many cores may this notebook use. Two free ones nearly halve the last `burn`. If yours is as high as the first, the
# cores are few or busy: run the cell again when the machine is quiet.
#
# ## Running it
#
# In a terminal you would start an app in one of three ways:
#
# | command | for |
# |---|---|
# | `fastapi dev app.py` | development: it reloads when you save |
# | `uvicorn app:app` | one process, one event loop, one GIL |
# | `uvicorn app:app --workers 2` | several processes that share one port |
#
# Workers are the web server's own answer to work that computes. To measure them, the app must be in a file that each
# worker can import.

# %%
import tempfile

folder = tempfile.mkdtemp()

# %%
# %%writefile {folder}/burn_app.py
from fastapi import FastAPI

from workshop.lab.work import burn

app = FastAPI()


@app.get("/burn")
def compute():
    return {"total": burn(100)}


# %%
from workshop.lab import run_command

one = run_command("uvicorn burn_app:app --port {port}", name="one worker", folder=folder)
two = run_command("uvicorn burn_app:app --port {port} --workers 2", name="two workers", folder=folder)

# %%
workers = {"1 worker": one, "2 workers": two}
timeline({name: load(server_of.url + "/burn", 24, concurrency=6) for name, server_of in workers.items()})

# %% [markdown]
# Six requests at a time: in one process their threads take turns, so each takes six times as long as it would alone. Two
# processes share the requests. On two free cores that saves up to half the time, but how evenly they share is a matter of
# luck: each connection goes to the worker that takes it first.
#
# A Ray Serve replica is a process as well. But Serve can put it on another machine, give it a GPU, and choose how many
# there are by the load. That is lesson 11.

# %%
one.stop()
two.stop()

# %% [markdown]
# ## The real model
#
# The tumour classifier computes, in scikit-learn. How long does it hold its thread for one row, and for a thousand?

# %%
import numpy as np

from workshop.models.tumours import TumourClassifier, training_data
from workshop.settings import Settings

model = TumourClassifier.load(Settings().artifact)
rows, labels = training_data()
thousand = np.tile(rows, (2, 1))[:1000]


# %%
def best_of_twenty(n):
    return min(milliseconds(lambda: model.predict(thousand[:n])) for _ in range(20))


{n: round(best_of_twenty(n), 2) for n in (1, 10, 100, 1000)}

# %% [markdown]
# A thousand rows cost hardly more than one: most of the time goes into the call, not into the rows. So the service predicts
# requests together when they wait together. You will meet that as micro-batching in lesson 09.
#
# ### Exercise 3: the first service
#
# Write two endpoints. `/predict/{row}` calls `diagnose` off the event loop and answers `{"label": …, "model_version": …}`,
# so that each answer can be traced to the model that gave it. `/health` answers `{"status": "healthy"}`.


# %%
def diagnose(row: int):
    time.sleep(0.2)  # a slower model than ours, so that blocking shows
    scores = model.predict(rows[[row]])
    return scores.classes[scores.probabilities[0].argmax()]


# %% exercise="01.3"
service = FastAPI()


# solution (about 7 lines)
@service.get("/predict/{row}")
async def predict(row: int):
    label = await to_thread.run_sync(diagnose, row)
    return {"label": label, "model_version": model.card.version}


@service.get("/health")
async def health():
    return {"status": "healthy"}


# starter
# @service.get("/predict/{row}")
# def predict(row: int):
#     return ...
# end


# %%
check("01.3", service)

# %% [markdown]
# ### Exercise 4: the test that finds it
#
# Write `blocks(url)`: it returns `True` if the endpoint at `url` makes simultaneous requests wait for each other. `load` has
# what you need. You do not know how long the endpoint takes, and it has no timing middleware.


# %% exercise="01.4"
def blocks(url: str) -> bool:
    # solution (about 3 lines)
    alone = load(url, requests=1)
    together = load(url, requests=8)
    return together.total_ms > 4 * alone.total_ms
    # starter
    # return ...
    # end


# %%
check("01.4", blocks)

# %% [markdown]
# In a test of your own service you would write `assert not blocks(url)`, once per endpoint.
#

# %% [markdown]
# ## Quiz
#
# **1.** An endpoint is `async def` and calls `requests.get`. What happens to the other endpoints of the process?
# <details><summary>Answer</summary>They stand still until the call returns: it blocks the event loop, which they all
# share. Use an async client, or drop the <code>async</code>.</details>
#
# **2.** All endpoints are `def` and call a database that takes one second. 100 users arrive at once. When does the last one
# get an answer?
# <details><summary>Answer</summary>After about three seconds: 40 threads, so 40 users a second, in three waves.</details>
#
# **3.** A model computes for 50 ms in pure Python. Do more threads give more predictions a second?
# <details><summary>Answer</summary>No. One thread at a time runs Python code. More processes do, up to the number of cores:
# workers, or replicas.</details>
#
# **4.** Why does a test with a single request not find a blocked event loop?
# <details><summary>Answer</summary>Blocking hurts only whoever waits behind. With one request nobody does.</details>
#
# ## Recap
#
# | the work | write | the limit |
# |---|---|---|
# | waits, and can be awaited | `async def` and `await` | memory |
# | waits, and blocks | `def`, or `await to_thread.run_sync` | the thread pool |
# | computes | worker processes, or a Serve deployment | cores |
# | any blocking line inside `async def` | never | one request at a time |
#
# You can now read a timeline: a staircase of ever longer grey means a blocked loop, two lengths of blue mean a full pool.
# Next: lesson 02 gives requests and answers a shape that is checked.
#
# ## Tear-down

# %%
server.stop()
processes.shutdown()
