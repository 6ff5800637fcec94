# %% [markdown]
# # 01 Async and sync
#
# One `async` too many in an endpoint makes ten users wait for each other. You will cause this, measure it and cure it.
#
# Afterwards you can
#
# - tell from a timeline whether an endpoint blocks the event loop,
# - choose between `async def`, `def` and a thread, and say why,
# - find the limit of the thread pool by measuring,
# - tell work that waits from work that computes, and know what helps each.
#
# The code runs in {{ minutes }} and takes {{ memory }} at most. With the exercises, plan 45 minutes.
#
# If you join late or have restarted the kernel, import `start_at` from `workshop.lab`: `await start_at("01.2")` runs
# everything before exercise 2.

# %%
from workshop.lab import check, hint, load, run_app, service_map, solution, stop_all, timeline

service_map("01")

# %% [markdown]
# ## Three endpoints, one answer
#
# A sleep stands for the model, so that every number below can be explained. The first three endpoints give the same
# answer after the same time, and differ only in how they wait. `/ping` answers at once.
#
# `run_app` serves the app on a free port, in a thread of this notebook. If you change an endpoint, run this cell again:
# it replaces the server.

# %%
import asyncio
import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/def")
def plain(seconds: float = 0.1):
    time.sleep(seconds)
    return {"label": "benign"}


@app.get("/async")
async def awaiting(seconds: float = 0.1):
    await asyncio.sleep(seconds)
    return {"label": "benign"}


@app.get("/mixed")
async def mixed(seconds: float = 0.1):
    time.sleep(seconds)
    return {"label": "benign"}


@app.get("/ping")
async def ping():
    return "pong"


server = run_app(app, name="lesson 01")

# %% [markdown]
# `load` sends requests and keeps a record of each. First a single user, who sends ten requests, each when the one
# before has been answered.

# %%
PATHS = ["/def", "/async", "/mixed"]
one_by_one = {path: load(server.url + path, requests=10, concurrency=1) for path in PATHS}
one_by_one

# %% [markdown]
# The medians are nearly the same, a little over 100 ms. (The first request of a kernel takes longer, because Python
# still has modules to import.) A test that sends one request at a time, as most tests do, finds nothing wrong with any
# of the three.
#
# ## Ten users at once
#
# Now ten users send one request each, all at the same time. How many milliseconds pass until all ten are answered?
# Replace each `...` with your prediction.

# %%
guess = {"/def": ..., "/async": ..., "/mixed": ...}

# %%
loads = {path: load(server.url + path, requests=10) for path in PATHS}
for path, records in loads.items():
    print(f"{path:7} you said {guess[path]} ms, it took {records.total_ms:.0f} ms")

# %% [markdown]
# One of them is out of line. In the picture, each bar is one request, from the moment it was sent to the moment its
# answer came.

# %%
timeline({"one user": one_by_one["/async"]} | {f"ten users, {path}": records for path, records in loads.items()})

# %% [markdown]
# ## What just happened?
#
# Everything that is `async def` shares one thread: the event loop. It runs one piece of code at a time, and it moves on
# to the next request only where the code says `await`.
#
# `time.sleep` does not say `await`. In `/mixed` it blocks the loop, and the other requests queue. All ten were sent at
# once, yet they take as long as one after the other. In the picture that is a staircase.
#
# `await asyncio.sleep` frees the loop while it waits. And a plain `def` endpoint never runs on the loop: FastAPI runs
# it in a thread from a pool.
#
# ## Other endpoints suffer too
#
# The whole process shares the loop. So we send ten requests to `/mixed`, and a moment later a single one to `/ping`,
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
# The ping had to wait for the requests that were in the queue before it. If a health check takes longer than its
# time-out, an orchestrator restarts a service that was only busy. One blocking line puts every endpoint of the process
# at risk.
#
# ## Waiting or working?
#
# The bars do not show whether a request was inside the application or still queued. The service can measure that. This
# middleware is part of the final service: it adds the header `X-Process-Time`, the seconds that a request spent inside.

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
# An ASGI app is anything that can be called with `scope`, `receive` and `send`. So a middleware is an app around an
# app, and we can put this one around ours.

# %%
timed = run_app(TimingMiddleware(app), name="lesson 01, timed")
timeline({path: load(timed.url + path, requests=10) for path in PATHS})

# %% [markdown]
# In `/mixed`, too, each request is inside the application for about 100 ms. The rest of its bar is grey: it waits for
# the loop, and nothing that the endpoint itself logs would show this.
#
# ## Cures
#
# **Await.** If the library offers `await`, use it: `httpx` instead of `requests`, an async database driver instead of a
# blocking one. One thread then serves thousands of waiting requests.
#
# **Plain `def`.** If it does not, drop the `async`. FastAPI runs the endpoint in a thread.
#
# **A thread for one call.** If an endpoint awaits some things and must block for another, run just the blocking call in
# a thread, and await that.

