# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 11 Scaling
#
# Forty people ask a model at once. Each answer takes a fifth of a second, and the last one arrives after several
# seconds. The model reports no slow call, and no error appears. You will find the queue, let the replicas follow
# it, and keep it short.
#
# Afterwards you can
#
# - say where requests wait, and how many replicas a load needs,
# - let Serve start and stop replicas, and predict when it does,
# - refuse requests early, so that those you accept are answered in time,
# - keep many models behind one deployment,
# - measure what a hop between processes costs, and decide where it pays.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("11.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, curve, hint, load, marks, run_command
from workshop.lab import service_map, solution, start_at, start_serve, stop_all, stop_serve, watch_serve

service_map("11")

# %% [markdown]
# ## Where requests wait
#
# This model runs on a machine elsewhere, so a call only waits: a fifth of a second. A replica works on two calls at a
# time, and says how long each has taken.

# %%
import asyncio
import math
import time

url = start_serve()
from ray import serve


# %%
class Model:
    async def answer(self, number):
        began = time.perf_counter()
        await asyncio.sleep(0.2)
        return time.perf_counter() - began


model = serve.deployment(Model).options(max_ongoing_requests=2)

# %%
handle = serve.run(model.bind(), name="model", route_prefix=None)


# %% [markdown]
# Forty callers ask at the same time. Each notes when its answer arrives, and how long the replica says it took.


# %%
async def ask_all(handle, callers):
    began = time.perf_counter()

    async def ask(number):
        took = await handle.answer.remote(number)
        return time.perf_counter() - began, took

    return await asyncio.gather(*(ask(number) for number in range(callers)))


# %% [markdown]
# One replica, two slots, 0.2 s. After how many seconds does the last of the forty have its answer, and what does the
# replica report as its slowest call?

# %%
guess = {"last answer": ..., "slowest call": ...}

# %% start_at=false
answers = await ask_all(handle, 40)
arrived, took = zip(*answers, strict=True)
compare(guess, {"last answer": max(arrived), "slowest call": max(took)}, "s")

# %% [markdown]
# Every call took 0.2 s, and the last caller waited much longer. The replica cannot know: calls wait at the caller, in its
# handle, until a replica has a free slot. If you measure only the model, you see none of this.
#
# But twenty rounds of 0.2 s are four seconds, and it took longer than that. A handle is not told when a slot is free. It
# asks, after 25 ms, then after 50, 100, up to half a second, and meanwhile the slot is empty. For a model that takes minutes,
# that is often enough. Here, the handle should ask more often.

# %%
model = model.options(request_router_config={"max_backoff_s": 0.05})
handle = serve.run(model.bind(), name="model", route_prefix=None)

# %% start_at=false
soon = await ask_all(handle, 40)
marks(
    {"pauses up to 0.5 s": arrived, "up to 0.05 s": [at for at, _ in soon]},
    x="seconds",
    title="forty callers, two slots",
)

# %% [markdown]
# Serve counts those who wait. `watch_serve` shows what it reports, about a second late, while the block runs.

# %% start_at=false
with watch_serve("Model", "model") as panel:
    await ask_all(handle, 60)

# %% start_at=false
panel.picture()

# %% [markdown]
# Two are under way, and the rest wait. The panel is about a second late, so it ends before the last ones are done. More slots would help here, because this model only waits. A model
# that computes needs its core or its card for each call, and then only more replicas help.
#
# With two replicas, after how many seconds does the last of the forty have its answer?

# %%
guess = ...

# %% start_at=false
handle = serve.run(model.options(num_replicas=2).bind(), name="model", route_prefix=None)
by_two = await ask_all(handle, 40)
compare(guess, max(at for at, _ in by_two), "s")

# %% start_at=false
marks(
    {"one replica": [at for at, _ in soon], "two replicas": [at for at, _ in by_two]},
    x="seconds",
    title="forty callers",
)

# %% [markdown]
# ## How many replicas?
#
# Real callers do not come all at once, but at a rate. If twenty come per second and each stays for 0.2 s, four are
# there at any moment, on average. That is Little's law: under way = rate * time.
#
# The average is not enough. Callers come in bursts, and if all slots are taken on average, the queue only grows. Usually,
# a fifth of the slots is kept free.
#
# ### Exercise 1: how many replicas a load needs
#
# `rate` requests arrive per second, each takes `seconds`, and a replica works on `slots` of them at a time. Return the
# smallest number of replicas with which, on average, at most 80 % of all slots are taken. It is never less than one.


# %% exercise="11.1"
def replicas_needed(rate, seconds, slots):
    # solution (about 3 lines)
    under_way = rate * seconds
    return max(1, math.ceil(under_way / (0.8 * slots)))
    # starter
    # return ...
    # end


