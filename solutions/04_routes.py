# %% [markdown]
# # 04 Routes
#
# Somebody tidies up the names in a response, and a program that has worked for a year goes wrong without a word. You will
# build routes that can change without breaking their clients, errors that a program can read, jobs that survive a
# restart, and files that do not fit into memory.
#
# Afterwards you can
#
# - put a service together from routers, with the right methods, statuses and headers,
# - serve several versions of an API with the same code, and announce the end of an old one,
# - turn every error into one format, or into that of another protocol, and give nothing away,
# - say what happens to work after the response, and which work needs more than that,
# - take and send files of any size.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 75 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("04.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, load, marks
from workshop.lab import run_app, run_command, service_map, solution, start_at, stop_all

service_map("04")

# %% [markdown]
# ## Last year's client
#
# Ward 7 has a small program. Every morning, it asks the service about the new patients, and prints whom the doctors must
# call. Its author has left. Nobody here has ever seen it.

# %% mirrors="workshop.lab.fixtures.lesson_04:call_list"
import httpx

from workshop.lab.fixtures.lesson_04 import PATIENTS


def call_list(url: str, patients: dict[str, dict[str, float]] = PATIENTS) -> list[str]:
    """The patients whom the doctors must call today."""
    to_call = []
    for patient, tumour in patients.items():
        reply = httpx.post(f"{url}/predict", json=tumour, trust_env=False, timeout=60)
        result = reply.json()
        if reply.is_error:
            to_call.append(f"{patient}: {result['error']}")
        elif result.get("prediction") == 0:  # malignant
            to_call.append(f"{patient}: {result['probability'][0]:.0%}")
    return to_call


# %% [markdown]
# This is the endpoint that it was written for. The model gives a probability for each class, malignant first, and
# `prediction` is the position of the larger one.

# %%
from typing import Annotated

from fastapi import APIRouter, Body, FastAPI, HTTPException, Request, Response

from workshop.api.schemas.tumours import Measurements, to_rows
from workshop.lab.fixtures.lesson_04 import classifier

apps = {"before": FastAPI(), "after": FastAPI()}


@apps["before"].post("/predict")
async def predict_last_year(measurements: Measurements):
    scores = await classifier.predict(to_rows([measurements]))
    probability = scores.probabilities[0].tolist()
    return {"prediction": probability.index(max(probability)), "probability": probability}


# %% [markdown]
# A number for a label, a list without names: a colleague makes the response clearer for the new web page. The page works,
# and so do its tests.
#
# There are four patients today. How many names does ward 7's program print before the change, and how many after it? Or
# does it stop with an error? Replace each `...` with your prediction.


# %%
@apps["after"].post("/predict")
async def predict_renamed(measurements: Measurements):
    scores = await classifier.predict(to_rows([measurements]))
    probabilities = dict(zip(scores.classes, scores.probabilities[0].tolist(), strict=True))
    return {"label": max(probabilities, key=probabilities.get), "probabilities": probabilities}


guess = {"before": ..., "after": ...}

# %%
urls = {name: run_app(app, name=f"lesson 04, {name}").url for name, app in apps.items()}
lists = {name: call_list(url) for name, url in urls.items()}
compare(guess, {name: f"{len(listed)} names: {listed}" for name, listed in lists.items()})

# %% [markdown]
# Nobody is called, and nothing complains: two patients are missing from a list, that is all. This is what the program got
# for Anna:

# %%
reply = httpx.post(urls["after"] + "/predict", json=PATIENTS["Anna"], trust_env=False)
reply.status_code, reply.json()

# %% [markdown]
# ## What just happened?
#
# An API is a promise to programs that you cannot see. They cannot be asked, and they do not all fail loudly. So a
# service needs a way to change that leaves what was promised as it was.
#
# ## One router for each resource
#
# An `APIRouter` collects routes, as an app does, and is then included in one. The cases of the hospital get a router, and
# all its paths begin with `/cases`.

# %%
from itertools import count

cases = APIRouter(prefix="/cases", tags=["cases"])
stored = {}
numbers = count(1)


@cases.post("", status_code=201)
async def add_case(text: Annotated[str, Body()], request: Request, response: Response):
    number = next(numbers)
    stored[number] = text
    response.headers["Location"] = request.url_for("get_case", number=number).path
    return {"number": number, "text": text}


# %% [markdown]
# Status 201 says that something was created, and `Location` where it is: `url_for` finds the path by the name of the
# function. There are two more routes for a case.


# %%
@cases.get("/{number}")
async def get_case(number: int):
    if number not in stored:
        raise HTTPException(404, f"there is no case {number}")
    return {"number": number, "text": stored[number]}


@cases.put("/{number}")
async def replace_case(number: int, text: Annotated[str, Body()]):
    stored[number] = text


# %% [markdown]
# The routers are put together in one place. A router may include others, and each adds its prefix: no route knows that
# it belongs to version 1.

# %%
from workshop.lab.fixtures.lesson_04 import send

