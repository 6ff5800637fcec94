# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 09 Deployment handles
#
# So far the model runs in the process that answers HTTP. You will move it into a process of its own, call it with an
# `await`, and measure what you gain and what it costs.
#
# Afterwards you can
#
# - turn a plain class into a deployment, and call it through a handle,
# - explain how many calls a replica handles at once, and who waits when one of them blocks,
# - compose deployments, batch calls, and stream a result item by item,
# - keep Ray's errors out of the API, and cancel work that nobody is waiting for.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("09.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, in_parallel, load, marks, run_app
from workshop.lab import service_map, solution, start_at, start_serve, stop_all, stop_serve, timeline

service_map("09")

# %% [markdown]
# ## A cluster on one machine
#
# Ray starts processes and lets them call each other. Ray Serve, on top of it, keeps a service running in them. On a
# real cluster they are spread over many machines; here they all run on one.

# %%
import time

started = time.perf_counter()
url = start_serve()
from ray import serve  # imported only here: without start_serve(), serve.run starts a Ray on port 8000 with all cores

print(f"Ray Serve is up after {time.perf_counter() - started:.0f} s")

# %% [markdown]
# Starting Ray is slow, so each lesson does it only once. If you see a `NameError` for `serve` after a kernel restart,
# run the cell above. The notebook now has these processes:

# %%
import psutil


def processes():
    return sorted(process.name() for process in psutil.Process().children(recursive=True))


processes()

# %% [markdown]
# | process | what it does |
# |---|---|
# | `gcs_server` | keeps the state of the cluster: its machines, its processes, and where each of them runs |
# | `raylet` | starts and stops processes on this machine |
# | `ServeController` | starts and stops replicas: the processes in which our classes run |
# | `ProxyActor` | receives HTTP requests and passes them on |
#
# The others do smaller jobs, such as collecting logs. No model is running yet.
#
# ## Out of the process
#
# In lesson 01 a blocking line in an `async def` made ten users wait for one another. The three solutions there kept
# the model in the API's process. Here is the same problem again.

# %%
from fastapi import FastAPI

app = FastAPI()


@app.get("/blocking")
async def blocking():
    time.sleep(0.1)
    return {"label": "benign"}


@app.get("/ping")
async def ping():
    return "pong"


# %% [markdown]
# The fourth solution moves the blocking line into another process. It starts as a method of a plain class, and any
# class will do.


# %%
class SlowModel:
    def predict(self):
        time.sleep(0.1)
        return "benign"


# %% [markdown]
# Three calls turn the class into a process. Each gives you something new:
#
# | step | what it is | made by |
# |---|---|---|
# | class | plain Python, can be tested without Ray | you |
# | deployment | the class, with the settings of its replicas | `serve.deployment(Class)` |
# | application | a deployment, with the arguments of its constructor | `.bind(…)` |
# | handle | what callers use | `serve.run(application, …)` |

# %%
deployment = serve.deployment(SlowModel)
application = deployment.bind()
slow = serve.run(application, name="slow", route_prefix=None)
slow

# %% [markdown]
# `route_prefix=None` means that the application has no HTTP address of its own: only our endpoints call it. There is
# now one more process, the replica. It holds one instance of the class.

# %%
[name for name in processes() if "Replica" in name]

# %% [markdown]
# In the endpoint, the call looks like the first solution of lesson 01: an `await`. We keep the handles in a dict, so
# that one endpoint can call any of the models below.

# %%
handles = {"slow": slow}


@app.get("/deployed/{model}")
async def deployed(model: str):
    return {"label": await handles[model].predict.remote()}


# %%
server = run_app(app, name="lesson 09")
load(server.url + "/deployed/slow", requests=1)

# %% [markdown]
# Now ten at once. One replica, one object, and a method that blocks for 100 ms: after how many milliseconds does the
# last of the ten responses arrive? Replace each `...` with your prediction.

# %%
guess = {"/blocking": ..., "/deployed/slow": ...}

# %%
loads = {path: load(server.url + path, requests=10) for path in guess}
compare(guess, {path: records.total_ms for path, records in loads.items()}, "ms")

# %%
timeline(loads)

# %% [markdown]
# ## What just happened?
#
# `/blocking` handles one request at a time. The replica handled five at once, and the other five had to wait until
# there was room. Where does the number five come from?

# %%
deployment.max_ongoing_requests

