# %% [markdown]
# # 01 Async and sync
#
# One `async` too many in an endpoint makes ten users wait for each other. You will cause this, measure it and fix it.
#
# Afterwards you can
#
# - tell from a timeline whether an endpoint blocks the event loop,
# - choose between `async def`, `def` and a thread, and say why,
# - find the limit of the thread pool by measuring,
# - tell work that waits from work that computes, and know what helps each.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 50 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("01.3")` runs what exercise 3 builds on.
#
# The coloured part of the map belongs to this lesson.

# %%
from workshop.lab import check, compare, hint, load, run_app, service_map, solution, start_at, stop_all, timeline

service_map("01")

# %% [markdown]
# ## Three endpoints, one response
#
# A sleep stands for the model, so that every number below can be explained. The first three endpoints return the same
# label after the same time, and differ only in how they wait. `/ping` responds at once.
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
# `load(url, requests, concurrency)` sends requests and returns a list with a record of each. The list has a `total_ms`
# and a `median_ms`, and each record an `ms`. First a single user, who sends ten requests one after the other.

# %%
PATHS = ["/def", "/async", "/mixed"]
one_by_one = {path: load(server.url + path, requests=10, concurrency=1) for path in PATHS}
one_by_one

# %% [markdown]
# The medians are nearly the same, not far above 100 ms. (The first request after a kernel starts takes longer, because
# Python still has modules to import.) A test that sends one request at a time, as most tests do, finds nothing wrong with
# any of the three.
#
# ## Ten users at once
#
# Now ten users send one request each, all at the same time. How many milliseconds pass until all ten have their
# response? Replace each `...` with your prediction.

# %%
guess = {"/def": ..., "/async": ..., "/mixed": ...}

# %%
loads = {path: load(server.url + path, requests=10) for path in PATHS}
compare(guess, {path: records.total_ms for path, records in loads.items()}, "ms")

# %% [markdown]
# One of them stands out. In the picture, each bar is one request, from the moment it was sent to the moment its response
# came.

# %%
timeline({"one user": one_by_one["/async"]} | {f"ten users, {path}": records for path, records in loads.items()})

# %% [markdown]
# ## What just happened?
#
# Everything that is `async def` shares one thread, in which the event loop runs. The loop runs one piece of code at a
# time. It moves on to the next request only where an `await` really has to wait.
#
# `time.sleep` is not awaited. In `/mixed` it blocks the loop, and the other requests queue. All ten were sent at once,
# yet they take about as long as one by one. In the picture that is a staircase.
#
# `await asyncio.sleep` frees the loop while it waits. And a plain `def` endpoint never runs on the loop: FastAPI runs
# it in a thread from a pool.
#
# ## Other endpoints suffer too
#
# The whole process shares the loop. So we send ten requests to `/mixed`, and a moment later a single one to `/ping`,
# which has nothing to wait for by itself.

# %%
from workshop.lab import in_parallel


def ping_a_moment_later():
    time.sleep(0.25)
    return load(server.url + "/ping", requests=1)


# %%
_, disturbed = in_parallel(lambda: load(server.url + "/mixed", requests=10), ping_a_moment_later)
undisturbed = load(server.url + "/ping", requests=1)
print(f"/ping alone took {undisturbed.total_ms:.0f} ms, beside /mixed {disturbed.total_ms:.0f} ms")

# %% [markdown]
# The ping had to wait for the requests that were in the queue before it. If a health check takes longer than its
# timeout, an orchestrator restarts a service that was only busy. One blocking line puts every endpoint of the process
# at risk.
#
# ## Waiting or working?
#
# The bars do not show whether a request was inside the application or still queued. The service can measure that. This
# middleware is part of the final service: it adds the header `X-Process-Time`, the seconds that a request spent inside.
# You need not follow it line by line.
#
# An ASGI app is anything that can be called with `scope`, `receive` and `send`. A middleware is an app around an app:
# this one changes the first message that the inner app sends.

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
# We put it around our app. Now the bars have two colours: blue is the time inside the application, grey all the time
# outside it, such as opening the connection or waiting for the loop.

# %%
timed = run_app(TimingMiddleware(app), name="lesson 01, timed")
timeline({path: load(timed.url + path, requests=10) for path in PATHS})

# %% [markdown]
# In `/mixed`, too, each request is inside the application for about 100 ms. The rest of its bar is grey: it waits for
# the loop, and nothing that the endpoint itself logs would show this.
#
# ## Fixes
#
# **Await.** If the library offers `await`, use it: `httpx` instead of `requests`, an async database driver instead of a
# blocking one. One thread then serves thousands of waiting requests. (A wrapper does not help: a blocking call inside an
# `async def` of your own still blocks.)
#
# **Plain `def`.** If the library cannot be awaited, drop the `async`. FastAPI runs the endpoint in a thread.
#
# **A thread for one call.** If an endpoint awaits some things and must block for another, run just the blocking call in
# a thread, and await that.

