# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 09 Deployment handles
#
# So far the model lives in the process that answers HTTP. You will move it out, call it with an `await`, and find out what
# that distance gives and what it costs.
#
# Afterwards you can
#
# - turn a plain class into a deployment, and call it through a handle,
# - say how many calls a replica takes at once, and whom a blocking call holds up,
# - compose deployments, batch calls, and stream an answer item by item,
# - keep Ray's errors out of the API, and stop the work that nobody waits for.
#
# The code runs in {{ minutes }} and takes {{ memory }} at most. With the exercises, plan 75 minutes.

# %%
from workshop.lab import bars, check, hint, in_parallel, load, run_app
from workshop.lab import service_map, solution, start_serve, stop_serve, timeline

service_map("09")

# %% [markdown]
# ## A cluster in a box
#
# Ray starts processes and lets them call each other. Ray Serve, on top of it, keeps a service running in them. On a real
# cluster they spread over many machines; here one has them all.

# %%
import time

started = time.perf_counter()
url = start_serve()
print(f"Ray Serve is up after {time.perf_counter() - started:.0f} s")

# %% [markdown]
# That is slow, so a lesson does it once. These are the processes that the notebook has now.

# %%
import psutil


def processes():
    return sorted(process.name() for process in psutil.Process().children(recursive=True))


processes()

# %% [markdown]
# | process | what it does |
# |---|---|
# | `gcs_server` | keeps the cluster's books: machines, processes, who lives where |
# | `raylet` | starts and stops processes on this machine |
# | `ServeController` | knows what should run, and makes it so |
# | `ProxyActor` | takes HTTP requests, and passes them on |
#
# The others collect logs and figures. None of them knows a model yet.
#
# ## The fourth cure
#
# In lesson 01 a blocking line in an `async def` made ten users wait for each other. Three cures stayed within the process.
# Here is the patient again.

# %%
from fastapi import FastAPI

app = FastAPI()


@app.get("/blocking")
async def blocking():
    time.sleep(0.1)
    return {"label": "benign"}


# %%
@app.get("/ping")
async def ping():
    return "pong"


# %% [markdown]
# The fourth cure takes the blocking line out of the process. It goes into a method of a class, any class. Serve makes a
# process for it, and hands us a handle to call it by.


# %%
class SlowModel:
    def predict(self):
        time.sleep(0.1)
        return "benign"


# %%
from ray import serve

slow = serve.run(serve.deployment(SlowModel).bind(), name="slow", route_prefix=None)
slow

# %% [markdown]
# There is one more process now. It holds one object of the class, and is called a replica.

# %%
[name for name in processes() if "Replica" in name]

# %% [markdown]
# To the endpoint, the cure looks like the first one of lesson 01: an `await`.


# %%
@app.get("/deployed")
async def deployed():
    return {"label": await slow.predict.remote()}


# %%
server = run_app(app, name="lesson 09")
load(server.url + "/deployed", requests=1)

# %% [markdown]
# Now ten at once. One replica, one object, and a method that blocks for 100 ms: how many milliseconds until all ten are
# answered?

# %%
guess = {"/blocking": 1000, "/deployed": 100}

# %%
loads = {path: load(server.url + path, requests=10) for path in guess}
for path, records in loads.items():
    print(f"{path:10} you said {guess[path]:5} ms, it took {records.total_ms:5.0f} ms")

# %%
timeline(loads)

# %% [markdown]
# ## What just happened?
#
# Neither one step nor ten. Five requests got in at once. The others had to wait outside, and came in later, in small groups.
# Where does a five come from?

# %%
serve.deployment(SlowModel).max_ongoing_requests

# %% [markdown]
# It is the default: so many calls may be in a replica at the same time. What comes on top waits at the caller, in the
# handle. That asks again and again whether there is room, at growing intervals. Hence the ragged steps.
#
# And how can a blocking method run five times at once? `predict` is a plain `def`, so the replica runs it in a thread, as
# FastAPI does. Until recently Serve did not: older texts still say one at a time.
#
# ## Who suffers?
#
# In lesson 01 the innocent `/ping` had to wait too. So: ten requests, and one to `/ping` a moment later.