# %% [markdown]
# That is the default limit on the calls that a replica handles at once. Further calls wait on the caller's side, in
# the handle, which keeps asking, at growing intervals, whether there is room.
#
# How can a blocking method run five times at once? `predict` is a plain `def`, so the replica runs it in a thread, as
# FastAPI does. Older versions of Serve ran one call at a time.
#
# ### Exercise 1: from class to application
#
# Write a class whose constructor takes a `limit`. `decide(probability)` returns `"refer"` if the probability reaches
# the limit, and `"routine"` otherwise. Then make `referral` an application of it, with a limit of 0.3. Do not run it:
# the check does.


# %% exercise="09.1"
# solution (about 7 lines)
class Referral:
    def __init__(self, limit):
        self.limit = limit

    def decide(self, probability):
        return "refer" if probability >= self.limit else "routine"


referral = serve.deployment(Referral).bind(0.3)
# starter
# class Referral:
#     def __init__(self, limit):
#         self.limit = limit
#
#
# referral = ...
# end

# %%
check("09.1", referral)

# %% [markdown]
# ## Who else waits?
#
# In lesson 01 `/ping` had to wait too, although it does nothing. Let us send ten requests, and one to `/ping` 200 ms
# later.


# %%
def ping_a_moment_later():
    time.sleep(0.2)
    return load(server.url + "/ping", requests=1)


def ping_beside(path):
    _, ping = in_parallel(lambda: load(server.url + path, requests=10), ping_a_moment_later)
    return ping.total_ms


# %% start_at=false
{path: ping_beside(path) for path in loads}

# %% [markdown]
# The event loop of the web server only waits for the replica, so it is free for other requests. What if the method in
# the replica is written like `/blocking`, as an `async def` that blocks?


# %%
class CarelessModel:
    async def predict(self):
        time.sleep(0.1)
        return "benign"


# %% [markdown]
# There are two ways to make room for more calls: allow more in each replica, or run more replicas. `options` returns a
# copy of a deployment with different settings.
#
# `serve.run` waits until the replicas are up. `serve.run_many` starts several applications in parallel, and waits for
# all of them together. We add a scanner, for exercise 2.

# %%
from workshop.lab.fixtures.lesson_09 import scanner_app

applications = {
    "careless": serve.deployment(CarelessModel).bind(),
    "roomy": deployment.options(max_ongoing_requests=10).bind(),
    "two": deployment.options(num_replicas=2).bind(),
    "scanner": scanner_app(),
}
targets = [serve.RunTarget(application, name=name, route_prefix=None) for name, application in applications.items()]
handles |= dict(zip(applications, serve.run_many(targets), strict=True))

# %% [markdown]
# First the careless model, with ten requests at once: when does the last response arrive? And how long does a `/ping`
# sent at the same time take?

# %%
guess = {"ten requests": ..., "/ping meanwhile": ...}

# %% start_at=false
loads["/deployed/careless"] = load(server.url + "/deployed/careless", requests=10)
measured = loads["/deployed/careless"].total_ms, ping_beside("/deployed/careless")
compare(guess, dict(zip(guess, measured, strict=True)), "ms")

# %% start_at=false
timeline(loads)

# %% [markdown]
# Ten requests take a second or more: a replica has an event loop of its own, and this method blocks it. While it is
# blocked, not even finished responses can leave. But only callers of this deployment wait; `/ping` does not.
#
# ## Room for more
#
# Now compare the other two with the first deployment.

# %% start_at=false
rooms = {"1 replica, 5 at once": "slow", "1 replica, 10 at once": "roomy", "2 replicas, 5 at once each": "two"}
timeline({title: load(f"{server.url}/deployed/{name}", requests=10) for title, name in rooms.items()})

# %% [markdown]
# With room for ten, all ten requests start at once. Two replicas also have room for ten between them. But if the
# handle picks one that is already full, the call has to wait and try again.
#
# For a method that waits, room in the replica is enough, and threads are cheaper than processes. A method that
# computes in Python needs more replicas, up to the number of cores, because the threads of one replica share one GIL.
# Lesson 11 covers how many replicas to run.
#
# ## Calls from a notebook
#
# You can call a handle from anywhere, not only from an endpoint. A call returns at once, without a result, and `await`
# waits for the result.

# %%
roomy = handles["roomy"]
pending = roomy.predict.remote()
pending

# %%
await pending

# %% [markdown]
# Arguments and results travel between processes, so Ray pickles both.
#
# Ray's own examples often write `.result()` instead of `await`. Try it here; this cell raises an error.

# %% tags=["raises-exception"]
roomy.predict.remote().result()

