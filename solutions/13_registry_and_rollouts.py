# ---
# jupyter:
#   workshop: {ray: true}
# ---

# %% [markdown]
# # 13 Model registry and rollouts
#
# A colleague has trained a new classifier. It scores as well as the old one, it can be loaded, and Serve reports that all is
# well. Yet from its release on, not one patient gets an answer. You will learn to release models without harming anyone.
#
# Afterwards you can
#
# - register versions of a model, and say which one answered a request,
# - load only what the registry vouches for,
# - activate another version in all processes without a restart,
# - try a version with some of the callers, and withdraw it before anyone notices,
# - say what such a trial cannot see.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("13.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, marks
from workshop.lab import service_map, solution, start_at, start_serve, stop_all, stop_serve

service_map("13")

# %% [markdown]
# ## A release at noon
#
# The service's classifier tells benign tumours from malignant ones by 30 measurements. A deployment loads it from a folder.

# %%
import asyncio
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import mkdtemp

url = start_serve()
from ray import serve

# %%
from workshop.models.tumours import TumourClassifier, train, training_data

folder = Path(mkdtemp())
rows, labels = training_data()
old = train()
old.save(folder / "model")


# %%
class Tumours:
    def __init__(self, location):
        self.model = TumourClassifier.load(location)

    async def predict(self, row):
        return float(self.model.predict(row[None]).probabilities[0, 0])


# %% [markdown]
# By default, Serve stops an old replica before it starts a new one. With `max_surge_percent` it starts the new one first, so that
# an update leaves no gap. The result is the probability that a tumour is malignant.

# %% start_at=false
deployment = serve.deployment(Tumours).options(max_surge_percent=100)
tumours = deployment.bind(str(folder / "model"))
handle = serve.run(tumours, name="tumours", route_prefix=None)
await handle.predict.remote(rows[0])

# %% [markdown]
# The new model was trained on a file without its last column. Nobody noticed, because it was scored with the same file:

# %%
from sklearn.base import clone

new = TumourClassifier(clone(old.pipeline).fit(rows[:, :29], labels), old.card)
{"old": old.pipeline.score(rows, labels), "new": new.pipeline.score(rows[:, :29], labels)}


# %% [markdown]
# Five callers ask again and again. After two seconds a change begins, and they go on until two seconds after it is done. Each
# answer, or error, is noted with its time.


# %%
async def keep_asking(ask, change, callers=5):
    began, over, seen = time.perf_counter(), asyncio.Event(), []

    async def caller(name):
        while not over.is_set():
            try:
                got = await ask(name)
            except Exception:
                got = "an error"
            seen.append((time.perf_counter() - began, name, got))
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(caller(f"caller {number}")) for number in range(callers)]
    await asyncio.sleep(2)
    await asyncio.to_thread(change)
    await asyncio.sleep(2)
    over.set()
    await asyncio.gather(*tasks)
    return seen


# %% [markdown]
# The release replaces the folder and deploys again.


# %% start_at=false
def release():
    new.save(folder / "model")
    serve.run(tumours, name="tumours", route_prefix=None)


# %% [markdown]
# Of the last hundred requests, how many fail, and what does Serve report?

# %%
guess = {"failed": ..., "Serve reports": ...}


# %% start_at=false
async def ask(caller):
    await handle.predict.remote(rows[0])
    return "an answer"


# %% start_at=false
seen = await keep_asking(ask, release)
failed = sum(got == "an error" for *_, got in seen[-100:])
compare(guess, {"failed": failed, "Serve reports": serve.status().applications["tumours"].status.value})


# %%
def by_answer(seen):
    times = defaultdict(list)
    for at, _, got in seen:
        times[got].append(at)
    return times


# %% start_at=false
marks(by_answer(seen), x="seconds", title="a release at noon")

# %% [markdown]
# Serve has delivered every request, but since the release each one ends in an error. A replica is healthy when its process lives.
# Only a request shows whether its model can answer, and here all callers found out at once.
#
# It gets worse: the folder that held the old model now holds the new one. We still have it in this notebook.

# %% start_at=false
serve.delete("tumours")

# %%
for name, model in {"old": old, "new": new}.items():
    model.save(folder / name)

# %% [markdown]
# ## A registry
#
# A model registry keeps every version of a model, under a number that never changes. MLflow has one. Here it is a SQLite file.
# The settings of the service say where, and the name of the model.

# %%
from mlflow import MlflowClient