# %%
def ping_a_moment_later():
    time.sleep(0.2)
    return load(server.url + "/ping", requests=1)


def ping_beside(path):
    _, ping = in_parallel(lambda: load(server.url + path, requests=10), ping_a_moment_later)
    return ping.total_ms


# %%
pings = {path: {"ping": ping_beside(path)} for path in loads}
pings

# %% [markdown]
# The event loop of the web server only waits for the replica, so it is free for everybody else. Can the mistake of lesson
# 01 be made at all behind a handle? This class makes it.


# %%
class CarelessModel:
    async def predict(self):
        time.sleep(0.1)
        return "benign"


# %%
careless = serve.run(serve.deployment(CarelessModel).bind(), name="careless", route_prefix=None)


@app.get("/careless")
async def call_careless():
    return {"label": await careless.predict.remote()}


# %% [markdown]
# Again ten at once. What do you expect of them, and what of `/ping` beside them?

# %%
loads["/careless"] = load(server.url + "/careless", requests=10)
timeline(loads)

# %%
pings["/careless"] = {"ping": ping_beside("/careless")}
bars(pings, y="ms", title="/ping, beside ten requests to …")

# %% [markdown]
# The staircase is back, in clumps: a replica has an event loop of its own, and this method holds it. Finished answers cannot
# leave either. But only callers of this deployment wait. The API, its `/ping` and all other deployments do not notice.
#
# ## Room for more
#
# Two settings make room: more calls in each replica, or more replicas. To run an application under a name that is taken
# replaces it, and the handle goes on working. Watch: neither the endpoint nor the server is touched.

# %%
timelines = {"1 replica, 5 at once": loads["/deployed"]}

roomy = serve.deployment(SlowModel).options(max_ongoing_requests=10)
serve.run(roomy.bind(), name="slow", route_prefix=None)
timelines["1 replica, 10 at once"] = load(server.url + "/deployed", requests=10)

# %%
two = serve.deployment(SlowModel).options(num_replicas=2)
serve.run(two.bind(), name="slow", route_prefix=None)
timelines["2 replicas, 5 at once each"] = load(server.url + "/deployed", requests=10)

# %%
timeline(timelines)

# %% [markdown]
# For a method that waits, both do the same, and threads are cheaper than processes. For one that computes, only the second
# helps, as far as there are cores: five threads share one GIL. Lesson 11 is about numbers of replicas.
#
# What is not needed any more is deleted, processes and all.

# %%
serve.delete("slow")
serve.delete("careless")

# %% [markdown]
# ## Four words
#
# | word | what it is | made by |
# |---|---|---|
# | class | plain Python, can be tested without Ray | you |
# | deployment | the class, with the settings of its replicas | `serve.deployment(Class)` |
# | application | a deployment with its constructor's arguments | `.bind(…)` |
# | handle | what callers hold | `serve.run(application, …)` |
#
# `route_prefix=None` says that the application has no HTTP address of its own. This is the class of the final service.

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
# No web framework, no Ray. So its team can try and test it with nothing but Python.

# %%
artifact = Settings().artifact
rows, labels = training_data()
ClassifierDeployment(artifact).predict(rows[:2])

# %% [markdown]
# Now as a deployment. `bind` does not make an object: it keeps the arguments, and each replica calls the constructor with them.
# The model is loaded there, never sent.

# %%
application = serve.deployment(ClassifierDeployment).bind(artifact)
classifier = serve.run(application, name="classifier", route_prefix=None)

# %% [markdown]
# A call returns at once, with a promise. `await` waits for what was promised.

# %%
pending = classifier.predict.remote(rows[:2])
pending

# %%
await pending

# %% [markdown]
# The same answer. A numpy array went over to another process, and an object of our own came back. Ray pickles both.
#
# Ray's own examples often write `.result()`. Try it here.