# %% [markdown]
# `.result()` blocks until the result is there. A notebook cell runs in an event loop, as an `async def` does, so
# blocking here would repeat the mistake from lesson 01. Serve refuses. In endpoints and deployments, always use
# `await`.
#
# Independent calls do not have to wait for one another. `asyncio.gather` awaits them together, and keeps their order.

# %%
import asyncio

await asyncio.gather(roomy.predict.remote(), roomy.predict.remote(), roomy.predict.remote())

# %% [markdown]
# ### Exercise 2: all at once
#
# `scanner` is a handle. Its method `read` takes one image (here just a number) and spends most of its time waiting.
# Write `read_all(scanner, images)`: it reads all images at the same time, and returns the results in the order of the
# images. You can try it with `handles["scanner"]`.


# %% exercise="09.2"
async def read_all(scanner, images):
    # solution (about 1 line)
    return await asyncio.gather(*(scanner.read.remote(image) for image in images))
    # starter
    # return ...
    # end


# %%
check("09.2", read_all)

# %% [markdown]
# We delete the applications that we no longer need. With `_blocking=False` we do not wait for their processes to end.

# %%
for name in ("slow", "careless", "roomy", "two"):
    serve.delete(name, _blocking=False)

# %% [markdown]
# ## The classifier, and a deployment that calls it
#
# This is the class of the final service.

# %% mirrors="workshop.deployments.classifier:ClassifierDeployment"
from pathlib import Path

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.models.tumours import TumourClassifier, training_data
from workshop.settings import Settings


class ClassifierDeployment:
    def __init__(self, artifact: Path) -> None:
        self._model = TumourClassifier.load(artifact)

    def predict(self, rows: FloatMatrix) -> Scores:
        return self._model.predict(rows)

    def card(self) -> ModelCard:
        return self._model.card


# %% [markdown]
# It uses neither a web framework nor Ray, so the people who maintain it can test it with plain Python.

# %%
artifact = Settings().artifact
rows, labels = training_data()
ClassifierDeployment(artifact).predict(rows[:2])

# %% [markdown]
# Deciding when the classifier is too unsure is a separate rule, so it gets a separate deployment. That deployment
# holds a handle to the classifier and awaits calls to it, just as the endpoint did.

# %%
import numpy as np


class Triage:
    def __init__(self, classifier, sure):
        self.classifier, self.sure = classifier, sure

    async def labels(self, rows):
        scores = await self.classifier.predict.remote(rows)
        names = np.array(scores.classes)[scores.probabilities.argmax(axis=1)]
        return np.where(scores.probabilities.max(axis=1) >= self.sure, names, "unsure")

    async def shown(self):
        return repr(self.classifier)


# %% [markdown]
# `bind` does not create an object. It keeps the arguments, and each replica calls the constructor with them: the model
# is loaded there, never sent. Where the constructor expects the classifier, we pass an application.

# %% start_at=false
application = serve.deployment(Triage).bind(serve.deployment(ClassifierDeployment).bind(artifact), sure=0.95)
triage = serve.run(application, name="triage", route_prefix=None)

# %% start_at=false
from collections import Counter

Counter((await triage.labels.remote(rows)).tolist())

# %% [markdown]
# A numpy array of 569 tumours went in, and an array of labels came out. What did the constructor of `Triage` receive
# instead of the application?

# %% start_at=false
await triage.shown.remote()

# %% [markdown]
# A handle. The two deployments run in separate processes, and each may have as many replicas as it needs. They belong
# to one application: they are started, updated and stopped together.
#
# ### Exercise 3: ask the expert
#
# `draft(patient)` returns a label, and how certain it is, from 0 to 1. `Expert` is a plain class whose method
# `label(patient)` returns a more reliable label, but slowly. Write a class `Cascade` whose constructor takes a handle
# to the expert. Its own `label(patient)` returns the draft's label, or the expert's if the draft is less than 0.9
# certain. Then make `cascade` an application of both.

# %%
from workshop.lab.fixtures.lesson_09 import Expert, draft

draft(5), draft(3)


# %% exercise="09.3"
# solution (about 9 lines)
class Cascade:
    def __init__(self, expert):
        self.expert = expert

    async def label(self, patient):
        label, certainty = draft(patient)
        if certainty < 0.9:
            label = await self.expert.label.remote(patient)
        return label


cascade = serve.deployment(Cascade).bind(serve.deployment(Expert).bind())
# starter
# class Cascade:
#     def __init__(self, expert):
#         self.expert = expert
#
#
# cascade = ...
# end