from workshop.integration.registry import activate, add, find_all, try_out, withdraw
from workshop.settings import Settings

# %%
settings = Settings(
    artifact="models:/tumour-classifier@champion",
    mlflow_tracking_uri=f"sqlite:///{folder}/mlflow.sqlite",
    mlflow_files=str(folder / "files"),
    language_models=False,
    registry_poll_s=0.5,
)

# %% [markdown]
# `add` is what `python -m workshop models add` calls. The first time, MLflow makes the tables of its database.

# %%
first, second = (add(settings, str(folder / name)) for name in ("old", "new"))
first, second

# %% [markdown]
# Which version answers is not part of a version. MLflow keeps that beside it, as an alias: a name that can be moved. The
# service asks for `champion`.

# %%
activate(settings, first)
registry = MlflowClient(settings.mlflow_tracking_uri)
registry.get_registered_model("tumour-classifier").aliases

# %% [markdown]
# So a release is one write to a database, and so is the way back. Each version also has its metrics, and tags. This one
# is the checksum of its file:

# %%
version = registry.get_model_version("tumour-classifier", first)
version.tags

# %% [markdown]
# ## What may be loaded?
#
# Many models are stored as pickles. Loading one runs whatever it says. This "model" could have come from anywhere:

# %%
import pickle


# %%
class Thief:
    def __reduce__(self):
        return print, ("Your keys are on their way to me.",)


pickled = pickle.dumps(Thief())

# %% [markdown]
# What does `pickle.loads` return here?

# %%
guess = ...

# %%
compare(guess, pickle.loads(pickled))

# %% [markdown]
# It has called a function, and returned what that returned. `print` is harmless, but any function of any installed package could
# stand there, and it runs before anyone can look at the result. The service's models are stored by skops instead, which builds
# objects of types that it knows, and nothing else.
#
# A checksum guards against another kind of harm: whoever can write to the storage, but not to the registry, could replace a
# model. In practice, no two different files have the same SHA-256.

# %%
import hashlib

hashlib.sha256(b"a model").hexdigest()


# %% [markdown]
# ### Exercise 1: load what the registry vouches for
#
# `load_verified(read, checksum, load)` returns `load(content)`. `read()` returns the content of the file, as bytes. Load only
# content whose SHA-256 is `checksum`, in hexadecimal digits. Otherwise raise `Tampered`, and load nothing. Some
# versions have no checksum: it is `None` or empty then, and nobody vouches for them.
#
# Files can be replaced at any moment.


# %%
class Tampered(Exception):
    """This is not what was registered."""


# %% exercise="13.1"
def load_verified(read, checksum, load):
    # solution (about 4 lines)
    content = read()
    if hashlib.sha256(content).hexdigest() != checksum:
        raise Tampered
    return load(content)
    # starter
    # return ...
    # end


# %%
check("13.1", load_verified)

# %% [markdown]
# ## Another version, without a restart
#
# Loading a model takes a fraction of a second here, and minutes if it is large. Starting a process takes longer. So a
# process should load another version while the old one goes on. This deployment has two replicas, and a method for that.


# %%
class Versions:
    def __init__(self, folder, name):
        self.folder = folder
        self.use(name)

    def use(self, name):
        self.model, self.name = TumourClassifier.load(self.folder / name), name

    async def predict(self, row):
        return self.name, float(self.model.predict(row[None]).probabilities[0, 0])


# %% start_at=false
versions = serve.deployment(Versions).options(num_replicas=2).bind(folder, "old")
handle = serve.run(versions, name="versions", route_prefix=None)
await handle.predict.remote(rows[0])

# %% [markdown]
# The next model is a good one again, and a little more cautious. We tell the deployment to use it.

# %%
better = TumourClassifier(clone(old.pipeline).set_params(logisticregression__C=0.1).fit(rows, labels), old.card)
better.save(folder / "better")

# %% start_at=false
await handle.use.remote("better")

# %% [markdown]
# Then forty predictions. How many come from which model?

# %%
guess = {"old": ..., "better": ...}

# %% start_at=false
answered_by = Counter([(await handle.predict.remote(rows[0]))[0] for _ in range(40)])
compare(guess, {name: answered_by[name] for name in guess})

# %% [markdown]
# A call goes to one replica, and the other one never hears of it. A replica that is started later would use the old model, too.
# So nobody tells the replicas anything. Each of them asks the registry, again and again.
#
# Serve can hand a value to all replicas: its `user_config`. It is part of a configuration file, and `serve deploy` passes a new one
# to the method `reconfigure` of each replica. The registry does that job here, on uvicorn as well.