# %% tags=["raises-exception"]
classifier.predict.remote(rows[:2]).result()

# %% [markdown]
# `.result()` blocks until the answer is there. In an event loop, and a notebook cell runs in one, that would be the mistake
# of lesson 01. Serve refuses. In an endpoint: always `await`.
#
# ### Exercise 1: from class to application
#
# Write a class whose objects are made with a `limit`. `decide(probability)` returns `"refer"` if the probability reaches the
# limit, else `"routine"`. Then make an application of it, with a limit of 0.3. The check runs it.


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
# ## What a call costs
#
# Sixty-four rows want to be scored: one call after the other, or all calls started first and awaited together, or a single
# call with all rows. How do the three compare? Write down an order.

# %%
import asyncio

sixty_four = [rows[[number]] for number in range(64)]


async def one_by_one():
    return [await classifier.predict.remote(row) for row in sixty_four]


async def together():
    return await asyncio.gather(*(classifier.predict.remote(row) for row in sixty_four))


# %%
async def in_one_call():
    return await classifier.predict.remote(rows[:64])


async def milliseconds(function, *arguments):
    start = time.perf_counter()
    await function(*arguments)
    return 1000 * (time.perf_counter() - start)


# %%
ways = {"one by one": one_by_one, "together": together, "in one call": in_one_call}
costs = {name: {"ms": await milliseconds(way)} for name, way in ways.items()}
bars(costs, y="ms", title="64 rows")

# %% [markdown]
# To start all calls at once does not help much, and may even cost. How sure is that figure? Three more runs of the same:

# %%
runs = {"5 let in": [await milliseconds(together) for _ in range(3)]}
runs

# %% [markdown]
# A replica does not call up the next one in line. The handle asks for room, waits a moment, asks again, and waits twice as
# long. Meanwhile a quick replica stands idle. So quick calls need a limit that their callers do not reach.

# %%
quick = serve.deployment(ClassifierDeployment).options(max_ongoing_requests=64)
serve.run(quick.bind(artifact), name="classifier", route_prefix=None)
runs["64 let in"] = [await milliseconds(together) for _ in range(3)]

# %%
bars(
    {f"run {run + 1}": {name: ms[run] for name, ms in runs.items()} for run in range(3)},
    y="ms",
    title="64 calls at once",
)

# %% [markdown]
# Better, and still nowhere near the single call with all rows. What is left is the price of the way there and back. Compare
# with the same rows one by one in this process, in milliseconds per row.

# %%
local = TumourClassifier.load(artifact)
start = time.perf_counter()
for row in sixty_four:
    local.predict(row)
here = 1000 * (time.perf_counter() - start)

# %%
{"one by one, by handle": costs["one by one"]["ms"] / 64, "one by one, here": here / 64}

# %% [markdown]
# A hop costs many times what this model does. So a small model is better off in the API's process, and the final service puts
# it there by default. A large one, or one on a GPU, hardly notices the hop.
#
# ### Exercise 2: all at once
#
# A scanner takes one image per call, and mostly waits. Write `read_all(scanner, images)`: it returns what
# `scanner.read.remote(image)` says of each image, in their order, and has all of them read at the same time.


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
# ## Why no decorator?
#
# Most examples decorate the class: `@serve.deployment` on the line above. It is shorter, and it works. Let us look at what
# travels to a replica in both cases: a module with a class of each kind.

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
# Bytes. A plain class of a module travels as its name, and the replica imports it. The decorator puts a deployment in the
# place of the class. Its name no longer leads to it, so it travels as code, with every global that it uses.
#
# If one of these is a lock or a connection, it does not travel at all. Hence the rule of `workshop/deployments`: classes stay
# plain, and `workshop/integration` calls `serve.deployment(Class)`.
#
# Classes of a notebook always travel as code, since a replica cannot import a notebook. That is why this lesson works.
#
# ## A deployment that calls another
#
# When is a classifier not sure enough? That is a rule of its own, and gets a deployment of its own. It holds a handle, and
# awaits it as the endpoint did.