# %%
check("09.3", cascade)

# %% [markdown]
# ## Why no decorator?
#
# Most examples decorate the class: `@serve.deployment` on the line above. It is shorter, and it works. To see what is
# sent to a replica in each case, we write a module with one class of each kind.

# %%
import sys
import tempfile

folder = tempfile.mkdtemp()
sys.path.insert(0, folder)

# %%
# %%writefile {folder}/two_kinds.py
from ray import serve

NAMES = [f"patient {number}" for number in range(20_000)]


class Plain:
    def name(self, number):
        return NAMES[number]


@serve.deployment
class Decorated:
    def name(self, number):
        return NAMES[number]


# %%
from ray import cloudpickle
from two_kinds import Decorated, Plain

{"plain": len(cloudpickle.dumps(Plain)), "decorated": len(cloudpickle.dumps(Decorated.func_or_class))}

# %% [markdown]
# These are sizes in bytes. A plain class in a module is sent by name, and the replica imports it. The decorator
# replaces the class with a deployment, which holds the class in `func_or_class`. The name no longer leads to the
# class, so the class is sent as code, with every global that it uses.
#
# If one of those globals is a lock or a connection, the class cannot be sent at all. That is why classes in
# `workshop/deployments` stay plain, and `workshop/integration` calls `serve.deployment(Class)`.
#
# Classes defined in a notebook are always sent as code, because a replica cannot import a notebook.
#
# ## Three more deployments
#
# The next sections call three more deployments: two of one class, and one of another. We define the classes now, so
# that all replicas start in parallel. `Noting` is the base of the first: it is the classifier, and also records how
# many rows each call to the model had.


# %%
class Noting(ClassifierDeployment):
    def __init__(self, artifact):
        super().__init__(artifact)
        self.sizes = []

    def predict(self, rows):
        self.sizes.append(len(rows))
        return super().predict(rows)

    def noted(self):
        sizes, self.sizes = self.sizes, []
        return sizes


# %% [markdown]
# Each caller of `predict_one` passes one row and gets one result. `@serve.batch` collects the calls in the replica,
# for up to 100 ms. Then the method gets a list of up to 32 rows, and returns a list with one result for each.


# %%
class Batching(Noting):
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.1)
    async def predict_one(self, rows):
        scores = self.predict(np.concatenate(rows))
        return list(scores.probabilities)


# %% [markdown]
# The last class dictates a report, one line every 200 ms. It counts the lines, and can raise any error that we ask
# for.

# %%
REPORT = ("30 measurements", "all within range", "malignant: 2 %", "benign: 98 %", "no referral")


class Reporter:
    n_lines = 0

    async def lines(self):
        for line in REPORT:
            await asyncio.sleep(0.2)
            self.n_lines += 1
            yield line

    async def report(self):
        return [line async for line in self.lines()]

    async def count(self):
        return self.n_lines

    def fail(self, error, *arguments):
        raise error(*arguments)


# %% [markdown]
# The classifier is deployed twice: once with room for 5 calls, once for 64.

# %%
batching = serve.deployment(Batching)
applications = {
    "room for 5": batching.bind(artifact),
    "room for 64": batching.options(max_ongoing_requests=64).bind(artifact),
    "reporter": serve.deployment(Reporter).bind(),
}

# %%
serve.delete("triage", _blocking=False)
targets = [serve.RunTarget(application, name=name, route_prefix=None) for name, application in applications.items()]
small, large, reporter = serve.run_many(targets)

# %% [markdown]
# ## Many callers, few calls to the model
#
# As you measured in lesson 01, a thousand rows take the model less than twice as long as one. But each caller brings
# only one row. This is what `predict_one` is for: with `@serve.batch`, calls that arrive together share one call.


# %%
sixty_four = [rows[[number]] for number in range(64)]


async def sizes_with(classifier, callers):
    await classifier.noted.remote()  # forget the calls so far
    await asyncio.gather(*(classifier.predict_one.remote(row) for row in sixty_four[:callers]))
    return await classifier.noted.remote()


# %% [markdown]
# With 1, 8 and 32 callers at the same time, and room for five calls: how large is the largest batch?

# %%
guess = {1: ..., 8: ..., 32: ...}

# %% start_at=false
sizes = {callers: await sizes_with(small, callers) for callers in guess}
compare(guess, {callers: max(batches) for callers, batches in sizes.items()}, "rows")
sizes