# %%
from anyio import to_thread

fixed = FastAPI()


@fixed.get("/thread")
async def in_thread(seconds: float = 0.1):
    await to_thread.run_sync(time.sleep, seconds)
    return {"label": "benign"}


fixed_server = run_app(TimingMiddleware(fixed), name="lesson 01, fixed")

# %%
fixes = {"await": timed.url + "/async", "plain def": timed.url + "/def", "to_thread": fixed_server.url + "/thread"}
timeline({name: load(url, requests=10) for name, url in fixes.items()})

# %% [markdown]
# You can fix `/mixed` as well. Drop its `async` in the cell with the endpoints, run that cell, and run the cell below
# "Ten users at once" that fills `loads`. Then put the `async` back and run the cell with the endpoints again.
#
# The fourth fix moves the work to another process: a Ray Serve deployment. In the endpoint it looks like the first
# one: `return await model.predict.remote(row)`. Lesson 09 builds it.
#
# ### Exercise 1: fix a service
#
# This service looks up a patient in a database; this look-up can be awaited. Then it calls an old library, which blocks
# for 100 ms.

# %%
from workshop.lab.fixtures.lesson_01 import look_up, old_library

old_library(await look_up(7))

# %% [markdown]
# `return old_library(record)` would make ten users wait for each other. Return the same result without making
# them wait.

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
# If you are stuck, `hint("01.1")` helps, and after three tries `solution("01.1")`.
#
# ## How far do threads go?
#
# `/def` served ten users at the same time. Now each request waits for 300 ms. How many milliseconds will it take
# to serve a hundred users?

# %%
guess = {"/def": ..., "/async": ...}


# %% start_at=false
def total_ms(path, requests):
    # The faster of two: another program may disturb one.
    return min(load(f"{timed.url}{path}?seconds=0.3", requests).total_ms for _ in range(2))


users = [1, 20, 40, 50, 80, 90, 100]
totals = {path: {n: total_ms(path, n) for n in users} for path in guess}
compare(guess, {path: total[100] for path, total in totals.items()}, "ms")

# %% start_at=false
from workshop.lab import curve

curve(totals, x="requests at the same time", y="ms until the last response", title="each request waits for 300 ms")

# %% [markdown]
# With more than forty users, `/def` takes over 600 ms, with more than eighty over 900. The timeline of sixty requests,
# each of one second, shows why.

# %% start_at=false
sixty = load(f"{timed.url}/def?seconds=1", requests=60)
timeline({"/def": sixty})

# %% [markdown]
# Grey is mostly the opening of sixty connections at once. Blue comes in two lengths: some requests stay inside for two
# seconds instead of one, as they wait there for a thread. Count those that got a thread at once.

# %% start_at=false
sum(record.worked_s < 1.5 for record in sixty)

# %% [markdown]
# That is how many threads may be in use at once. All `def` endpoints and all calls of `to_thread.run_sync` share this
# limit. Threads are started as needed: a *limiter* counts those in use. Each event loop has one, and the notebook's own
# has the same default.


# %%
async def thread_limit():
    return to_thread.current_default_thread_limiter().total_tokens


await thread_limit()

# %% [markdown]
# `/async` has no such limit, because a waiting coroutine needs no thread, only a little memory. Overall, its line rises,
# because one loop handles all requests, and shares the processor with the program that sends them.
#
# ### Exercise 2: a limit of its own
#
# Allow sixty reports at once and no more, without using any of the forty threads that everything else needs. Give them a limiter of their own: `to_thread.run_sync` takes one as `limiter=`. `make_report` blocks, and returns
# how many reports are being made at that moment. The endpoint returns the same.

# %%
from workshop.lab.fixtures.lesson_01 import make_report

# %% exercise="01.2"
from anyio import CapacityLimiter

office = FastAPI()
# solution (about 1 line)
report_limiter = CapacityLimiter(60)
# starter
# report_limiter = ...
# end


@office.get("/report")
async def report():
    # solution (about 1 line)
    return await to_thread.run_sync(make_report, limiter=report_limiter)
    # starter
    # return ...
    # end


# %%
check("01.2", office)

# %% [markdown]
# ## Try it yourself
#
# Move the sliders: each move sends the requests again and redraws the picture. Which pattern gets worse with more
# requests, and from which number on? How short must the delay be for `/mixed` to do no harm?
#
# <details><summary>Answer</summary><code>/mixed</code> adds a delay with each request, <code>def</code> with each forty. No
# delay is short enough: even 10 ms add up to a second for the last of a hundred users.</details>

# %% start_at=false
from workshop.lab import explore

explore(timed.url, {"async def + time.sleep": "/mixed", "def": "/def", "async def + await": "/async"})