# %%
import numpy as np


class Triage:
    def __init__(self, classifier, sure):
        self.classifier, self.sure = classifier, sure

    async def labels(self, rows):
        scores = await self.classifier.predict.remote(rows)
        names = np.array(scores.classes)[scores.probabilities.argmax(axis=1)]
        return np.where(scores.probabilities.max(axis=1) >= self.sure, names, "unsure")

    async def neighbour(self):
        return repr(self.classifier)


# %% [markdown]
# Now bind it. In the place of the classifier we pass an application that is not running yet.

# %%
serve.delete("classifier")
application = serve.deployment(Triage).bind(serve.deployment(ClassifierDeployment).bind(artifact), sure=0.95)
triage = serve.run(application, name="triage", route_prefix=None)

# %%
from collections import Counter

Counter((await triage.labels.remote(rows)).tolist())

# %% [markdown]
# An application went in. What has the constructor received?

# %%
await triage.neighbour.remote()

# %% [markdown]
# A handle. The two run in a process each, and each may have as many replicas as it needs. They belong to one application:
# they start, change and stop together.

# %%
{name: status.status.value for name, status in serve.status().applications["triage"].deployments.items()}

# %%
serve.delete("triage")

# %% [markdown]
# ### Exercise 3: ask the expert
#
# `draft(patient)` returns a label and how certain it is. `Expert` is slow, so ask it only if the draft is less than 0.9
# certain. Write `Cascade`, made with an expert. Its `label(patient)` returns the label. Then bind both.

# %%
from workshop.lab.exercises.lesson_09 import Expert, draft

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
# ## Many callers, few calls of the model
#
# Lesson 01 measured it: a thousand rows cost the model little more than one. But each caller brings one. `@serve.batch` lets calls wait for each
# other in the replica, and gives the method a list. Ours also notes how many rows it got.


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


# %%
class Batching(Noting):
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.1)
    async def predict_one(self, rows):
        scores = self.predict(np.concatenate(rows))
        return list(scores.probabilities)


# %% [markdown]
# Each caller passes one row and gets one answer. The method sees lists of up to 32 rows, and it waits up to 100 ms for a list
# to fill.

# %%
application = serve.deployment(Batching).bind(artifact)
batching = serve.run(application, name="batching", route_prefix=None)


# %%
async def sizes_with(callers):
    await asyncio.gather(*(batching.predict_one.remote(row) for row in sixty_four[:callers]))
    return await batching.noted.remote()


# %% [markdown]
# With 1, 8 and 32 callers at the same time: how large is the largest batch?

# %%
guess = {1: 1, 8: 8, 32: 32}

# %%
sizes = {callers: await sizes_with(callers) for callers in guess}
sizes

# %% [markdown]
# Each number is a batch. None has more than five rows: only five calls are let into the replica, so only five can meet there.
# No message tells. Give room to as many calls as a batch may have, or more.

# %%
roomy = serve.deployment(Batching).options(max_ongoing_requests=64)
serve.run(roomy.bind(artifact), name="batching", route_prefix=None)
roomy_sizes = {callers: await sizes_with(callers) for callers in guess}
roomy_sizes

# %%
settings_tried = {"max_ongoing_requests=5": sizes, "max_ongoing_requests=64": roomy_sizes}
largest = {
    f"{callers} at once": {name: max(tried[callers]) for name, tried in settings_tried.items()} for callers in guess
}
bars(largest, y="rows in the largest batch", title="@serve.batch(max_batch_size=32)")

# %% [markdown]
# ### Exercise 4: share a call
#
# `diagnose` takes a list of patients. Write a deployment whose method `diagnose` is called with one patient, and returns what
# the function says of it. Up to sixteen simultaneous callers share a call; nobody waits for company longer than 200 ms.

# %%
from workshop.lab.exercises.lesson_09 import diagnose

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
# ## Batching on the caller's side
#
# `@serve.batch` spares calls of the model. It does not spare hops, and you have just seen which of the two costs more. The
# final service therefore batches before the hop.