# %% [markdown]
# Each number is a batch. None has more than five rows: the replica takes only five calls at a time, so only five can
# share a batch. Nothing warns you about this. Set `max_ongoing_requests` to at least the maximum batch size.

# %% start_at=false
large_sizes = {callers: await sizes_with(large, callers) for callers in guess}
settings_tried = {"max_ongoing_requests=5": sizes, "max_ongoing_requests=64": large_sizes}
largest = {
    f"{callers} at once": {name: max(tried[callers]) for name, tried in settings_tried.items()} for callers in guess
}
bars(largest, y="rows in the largest batch", title="@serve.batch(max_batch_size=32)")

# %% [markdown]
# With room for 64, all callers that arrive within 100 ms can share a batch.
#
# ### Exercise 4: share a call
#
# The function `diagnose` takes a list of patients, and returns a list of results, one for each. Write a class with a
# method `diagnose` as well: callers pass it one patient, and get the result for that patient. Up to sixteen callers
# that come together share one call of the function. A lone caller waits about 200 ms for others. Then make `ward` an
# application of the class.

# %%
from workshop.lab.fixtures.lesson_09 import diagnose

diagnose([7, 8, 9])


# %% exercise="09.4"
# solution (about 6 lines)
class Ward:
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.2)
    async def diagnose(self, patients):
        return diagnose(patients)


ward = serve.deployment(Ward).options(max_ongoing_requests=32).bind()
# starter
# class Ward:
#     async def diagnose(self, patient):
#         return diagnose([patient])[0]
#
#
# ward = ...
# end

# %%
check("09.4", ward)

# %% [markdown]
# ## What a call costs
#
# Sixty-four rows need scores: one call after the other, or all calls started first and awaited together, or a single
# call with all rows. How many milliseconds do the three take?


# %%
async def one_by_one(classifier=large):
    return [await classifier.predict.remote(row) for row in sixty_four]


async def together(classifier=large):
    return await asyncio.gather(*(classifier.predict.remote(row) for row in sixty_four))


# %%
async def in_one_call():
    return await large.predict.remote(rows[:64])


async def milliseconds(function, *arguments):
    start = time.perf_counter()
    await function(*arguments)
    return 1000 * (time.perf_counter() - start)


# %%
guess = {"one by one": ..., "together": ..., "in one call": ...}

# %% start_at=false
ways = {"one by one": one_by_one, "together": together, "in one call": in_one_call}
costs = {name: {"ms": await milliseconds(way)} for name, way in ways.items()}
compare(guess, {name: cost["ms"] for name, cost in costs.items()}, "ms")
bars(costs, y="ms", title="64 rows")

# %% [markdown]
# The single call is by far the fastest. Each call travels to the replica and back, which is called a hop, and the
# other two ways pay for 64 hops. Compare that with the same rows one by one in this process, in milliseconds per row.

# %% start_at=false
local = TumourClassifier.load(artifact)
start = time.perf_counter()
for row in sixty_four:
    local.predict(row)
here = 1000 * (time.perf_counter() - start)
{"one by one, through the handle": costs["one by one"]["ms"] / 64, "one by one, here": here / 64}

# %% [markdown]
# A hop takes several times as long as this model's prediction. So a model this small is better off in the API's
# process, and the final service puts it there by default. For a large model, or one on a GPU, the hop hardly matters.
#
# These were calls to the replica with room for 64. With room for 5, the other calls wait in the handle. Three rounds
# of each:

# %% start_at=false
rounds = {}
for name, handle in {"room for 5": small, "room for 64": large}.items():
    rounds[name] = [await milliseconds(together, handle) for _ in range(3)]
marks(rounds, title="64 calls at once")

# %% [markdown]
# Each mark is one round. With room for 64 the rounds lie close together. With room for 5 they usually take longer, and
# any round may take many times as long. A handle that finds no room waits before it asks again, and doubles the
# wait each time, up to half a second. Meanwhile a fast replica may sit idle. So for fast calls, set
# `max_ongoing_requests` higher than the number of calls that you expect at once.
#
# ## Batching on the caller's side
#
# `@serve.batch` saves calls to the model. It does not save hops, and you have just seen which of the two costs more.
# So the final service batches in the API's process, before the hop if there is one. `MicroBatched` does it. These are
# two of its methods, only to read.


# %% mirrors="workshop.integration.batching:MicroBatched._start_calls workshop.integration.batching:MicroBatched._call_ended"
from contextvars import Context


