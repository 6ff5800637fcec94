# %% [markdown]
# # 00 Start here
#
# As long as a trained model sits in a notebook, nobody else can use it. You will put one behind a web address, ask it
# about real tumours, and catch it giving a confident answer to a question that makes no sense.
#
# Afterwards you can
#
# - work through a lesson: predict, run, check,
# - name the folder where each team's code lives,
# - serve a model with FastAPI and call it over HTTP,
# - say what FastAPI checks for you, and what it cannot know.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 15 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("00.3")` runs what exercise 3 builds on.
#
# Click on the grey cell below and press Shift+Enter. It takes a few seconds to check this machine, and changes nothing.

# %%
from workshop.lab.doctor import doctor

doctor()

# %% [markdown]
# A tick is good. An exclamation mark tells you what will be slower or look different. A cross comes with a remedy:
# apply it first, then run the cell again.
#
# ## What you will build
#
# You will build a service that tells malignant tumours from benign ones, piece by piece. The coloured part of the map
# belongs to this lesson: you start as a client of the service.

# %%
import httpx

from workshop.lab import check, compare, hint, run_app, run_command, service_map, solution, start_at, stop_all

service_map("00")

# %% [markdown]
# The grey lanes are folders in `workshop/`. The FastAPI team and the Ray Serve team never read each other's code; the
# infrastructure team connects the two.
#
# | team | folder | knows |
# |---|---|---|
# | FastAPI | `api/` | HTTP, never Ray |
# | Ray Serve | `deployments/` | processes and machines, never HTTP |
# | infrastructure | `integration/` | both, and how they fit together |
#
# What they agree on is in `contracts/`. Plain machine learning is in `models/`.
#
# The finished service comes with the workshop. In a terminal you start it with `python -m workshop api`; in a notebook,
# like this.

# %% start_at=false
finished = run_command("workshop api --port {port}", name="finished service")
finished.url

# %% [markdown]
# It listens at this address and speaks HTTP, like any website. `httpx` sends requests; with `trust_env=False` it
# ignores any proxy set on this machine.

# %% start_at=false
httpx.get(finished.url + "/health", trust_env=False).json()

# %% [markdown]
# It classifies tumours, and it answers questions with two small language models of its own. If this notebook runs on
# your own computer, open the address in a browser: the page there lets you try both.

# %% start_at=false
asked = {"query": "What is Ray Serve?"}
httpx.post(finished.url + "/v1/query", json=asked, trust_env=False, timeout=60).json()

# %% [markdown]
# When you have looked around, stop it.

# %% start_at=false
finished.stop()

# %% [markdown]
# `python -m workshop serve` starts the same service on Ray Serve, where models can have their own processes and
# machines. A client cannot tell which of the two has answered. The later lessons show how that works.
#
# ## How a lesson works
#
# Run the cells from top to bottom. Where a lesson asks what you expect, put your prediction in place of the `...`
# before you run the next cell. A wrong prediction shows you what to look at.
#
# Here are 569 tumours, with 30 measurements of each.

# %%
from workshop.models.tumours import training_data

rows, labels = training_data()
rows.shape

# %% [markdown]
# `labels` holds the pathologists' diagnoses: 0 for malignant, 1 for benign. These are the first twenty-five.

# %%
labels[:25]

# %% [markdown]
# ### Exercise 1: how many are malignant?
#
# 1. Run the two cells below as they are.
# 2. Put a guess in place of the `...`, such as `malignant = 100`, and run both again.
# 3. Let Python count, and run both again.

# %% exercise="00.1"
# solution (about 1 line)
malignant = (labels == 0).sum()
# starter
# malignant = ...
# end

# %%
check("00.1", malignant)

# %% [markdown]
# A check has four outcomes.
#
# | | |
# |---|---|
# | ○ Not attempted | a `...` is still there |
# | → Not yet | your code runs, but does something else: the check says what |
# | ✓ Right | go on |
# | ✗ Could not check | your code stopped with an error, which is shown |
#
# Try as often as you like. A check looks at what your code does, never at how it is written. If you are stuck, ask for
# a hint. Run the cell again for a stronger one.

# %%
hint("00.1")

# %% [markdown]
# Our solution opens after a right answer, or after three tries. A `...` does not count as a try.

# %%
solution("00.1")

# %% [markdown]
# No later cell needs your answers, so you may skip an exercise.
#
# ## Your first endpoint
#
# Now you serve the model yourself. It was trained beforehand, on four fifths of these tumours, and stored in a file.
# `rows[[0]]` is a table with one row: the model takes many rows at a time.

# %%
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings

model = TumourClassifier.load(Settings().artifact)
model.predict(rows[[0]])

# %% [markdown]
# Two probabilities, one for each class. An endpoint is a function with an address. This one turns the scores into a
# readable answer; `{row}` in the address becomes its argument.

# %%
from fastapi import FastAPI

app = FastAPI()


@app.get("/predict/{row}")
def predict(row: int):
    scores = model.predict(rows[[row]])
    best = scores.probabilities[0].argmax()
    return {"label": scores.classes[best], "probability": scores.probabilities[0, best]}


# %% [markdown]
# `run_app` serves the app on a free port, in a thread of this notebook. It is a real server: any program on this
# machine can call it. Only its log is turned off, to keep the page short.

# %%
server = run_app(app, name="lesson 00", log_level="critical")