# %% mirrors="workshop.integration.batching:MicroBatched._start_calls workshop.integration.batching:MicroBatched._call_ended"
from contextvars import Context


def _start_calls(self) -> None:
    while len(self._calls) < self._max_calls and (batch := self._next_batch()):
        # It belongs to no request: Serve cancels the calls of a request whose client leaves.
        call = asyncio.create_task(self._predict_together(batch), context=Context())
        self._calls.add(call)
        call.add_done_callback(self._call_ended)


def _call_ended(self, call: asyncio.Task[None]) -> None:
    self._calls.discard(call)
    self._start_calls()


# %% [markdown]
# This is the heart of `MicroBatched`. There is no timer. If nothing is under way, a request starts at once. What arrives
# meanwhile waits, and goes together as soon as the call under way has ended.
#
# It has the methods of the contract, and so does what it wraps. Here that is `HandleClassifier`, which you will see below: a
# handle with the contract's methods.

# %%
from workshop.integration.batching import MicroBatched
from workshop.integration.calls import Calls
from workshop.integration.classifier import HandleClassifier

remote = HandleClassifier(Calls(batching, timeout_s=10))
micro = MicroBatched(remote, max_rows=1024, max_waiting_rows=16384, max_calls=1, timeout_s=10)

# %% [markdown]
# Three ways for a caller to ask about one row. How often is the model called for 64 callers, and how long do they wait? And a
# lone caller?

# %%
asks = {"no batching": remote.predict, "@serve.batch": batching.predict_one.remote, "MicroBatched": micro.predict}


async def ask_all(ask, callers):
    await asyncio.gather(*(ask(row) for row in sixty_four[:callers]))


# %%
ms = {}
for callers in (1, 64):
    ms[f"{callers} at once"] = {name: await milliseconds(ask_all, ask, callers) for name, ask in asks.items()}

# %%
bars(ms, y="ms until the last answer")

# %%
calls = {}
for name, ask in asks.items():
    await batching.noted.remote()  # forget what was
    await ask_all(ask, 64)
    calls[name] = await batching.noted.remote()
{
    name: f"{len(rows_each)} calls of the model, rows in the largest: {max(rows_each)}"
    for name, rows_each in calls.items()
}

# %% [markdown]
# The lone caller pays for the timer of `@serve.batch`: it waits for company that does not come. With 64 callers
# `MicroBatched` makes two hops instead of 64: the first row goes alone, and 63 share the second.
#
# `@serve.batch` is right where callers are many processes that cannot meet, or where a GPU needs full batches at any price.
# Lesson 12 comes back to it.

# %%
serve.delete("batching")

# %% [markdown]
# ## An answer in pieces
#
# A method that yields is a stream. This class dictates a report, one line every 200 ms, and counts its lines.

# %%
REPORT = ("30 measurements", "all within range", "malignant: 2 %", "benign: 98 %", "no referral")


class Reporter:
    n_lines = 0

    async def lines(self):
        for line in REPORT:
            await asyncio.sleep(0.2)
            self.n_lines += 1
            yield line


# %% [markdown]
# We need three more methods in a moment: one that fails on demand, the whole report in one piece, and the count.


# %%
class FullReporter(Reporter):
    def fail(self, error, *arguments):
        raise error(*arguments)

    async def report(self):
        return [line async for line in self.lines()]

    async def count(self):
        return self.n_lines


# %%
reporter = serve.run(serve.deployment(FullReporter).bind(), name="reporter", route_prefix=None)

# %% [markdown]
# `options(stream=True)` makes a handle whose calls are iterated instead of awaited.

# %%
start = time.perf_counter()
async for line in reporter.options(stream=True).lines.remote():
    print(f"{1000 * (time.perf_counter() - start):5.0f} ms  {line}")

# %% [markdown]
# The first line is there long before the last. With lesson 05's endpoints around it, it travels on to the browser like that.
# The original handle still works; `options` changes a copy.
#
# ## When a replica raises
#
# An error is an object, and comes back pickled like an answer. This one knows its row and its field. What arrives?


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