# %% start_at=false
serve.delete("versions")

# %% [markdown]
# ### Exercise 2: follow the registry
#
# Write a class `Live(active, load)`. `active()` asks the registry which version is active, and returns its number.
# `load(number)` returns the model: an async function. `active` and `load` themselves are ordinary functions that block, and either
# may raise an error.
#
# - `await refresh()` makes the active version answer, if it is another one. It is called every few seconds, one call after the
#   other, and the first time before any answer. It must not block the event loop. What `active` or `load` raises, it raises, and the
#   version stays.
# - `await answer(row)` returns a tuple: the number of the version that has answered, and `await model(row)`. Models
#   take their time, and work on several rows at once.


# %% exercise="13.2"
class Live:
    # solution (about 13 lines)
    def __init__(self, active, load):
        self.active, self.load = active, load
        self.running = None, None

    async def refresh(self):
        number = await asyncio.to_thread(self.active)
        if number != self.running[0]:
            self.running = number, await asyncio.to_thread(self.load, number)

    async def answer(self, row):
        number, model = self.running
        return number, await model(row)

    # starter
    # def __init__(self, active, load):
    #     self.active, self.load = active, load
    #
    # async def refresh(self):
    #     ...
    #
    # async def answer(self, row):
    #     return ...
    # end


# %%
check("13.2", Live)

# %% [markdown]
# ## Some callers first
#
# The registry makes the way back short, but the bad model still reached everybody. A canary release lets a few callers
# find out. The version on trial has an alias of its own, `challenger`, and answers a share of the requests: a fifth, say.

# %%
import random


def by_chance(caller):
    return "challenger" if random.random() < 0.2 else "champion"


# %% [markdown]
# Thirty callers ask ten times each. The challenger answers about 60 of these 300 requests. How many callers get an answer from it
# at least once?

# %%
guess = ...

# %%
callers = [f"clinic {number}" for number in range(30)]
got = {caller: [by_chance(caller) for _ in range(10)] for caller in callers}
compare(guess, sum("challenger" in answers for answers in got.values()), "callers")

# %% [markdown]
# Nearly all of them, in turns with the champion. Where the two disagree, the same tumour is benign now and malignant a moment
# later, and a doctor who sees that trusts neither. So a caller, not a request, should be drawn, and the draw has to be the same in each process.
#
# Python's `hash` does not give that. For strings, it differs from process to process:

# %%
import subprocess
import sys

[subprocess.check_output([sys.executable, "-c", "print(hash('clinic 1') % 100)"], text=True) for _ in range(3)]

# %% [markdown]
# ### Exercise 3: who gets the challenger?
#
# `is_asked(caller, number, share)` returns True if the challenger with this version `number` answers this caller, and False
# otherwise. `caller` and `number` are strings. `share` is from 0, nobody, to 1, everybody: 0.05 is one caller in twenty.
#
# - The result is always the same for a caller, in every process.
# - If the share grows, those who had the challenger keep it.
# - Another version asks other callers, so that it is not always the same ones who try what is new.