# %% [markdown]
# ## Waiting is not computing
#
# So far everything waited. A model computes. Here are two functions: `wait(ms)` sleeps, `burn(ms)` adds up numbers in
# pure Python. How long the second really takes depends on your machine. Both default to 100 ms.

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
# Each process has a Python interpreter of its own. Starting one is slow. We do not measure that, as a server starts its
# workers only once.

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


# %% start_at=false
ways = {"one by one": in_turn, "4 threads": in_threads, "2 processes": in_processes}
measured = {name: {"wait": way(wait), "burn": way(burn)} for name, way in ways.items()}
compare(guess, {name: took["burn"] for name, took in measured.items()}, "ms")

# %% [markdown]
# What a second process can gain depends on the number of cores. The picture's title says how many this notebook may
# use.

# %% start_at=false
from workshop.lab import bars
from workshop.machine import usable_cores

bars(measured, y="ms for four", title=f"cores: {usable_cores():g}")

# %% [markdown]
# Threads can wait together, but not compute together: only one thread at a time may run Python code. The lock that
# ensures this is the global interpreter lock, the GIL. Each process has its own, so two processes can compute at the
# same time if there are two cores. (Compiled code, as in NumPy, may release the lock.)
#
# **With two free cores**, the last `burn` takes about half as long as the first. **With one core** there is nothing to
# gain. While other programs run, these times mean little.
#
# A thread adds no computing power, but it helps the *other* requests: while it computes, the event loop keeps getting
# its turn, so `/ping` or a health check still responds.
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
# Workers are uvicorn's own way to spread work that computes. To measure them, we need the app in a file that each worker
# can import.

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


# %% start_at=false
from workshop.lab import run_command

one = run_command("uvicorn burn_app:app --port {port}", name="one worker", folder=folder)
two = run_command("uvicorn burn_app:app --port {port} --workers 2", name="two workers", folder=folder)

# %% start_at=false
workers = {"1 worker": one, "2 workers": two}
timeline({name: load(server_of.url + "/burn", 24, concurrency=6) for name, server_of in workers.items()})

# %% [markdown]
# Six requests run at a time. In one process their threads take turns, so each request waits for the others, too. Two
# processes share the requests. With two free cores that saves up to half of the time, with a single idle core nothing.
# How evenly they share is a matter of luck: each connection goes to the worker that accepts it first.
#
# A Ray Serve replica is a process as well. But Serve can put it on another machine, give it a GPU, and adapt the number
# of replicas to the load.

# %% start_at=false
one.stop()
two.stop()

# %% [markdown]
# ## The real model
#
# The tumour classifier computes, with scikit-learn. How many times longer will a thousand rows take than one?

# %%
guess = ...

# %%
import numpy as np

from workshop.models.tumours import TumourClassifier, training_data
from workshop.settings import Settings

model = TumourClassifier.load(Settings().artifact)
rows, labels = training_data()
thousand = np.tile(rows, (2, 1))[:1000]


# %% start_at=false
def best_of_twenty(n):
    return min(milliseconds(lambda: model.predict(thousand[:n])) for _ in range(20))


took = {n: round(best_of_twenty(n), 2) for n in (1, 10, 100, 1000)}
compare(guess, took[1000] / took[1], "times")
took

# %% [markdown]
# A thousand rows cost nowhere near a thousand times as much: most of the time for a single row is spent on the call,
# not on the row. So the service collects requests that arrive together, and predicts them in one call. Lesson 09 shows
# this as micro-batching.
#
# ### Exercise 3: a service with the real model
#
# `diagnose(row)` asks this model, and sleeps for 100 ms to make blocking visible. Its result names the model's version,
# so that each prediction can be traced to the model that made it.

# %%
from workshop.lab.fixtures.lesson_01 import diagnose

diagnose(19)

# %% [markdown]
# Write two endpoints. `GET /predict/{row}` calls `diagnose` without blocking the event loop and returns
# `{"label": …, "model_version": …}`. `GET /health` returns `{"status": "healthy"}`, and stays quick while predictions
# run. All rows that are asked for exist.

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
# async def predict(row: int):
#     return ...
# end


# %%
check("01.3", service)

# %% [markdown]
# ### Exercise 4: a test that finds a blocked loop
#
# Write `blocks(url)`: it returns `True` if the endpoint at `url` makes ten simultaneous requests wait for each other,
# else `False`. `load` has what you need. The endpoint takes at least 30 ms, but you do not know how long, and it has no
# timing middleware.


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
# get a response?
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
# | waits, and blocks | `def`, or `await to_thread.run_sync` | the threads of the limiter |
# | computes, and others must not wait | the same: a thread keeps the loop free | one core for Python code |
# | computes, and must be faster | worker processes, or a Serve deployment | cores |
#
# Never put a blocking line inside `async def`: it serves one request at a time.
#
# You can now read a timeline: a staircase of ever longer grey bars means a blocked loop, and two lengths of blue mean
# that all threads were in use. So far a response arrives in one piece. Lesson 05 streams it while it is still being made.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