# %%
arrived = await what_arrives(ImpossibleError, 3, "mean_area")
type(arrived).__name__, isinstance(arrived, ImpossibleError)

# %% [markdown]
# It is gone. An `except ImpossibleError` around the call does not catch it, though exactly that was raised. The class is at
# fault, and you need no Ray to see it.

# %%
import pickle

pickled = pickle.dumps(ImpossibleError(3, "mean_area"))

# %% tags=["raises-exception"]
pickle.loads(pickled)

# %% [markdown]
# Python rebuilds an error by calling its class with `args`. That is what `super().__init__` was given: one text. The
# constructor wants two values. Every test within one process passes, and the first distributed run loses the error.
#
# ### Exercise 5: an error that survives
#
# Write it again. Made with a row and a field, it has both as attributes. Its text is `row 3: mean_area is impossible`. Raised
# in a replica, it arrives as itself.


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
# ## What arrives when all is well
#
# The errors of our contracts keep this rule. So what does the caller of a handle get?

# %%
from workshop.contracts.errors import InvalidInputError

arrived = await what_arrives(InvalidInputError, "worst_area must not be smaller than mean_area", 3, "worst_area")
type(arrived).__name__, isinstance(arrived, InvalidInputError), arrived.row, arrived.field

# %% [markdown]
# Ray makes a class that is both: `except InvalidInputError` catches it. But its text is for the developer.

# %%
print(arrived)

# %% [markdown]
# File names, process ids, addresses: an API that puts `str(error)` into its answer shows them to the world. The error that
# was raised is in `.cause`.

# %%
arrived.cause

# %% [markdown]
# And there is more that a call can raise: any bug in the replica, a full queue, a replica that died. An endpoint should know
# none of these names. This function of `workshop/integration` is the customs office.

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
# A division by zero in the replica is nobody's business outside. It is kept in `__cause__`, for the log.


# %%
async def through_customs(kind, *arguments):
    try:
        with contract_errors():
            await reporter.fail.remote(kind, *arguments)
    except ServiceError as error:
        return error


# %%
[await through_customs(ZeroDivisionError), await through_customs(InvalidInputError, "too small", 3, "worst_area")]

# %% [markdown]
# ## When a replica says nothing
#
# A replica may be slow, or only starting: a handle waits as long as it takes. So each call needs a deadline. This one gives up
# after half a second.


# %%
async def give_up():
    async with asyncio.timeout(0.5):
        await reporter.report.remote()


# %% [markdown]
# The report takes a second. We wait for half of it, then leave the replica alone for two seconds. How many of the five lines
# will it have written?


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
guess = 2

# %%
print(f"you said {guess}, it wrote {await lines_written_by(give_up)}")

# %% [markdown]
# All of them. Giving up stopped the waiting, not the work. A language model that writes for nobody is not cheap, so the call
# itself must be cancelled. `Calls` does that, with the deadline and the customs.

# %%
from workshop.integration.calls import Calls


async def cancel_in_time():
    await Calls(reporter, timeout_s=0.5)(FullReporter.report)


await lines_written_by(cancel_in_time)

# %% [markdown]
# The replica stopped in the middle. Its `async def` was cancelled at the `await`, like any coroutine. A plain `def` runs in a
# thread, and no thread can be cancelled: it works on, but its caller does not wait.
#
# With `Calls`, an adapter from handle to contract is one line a method. The card doubles as the health check, so `probe` has a
# shorter deadline: three seconds.


# %% mirrors="workshop.integration.classifier:HandleClassifier"
class HandleClassifier:
    def __init__(self, calls: "Calls") -> None:
        self._calls = calls

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await self._calls(ClassifierDeployment.predict, rows)

    async def card(self) -> ModelCard:
        return await self._calls.probe(ClassifierDeployment.card)


# %% [markdown]
# An application that is gone becomes an error of the contract, too. An endpoint answers it with a 503.

# %%
serve.delete("reporter")
await through_customs(ZeroDivisionError)