# %%
check("11.1", replicas_needed)

# %% [markdown]
# ## Replicas that follow the load
#
# Nobody knows tomorrow's rate. Serve can count the requests under way and waiting, and divide them by the number that
# one replica should have. With these settings it reacts within seconds. By default, it waits half a minute before it starts a replica,
# and ten minutes before it stops one.

# %%
following = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2}
following |= {"upscale_delay_s": 1, "downscale_delay_s": 3, "look_back_period_s": 1, "metrics_interval_s": 0.5}

# %%
elastic = model.options(max_ongoing_requests=4, autoscaling_config=following)
handle = serve.run(elastic.bind(), name="model", route_prefix=None)


# %% [markdown]
# Six callers ask again and again for fifteen seconds. Each notes how long its answer took. Then nobody asks for ten
# seconds.


# %%
async def keep_asking(handle, callers, seconds):
    began = time.perf_counter()
    waited = []

    async def caller():
        while (sent := time.perf_counter()) < began + seconds:
            await handle.answer.remote(0)
            waited.append((sent - began, time.perf_counter() - sent))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return waited


# %% [markdown]
# How many replicas does Serve start, and after how many seconds do all of them run?

# %%
guess = {"replicas": ..., "seconds": ...}

# %% start_at=false
with watch_serve("Model", "model") as panel:
    waited = await keep_asking(handle, 6, 15)
    await asyncio.sleep(10)

# %% start_at=false
running = [(look.at_s, look.replicas.get("RUNNING", 0)) for look in panel.looks]
most = max(count for _, count in running)
compare(guess, {"replicas": most, "seconds": next(at for at, count in running if count == most)})

# %% start_at=false
panel.picture()

# %% [markdown]
# The panel hears from each process once a second, so for a moment a call may be counted twice, or not at all.
#
# Six callers divided by a target of two makes three replicas. They come late: Serve averages, then waits, then a process
# has to start and load its model. Until then, callers wait longer.

# %% start_at=false
slowest = {}
for at, wait in waited:
    slowest[int(at)] = max(wait, slowest.get(int(at), 0))
curve({"": slowest}, x="asked in this second", y="slowest answer, in seconds", title="six callers")

# %% [markdown]
# The delays keep Serve from starting a replica for each short burst, and from stopping one that is needed again a moment
# later. Going down is slower than going up, because a replica that is missing costs more than one that is idle.
#
# ### Exercise 2: decide like an autoscaler
#
# Write a class `Scaler(target, lowest, highest, up_after, down_after)`. Its method `decide(now, running, load)` returns
# how many replicas should run. `load` counts the requests under way and waiting.
#
# Each call is a look. The wanted number is `load / target`, rounded up, and limited to the range from `lowest` to `highest`. If
# one look after the other has wanted more replicas than were running, and the first of these was at least `up_after` seconds
# ago, return the number that is wanted now. The same holds for fewer, with `down_after`. Otherwise return `running`. A look that
# wants something else starts the wait afresh.


# %% exercise="11.2"
class Scaler:
    # solution (about 20 lines)
    def __init__(self, target, lowest, highest, up_after, down_after):
        self.target, self.lowest, self.highest = target, lowest, highest
        self.up_after, self.down_after = up_after, down_after
        self.more_since = self.fewer_since = None

    def decide(self, now, running, load):
        wanted = max(self.lowest, min(self.highest, math.ceil(load / self.target)))
        if wanted <= running:
            self.more_since = None
        elif self.more_since is None:
            self.more_since = now
        if wanted >= running:
            self.fewer_since = None
        elif self.fewer_since is None:
            self.fewer_since = now
        is_up = self.more_since is not None and now - self.more_since >= self.up_after
        is_down = self.fewer_since is not None and now - self.fewer_since >= self.down_after
        return wanted if is_up or is_down else running

    # starter
    # def __init__(self, target, lowest, highest, up_after, down_after):
    #     self.target, self.lowest, self.highest = target, lowest, highest
    #     self.up_after, self.down_after = up_after, down_after
    #
    # def decide(self, now, running, load):
    #     return ...
    # end


# %%
check("11.2", Scaler)

# %% [markdown]
# ## When there is no more room
#
# At some point no more replicas can be started: all cards are in use, or the budget is. This model has one replica with two
# slots, so it answers at most ten callers per second. Forty callers who each wait for their answer keep it busy all the time.

# %% start_at=false
handle = serve.run(model.bind(), name="model", route_prefix=None)
without_limit = await keep_asking(handle, 40, 6)