clinic = FastAPI()
v1 = APIRouter(prefix="/v1")
v1.include_router(cases)
clinic.include_router(v1)
clinic_url = run_app(clinic, name="lesson 04, clinic").url
created = send("POST", clinic_url + "/v1/cases", json="a shadow")
created.status_code, created.headers["Location"]

# %% [markdown]
# A colleague adds a route at the end of the file, for the newest case. Which status does each of these requests get?


# %%
@cases.get("/latest")
async def get_latest():
    return await get_case(max(stored))


guess = {"/v1/cases/1": ..., "/v1/cases/99": ..., "/v1/cases/latest": ...}

# %%
compare(guess, {path: send("GET", clinic_url + path).status_code for path in guess})

# %% [markdown]
# Routes are tried in their order, and the first one whose path fits gets the request. `/cases/{number}` fits too, and
# `latest` is not a number. So fixed paths come first.

# %%
ordered = APIRouter(prefix="/ordered")
ordered.get("/latest")(get_latest)
ordered.get("/{number}")(get_case)
clinic.include_router(ordered)
send("GET", clinic_url + "/ordered/latest").json()

# %% [markdown]
# A network loses the answer to a request, and the client sends it again. It does so once with POST, and once with PUT.
# How many cases are added each time?

# %%
guess = {"POST": ..., "PUT": ...}

# %%
added = {}
stored.pop(50, None)  # if this cell runs again
for method, path in (("POST", "/v1/cases"), ("PUT", "/v1/cases/50")):
    had = len(stored)
    for _ in range(2):
        send(method, clinic_url + path, json="sent twice")
    added[method] = len(stored) - had
compare(guess, added, "cases")

# %% [markdown]
# A PUT says where its content belongs, so a second one changes nothing. It is *idempotent*, and so are GET and DELETE.
# Programs and proxies may repeat them on their own.
#
# ### Exercise 1: a router for scans
#
# Complete the router. It is included under a prefix that you do not know.
#
# - `POST /scans` stores a scan: status 201, `Location`, and the scan with its `number`. A number is never used again.
# - `GET /scans/{number}` returns a scan in the same form, `GET /scans/latest` the one that was added last.
# - `PUT /scans/{number}` replaces this scan only, and returns it; it creates none.
# - `DELETE /scans/{number}` removes it: status 204.
# - Where there is no such scan, the status is 404.
#
# If you are stuck, `hint("04.1")` helps, and after three tries `solution("04.1")`.

# %% exercise="04.1"
from pydantic import BaseModel

scans = APIRouter(prefix="/scans")
kept = {}
scan_numbers = count(1)


class Scan(BaseModel):
    patient: str
    radius: float


# solution (about 24 lines)
def find_scan(number: int):
    if number not in kept:
        raise HTTPException(404, f"there is no scan {number}")
    return {"number": number, **kept[number].model_dump()}


@scans.post("", status_code=201)
async def add_scan(scan: Scan, request: Request, response: Response):
    number = next(scan_numbers)
    kept[number] = scan
    response.headers["Location"] = request.url_for("get_scan", number=number).path
    return find_scan(number)


@scans.get("/latest")
async def get_latest_scan():
    return find_scan(max(kept, default=0))


@scans.get("/{number}")
async def get_scan(number: int):
    return find_scan(number)


@scans.put("/{number}")
async def replace_scan(number: int, scan: Scan):
    find_scan(number)
    kept[number] = scan
    return find_scan(number)


@scans.delete("/{number}", status_code=204)
async def delete_scan(number: int):
    find_scan(number)
    del kept[number]


# starter
# @scans.post("")
# async def add_scan(scan: Scan):
#     return ...
#
#
# @scans.get("/{number}")
# async def get_scan(number: int):
#     return ...
# end


# %%
check("04.1", scans)

# %% [markdown]
# ## What a path allows
#
# Four more requests to our first router. It has GET and PUT for a case, and POST for the collection. Which status do
# they get?

# %%
guess = {"PATCH /v1/cases/1": ..., "HEAD /v1/cases/1": ..., "GET /v1/cases": ..., "GET /v1/cases/1/": ...}

# %%
replies = {request: send(request.split()[0], clinic_url + request.split()[1]) for request in guess}
compare(guess, {request: reply.status_code for request, reply in replies.items()})
{request: reply.headers.get("Allow") for request, reply in replies.items()}

# %% [markdown]
# FastAPI adds no HEAD to a GET, and redirects a path with an extra slash at the end. A 405 comes with `Allow`. But look at
# its value: a case also takes PUT. Starlette names the methods of the first route that fits. Our service looks at all:

# %%
from workshop.lab.fixtures.lesson_04 import start_service

service_server, folder = start_service()
send("PATCH", service_server.url + "/v1/cases/1").headers["Allow"]

# %% [markdown]
# ## What may change?
#
# Back to ward 7. Here are five changes to what it gets for a tumour. Will its program print `"the same"` list, `"another"`,
# or stop with an `"error"`?