def _start_calls(self) -> None:
    while len(self._calls) < self._max_calls and (batch := self._next_batch()):
        # An empty context detaches the call from the request that starts it. Otherwise Serve would cancel the whole batch
        # when that one client disconnects.
        call = asyncio.create_task(self._predict_together(batch), context=Context())
        self._calls.add(call)
        call.add_done_callback(self._call_ended)


def _call_ended(self, call: asyncio.Task[None]) -> None:
    self._calls.discard(call)
    self._start_calls()


# %% [markdown]
# There is no timer. While fewer than `max_calls` calls are under way, a request starts one at once. With
# `max_calls=1`, requests that arrive during a call wait and share the next one, which starts as soon as the current
# one ends.
#
# `MicroBatched` has the methods of the classifier's contract, and so does the object that it wraps. Here that is
# `HandleClassifier`: a handle with the contract's methods. You will see its code, and `Calls`, below.

# %%
from workshop.integration.batching import MicroBatched
from workshop.integration.calls import Calls
from workshop.integration.classifier import HandleClassifier

remote = HandleClassifier(Calls(large, timeout_s=10))
micro = MicroBatched(remote, max_rows=1024, max_waiting_rows=16384, max_calls=1, timeout_s=10)

# %% [markdown]
# Three ways for a caller to ask about one row. How long do 64 callers wait, and how long does a single one?

# %%
asks = {"no batching": remote.predict, "@serve.batch": large.predict_one.remote, "MicroBatched": micro.predict}


async def ask_all(ask, callers):
    await asyncio.gather(*(ask(row) for row in sixty_four[:callers]))


# %% start_at=false
ms = {}
for callers in (1, 64):
    ms[f"{callers} at once"] = {name: await milliseconds(ask_all, ask, callers) for name, ask in asks.items()}
bars(ms, y="ms until the last result")

# %% [markdown]
# And how often is the model called for 64 callers?

# %% start_at=false
calls = {}
for name, ask in asks.items():
    await large.noted.remote()  # forget the calls so far
    await ask_all(ask, 64)
    calls[name] = await large.noted.remote()
{name: f"{len(sizes)} calls, the largest of {max(sizes)} rows" for name, sizes in calls.items()}

# %% [markdown]
# With `@serve.batch`, a lone caller pays for the timer: it waits 100 ms for others that never come. With 64 callers
# `MicroBatched` makes two hops instead of 64: the first row goes alone, and 63 share the second.
#
# `@serve.batch` is right where the callers are many processes, which cannot share a queue, or where a GPU has to be
# given full batches, whatever the wait. Lesson 12 comes back to it.
#
# We are done with the classifiers.

# %%
for name in ("room for 5", "room for 64"):
    serve.delete(name, _blocking=False)

# %% [markdown]
# ## A result in pieces
#
# `Reporter.lines` from above yields its lines. `options(stream=True)` returns a handle whose calls you iterate over
# instead of awaiting them.

# %% start_at=false
start = time.perf_counter()
async for line in reporter.options(stream=True).lines.remote():
    print(f"{1000 * (time.perf_counter() - start):5.0f} ms  {line}")

# %% [markdown]
# Each line arrives as soon as it is dictated. An endpoint like those in lesson 05 can pass it on to the browser at
# once. The original handle still works; `options` makes a copy.
#
# ## When a replica raises
#
# An error is an object, so it is pickled and sent back like any result. This one stores a row and a field. What does
# the caller get?


# %%
class ImpossibleError(Exception):
    def __init__(self, row, field):
        super().__init__(f"row {row}: {field} is impossible")
        self.row, self.field = row, field


# %%
async def what_arrives(kind, *arguments):
    try:
        await reporter.fail.remote(kind, *arguments)
    except Exception as error:
        return error


arrived = await what_arrives(ImpossibleError, 3, "mean_area")
type(arrived).__name__, isinstance(arrived, ImpossibleError)

# %% [markdown]
# A different error arrived. An `except ImpossibleError` around the call does not catch it, although that is exactly
# what was raised. The cause is in the class, and you do not need Ray to see it. This cell raises an error.

# %% tags=["raises-exception"]
import pickle

pickle.loads(pickle.dumps(ImpossibleError(3, "mean_area")))

# %% [markdown]
# Python rebuilds an error by calling its class with `args`, and then restores its attributes. Here `args` is what
# `super().__init__` was given: a single string. But the constructor needs two values. Every test in a single process
# passes; the first distributed run loses the error.
#
# ### Exercise 5: an error that survives
#
# Write the class again, as `OutOfRangeError`. Its constructor takes a row and a field, and keeps both as attributes,
# `row` and `field`. Its text is, for example, `row 3: mean_area is impossible`. Raised in a replica, it must arrive as
# the same class, with the same attributes and text.