# %%
from anyio import to_thread

cured = FastAPI()


@cured.get("/thread")
async def in_thread(seconds: float = 0.1):
    await to_thread.run_sync(time.sleep, seconds)
    return {"label": "benign"}


cured_server = run_app(TimingMiddleware(cured), name="lesson 01, cured")

# %%
cures = {"await": timed.url + "/async", "plain def": timed.url + "/def", "to_thread": cured_server.url + "/thread"}
timeline({name: load(address, requests=10) for name, address in cures.items()})

# %% [markdown]
# You can cure `/mixed` as well: drop its `async` in the cell with the endpoints, run that cell, and measure ten users
# again.
#
# The fourth cure moves the work to another process: a Ray Serve deployment. In the endpoint it looks like the first
# one: `return await model.predict.remote(row)`. Lesson 09 builds it.
#
# ### Exercise 1: cure a service
#
# This service looks up a patient in a database, which can be awaited. Then it calls an old library, which blocks for
# 100 ms.

# %%
from workshop.lab.fixtures.lesson_01 import look_up, old_library

old_library(await look_up(7))

# %% [markdown]
# `return old_library(record)` would make ten users wait for each other. Call the library in a way that does not.

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
# `/def` answered ten users nearly as fast as one. Now each request waits for 300 ms. How many milliseconds will it take
# to answer a hundred users?

# %%
guess = {"/def": ..., "/async": ...}


# %% [markdown]
# Each measurement is the faster of two, because other programs may disturb one.


# %%
def total_ms(path, requests):
    return min(load(f"{timed.url}{path}?seconds=0.3", requests).total_ms for _ in range(2))


users = [1, 20, 40, 50, 80, 90, 100]
totals = {path: {n: total_ms(path, n) for n in users} for path in guess}
for path, total in totals.items():
    print(f"{path:7} you said {guess[path]} ms, it took {total[100]:.0f} ms")

# %%
from workshop.lab import curve

curve(totals, x="requests at the same time", y="ms until the last answer", title="each request waits for 300 ms")

# %% [markdown]
# The line of `/def` has two steps: 300 ms more beyond forty users, and again beyond eighty. The timeline of
# sixty requests shows where the first step comes from.

# %%
sixty = load(f"{timed.url}/def?seconds=1", requests=60)
timeline({"/def": sixty})

# %% [markdown]
# The grey part is the time it takes to open sixty connections at once. The blue part comes in two lengths: some
# requests stay inside for two seconds instead of one, because they wait there for a thread. Count those that did not.

# %%
sum(record.worked_s < 1.5 for record in sixty)

# %% [markdown]
# That is the size of the thread pool. All `def` endpoints, all `def` dependencies and `to_thread.run_sync` share this
# one pool. You can also ask for its size.


# %%
async def pool_size():
    return to_thread.current_default_thread_limiter().total_tokens


await pool_size()

# %% [markdown]
# `/async` has no such limit, because a waiting coroutine needs no thread, only a little memory. Its line has a slope
# because one loop accepts and answers all requests, and shares the processor with the program that sends them.
#
# ### Exercise 2: a limit of its own
#
# Sixty reports may be made at once, and they must not take the forty threads that everything else needs. Give them a
# limiter of their own: `to_thread.run_sync` takes one as `limiter=`. `make_report` blocks, and returns how many reports
# are made at the same time.

# %%
from workshop.lab.fixtures.lesson_01 import make_report

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
# Move the sliders: each move sends the requests and draws them anew. Which pattern gets worse with more requests, and
# from which number on? How short must the delay be for `/mixed` to do no harm?

# %%
from workshop.lab import explore

explore(timed.url, {"async def + time.sleep": "/mixed", "def": "/def", "async def + await": "/async"})

# %% [markdown]
# ## Waiting is not computing
#
# So far everything waited. A model computes. Here are two functions: one sleeps for 100 ms, one adds up a fixed amount
# of numbers in pure Python. How long the second takes depends on your machine.

# %%
from workshop.lab.work import burn, wait


def milliseconds(run):
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


alone = {"wait": milliseconds(wait), "burn": milliseconds(burn)}
alone

# %% [markdown]
# We will run four of each in three ways: one after the other, in four threads, and in two processes.


# %%
def in_turn(work):
    return milliseconds(lambda: [work() for _ in range(4)])


def in_threads(work):
    return milliseconds(lambda: in_parallel(work, work, work, work))


# %% [markdown]
# Each process has a Python interpreter of its own. Starting one is slow, and is not measured: a server starts its
# worker processes once, too.