# %%
from workshop.lab.fixtures.lesson_04 import CHANGES

guess = dict.fromkeys(CHANGES, ...)
{name: change({"prediction": 0, "probability": [0.9, 0.1]}) for name, change in CHANGES.items()}


# %%
@apps["before"].post("/{change}/predict")
async def predict_changed(change: str, measurements: Measurements, ward: int = 7):
    return CHANGES[change](await predict_last_year(measurements))


def outcome(change):
    try:
        return "the same" if call_list(f"{urls['before']}/{change}") == lists["before"] else "another"
    except Exception as error:
        return f"error: {error!r}"


compare(guess, {change: outcome(change) for change in CHANGES})

# %% [markdown]
# You may add: a field to a response, an optional parameter to a request, as `ward` above. Whatever is renamed, removed, or
# has another type or meaning breaks somebody. The error is the kindest outcome: somebody notices.
#
# ## Versions over one function
#
# So the clear names get a path of their own. Since last year, the hospital has also lowered the threshold: a tumour that is
# missed is worse than a false alarm. `diagnose` is the one place that knows.

# %%
from workshop.models.tumours import CLASSES


class Diagnosis(BaseModel):
    label: str
    probabilities: dict[str, float]


async def diagnose(rows):
    scores = await classifier.predict(rows)
    found = []
    for row in scores.probabilities.tolist():
        probabilities = dict(zip(scores.classes, row, strict=True))
        label = "malignant" if probabilities["malignant"] >= classifier.threshold else "benign"
        found.append(Diagnosis(label=label, probabilities=probabilities))
    return found


# %% [markdown]
# An endpoint is still an ordinary function. Version 2 says things differently, and calls version 1.

# %%
versions = FastAPI()


@versions.post("/v1/predict")
async def predict_v1(measurements: Measurements) -> Diagnosis:
    [diagnosis] = await diagnose(to_rows([measurements]))
    return diagnosis


@versions.post("/v2/predict")
async def predict_v2(measurements: Measurements):
    diagnosis = await predict_v1(measurements)
    return {"finding": diagnosis.label, "percent": {"malignant": 100 * diagnosis.probabilities["malignant"]}}


# %% [markdown]
# For ward 7, somebody has copied last year's endpoint into the new service. What do the three paths say about Chiara:
# `"malignant"` or `"benign"`?

# %%
versions.post("/predict")(predict_last_year)
versions_url = run_app(versions, name="lesson 04, versions").url
guess = {"/predict": ..., "/v1/predict": ..., "/v2/predict": ...}

# %%
said = {path: send("POST", versions_url + path, json=PATIENTS["Chiara"]).json() for path in guess}
labels = {path: answer.get("label") or answer.get("finding") for path, answer in said.items()}
compare(guess, labels | {"/predict": CLASSES[said["/predict"]["prediction"]]})

# %% [markdown]
# One tumour, two diagnoses. A copy keeps last year's mistakes too, not only its names. An old version must be a
# translation of the new one, and nothing else.
#
# ## Saying goodbye
#
# An old path tells its clients that they should move. There are two headers for this: `Deprecation` (RFC 9745) says since
# when, in seconds since 1970, and `Link` (RFC 8288) names the successor. A dependency can set them.
#
# The client whose requests all fail needs the notice most. Which of two responses has it, the one with status 200, the
# one with 422?

# %%
from fastapi import Depends

NOTICE = {"Deprecation": "@1767225600", "Link": '</v1/predict>; rel="successor-version"'}


async def give_notice(response: Response):
    response.headers.update(NOTICE)


versions.post("/noticed/predict", dependencies=[Depends(give_notice)])(predict_last_year)
guess = {"200": ..., "422": ...}

# %%
bodies = {"200": PATIENTS["Anna"], "422": {}}
noticed = {status: send("POST", versions_url + "/noticed/predict", json=body) for status, body in bodies.items()}
compare(guess, {status: "Deprecation" in reply.headers for status, reply in noticed.items()})

# %% [markdown]
# `response` belongs to the endpoint, and an error is another response. A route class can look at each message, as a
# middleware does, for these routes alone. It does not see a 405, or the 500 of an error that nobody expected.

# %%
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders


class SignedRoute(APIRoute):
    async def handle(self, scope, receive, send):
        async def send_signed(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Signed-By"] = "ward 3"
            await send(message)

        await super().handle(scope, receive, send_signed)


signed = APIRouter(route_class=SignedRoute)

# %%
signed.post("/signed/predict")(predict_v1)
versions.include_router(signed)
[send("POST", versions_url + "/signed/predict", json=body).headers["X-Signed-By"] for body in bodies.values()]

# %% [markdown]
# ### Exercise 2: keep the earlier client working
#
# `POST /predict` answers as last year: `prediction`, where 0 is malignant, and `probability`, a list with malignant first.
# It says what version 1 says, whatever model and threshold are behind that.
#
# Its answers with 200 and 422 have the headers of `NOTICE`; version 1 has none of them. `/openapi.json` marks the path as
# deprecated.

# %% exercise="04.2"
bridge = FastAPI()
bridge.post("/v1/predict")(predict_v1)


# solution (about 17 lines)
class NoticedRoute(APIRoute):
    async def handle(self, scope, receive, send):
        async def send_noticed(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(NOTICE)
            await send(message)

        await super().handle(scope, receive, send_noticed)


earlier = APIRouter(route_class=NoticedRoute, deprecated=True)


@earlier.post("/predict")
async def predict_earlier(measurements: Measurements):
    diagnosis = await predict_v1(measurements)
    probability = [diagnosis.probabilities[name] for name in CLASSES]
    return {"prediction": CLASSES.index(diagnosis.label), "probability": probability}


bridge.include_router(earlier)
# starter
# @bridge.post("/predict")
# async def predict_earlier(measurements: Measurements):
#     return ...
# end

# %%
check("04.2", bridge)

# %% [markdown]
# The service does it in the same way. Its own version 1 names the more probable class, without the hospital's lower
# threshold, so Chiara is not on this list. The paths of earlier services are in one file,
# `workshop/api/routers/earlier.py`. There is a third header, `Sunset`: the day from which a path may be removed.

# %%
anna = send("POST", service_server.url + "/predict", json=PATIENTS["Anna"])
print(call_list(service_server.url))
{name: anna.headers[name] for name in ("Deprecation", "Sunset", "Link")}

# %%
import inspect

from workshop.api.routers.earlier import EarlierRoute

print(inspect.getsource(EarlierRoute.handle))

# %% [markdown]
# ## Errors without a contract
#
# Ward 7 also reads errors. What can a program rely on there? `find_case` asks a database that cannot be reached.

# %%
from workshop.lab.fixtures.lesson_04 import find_case

careless = FastAPI()


@careless.get("/cases/{number}")
async def get_any_case(number: int):
    if number == 99:
        raise HTTPException(404, "there is no case 99")
    return find_case(number)


# %% [markdown]
# A client wants to show `detail` to its user. What type is it: `"str"`, `"list"`, or is the body `"not JSON"`?

# %%
guess = {"/cases/99": ..., "/cases/x": ..., "/nothing": ..., "/cases/1": ...}


# %%
def kind_of_detail(reply):
    try:
        return type(reply.json()["detail"]).__name__
    except ValueError:
        return "not JSON"


careless_url = run_app(careless, name="lesson 04, careless", log_level="critical").url
compare(guess, {path: kind_of_detail(send("GET", careless_url + path)) for path in guess})
send("GET", careless_url + "/cases/1").text

# %% [markdown]
# Three formats. The last one says nothing about the reason, and that is good. A colleague wants to help the client:


# %%
@careless.get("/helpful/{number}")
async def get_helpful(number: int):
    try:
        return find_case(number)
    except Exception as error:
        raise HTTPException(500, str(error)) from error


# %%
send("GET", careless_url + "/helpful/1").json()

# %% [markdown]
# A user, a password, an address. Error texts are written for those who run the service. They belong in its log.
#
# ## One tree, one table
#
# The package has one tree of errors that a model or a store may raise. They know nothing of HTTP, and their messages are
# written for callers.

# %%
from workshop.contracts import errors
from workshop.contracts.errors import InvalidInputError, NotFoundError, ServiceError, UnavailableError

print(errors.__doc__)

# %% [markdown]
# A table gives some branches a status. The most specific class counts. Which status do these three get?

# %%
STATUS = {InvalidInputError: 400, NotFoundError: 404, UnavailableError: 503, ServiceError: 500}


def status_of(error):
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


guess = {"NotFoundError": ..., "OverloadedError": ..., "ModelFailedError": ...}

# %%
compare(guess, {name: status_of(getattr(errors, name)("a message")) for name in guess})

# %% [markdown]
# And one function makes the body: a *problem document* (RFC 9457). Its members have fixed meanings: `title` is the same
# for all errors of a kind, `detail` is about this one. You may add members of your own. `error` is ours, for ward 7.

# %%
from http import HTTPStatus

from fastapi.responses import JSONResponse


def problem(request, status, error, detail, headers=None, details=()):
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    body |= {"instance": request.url.path, "error": error, "details": list(details)}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


# %% [markdown]
# An exception handler turns an error into a response. The first attempt has one, for FastAPI's `HTTPException`. Which of
# the four paths now gives a problem document?

# %%
attempt = FastAPI()
attempt.include_router(careless.router)


@attempt.exception_handler(HTTPException)
async def handle(request, error):
    return problem(request, error.status_code, "HTTPException", error.detail, error.headers)


guess = {"/cases/99": ..., "/cases/x": ..., "/nothing": ..., "/cases/1": ...}

# %%
attempt_url = run_app(attempt, name="lesson 04, attempt", log_level="critical").url
types = {path: send("GET", attempt_url + path).headers["Content-Type"] for path in guess}
compare(guess, {path: "problem" in kind for path, kind in types.items()})

# %% [markdown]
# Only `/cases/99`, whose error the endpoint raises itself. An unknown path is Starlette's error, and *its*
# `HTTPException` is the base of FastAPI's. Invalid requests have a class of their own. Whatever nobody expects is an
# `Exception`.
#
# ### Exercise 3: every error
#
# Write `add_problems(app)`. From then on, each error of the app is a problem document, whichever route it comes from:
#
# - an error of the tree: status by the table, `detail` is its message. An `UnavailableError` has `retry_after_s`: its
#   response has `Retry-After`, in whole seconds, rounded up,
# - an invalid request: 422, and `details` with `field` (such as `query.limit`) and `message` of each mistake, but
#   nothing that was sent,
# - an `HTTPException`, also Starlette's, with its headers,
# - any other error: 500. Its text stays inside.
#
# `error` is the name of the error's class, and `InternalError` for any other error. `instance` is the path, as in `problem`.


# %% exercise="04.3"
import math

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException


def add_problems(app):
    # solution (about 20 lines)
    @app.exception_handler(ServiceError)
    async def handle_service_error(request, error):
        headers = {}
        if isinstance(error, UnavailableError):
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        return problem(request, status_of(error), type(error).__name__, error.message, headers)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(request, error):
        details = [{"field": ".".join(map(str, item["loc"])), "message": item["msg"]} for item in error.errors()]
        return problem(request, 422, "RequestValidationError", "the request is invalid", details=details)

    @app.exception_handler(StarletteHTTPException)
    async def handle_http_exception(request, error):
        return problem(request, error.status_code, type(error).__name__, error.detail, error.headers)

    @app.exception_handler(Exception)
    async def handle_the_rest(request, error):
        return problem(request, 500, "InternalError", "something went wrong in the service")

    # starter
    # ...
    # end


# %%
check("04.3", add_problems)

# %% [markdown]
# The service's handlers are in `workshop/api/errors.py`. They add the time and the request's id, by which the
# operators find the traceback in the log.
#
# ## Protocols of others
#
# Two more groups of routes answer clients that we did not write: those of MLflow's model server, and those of the Open
# Inference Protocol, which lives below `/v2`. All of them classify tumours with the same model.
#
# Three clients make the same mistake: a tumour without its area. Which status does each get?

# %%
from workshop.lab.fixtures.lesson_04 import in_three_protocols

requests = in_three_protocols({name: value for name, value in PATIENTS["Anna"].items() if name != "mean_area"})
guess = dict.fromkeys(requests, ...)

# %%
refused = {path: send("POST", service_server.url + path, json=body) for path, body in requests.items()}
compare(guess, {path: reply.status_code for path, reply in refused.items()})
{path: (reply.headers["Content-Type"], reply.text[:100]) for path, reply in refused.items()}

# %% [markdown]
# Neither protocol knows a 422, and one has an error format of its own. Its clients read `error`, and would show nothing else.
# So its routes have another class, which catches what a handler would have got:

# %%
from workshop.api.routers.inference import InferenceRoute
from workshop.api.routes import ProtocolRoute

print(inspect.getsource(ProtocolRoute.get_route_handler), inspect.getsource(InferenceRoute.error_response), sep="\n")

# %% [markdown]
# ## After the response
#
# A patient's doctor gets a mail, which takes half a second. The first endpoint sends it and then answers. The second one
# leaves it to FastAPI as a background task. When does the client have its answer?

# %%
from fastapi import BackgroundTasks

from workshop.lab.fixtures.lesson_04 import moments, send_mail

post = FastAPI()


# %%
@post.post("/first")
async def send_first():
    await send_mail("/first")


@post.post("/later")
async def send_later(background: BackgroundTasks):
    background.add_task(send_mail, "/later")


guess = {"/first": ..., "/later": ...}

# %% start_at=false
post_url = run_app(post, name="lesson 04, post").url
answered = {path: load(post_url + path, requests=1, method="POST")[0].ms for path in guess}
compare(guess, answered, "ms")

# %% [markdown]
# Here is when each thing happened, for three requests to each path, one after the other:

# %% start_at=false
import time

time.sleep(1)  # the last mail is still on its way
moments.restart()
for path in ("/first", "/first", "/first", "/later", "/later", "/later"):
    send("POST", post_url + path)
    moments.note(f"{path}: answer")
time.sleep(1)
marks(moments, title="answers and mails")

# %% [markdown]
# The second client does not wait for the mail. But what has it been promised? Five doctors are to get a mail, each
# after a letter that is printed. (This app runs in a process of its own.)

# %%
# %%writefile {folder}/post_app.py
import asyncio
import time
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI

app = FastAPI()


def print_letter(doctor):
    if doctor == "Berg":
        raise OSError("the printer is out of paper")


def send_mail(doctor):
    time.sleep(1)
    with Path("sent.txt").open("a") as file:
        file.write(f"{doctor}\n")


@app.post("/{doctor}")
async def inform(doctor: str, background: BackgroundTasks, wait_s: float = 0):
    background.add_task(print_letter, doctor)
    background.add_task(send_mail, doctor)
    await asyncio.sleep(wait_s)


# %% [markdown]
# All goes well for Adler. For Berg, the printer fails. Cruz's client gives up and leaves before it has an answer. Right after
# the answer for Diaz, the server is asked to stop, as for an update. Right after that for Egli, its process is killed.
#
# Which mails are `"sent"`, which are `"lost"`?

# %%
guess = {"Adler": ..., "Berg": ..., "Cruz": ..., "Diaz": ..., "Egli": ...}

# %% start_at=false
from contextlib import suppress

command = "uvicorn post_app:app --port {port}"
with run_command(command, name="lesson 04, post app", folder=folder) as running:
    statuses = [send("POST", f"{running.url}/{doctor}").status_code for doctor in ("Adler", "Berg")]
    with suppress(httpx.TimeoutException):
        httpx.post(running.url + "/Cruz?wait_s=2", timeout=1, trust_env=False)
    statuses.append(send("POST", running.url + "/Diaz").status_code)

# %% start_at=false
with run_command(command, name="lesson 04, post app", folder=folder) as running:
    statuses.append(send("POST", running.url + "/Egli").status_code)
    running.processes[0].kill()
sent = (folder / "sent.txt").read_text().split()
compare(guess, {doctor: "sent" if doctor in sent else "lost" for doctor in guess})
statuses

# %% [markdown]
# Every client that waited has a 200. Cruz's mail is sent although nobody waits, and Diaz's because a stop waits for
# tasks that are running. Tasks run one after the other, and the first that fails ends the rest: only the log knows. And
# they live in the memory of one process. Egli's is lost without even a line in the log.
#
# ## A job is something that is stored
#
# So a background task is good for what may be lost. A promise must be in a database *before* the client gets its
# answer. The service does this with files to classify: it answers 202, "accepted", and says where to look.

# %%
from workshop.lab.fixtures.lesson_04 import three_tumours, when_ended

text_csv = {"Content-Type": "text/csv"}
accepted = send("POST", service_server.url + "/v1/prediction-jobs", content=three_tumours(), headers=text_csv)
accepted.status_code, accepted.headers["Location"]

# %%
job = when_ended(service_server.url + accepted.headers["Location"])
{name: job[name] for name in ("status", "rows", "rejected", "attempt")}

# %% [markdown]
# `attempt` is above 1 if the process that ran the job has ended, and another one had to begin again. Now write a small
# service of this kind.
#
# ### Exercise 4: jobs that survive
#
# `await count_cells(picture)` takes long, and raises an error for some pictures. `job_store` stands for a database. All
# of its methods have to be awaited: `add(picture)` returns a number, `update(number, status, result)` changes a job,
# `get(number)` returns it, with `text`, `status` and `result`, and `unfinished()` the numbers of all that are queued or
# running.
#
# - `POST /jobs?picture=…` answers with 202 and `{"number": …}` at once, and the job is done later.
# - In the end, each job is `"succeeded"` with its result, or `"failed"`. It is done once.
# - A job that was accepted is done even if the service is stopped before, and started again. Jobs that have ended are
#   not done again, and the service does not wait for its jobs when it starts.
#
# Create queues and locks in the lifespan: each start has an event loop of its own.

# %% exercise="04.4"
import asyncio
from contextlib import asynccontextmanager

from workshop.lab.fixtures.lesson_04 import count_cells, job_store


# solution (about 22 lines)
async def run_job(number):
    job = await job_store.get(number)
    await job_store.update(number, "running")
    try:
        result = await count_cells(job.text)
    except Exception:
        await job_store.update(number, "failed")
    else:
        await job_store.update(number, "succeeded", result)


@asynccontextmanager
async def resume_jobs(app):
    tasks = [asyncio.create_task(run_job(number)) for number in await job_store.unfinished()]
    yield
    for task in tasks:
        task.cancel()


laboratory = FastAPI(lifespan=resume_jobs)


@laboratory.post("/jobs", status_code=202)
async def create_job(picture: str, background: BackgroundTasks):
    number = await job_store.add(picture)
    background.add_task(run_job, number)
    return {"number": number}


# starter
# laboratory = FastAPI()
#
#
# @laboratory.post("/jobs")
# async def create_job(picture: str):
#     return ...
# end


@laboratory.get("/jobs/{number}")
async def get_job(number: int):
    job = await job_store.get(number)
    if job is None:
        raise HTTPException(404)
    return {"status": job.status, "result": job.result}


# %%
check("04.4", laboratory)

# %% [markdown]
# ## A file comes in
#
# A hospital sends 20 MB of measurements. Four endpoints count the bytes. Two get the file as the body of the request, two
# in a form, as from a web page. In each pair, one reads it whole and one in pieces. How many MB of memory does each
# upload take, at its peak?

# %%
from fastapi import UploadFile

from workshop.lab.fixtures.lesson_04 import peak_mb, send_body, send_form, write_measurements

files = FastAPI()
files_url = run_app(files, name="lesson 04, files").url


@files.post("/body/whole")
async def count_body(request: Request):
    return len(await request.body())


@files.post("/body/pieces")
async def count_stream(request: Request):
    return sum([len(piece) async for piece in request.stream()])


# %%
@files.post("/form/whole")
async def count_file(file: UploadFile):
    return len(await file.read())


@files.post("/form/pieces")
async def count_file_pieces(file: UploadFile):
    size = 0
    while piece := await file.read(2**16):
        size += len(piece)
    return size


guess = {"/body/whole": ..., "/body/pieces": ..., "/form/whole": ..., "/form/pieces": ...}

# %% start_at=false
big = write_measurements(folder / "big.csv", megabytes=20)
peaks = {path: peak_mb(send_body if "body" in path else send_form, files_url + path, big) for path in guess}
compare(guess, peaks, "MB")

# %% start_at=false
bars({path: {"MB": peak} for path, peak in peaks.items()}, y="MB", title="peak memory for a file of 20 MB")

# %% [markdown]
# `body()` keeps the pieces and then joins them, so the file is there twice. A form's file is put into a temporary file
# before the endpoint is called, and a large one is on disk. In pieces, a small part of it is enough.
#
# ## A bad row
#
# The package reads CSV in batches. Here the second tumour has a note of two lines, and the fourth has no area. On which
# line does the fourth one begin? The columns' names are on line 1.

# %%
from workshop.lab.fixtures.lesson_04 import four_tumours
from workshop.models.tumour_csv import TumourCsvReader

guess = ...

# %%
batch = TumourCsvReader(four_tumours()).read(100)
compare(guess, batch.mistakes[0].line)
batch.lines, batch.values.shape, batch.mistakes

# %% [markdown]
# A row is not a line. `lines` has the line of each good row, `values` their measurements. Whoever corrects the file needs
# the line, as an editor shows it.
#
# ## A file goes out
#
# `reader.read(500)` returns the next batch, and `None` at the end. So the answer can begin when the first batch is done. A
# second endpoint collects everything first.

# %%
from fastapi.responses import StreamingResponse

some = write_measurements(folder / "some.csv", megabytes=2)


async def scored():
    with some.open(newline="", encoding="utf-8-sig") as opened:
        reader = TumourCsvReader(opened)
        while (batch := await asyncio.to_thread(reader.read, 500)) is not None:
            scores = await classifier.predict(batch.values)
            pairs = zip(batch.lines, scores.probabilities[:, 0], strict=True)
            yield "".join(f"{line},{probability:.3f}\n" for line, probability in pairs)


# %%
@files.get("/scores/stream")
async def stream_scores():
    return StreamingResponse(scored(), media_type="text/csv")


@files.get("/scores/whole")
async def send_scores():
    return Response("".join([piece async for piece in scored()]), media_type="text/csv")


# %% start_at=false
downloads = {path: load(files_url + path, requests=1)[0] for path in ("/scores/whole", "/scores/stream")}
marks({path: [1000 * at for at in record.arrivals] for path, record in downloads.items()}, title="pieces of the answer")

# %% [markdown]
# The stream needs the memory of one batch, and its first rows come early. Its price: the status has left by then. An error in
# row 4000 can only break it off. So look at the first line *before* you return a `StreamingResponse`.
#
# ## Half a file
#
# A connection breaks in the middle of a download. The client has 1000 bytes, and asks for the rest: `Range:
# bytes=1000-`. Meanwhile, the file has been replaced. With `If-Range`, the client also says which version its part
# comes from.

# %%
from fastapi.responses import FileResponse

report = folder / "report.csv"


@files.get("/report")
async def get_report():
    return FileResponse(report)


# %% [markdown]
# Which status does each of these get: 206, a part, or 200, everything?

# %%
report.write_text("old," * 500)
half = send("GET", files_url + "/report")
report.write_text("new," * 600)
guess = {"Range": ..., "Range and If-Range": ..., "Range, of a stream": ...}

# %%
rest, safe = {"Range": "bytes=1000-"}, {"Range": "bytes=1000-", "If-Range": half.headers["ETag"]}
asked = [("/report", rest), ("/report", safe), ("/scores/stream", rest)]
replies = [send("GET", files_url + path, headers=headers) for path, headers in asked]
compare(guess, dict(zip(guess, [reply.status_code for reply in replies], strict=True)))
(half.content[:1000] + replies[0].content)[980:1020]

# %% [markdown]
# With `Range` alone, the client has the beginning of the old file and the end of the new one; the last line shows where
# they meet. With `If-Range`, it gets the new one. A stream knows neither header, one more reason to store results. The
# service's files know both, and `If-None-Match`, for a client that has the whole file.

# %%
result = send("GET", f"{service_server.url}{accepted.headers['Location']}/result")
again = send("GET", str(result.url), headers={"If-None-Match": result.headers["ETag"]})
again.status_code, again.content, result.text.splitlines()[0][-40:]

# %% [markdown]
# ### Exercise 5: your own service
#
# Everything together, attacked from all sides. You may use all that you have seen, and three parts of the package:
# `EarlierRoute`, `add_error_handlers`, and `RequestIdMiddleware`, which the handlers need. The upload that is there has
# every fault of this lesson: repair it.
#
# - `POST /v1/predict` stays as it is. `POST /predict` is for ward 7, as in exercise 2, from the same diagnosis.
# - `POST /v1/scores` takes a CSV file in a form, as `file`, and streams CSV: `line,label,error`, and a row for each row of
#   the file that is not blank, in its order. A good row has a label and no error, a bad one an error and no label.
# - At least 20 and at most 100 rows are read at a time, and no file is in memory as a whole. A file may begin with a byte
#   order mark (`utf-8-sig`). One without the right columns gets a 422. Several uploads may come at once.
# - Every error is a problem document with `error`, and gives nothing away.

# %% exercise="04.5"
import csv
from io import StringIO, TextIOWrapper

from workshop.api.errors import add_error_handlers
from workshop.api.middleware.request_id import RequestIdMiddleware

service = FastAPI()
service.post("/v1/predict")(predict_v1)


# solution (about 30 lines)
add_error_handlers(service)
service.add_middleware(RequestIdMiddleware)  # the handlers need it
old_routes = APIRouter(route_class=EarlierRoute, deprecated=True)


@old_routes.post("/predict")
async def predict_for_ward_7(measurements: Measurements):
    diagnosis = await predict_v1(measurements)
    probability = [diagnosis.probabilities[name] for name in CLASSES]
    return {"prediction": CLASSES.index(diagnosis.label), "probability": probability}


service.include_router(old_routes)


def csv_lines(rows):
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


@service.post("/v1/scores")
async def score_file(file: UploadFile):
    reader = TumourCsvReader(TextIOWrapper(file.file, "utf-8-sig", newline=""))

    async def scored_rows():
        yield csv_lines([("line", "label", "error")])
        while (batch := await asyncio.to_thread(reader.read, 100)) is not None:
            found = await diagnose(batch.values) if batch.lines else []
            rows = {mistake.line: ("", f"{mistake.column}: {mistake.error}") for mistake in batch.mistakes}
            rows |= {line: (diagnosis.label, "") for line, diagnosis in zip(batch.lines, found, strict=True)}
            yield csv_lines((line, *rest) for line, rest in sorted(rows.items()))

    return StreamingResponse(scored_rows(), media_type="text/csv")


# starter
# @service.post("/predict")
# async def predict_for_ward_7(measurements: Measurements):
#     return ...
#
#
# @service.post("/v1/scores")
# async def score_file(file: UploadFile):
#     text = (await file.read()).decode()
#     try:
#         batch = TumourCsvReader(StringIO(text)).read(1_000_000)
#         found = await diagnose(batch.values)
#     except Exception as error:
#         raise HTTPException(500, str(error)) from error
#     return ...
# end

# %%
check("04.5", service)

# %% [markdown]
# ## Quiz
#
# **1.** A new version sends `"probability": null` where the old one always sent a number. Is that a compatible change?
# <details><summary>Answer</summary>No. The name is the same, but the type is another: a client that computes with the number
# fails on `null`.</details>
#
# **2.** Why does the client of an old path need the `Deprecation` header on errors too?
# <details><summary>Answer</summary>A program that only gets errors may be the one that has to move. And whoever looks for
# deprecated calls in a log must not have to guess.</details>
#
# **3.** A handler for `Exception` answers with `str(error)`. What is wrong?
# <details><summary>Answer</summary>The text was written for those who run the service. It may contain addresses, passwords
# or data. The client gets a fixed sentence, the log the rest.</details>
#
# **4.** A payment is booked in a background task. What do you say?
# <details><summary>Answer</summary>The client was told that all is well, and a restart loses the payment. Store it first,
# answer then, and resume what is unfinished at the start.</details>
#
# **5.** An endpoint takes an `UploadFile` and calls `await file.read()`. What was gained over `request.body()`?
# <details><summary>Answer</summary>Half of the memory. The file was on disk and not in memory, and then it is read into
# memory as a whole after all.</details>
#
# ## Recap
#
# | what happened | before | now |
# |---|---|---|
# | a field gets a better name | ward 7 calls nobody | a new version; the old one translates it |
# | the threshold changes | two diagnoses for one tumour | one function behind all versions |
# | an old client sends nonsense | an error without a notice | `Deprecation` and `Link` on a 422 too |
# | something fails | three formats, a password | one tree, one table, a problem document |
# | a client speaks another protocol | an error that it cannot read | a route class with that format |
# | the process is killed | accepted work is lost | stored first, resumed at the start |
# | a large file comes | twice its size in memory | read, scored and sent in batches |
# | a download breaks off | part old, part new | `ETag`, `If-Range`, 206 |
#
# Ward 7's doctors get their list. Next: lesson 05 looks more closely at answers that come in pieces.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