# %% exercise="09.5"
# solution (about 6 lines)
class OutOfRangeError(Exception):
    def __init__(self, row, field):
        super().__init__(row, field)
        self.row, self.field = row, field

    def __str__(self):
        return f"row {self.row}: {self.field} is impossible"


# starter
# OutOfRangeError = ...
# end


# %%
check("09.5", OutOfRangeError)

# %% [markdown]
# ## From Ray's errors to the contract's
#
# So an error that travels between processes should pass all its constructor arguments to `super().__init__`. The
# errors in our contracts do. What does the caller of a handle get?

# %%
from workshop.contracts.errors import InvalidInputError

arrived = await what_arrives(InvalidInputError, "worst_area must not be smaller than mean_area", 3, "worst_area")
type(arrived).__name__, isinstance(arrived, InvalidInputError), arrived.row, arrived.field

# %% [markdown]
# Ray creates a class that inherits from its own error and from ours, so `except InvalidInputError` catches it. But its
# text is meant for developers.

# %%
print(arrived)

# %% [markdown]
# It shows file names, process ids and addresses. An API that puts `str(error)` into its response reveals them to every
# client. The original error is in `.cause`.

# %%
arrived.cause

# %% [markdown]
# A call can fail in other ways, too: a bug in the replica, a full queue, a replica that died. An endpoint should not
# need to know Ray's errors. This function from `workshop/integration` translates them into the contract's errors.

# %% mirrors="workshop.integration.calls:contract_errors"
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.serve.exceptions import BackPressureError, RayServeException

from workshop.contracts.errors import ModelFailedError, OverloadedError, ServiceError, UnavailableError


@contextmanager
def contract_errors() -> Iterator[None]:
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ServiceError):
            raise error.cause from error
        raise ModelFailedError("the model failed") from error
    except UnserializableException as error:
        raise ModelFailedError("the model failed") from error
    except BackPressureError as error:
        raise OverloadedError("the model's queue is full", error.retry_after_s or 1.0) from error
    except (RayServeException, RayError) as error:
        raise UnavailableError("the model is not available") from error


# %% [markdown]
# Clients must not see the details of, say, a division by zero in the replica. `__cause__` keeps them for the log.


# %%
async def what_arrives_translated(kind, *arguments):
    try:
        with contract_errors():
            await reporter.fail.remote(kind, *arguments)
    except ServiceError as error:
        return error


# %%
[
    await what_arrives_translated(ZeroDivisionError),
    await what_arrives_translated(InvalidInputError, "too small", 3, "worst_area"),
]

# %% [markdown]
# ## When a replica does not answer
#
# A replica may be slow or still starting, and a handle waits without a limit. So each call needs a deadline. This one
# gives up after half a second.


# %%
async def give_up():
    async with asyncio.timeout(0.5):
        await reporter.report.remote()


# %% [markdown]
# The report takes a second. We stop waiting after half a second, then leave the replica alone for two seconds. How
# many of the five lines does the replica write?


# %%
async def lines_written_by(call):
    before = await reporter.count.remote()
    try:
        await call()
    except Exception as error:
        print(type(error).__name__)
    await asyncio.sleep(2)
    return await reporter.count.remote() - before


# %%
guess = ...

# %%
compare(guess, await lines_written_by(give_up), "lines")

# %% [markdown]
# All of them. The caller stopped waiting, but the work went on. A language model that keeps writing for nobody costs
# money, so the call itself must be cancelled. `Calls` does that, and also handles the deadline and the translation of
# errors. It takes `Reporter.report` for its name and types only: the call goes through the handle.


# %%
async def cancel_in_time():
    await Calls(reporter, timeout_s=0.5)(Reporter.report)


await lines_written_by(cancel_in_time)

# %% [markdown]
# This time the replica stopped early. Its `async def` was cancelled at the `await`, like any coroutine. A plain
# `def` runs in a thread, and a thread cannot be cancelled: it runs to its end, but the caller no longer waits.
#
# With `Calls`, the adapter from a handle to the contract is one line per method. The service also uses the card as a
# health check, so it is fetched with `probe`: a call with a shorter deadline, three seconds.


# %% mirrors="workshop.integration.classifier:HandleClassifier"
class HandleClassifier:
    def __init__(self, calls: "Calls") -> None:
        self._calls = calls

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await self._calls(ClassifierDeployment.predict, rows)

    async def card(self) -> ModelCard:
        return await self._calls.probe(ClassifierDeployment.card)