# %% [markdown]
# Serve can bound the queue. With `max_queued_requests`, a handle holds back only so many; a further call fails at once,
# with a `BackPressureError`. A caller who is refused pauses before the next try, for up to a second. Each pauses for a
# random time; otherwise all would come back at once.

# %%
import random

from ray.serve.exceptions import BackPressureError


# %%
async def ask_politely(handle, callers, seconds):
    began, waited, refused = time.perf_counter(), [], []

    async def caller():
        while (sent := time.perf_counter()) < began + seconds:
            try:
                await handle.answer.remote(0)
                waited.append((sent - began, time.perf_counter() - sent))
            except BackPressureError:
                refused.append(sent - began)
                await asyncio.sleep(random.random())

    await asyncio.gather(*(caller() for _ in range(callers)))
    return waited, refused


# %% [markdown]
# The queue may now hold four. How many seconds does the slowest answer take without the limit, and with it? How many
# answers arrive within six seconds?

# %%
guess = {"seconds, no limit": ..., "seconds, limit": ..., "answers, no limit": ..., "answers, limit": ...}

# %% start_at=false
handle = serve.run(model.options(max_queued_requests=4).bind(), name="model", route_prefix=None)
with_limit, refused = await ask_politely(handle, 40, 6)

# %% start_at=false
runs = without_limit, with_limit
slowest = [max(wait for _, wait in waited) for waited in runs]
counts = [sum(at + wait < 6 for at, wait in waited) for waited in runs]
compare(guess, dict(zip(guess, slowest + counts, strict=True)))

# %% start_at=false
bars(
    {"no limit": {"ms": 1000 * slowest[0]}, "a queue of four": {"ms": 1000 * slowest[1]}},
    y="milliseconds",
    title="the slowest answer, forty callers",
)

# %% [markdown]
# The model does about as much work as before. But those who get in are answered in about a second, and the others learn at
# once that they should come back later. Without a limit, everyone waits, and in practice many would give up after the work has begun.
#
# An API turns the refusal into a status: 503 with a header `Retry-After`. The service does so in its error handler, for
# every route. Its own limit is in the micro-batcher, which counts the rows that wait, and not only the calls.
#
# ### Exercise 3: refuse what you cannot answer
#
# `bounded(ask, most)` returns an async function that calls `ask` with the same arguments, and returns what it returns. If
# `most` calls are under way already, it raises `Busy` at once, without calling `ask`. A call that ends makes room, however
# it ends: with a result, with an error, or cancelled.


# %%
class Busy(Exception):
    """Too many calls are under way: try again later."""


# %% exercise="11.3"
def bounded(ask, most):
    # solution (about 13 lines)
    under_way = 0

    async def limited(*args, **kwargs):
        nonlocal under_way
        if under_way >= most:
            raise Busy
        under_way += 1
        try:
            return await ask(*args, **kwargs)
        finally:
            under_way -= 1

    return limited
    # starter
    # async def limited(*args, **kwargs):
    #     return ...
    #
    # return limited
    # end


# %%
check("11.3", bounded)

# %% [markdown]
# ## Many models behind one deployment
#
# Some customers have models of their own. A deployment for each would be a process for each, mostly idle. Serve can
# multiplex: the caller names a model, and a replica loads it when it is first asked for.


# %%
class Clinics:
    def __init__(self):
        self.loads = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def model(self, clinic):
        self.loads.append(clinic)
        await asyncio.sleep(0.3)
        return f"the model of {clinic}"

    async def diagnose(self):
        return await self.model(serve.get_multiplexed_model_id())

    async def loaded(self):
        return self.loads


# %%
clinics = serve.run(serve.deployment(Clinics).bind(), name="clinics", route_prefix=None)
await clinics.options(multiplexed_model_id="Bergen").diagnose.remote()

# %% [markdown]
# A replica keeps two models here, those that were used last. Three clinics now ask in turn, each three times. How many
# loads is that in all?

# %%
guess = ...


# %%
async def loads_of(visits):
    before = len(await clinics.loaded.remote())
    for clinic in visits:
        await clinics.options(multiplexed_model_id=clinic).diagnose.remote()
    return (await clinics.loaded.remote())[before:]


# %%
in_turn = await loads_of(["Oslo", "Turku", "Bergen"] * 3)
compare(guess, len(in_turn), "loads")

# %% [markdown]
# Every time: each model is displaced just before it is needed again. The same nine visits, sorted by clinic:

# %%
sorted_visits = await loads_of(sorted(["Oslo", "Turku", "Bergen"] * 3))
len(sorted_visits)