# %% [markdown]
# ## The whole service
#
# You now know every part of the map's right half. The service's settings decide where the model runs. `build_application` binds
# the API to the classifier, as you bound `Triage`.

# %%
from workshop.integration.serve_app import APP_NAME, build_application

settings = Settings(placement="deployment", language_models=False)
serve.run(build_application(settings), name=APP_NAME)
list(serve.status().applications[APP_NAME].deployments)

# %% [markdown]
# This application has an HTTP address: that of the proxy, which `start_serve` returned at the top. We ask about a tumour.

# %%
import httpx

from workshop.contracts.tumours import FEATURES

client = httpx.Client(trust_env=False, timeout=30)
tumour = dict(zip(FEATURES, rows[0].tolist(), strict=True))
reply = client.post(url + "/v1/predict", json=tumour)
reply.json()

# %% [markdown]
# Proxy, API replica, handle, classifier replica, and back. The same API runs on uvicorn with the model in its process. Can a
# client tell the two apart?

# %%
from workshop.api.app import create_app
from workshop.integration.services import build_services

twin = run_app(create_app(build_services(settings), settings), name="lesson 09 twin")
local_reply = client.post(twin.url + "/v1/predict", json=tumour)
{name: reply.json()[name] == value for name, value in local_reply.json().items()}

# %% [markdown]
# Only the time of the answer differs. And an impossible tumour? There the classifier's replica raises an error, two processes
# away from whoever talks to the client.

# %%
impossible = tumour | {"worst_area": 1.0}
answers = [client.post(base + "/v1/predict", json=impossible) for base in (url, twin.url)]
[(answer.status_code, answer.json()["error"], answer.json()["detail"]) for answer in answers]

# %% [markdown]
# ## Quiz
#
# **1.** A deployment's method is `async def` and calls a blocking library. Who waits?
# <details><summary>Answer</summary>All callers of that replica, since it has one event loop. The API, its health check and
# other deployments do not. A plain <code>def</code> would run in threads.</details>
#
# **2.** `@serve.batch(max_batch_size=100)` never makes batches of more than five. Why?
# <details><summary>Answer</summary>Only <code>max_ongoing_requests</code> calls are inside a replica at once, five by default,
# and only those can form a batch.</details>
#
# **3.** What does `MicroBatched` spare that `@serve.batch` does not?
# <details><summary>Answer</summary>Hops: requests that wait together cross together. And a lone request's wait for company,
# since it has no timer.</details>
#
# **4.** An error class passes all tests on uvicorn and is not caught on Ray Serve. What do you look at first?
# <details><summary>Answer</summary>Whether its constructor passes all of its arguments to
# <code>super().__init__</code>. If not, it cannot be unpickled.</details>
#
# **5.** Why does no endpoint of the service hold a handle?
# <details><summary>Answer</summary>It would have to know Ray's errors and could not run on uvicorn alone. It holds the
# contract; an adapter holds the handle.</details>
#
# ## Recap
#
# | you want | you write | remember |
# |---|---|---|
# | a class in a process of its own | `serve.run(serve.deployment(Class).bind(…))` | the class stays plain |
# | to call it | `await handle.method.remote(…)` | every call is a hop |
# | many calls at once | `asyncio.gather(…)` | `max_ongoing_requests`: 5 unless you say more |
# | one deployment to call another | an application as an argument of `bind` | it arrives as a handle |
# | to share the model's calls | `@serve.batch`, or `MicroBatched` before the hop | the first one waits |
# | an answer in pieces | `handle.options(stream=True)` | `async for`, no `await` |
# | errors that arrive | all arguments to `super().__init__` | `contract_errors` at the border |
# | a call that ends | `Calls(handle, timeout_s)` | to stop waiting is not to stop the work |
#
# You can now move a model out of the API without the API's noticing. Next: lesson 10 builds the application that does so,
# and runs it on two runtimes.
#
# ## Tear-down

# %%
client.close()
server.stop()
twin.stop()
stop_serve()