# %% [markdown]
# A call to a deleted application raises one of the contract's errors, too. An endpoint turns it into a 503.

# %%
serve.delete("reporter")
await what_arrives_translated(ZeroDivisionError)

# %% [markdown]
# ## The whole service
#
# You now know everything in the right half of the map. The service's settings decide where the model runs.
# `build_application` binds the API to the classifier in the same way as you bound `Triage`.

# %%
from workshop.integration.serve_app import APP_NAME, build_application

settings = Settings(placement="deployment", language_models=False)
serve.run(build_application(settings), name=APP_NAME)
list(serve.status().applications[APP_NAME].deployments)

# %% [markdown]
# This application does have an HTTP address: that of the proxy, which `start_serve` returned at the top. Let us ask it
# about a tumour.

# %%
import httpx

from workshop.contracts.tumours import FEATURES

tumour = dict(zip(FEATURES, rows[0].tolist(), strict=True))


def predict(base, tumour):
    return httpx.post(base + "/v1/predict", json=tumour, trust_env=False, timeout=30)


predict(url, tumour).json()

# %% [markdown]
# Proxy, API replica, handle, classifier replica, and back. The same API can also run on uvicorn, with the model in the
# API's own process. Can a client tell the two apart?

# %%
from workshop.api.app import create_app
from workshop.integration.services import build_services

twin = run_app(create_app(build_services(settings), settings), name="lesson 09 twin")
on_serve, on_uvicorn = (predict(base, tumour).json() for base in (url, twin.url))
{name: on_serve[name] == value for name, value in on_uvicorn.items()}

# %% [markdown]
# Only the timestamps differ. And an impossible tumour, with a worst area smaller than its mean area? On Serve, the
# classifier's replica raises the error, two processes away from the one that talks to the client.

# %%
responses = [predict(base, tumour | {"worst_area": 1.0}) for base in (url, twin.url)]
[(response.status_code, response.json()["error"], response.json()["detail"]) for response in responses]

# %% [markdown]
# ## Quiz
#
# **1.** A deployment's method is `async def` and calls a blocking library. Who waits?
# <details><summary>Answer</summary>All callers of that replica, since it has one event loop. The API, its health check
# and other deployments do not. A plain <code>def</code> would run in threads.</details>
#
# **2.** `@serve.batch(max_batch_size=100)` never makes batches of more than five. Why?
# <details><summary>Answer</summary>A replica takes only <code>max_ongoing_requests</code> calls at a time, five by
# default, and only those can share a batch.</details>
#
# **3.** What does `MicroBatched` save that `@serve.batch` does not?
# <details><summary>Answer</summary>Hops: requests that wait together share one. A lone request does not wait for others
# either, because there is no timer.</details>
#
# **4.** An error class passes every test on uvicorn but is not caught on Ray Serve. What do you look at first?
# <details><summary>Answer</summary>Whether its constructor passes all of its arguments to
# <code>super().__init__</code>. If not, it cannot be unpickled.</details>
#
# **5.** Why does no endpoint of the final service hold a handle?
# <details><summary>Answer</summary>It would have to know Ray's errors and could not run on uvicorn alone. It holds an
# object with the contract's methods, and an adapter behind it holds the handle.</details>
#
# ## Recap
#
# | you want | you write | remember |
# |---|---|---|
# | a class in a process of its own | `serve.run(serve.deployment(Class).bind(…))` | the class stays plain |
# | several applications at once | `serve.run_many([serve.RunTarget(…), …])` | they start in parallel |
# | to call one | `await handle.method.remote(…)` | every call is a hop |
# | many calls at once | `asyncio.gather(…)` | `max_ongoing_requests` is 5 by default |
# | one deployment to call another | an application as an argument of `bind` | it arrives as a handle |
# | to share calls to the model | `@serve.batch`, or `MicroBatched` before the hop | a batch needs room for its calls |
# | a result in pieces | `handle.options(stream=True)` | `async for`, no `await` |
# | errors that arrive | all arguments to `super().__init__` | `contract_errors` translates Ray's errors |
# | a call that stops in time | `Calls(handle, timeout_s)` | a timeout alone does not stop the work |
#
# You can now move a model out of the API without the API noticing. Lesson 10 builds the application that does this,
# and runs it on two runtimes.
#
# ## Tear-down
#
# This cell also works if you stop early.

# %%
stop_all()
stop_serve()