# %% [markdown]
# Two: Bergen's model was still there. So a replica should have room for all models that are in use at the same time. With
# several replicas Serve helps: it sends a call to a replica that has the model. Here, two replicas could hold
# up to four models.
#
# The service has such a deployment. Each customer's model is named by its location. Serve loads one model at a time, and
# drops another one before it knows that the load succeeds. So the service loads first, and tells Serve afterwards.

# %%
from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.models.loaded import LoadedClassifiers
from workshop.models.tumours import TumourClassifier


# %% mirrors="workshop.deployments.classifiers:ClassifiersDeployment"
class ClassifiersDeployment:
    def __init__(self, max_models: int) -> None:
        self._loaded = LoadedClassifiers()

        # Serve loads one at a time, and drops another one first. So it gets only what is loaded already.
        @serve.multiplexed(max_num_models_per_replica=max_models)
        async def keep(location: str) -> TumourClassifier:
            return await self._loaded.get(location)

        self._keep = keep

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await asyncio.to_thread((await self._model()).predict, rows)

    async def card(self) -> ModelCard:
        return (await self._model()).card

    async def _model(self) -> TumourClassifier:
        location = serve.get_multiplexed_model_id()
        model = await self._loaded.get(location)
        await self._keep(location)
        return model


# %% [markdown]
# ### Exercise 4: keep the models that were used last
#
# Write a class `Recent(load, room)`. `await get(name)` returns the model with that name, from `await load(name)` the first
# time. It keeps the `room` models that were used last.
#
# - Callers who ask for a model while it is being loaded share that load. It goes on if one of them is cancelled, even the first.
# - Nobody else waits for it: neither callers who ask for a kept model, nor callers whose model needs a load of its own.
# - If a load fails, all who share it get its error, and no model is displaced. The next call tries again.


# %% exercise="11.4"
from collections import OrderedDict


class Recent:
    # solution (about 23 lines)
    def __init__(self, load, room):
        self.load, self.room = load, room
        self.models = OrderedDict()
        self.loading = {}

    async def get(self, name):
        if name in self.models:
            self.models.move_to_end(name)
            return self.models[name]
        if name not in self.loading:
            self.loading[name] = asyncio.create_task(self.fetch(name))
        return await asyncio.shield(self.loading[name])

    async def fetch(self, name):
        try:
            self.models[name] = model = await self.load(name)
        finally:
            del self.loading[name]
        while len(self.models) > self.room:
            self.models.popitem(last=False)
        return model

    # starter
    # def __init__(self, load, room):
    #     self.load, self.room = load, room
    #
    # async def get(self, name):
    #     return ...
    # end


# %%
check("11.4", Recent)

# %% [markdown]
# ## The price of a hop
#
# A deployment runs in a process of its own. Each call is pickled, sent, scheduled, unpickled, and the same on the way
# back. This echo does nothing else, and the relay passes a call on to a second process.


# %%
class Echo:
    async def say(self, text):
        return text


class Relay:
    def __init__(self, echo):
        self.echo = echo

    async def say(self, text):
        return await self.echo.say.remote(text)


# %%
roomy = {"max_ongoing_requests": 100}
echo = serve.deployment(Echo).options(**roomy).bind()
relay = serve.run(serve.deployment(Relay).options(**roomy).bind(echo), name="relay", route_prefix=None)
one_hop = serve.get_deployment_handle("Echo", "relay")


# %%
async def ms_per_call(say, calls=300):
    await asyncio.gather(*(say("warm up") for _ in range(20)))
    began = time.perf_counter()
    for _ in range(calls):
        await say("hello")
    return 1000 * (time.perf_counter() - began) / calls


# %% [markdown]
# How many milliseconds does a call take on average: in this process, over one hop, over two?

# %%
guess = {"in this process": ..., "one hop": ..., "two hops": ...}

# %%
hops = {"in this process": await ms_per_call(Echo().say)}
hops["one hop"] = await ms_per_call(one_hop.say.remote)
hops["two hops"] = await ms_per_call(relay.say.remote)
compare(guess, hops, "ms")

# %%
curve(
    {"ms per call": dict(enumerate(hops.values()))},
    x="hops",
    y="milliseconds",
    title="a call that does nothing",
)

# %% [markdown]
# A hop costs milliseconds, each time. For a language model that is nothing. Our classifier needs only a
# fraction of that, so hops are most of what a prediction costs. There are three ways to win that back.
#
# | way | what it saves | the service |
# |---|---|---|
# | share the hop: one call for many requests | all but one of them | the micro-batcher sits in front of the handle |
# | no hop: the model in the API's process | the hop to the model | `WORKSHOP_PLACEMENT=inline`, the default |
# | a cheaper way in: HAProxy in place of Serve's proxy | most of the hop to the API | `workshop serve` does so on Linux |
#
# Let us measure the service itself with one client, who sends one prediction after the other. On uvicorn there is no hop.
# On this notebook's Serve there is one to the API's replica, and a second one if the model has a deployment of its own.
# `workshop serve` puts HAProxy in front. The replicas that we have so far are no longer needed.