def ask(path: str):
    return httpx.get(server.url + path, trust_env=False)


ask("/predict/0").json()

# %% [markdown]
# Is that right? `truth` holds the diagnosis of each tumour as a word.

# %%
truth = [model.card.classes[label] for label in labels]
truth[0]

# %% [markdown]
# ### Exercise 2: prediction and truth side by side
#
# Write an endpoint that returns both. For tumour 0 that is `{"predicted": "malignant", "truth": "malignant"}`. The
# decorator leaves the function as it was, so you can still call it yourself: try `predict(0)`. Rows that do not exist
# come in exercise 3.

# %% exercise="00.2"
second = FastAPI()


@second.get("/compare/{row}")
def side_by_side(row: int):
    # solution (about 1 line)
    return {"predicted": predict(row)["label"], "truth": truth[row]}
    # starter
    # return ...
    # end


# %%
check("00.2", second)

# %% [markdown]
# ## How often is it wrong?
#
# We ask the service about all 569 tumours, one after the other. How many of its answers will be wrong? Replace the
# `...` with your prediction.

# %%
guess = ...

# %% start_at=false
with httpx.Client(base_url=server.url, trust_env=False) as client:  # one connection for all
    answers = [client.get(f"/predict/{row}").json() for row in range(569)]

wrong = [row for row in range(569) if answers[row]["label"] != truth[row]]
compare(guess, len(wrong), "wrong")

# %% [markdown]
# Few are wrong. But most of these tumours were in the training data, so expect more errors with new ones. And look at
# how confident the model is where it is wrong.

# %% start_at=false
for row in wrong:
    print(f"tumour {row} is {truth[row]:9}  the model says: {answers[row]}")

# %% [markdown]
# Missing a malignant tumour is the worse mistake, and most of these are of that kind. For tumour 297 the probability is
# 99%. A high probability does not mean that the answer is right.
#
# ## Four odd questions
#
# The tumours have the numbers 0 to 568. Which status will each of these four requests get? 200 means success, 4xx that
# the client made a mistake, 5xx that the service did.

# %%
guess = {"568": ..., "569": ..., "-1": ..., "many": ...}

# %%
replies = {row: ask(f"/predict/{row}") for row in guess}
compare(guess, {row: reply.status_code for row, reply in replies.items()})

# %%
{row: reply.text[:60] for row, reply in replies.items()}

# %% [markdown]
# ## What just happened?
#
# **many** is not a number. The signature says `row: int`, so FastAPI refused the request before your function ran. Its
# response tells the client what was wrong, and you wrote no code for it.

# %%
replies["many"].json()

# %% [markdown]
# **569** is a number, so your function ran, and failed. The client learns only that the service failed: FastAPI does not
# show the details of an error to clients. Call the function here to see them: the next cell fails on purpose.

# %% tags=["raises-exception"]
predict(569)

# %% [markdown]
# **-1** is the worst of the four: a confident answer, and no error anywhere. It is the answer for tumour 568, because
# in Python the index -1 means the last row.
#
# `int` says only that a row is a whole number. Which rows exist, you have to say.
#
# ### Exercise 3: no such tumour
#
# Return the prediction, as `predict` does, for every tumour that exists, and status 404 for every other whole number.
# In FastAPI, `raise HTTPException(404, "why")` ends an endpoint with that status. (A bound in the signature would give
# 422, which means a malformed request. These are well formed: there is just nothing to find.)

# %% exercise="00.3"
from fastapi import HTTPException

careful = FastAPI()


@careful.get("/predict/{row}")
def predict_carefully(row: int):
    # solution (about 3 lines)
    if not 0 <= row < len(rows):
        raise HTTPException(404, f"There is no tumour {row}.")
    return predict(row)
    # starter
    # return ...
    # end


# %%
check("00.3", careful)

# %% [markdown]
# ## Quiz
#
# **1.** A client asks for `/predict/12.5`. What does it get, and does `predict` run?
# <details><summary>Answer</summary>A 422: 12.5 is not an <code>int</code>. FastAPI finds that out before it calls
# <code>predict</code>, so it does not run.</details>
#
# **2.** Why is a 404 better than a 500 for tumour 569, when the client gets no prediction in either case?
# <details><summary>Answer</summary>A 500 says that the service is broken: someone on call may be woken, and clients will
# try again. A 404 says that the request is wrong, and that sending it again will not help.</details>
#
# **3.** The model moves to a machine with a GPU. Does code in <code>api/</code> change?
# <details><summary>Answer</summary>No. An endpoint does not know where the model is. What a replica does is in
# <code>deployments/</code>, and what it gets, such as a GPU, is decided in <code>integration/</code>.</details>
#
# ## Recap
#
# | request | response | who takes care of it |
# |---|---|---|
# | a tumour that exists | 200, label and probability | your endpoint |
# | text where a number belongs | 422, with the reason | FastAPI, from `row: int` |
# | a number without a tumour | 404 | you, in exercise 3 |
# | anything that you forgot | 500, or a confident but meaningless answer | nobody |
#
# The model is out of the notebook: any program that can reach the address can use it. So far there has been one client,
# with one request at a time. Lesson 01 sends ten at once.
#
# ## Tear-down
#
# Each lesson ends with a cell that stops its servers. You can run it at any point.

# %%
stop_all()