# %%
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def in_processes(work):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        list(processes.map(wait, [200, 200]))  # start both
        return milliseconds(lambda: list(processes.map(work, [100] * 4)))


# %% [markdown]
# How many milliseconds will four calls of `burn` take in each way? You have seen how long one takes.

# %%
guess = {"one by one": ..., "4 threads": ..., "2 processes": ...}


# %%
ways = {"one by one": in_turn, "4 threads": in_threads, "2 processes": in_processes}
measured = {name: {"wait": way(wait), "burn": way(burn)} for name, way in ways.items()}
for name, took in measured.items():
    print(f"{name:11} burn: you said {guess[name]} ms, it took {took['burn']:.0f} ms")

# %% [markdown]
# What a second process can gain depends on the number of cores. The title of the picture tells how many this notebook
# may use.

# %%
from workshop.lab import bars
from workshop.machine import usable_cores

bars(measured, y="ms for four", title=f"cores: {usable_cores():g}")

# %% [markdown]
# Threads overlap waiting, but not computing: only one thread at a time may run Python code. The lock that ensures this
# is the global interpreter lock, the GIL. Each process has its own, so two processes can compute at the same time if
# there are two cores.
#
# **With two free cores**, the last `burn` takes little more than half as long as the first. **With one core**, or while
# other programs keep the cores busy, all three take about the same time. The picture then shows that threads do not
# help, but not what processes gain.
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
# Workers are the web server's own means for work that computes. To measure them, we need the app in a file that each
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
# Six requests run at a time. In one process their threads take turns, so each takes several times as long as it would
# alone. Two processes share the requests. With two free cores that saves up to half of the time, but how evenly they
# share is a matter of luck: each connection goes to the worker that accepts it first. With one core it saves nothing.
#
# A Ray Serve replica is a process as well. But Serve can put it on another machine, give it a GPU, and adapt the number
# of replicas to the load.

# %%
one.stop()
two.stop()

# %% [markdown]
# ## The real model
#
# The tumour classifier computes, with scikit-learn. How many times as long as one row will a thousand rows take?

# %%
guess = ...

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


took = {n: round(best_of_twenty(n), 2) for n in (1, 10, 100, 1000)}
print(f"you said {guess} times, it was {took[1000] / took[1]:.1f} times")
took

# %% [markdown]
# A thousand rows cost nowhere near a thousand times as much: most of the time for a single row is spent on the call,
# not on the row. So the service collects requests that arrive together, and predicts them in one call. Lesson 09 shows
# this as micro-batching.
#
# ### Exercise 3: the first service
#
# `diagnose` asks this model, and sleeps for 100 ms to make blocking visible. Its result names the model's version, so
# that each answer can be traced to the model that gave it.

# %%
from workshop.lab.fixtures.lesson_01 import diagnose

diagnose(19)

# %% [markdown]
# Write two endpoints. `/predict/{row}` calls `diagnose` off the event loop and returns
# `{"label": …, "model_version": …}`. `/health` returns `{"status": "healthy"}`.

# %% exercise="01.3"
service = FastAPI()


# solution (about 7 lines)
@service.get("/predict/{row}")
async def predict(row: int):
    diagnosis = await to_thread.run_sync(diagnose, row)
    return {"label": diagnosis.label, "model_version": diagnosis.model_version}


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
# Write `blocks(url)`: it returns `True` if the endpoint at `url` makes simultaneous requests wait for each other, else
# `False`. `load` has what you need. You do not know how long the endpoint takes, and it has no timing middleware.


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
# In the tests of your own service you would write `assert not blocks(url)`, once for each endpoint.

# %% [markdown]
# ## Quiz
#
# **1.** An endpoint is `async def` and calls `requests.get`. What happens to the other endpoints of the process?
# <details><summary>Answer</summary>They stand still until the call returns: it blocks the event loop, which they all
# share. Use an async client, or drop the <code>async</code>.</details>
#
# **2.** All endpoints are `def` and call a database that takes one second. 100 users arrive at once. When does the last one
# get an answer?
# <details><summary>Answer</summary>After about three seconds: 40 threads serve 40 users a second.</details>
#
# **3.** A model computes for 50 ms in pure Python. Do more threads give more predictions a second?
# <details><summary>Answer</summary>No. One thread at a time runs Python code. More processes do, up to the number of cores:
# workers, or replicas.</details>
#
# **4.** Why does a test with a single request not find a blocked event loop?
# <details><summary>Answer</summary>Blocking only harms the requests that wait. A single request waits for no
# other.</details>
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
# You can now read a timeline: a staircase of ever longer grey bars means a blocked loop, and two lengths of blue mean a
# full thread pool. So far an answer comes as a whole. Lesson 05 sends it while it is still being made.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