# %%
for name in ("model", "clinics", "relay"):
    serve.delete(name)

# %%
from workshop.contracts.tumours import FEATURES
from workshop.models.tumours import training_data

record = dict(zip(FEATURES, training_data()[0][0].tolist(), strict=True))


def ms_per_prediction(base):
    for _ in range(2):  # the first time is a warm-up
        sent = load(base + "/v1/predict", 200, concurrency=1, method="POST", json=record)
    return sent.median_ms


# %% [markdown]
# How many milliseconds does a prediction take?

# %%
guess = {"uvicorn": ..., "Serve, model in the API": ..., "Serve, model apart": ..., "HAProxy, model in the API": ...}

# %%
import os

os.environ["WORKSHOP_LANGUAGE_MODELS"] = "false"
with run_command("workshop api --port {port}", name="lesson 11") as service:
    services = {"uvicorn": ms_per_prediction(service.url)}

# %%
from workshop.integration.serve_app import APP_NAME, build_application
from workshop.settings import Settings

serve.run(build_application(Settings(placement="inline")), name=APP_NAME)
services["Serve, model in the API"] = ms_per_prediction(url)

# %%
serve.run(build_application(Settings(placement="deployment")), name=APP_NAME)
services["Serve, model apart"] = ms_per_prediction(url)

# %% [markdown]
# The last one starts its own Ray, so we stop ours first. This takes a while, and until the service is ready, HAProxy
# answers 503.

# %%
stop_serve()
command = "workshop serve --placement inline --port {port}"
with run_command(command, name="lesson 11", ready="/readiness") as service:
    services["HAProxy, model in the API"] = ms_per_prediction(service.url)
compare(guess, services, "ms")

# %%
bars({name: {"ms": ms} for name, ms in services.items()}, y="ms per prediction", title="one client")

# %% [markdown]
# The code is the same everywhere. Only settings differ. The hop through Serve's own HTTP proxy costs more than one between handles,
# and HAProxy takes its place. Where a model needs a card, or memory for
# itself, it goes apart and pays for its hop. Ours stays with the API, and gets a deployment once it grows.
#
# `make bench` measures the service beside other servers, with many clients, and with HAProxy.
#
# ## Quiz
#
# **1.** A dashboard shows that each call of the model takes 50 ms. Users wait for two seconds. Where do you look?
# <details><summary>Answer</summary>At the number of requests that wait for a replica. They wait at the callers, before
# the model's clock starts.</details>
#
# **2.** A hundred requests per second arrive, each takes half a second. How many are under way?
# <details><summary>Answer</summary>Fifty, on average. Fewer slots than that, and the queue grows without end.</details>
#
# **3.** A language model takes four minutes to load. The load doubles for one minute, every morning. What do you change?
# <details><summary>Answer</summary>Nothing that reacts can help: the replica would come when the load is gone. Keep enough
# replicas for the morning, with <code>min_replicas</code>, or let callers wait in a bounded queue.</details>
#
# **4.** Why is it kind to refuse a request?
# <details><summary>Answer</summary>The caller knows at once, and can come back later or go elsewhere. Otherwise it waits
# until it gives up, and the work that was done for it is lost. That makes others wait, too.</details>
#
# **5.** Fifty customers have a model each, and a replica keeps ten of them. All fifty ask in turn. What happens?
# <details><summary>Answer</summary>With one replica, each call loads a model. With five or more, Serve can give each
# customer a replica that keeps its model.</details>
#
# ## Recap
#
# | question | answer | in Serve |
# |---|---|---|
# | where do requests wait? | at their callers, until a replica has a slot | `max_ongoing_requests` |
# | how many replicas? | rate times time, and a reserve | `num_replicas` |
# | who follows the load? | an average, and two delays | `autoscaling_config` |
# | what if there is no more room? | refuse at once | `max_queued_requests`, `BackPressureError` |
# | who shares a replica? | models that are in use now and then | `serve.multiplexed` |
# | what does a hop cost? | milliseconds, for each call | placement, batches, HAProxy |
#
# You can now say how many replicas a load needs, let them follow it, and keep the queue short when they cannot. Next, in
# lesson 12, the replicas get graphics cards.
#
# ## Tear-down

# %%
stop_all()
stop_serve()