# %% exercise="13.3"
def is_asked(caller, number, share):
    # solution (about 2 lines)
    digest = hashlib.sha256(f"{number} {caller}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share
    # starter
    # return ...
    # end


# %%
check("13.3", is_asked)

# %% [markdown]
# The service draws like this. Callers without a name count by their address.

# %%
from workshop.contracts.registry import ModelVersion


# %% mirrors="workshop.integration.rollout:_draw"
def _draw(version: ModelVersion, caller: str) -> float:
    """A number from 0 to 1, always the same for this caller and version, in every process."""
    digest = hashlib.sha256(f"{version.number} {caller}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


# %% [markdown]
# The same thirty callers. How many of them would get version 2, with a share of a fifth?

# %%
guess = ...

# %%
asked = [caller for caller in callers if _draw(ModelVersion("2", ""), caller) < 0.2]
compare(guess, len(asked), "callers")

# %% [markdown]
# A share is exact only for many callers. With three, it may be none of them, and a trial that nobody takes part in shows
# nothing.
#
# ## A net below
#
# Even the few who try a bad model should get their answers. While the trial lasts, the champion is there, so it can answer what
# the challenger does not. Only the failure is noted. When there are too many, the trial is over.
#
# ### Exercise 4: a trial that harms nobody
#
# Write a class `Trial(champion, challenger, withdraw, most, patience)`. `champion`, `challenger` and `withdraw` are async functions.
# While the trial lasts, `await predict(row)` returns the challenger's answer.
#
# - What the challenger fails to answer, or does not answer within `patience` seconds, the champion answers.
# - That is a failure of the challenger, unless the champion fails, too. Then the row is to blame, and the champion's error is raised.
# - More than `most` failures end the trial: `withdraw()` is awaited, once. From then on, only the champion is asked.
# - A caller who gives up is neither a failure nor a success: pass the cancellation on, and count nothing.


# %% exercise="13.4"
class Trial:
    # solution (about 20 lines)
    def __init__(self, champion, challenger, withdraw, most, patience):
        self.champion, self.challenger, self.withdraw = champion, challenger, withdraw
        self.most, self.patience = most, patience
        self.failures, self.is_over = 0, False

    async def predict(self, row):
        if self.is_over:
            return await self.champion(row)
        try:
            async with asyncio.timeout(self.patience):
                return await self.challenger(row)
        except Exception:
            answer = await self.champion(row)
        self.failures += 1
        if self.failures > self.most and not self.is_over:
            self.is_over = True
            await self.withdraw()
        return answer

    # starter
    # def __init__(self, champion, challenger, withdraw, most, patience):
    #     self.champion, self.challenger, self.withdraw = champion, challenger, withdraw
    #     self.most, self.patience = most, patience
    #
    # async def predict(self, row):
    #     return ...
    # end


# %%
check("13.4", Trial)

# %% [markdown]
# ## The same release, with the service
#
# The service does all this in `workshop/integration/rollout.py`. It looks at the failures among the last hundred requests, and
# withdraws for all processes: it removes the alias. Here it runs on Serve, with version 1 as the champion.

# %%
import httpx

from workshop.contracts.tumours import FEATURES
from workshop.integration.serve_app import APP_NAME, build_application

serve.run(build_application(settings), name=APP_NAME)
client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=30)

# %% [markdown]
# Each caller has a key of its own and asks about some patient. The answer says which version has given it.


# %%
async def ask_service(caller):
    record = dict(zip(FEATURES, random.choice(rows).tolist(), strict=True))
    answer = await client.post("/v1/predict", json=record, headers={"Authorization": f"Bearer {caller}"})
    answer.raise_for_status()
    return f"version {answer.json()['model_version']}"


# %%
await ask_service("clinic 1")


# %% [markdown]
# Version 2 is the model that failed at noon. Now it is on trial with about half of twenty callers, until it is withdrawn.


# %%
def withdrawn(number):
    [version] = [version for version in find_all(settings) if version.number == number]
    return version.withdrawn


def try_version_2():
    try_out(settings, second, share=0.5)
    end = time.monotonic() + 60
    while not withdrawn(second) and time.monotonic() < end:
        time.sleep(0.2)


# %% [markdown]
# How many callers get an error? How many requests does version 2 fail to answer before it is withdrawn?

# %%
guess = {"errors": ..., "failures of version 2": ...}


# %%
async def failures_of(number):
    metrics = (await client.get("/metrics")).text.splitlines()
    name = f'model_version_requests_total{{outcome="failed",version="{number}"}}'
    return sum(int(float(line.split()[-1])) for line in metrics if line.startswith(name))


# %%
seen = await keep_asking(ask_service, try_version_2, callers=20)
errors = sum(got == "an error" for *_, got in seen)
compare(guess, {"errors": errors, "failures of version 2": await failures_of(second)})

# %%
marks(by_answer(seen), x="seconds", title="version 2 on trial")

# %% [markdown]
# The callers see version 1 all the time, and nothing is lost. Version 2 does not appear: it never gave an answer. The registry has
# kept the reason:

# %%
withdrawn(second)


# %% [markdown]
# Each process counts for itself, and allows `WORKSHOP_MAX_CHALLENGER_FAILURES` failures: five, by default. A failure counts once
# the champion has answered in its place. Until the sixth has, others begin, so there are more than six.
#
# ## A release that works
#
# Version 3 is the better model. It is tried for three seconds, and activated if it has not been withdrawn.

# %%
third = add(settings, str(folder / "better"))


def release_version_3():
    try_out(settings, third, share=0.2)
    time.sleep(3)
    if not withdrawn(third):
        activate(settings, third)


# %%
seen = await keep_asking(ask_service, release_version_3, callers=20)
marks(by_answer(seen), x="seconds", title="version 3: a fifth of the callers, then all")

# %% [markdown]
# For three seconds both versions answer, each its own callers, and then everyone has the new one. The way back would be
# `activate(settings, first)`. How many callers have had more than one change?

# %%
from itertools import pairwise

guess = ...


# %%
def changes(caller):
    got = [answer for _, name, answer in sorted(seen) if name == caller]
    return sum(before != after for before, after in pairwise(got))


# %%
compare(guess, sum(changes(f"caller {number}") > 1 for number in range(20)), "callers")

# %% [markdown]
# ## A bad model that never fails
#
# The next one was trained with its labels the wrong way round. It answers each request, promptly, with a number between
# 0 and 1.

# %%
swapped = TumourClassifier(clone(old.pipeline).fit(rows, 1 - labels), old.card)
swapped.save(folder / "swapped")
fourth = add(settings, str(folder / "swapped"))

# %% [markdown]
# It is on trial for a few seconds, with half of the callers. Does the service withdraw it? And what percentage of its patients
# does each version call malignant?

# %%
guess = {"withdrawn": ..., "champion": ..., "challenger": ...}

# %%
said = defaultdict(list)


async def ask_and_note(caller):
    record = dict(zip(FEATURES, random.choice(rows).tolist(), strict=True))
    answer = await client.post("/v1/predict", json=record, headers={"Authorization": f"Bearer {caller}"})
    said[answer.json()["model_version"]].append(answer.json()["label"] == "malignant")
    return f"version {answer.json()['model_version']}"


# %%
def try_version_4():
    try_out(settings, fourth, share=0.5)
    time.sleep(4)


# %%
await keep_asking(ask_and_note, try_version_4, callers=20)
percent = {number: 100 * sum(found) / len(found) for number, found in said.items()}
malignant = {"champion": percent[third], "challenger": percent[fourth]}
compare(guess, {"withdrawn": bool(withdrawn(fourth)), **malignant})

# %%
bars(
    {name: {"": found} for name, found in malignant.items()},
    y="% malignant",
    title="patients called malignant, all drawn in the same way",
)

# %% [markdown]
# An error is easy to count. A wrong answer looks like a right one, and no threshold on failures finds it. But both versions
# were asked about the same kind of patients, so their answers should be alike. Compare what they say, per version, before you
# activate. `model_version` is in each response and in the log for that purpose.

# %%
withdraw(settings), withdrawn(fourth)

# %% [markdown]
# ## Quiz
#
# **1.** All replicas are healthy, and all requests fail. How can that be?
# <details><summary>Answer</summary>A health check shows that the process answers. Only a prediction shows whether its
# model can answer.</details>
#
# **2.** A model's file has the right checksum. Is it a good model?
# <details><summary>Answer</summary>It is the one that was registered, byte for byte. Whether that was a good one is
# another question, and a pickle may still do harm if whoever registered it meant to.</details>
#
# **3.** The challenger should answer a tenth of the requests. Why draw callers, and not requests?
# <details><summary>Answer</summary>A caller who is drawn anew each time sees both versions in turns. And after some
# requests, nearly every caller has met the challenger.</details>
#
# **4.** During a trial, the database is down, and both versions fail. What is noted against the challenger?
# <details><summary>Answer</summary>Nothing: the champion could not answer either. Otherwise a good version would be withdrawn
# for the fault of something else.</details>
#
# **5.** The service has three customers. Is a share of a tenth useful?
# <details><summary>Answer</summary>Probably nobody is drawn. Either draw requests where turns do no harm, or choose a customer
# who has agreed.</details>
#
# ## Recap
#
# | question | answer | in the service |
# |---|---|---|
# | which model was that? | a number that never changes | `model_version` |
# | which one answers? | an alias, moved by one write | `champion`, `models activate` |
# | is it the one that was registered? | a checksum, of the bytes that are loaded | the tag `sha256` |
# | how do all processes learn of it? | each one asks | `WORKSHOP_REGISTRY_POLL_S` |
# | who tries what is new? | some callers, always the same | `challenger`, `models canary` |
# | what if it fails? | the champion answers, and the trial ends | `WORKSHOP_MAX_CHALLENGER_FAILURES` |
# | what if it is only wrong? | people compare what the versions say | `model_version` |
#
# A release is now a trial in which few take part and nobody is harmed. Lesson 14 lets several models answer one question.
#
# ## Tear-down

# %%
import shutil

await client.aclose()
stop_all()
stop_serve()
shutil.rmtree(folder)
