"""Lesson 04: routes."""

import csv
import math
import random
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from io import StringIO
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import httpx
from fastapi import APIRouter, FastAPI, HTTPException, Query

from workshop.contracts.errors import (
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import NotAttempted, NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_04 import (
    OtherModel,
    Tumour,
    call_list,
    cells_in,
    classifier,
    csv_text,
    office,
    peak_mb,
    send_form,
    tumour_of,
)
from workshop.lab.registry import exercise
from workshop.models.tumours import CLASSES

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""
TOGETHER = 12


def _word() -> str:
    return uuid4().hex[:10]


# --------------------------------------------------------------------------------------------- 04.1: a router for scans


@exercise(
    "04.1",
    hints=[
        "Five routes, `/latest` before `/{number}`. `status_code=201` and `status_code=204` belong to the decorator. A "
        "function `find_scan(number)` that raises the 404 serves four of them.",
        '`request.url_for("get_scan", number=number).path` knows the prefix. `next(scan_numbers)` gives a number that '
        "no scan had before, even if the last one was deleted.",
    ],
    right="It works under any prefix, and keeps its numbers apart.",
    seconds=LIMIT_S,
)
def keeps_scans(answer: Answer) -> None:
    router = answer.value
    if not isinstance(router, APIRouter):
        raise NotYet("An APIRouter is needed here.", got=show(router))
    app, prefix = FastAPI(), f"/{_word()}"
    app.include_router(router, prefix=prefix)
    with answer.serve(app) as client:
        scans = [_scan() for _ in range(3)]
        created = [_expect_created(client, prefix, scan) for scan in scans]
        numbers = [number for number, _ in created]
        for scan, (number, location) in zip(scans, created, strict=True):
            asked = f"GET {location}, from `Location`, after other scans were added"
            expect(client.get(location).json(), {"number": number, **scan}, given=asked)
        _expect_latest(client, prefix, numbers[-1])
        corrected = _scan()
        for _ in range(2):
            replaced = client.put(f"{prefix}/scans/{numbers[0]}", json=corrected)
            expect(replaced.status_code, 200)
            expect(replaced.json(), {"number": numbers[0], **corrected})
        expect(client.get(f"{prefix}/scans/{numbers[0]}").json(), {"number": numbers[0], **corrected})
        asked = f"GET {prefix}/scans/{numbers[1]}, after a PUT of another scan"
        expect(client.get(f"{prefix}/scans/{numbers[1]}").json(), {"number": numbers[1], **scans[1]}, given=asked)
        _expect_latest(client, prefix, numbers[-1], "after a PUT of an older scan")
        _expect_deleted(client, f"{prefix}/scans/{numbers[-1]}")
        _expect_latest(client, prefix, numbers[1], "after the newest was deleted")
        again, _ = _expect_created(client, prefix, _scan())
        if again in numbers:
            raise NotYet("A new scan has the number of a deleted one.", got=show(again))
        client.delete(f"{prefix}/scans/{numbers[1]}")
        _expect_latest(client, prefix, again, "after an older one was deleted")
        replies = client.together(TOGETHER, "POST", f"{prefix}/scans", json=_scan())
        given = [reply.json()["number"] for reply in replies]
        if len({*given}) < TOGETHER:
            raise NotYet("Two scans have the same number.", given=f"{TOGETHER} times POST at once", got=show(given))
        for body in ({}, {"patient": "Anna", "radius": "large"}):
            expect(client.post(f"{prefix}/scans", json=body).status_code, 422, why="This is no scan.")
            expect(client.put(f"{prefix}/scans/{again}", json=body).status_code, 422, why="This is no scan.")
        unknown = f"{prefix}/scans/{max(given) + 1000}"
        expect(client.put(unknown, json=_scan()).status_code, 404, why="A PUT creates no scan.")
        _expect_none_left(client, f"{prefix}/scans")


def _scan() -> dict[str, Any]:
    return {"patient": _word(), "radius": round(random.uniform(5, 30), 2)}


def _expect_none_left(client: Client, path: str) -> None:
    while (latest := client.get(f"{path}/latest")).status_code == 200 and latest.json():
        client.delete(f"{path}/{latest.json()['number']}")
    expect(latest.status_code, 404, given=f"GET {path}/latest, and no scan is left", why="There is no such scan.")


def _expect_created(client: Client, prefix: str, scan: dict[str, Any]) -> tuple[int, str]:
    created = client.post(f"{prefix}/scans", json=scan)
    expect(created.json(), scan)
    expect(created.status_code, 201, why="A scan was created.")
    location = created.headers.get("Location")
    if location is None:
        raise NotYet("There is no `Location`.", expected="the path of the new scan")
    location = str(created.url.join(location))
    found = client.get(location)
    expect(found.status_code, 200, given=f"GET {location}, from `Location` (the prefix is {prefix})")
    expect(found.json(), created.json(), given=f"GET {location}, from `Location`")
    if not isinstance(number := created.json().get("number"), int):
        raise NotYet("The scan has no `number`.", got=created.text)
    expect(client.get(f"{prefix}/scans/{number}").json(), {"number": number, **scan})
    return number, location


def _expect_latest(client: Client, prefix: str, number: int, when: str = "") -> None:
    latest = client.get(f"{prefix}/scans/latest")
    given = f"GET {prefix}/scans/latest {when}".strip()
    why = "This is not the newest scan that is left."
    if latest.status_code == 422:
        why = "`/{number}` gets this request. Routes are tried in their order: `/latest` must come first."
    expect(latest.status_code, 200, given=given, why=why)
    expect(latest.json(), {"number": number}, given=given, why=why)


def _expect_deleted(client: Client, path: str) -> None:
    deleted = client.delete(path)
    expect(deleted.status_code, 204, why="There is nothing to send.")
    expect(deleted.text, "", why="A 204 has no body.")
    gone = f"{path}, which was deleted"
    expect(client.get(path).status_code, 404, given=f"GET {gone}", why="There is no such scan.")
    expect(client.put(path, json=_scan()).status_code, 404, given=f"PUT {gone}", why="A PUT creates no scan.")
    expect(client.get(path).status_code, 404, given=f"GET {gone}, after the PUT", why="A PUT creates no scan.")
    expect(client.delete(path).status_code, 404, given=f"DELETE {gone}", why="There is no such scan.")


# -------------------------------------------------------------------------------------------- 04.2: an earlier client


@exercise(
    "04.2",
    hints=[
        "`predict_v1(measurements)` can be awaited like any function. The list needs the probabilities by name: their "
        "order in version 1 may change. `prediction` follows from the label.",
        "A route class like `SignedRoute` sets the headers: `APIRouter(route_class=…, deprecated=True)`, then "
        "`include_router`.",
    ],
    right="Last year's client gets today's diagnosis.",
    seconds=LIMIT_S,
)
def keeps_the_earlier_client(answer: Answer) -> None:
    for classes in (CLASSES, CLASSES[::-1]):
        with classifier.replaced(classes) as model, answer.serve() as client:
            for tumour in model.tumours():
                _expect_v1(client, model, tumour)
                _expect_earlier(client, model, tumour)
            _expect_call_list(client, model)
    with answer.serve() as client:
        _expect_notices(client)


def _expect_v1(client: Client, model: OtherModel, tumour: Tumour) -> None:
    reply = client.post("/v1/predict", json=tumour)
    why = "Version 1 must stay as it was."
    expect(reply.status_code, 200, why=why, given=_given("/v1/predict", model, tumour))
    expected = dict(zip(("malignant", "benign"), model.probability(tumour), strict=True))
    given = _given("/v1/predict", model, tumour)
    expect(reply.json(), {"label": model.label(tumour), "probabilities": expected}, why=why, given=given)


def _expect_earlier(client: Client, model: OtherModel, tumour: Tumour) -> None:
    reply = client.post("/predict", json=tumour)
    given = _given("/predict", model, tumour)
    expect(reply.status_code, 200, given=given)
    got = reply.json()
    if not isinstance(got, dict):
        expect(got, {"prediction": 0, "probability": []}, given=given)
    if not {"prediction", "probability"} <= got.keys():
        raise NotYet("A name is missing.", given=given, expected="`prediction` and `probability`", got=reply.text[:200])
    expect(got.get("probability"), model.probability(tumour), given=given, why="`probability` is wrong.")
    expected = 0 if model.label(tumour) == "malignant" else 1
    expect(got.get("prediction"), expected, given=given, why="Version 1 says something else: `prediction` is wrong.")
    if isinstance(got["prediction"], bool):
        raise NotYet("`prediction` is a number.", given=given, expected=str(expected), got=reply.text[:200])


def _given(path: str, model: OtherModel, tumour: Tumour) -> str:
    probability, _ = model.probability(tumour)
    return f"POST {path}, malignant with {probability:.0%}, another model, threshold {model.threshold:.0%}"


def _expect_call_list(client: Client, model: OtherModel) -> None:
    """Last year's program, with patients of its own."""
    patients = {_word(): tumour for tumour in model.tumours()}
    expected = [
        f"{patient}: {model.probability(tumour)[0]:.0%}"
        for patient, tumour in patients.items()
        if model.label(tumour) == "malignant"
    ]
    got = call_list(str(client.base_url), patients)
    expect(got, expected, given="call_list(…), last year's program", why="The doctors call the wrong patients.")


def _expect_notices(client: Client) -> None:
    good = tumour_of(random.randrange(500))
    replies = {
        "200": client.post("/predict", json=good),
        "422": client.post("/predict", json={"mean_radius": 1}),
        "422, for a body that is not JSON": client.post("/predict", content="{", headers=JSON),
    }
    for name, reply in replies.items():
        expect(reply.status_code, int(name[:3]), given="POST /predict")
        _expect_notice(reply, f"POST /predict, status {name}")
    for body in (good, {}):
        reply = client.post("/v1/predict", json=body)
        if "Deprecation" in reply.headers:
            raise NotYet("Version 1 is not deprecated.", got=f"Deprecation: {reply.headers['Deprecation']}")
    paths = client.get("/openapi.json").json()["paths"]
    if not paths.get("/predict", {}).get("post", {}).get("deprecated"):
        raise NotYet("`/openapi.json` does not say that `/predict` is deprecated.")
    if paths["/v1/predict"]["post"].get("deprecated"):
        raise NotYet("`/openapi.json` says that `/v1/predict` is deprecated.")


JSON = {"Content-Type": "application/json"}
DEPRECATED = "@1767225600"


def _expect_notice(reply: httpx.Response, given: str) -> None:
    got = reply.headers.get("Deprecation")
    if got != DEPRECATED:
        raise NotYet("`Deprecation` is missing or wrong.", given=given, expected=DEPRECATED, got=show(got))
    link = reply.headers.get("Link", "")
    if not ("</v1/predict>" in link and "successor-version" in link):
        expected = '</v1/predict>; rel="successor-version"'
        raise NotYet("`Link` is missing or wrong.", given=given, expected=expected, got=show(link or None))


# ---------------------------------------------------------------------------------------------------- 04.3: every error


class LostError(NotFoundError):
    """A branch that no table names."""


class OddError(ServiceError):
    """Another one."""


@exercise(
    "04.3",
    hints=[
        "Four handlers: for `errors.ServiceError`, `RequestValidationError`, `StarletteHTTPException` and `Exception`. "
        "`@app.exception_handler(…)` takes a class, and its subclasses too.",
        "`problem(request, status_of(error), type(error).__name__, error.message, headers)` for the first. Pass "
        "`error.headers` on in the third. In the second, `error.errors()` has `loc` and `msg` of each mistake.",
    ],
    right="One format, whatever goes wrong, and nothing given away.",
    seconds=LIMIT_S,
)
def turns_errors_into_problems(answer: Answer) -> None:
    app, raised = _failing()
    answer.call(app)
    if not app.exception_handlers.keys() - FastAPI().exception_handlers.keys() and not app.user_middleware:
        raise NotAttempted
    late = APIRouter(prefix="/late")
    late.get("/{name}")(_raiser(raised))
    app.include_router(late)  # a router that comes later is not forgotten
    with answer.serve(app, allow_500=True) as client:
        for prefix in ("", "/late"):
            _expect_service_errors(client, raised, prefix)
            _expect_http_errors(client, raised, prefix)
            _expect_unexpected(client, raised, prefix)
        _expect_invalid(client)
        expect(client.get("/fine?limit=7").json(), 7, why="A request without an error must work as before.")


def _raiser(raised: Mapping[str, Exception]) -> Callable[..., Any]:
    def fail(name: str) -> None:
        raise raised[name]

    return fail


def _failing() -> tuple[FastAPI, dict[str, Exception]]:
    """An app, and the errors that `GET /{name}` raises. A check may change these."""
    app = FastAPI()
    raised: dict[str, Exception] = {}

    @app.get("/fine")
    async def fine(limit: Annotated[int, Query(ge=1)], start: int = 0) -> int:
        return limit

    @app.post("/sizes")
    async def sizes(sizes: list[int]) -> int:
        return len(sizes)

    app.get("/error/{name}")(_raiser(raised))
    return app, raised


def _ask(client: Client, path: str) -> httpx.Response:
    # A server may close the connection after a 500: the next request must not use it.
    return client.get(path, headers={"Connection": "close"})


def _expect_problem(reply: httpx.Response, status: int, given: str, **members: Any) -> None:
    expect(reply.status_code, status, given=given)
    kind = reply.headers.get("Content-Type", "")
    if not kind.startswith("application/problem+json"):
        got = f"{kind}: {reply.text[:100]}"
        raise NotYet("This is not a problem document.", given=given, expected="application/problem+json", got=got)
    title = HTTPStatus(status).phrase
    expect(reply.json(), {"title": title, "status": status, "instance": reply.url.path, **members}, given=given)


def _expect_service_errors(client: Client, raised: dict[str, Exception], prefix: str) -> None:
    whole = random.randrange(1, 9)
    seconds = whole + random.uniform(0.1, 0.4)
    for error, status in (
        (NotFoundError(_word()), 404),
        (LostError(_word()), 404),
        (InvalidInputError(_word(), 3, "mean_area"), 400),
        (UnavailableError(_word(), seconds), 503),
        (OverloadedError(_word(), float(whole)), 503),
        (OddError(_word()), 500),
        (DeadlineExceededError(_word(), 1.0), 500),
    ):
        name = type(error).__name__
        raised[name] = error
        reply = _ask(client, f"{prefix or '/error'}/{name}")
        given = f"an endpoint raises {name}({error.message!r}, …)"
        _expect_problem(reply, status, given, error=name, detail=error.message)
        if isinstance(error, UnavailableError):
            got = reply.headers.get("Retry-After")
            expected = str(math.ceil(error.retry_after_s))
            if got != expected:
                given = f"an endpoint raises {name} with retry_after_s={error.retry_after_s:.2f}"
                raise NotYet("`Retry-After` is missing or wrong.", given=given, expected=expected, got=show(got))


def _expect_http_errors(client: Client, raised: dict[str, Exception], prefix: str) -> None:
    header, detail = _word(), _word()
    raised["teapot"] = HTTPException(409, detail, {"X-Conflict": header})
    reply = _ask(client, f"{prefix or '/error'}/teapot")
    given = "an endpoint raises HTTPException(409, …, headers)"
    _expect_problem(reply, 409, given, detail=detail, error="HTTPException")
    _expect_header(reply, "X-Conflict", header, given)
    given = "an unknown path"
    _expect_problem(_ask(client, f"/{_word()}"), 404, given, error="HTTPException")
    given = "DELETE, which the path does not allow"
    reply = client.delete(f"{prefix or '/error'}/teapot")
    _expect_problem(reply, 405, given, error="HTTPException")
    _expect_header(reply, "Allow", "GET", given)


def _expect_header(reply: httpx.Response, name: str, expected: str, given: str) -> None:
    if reply.headers.get(name) != expected:
        got = show(reply.headers.get(name))
        raise NotYet("The headers of the error are lost.", given=given, expected=f"{name}: {expected}", got=got)


def _expect_unexpected(client: Client, raised: dict[str, Exception], prefix: str) -> None:
    for kind in (ConnectionError, KeyError, ValueError):
        secret = _word()
        raised["bug"] = kind(f"user:{secret}@10.0.0.7")
        reply = _ask(client, f"{prefix or '/error'}/bug")
        given = f"an endpoint raises {kind.__name__}('user:{secret}@10.0.0.7')"
        if secret in reply.text:
            raise NotYet("The response shows the error's text.", given=given, got=reply.text)
        _expect_problem(reply, 500, given, error="InternalError")


def _expect_invalid(client: Client) -> None:
    secret = f"s{_word()}"  # a word may be a number
    reply = client.get(f"/fine?limit={secret}&start=x{secret}")
    given = f"limit={secret}, where a number is needed"
    _expect_problem(reply, 422, given, error="RequestValidationError")
    if secret in reply.text:
        raise NotYet("The response repeats what was sent.", given=given, got=reply.text)
    _expect_fields(reply, ["query.limit", "query.start"], f"{given}, and the same for start")
    reply = client.post("/sizes", json=[7, secret])
    given = f"the body [7, '{secret}'], where numbers are needed"
    _expect_problem(reply, 422, given, error="RequestValidationError")
    if secret in reply.text:
        raise NotYet("The response repeats what was sent.", given=given, got=reply.text)
    _expect_fields(reply, ["body.1"], given)
    reply = client.get("/fine")
    _expect_problem(reply, 422, "limit is missing", error="RequestValidationError")
    _expect_fields(reply, ["query.limit"], "limit is missing")


def _expect_fields(reply: httpx.Response, names: list[str], given: str) -> None:
    details = reply.json().get("details")
    if not (isinstance(details, list) and len(details) == len(names)):
        raise NotYet(
            "`details` must list each mistake.", given=given, expected=f"{len(names)} mistakes", got=show(details)
        )
    for item, name in zip(details, names, strict=True):
        is_named = isinstance(item, dict) and item.get("field") == name and item.get("message")
        if not is_named:
            expected = f"field '{name}', and its message"
            raise NotYet("A mistake has a `field` and a `message`.", given=given, expected=expected, got=show(item))


# --------------------------------------------------------------------------------------------- 04.4: jobs that survive


@exercise(
    "04.4",
    hints=[
        "A function `run_job(number)` gets the job from the store, counts, and stores how it ended. The endpoint "
        "stores the job first, and adds `run_job` as a background task.",
        "A lifespan starts `asyncio.create_task(run_job(number))` for each number of `await job_store.unfinished()`, "
        "before its `yield`, without awaiting the tasks. Catch `Exception`, which is not what a stop raises.",
    ],
    right="What was accepted is done, whatever happens to the process.",
    seconds=60,
)
def finishes_its_jobs(answer: Answer) -> None:
    with office.another():
        with answer.serve() as client:
            office.held = True
            pictures = [_word(), f"blank {_word()}", _word()]
            numbers = [_expect_accepted(client, picture) for picture in pictures]
            for number in numbers:
                _expect_status(client, number, ("queued", "running"), "its work is under way")
            office.held = False
            _expect_ended(client, numbers, pictures)
            if len(office.begun) > len(pictures):
                got = f"{len(office.begun)} are done"
                raise NotYet("A job is done more than once.", given=f"{len(pictures)} jobs", got=got)
            if len({*numbers}) < len(numbers):
                raise NotYet("Two jobs have the same number.", got=show(numbers))
            expect(client.get("/jobs/7").status_code, 404)
        _expect_resumed(answer, numbers)


def _expect_accepted(client: Client, picture: str) -> int:
    accepted = client.post("/jobs", params={"picture": picture})
    number = accepted.json()
    if office.late:
        why = "The client waits for the work."
        raise NotYet(why, expected="an answer at once", got="an answer when the work is done")
    expect(accepted.status_code, 202, why="The job is accepted, and not done.")
    if not (isinstance(number, dict) and isinstance(number.get("number"), int)):
        raise NotYet("The answer has no `number`.", expected='{"number": …}', got=accepted.text)
    number = number["number"]
    if number not in office.store.jobs:
        why = "There is no such job in `job_store` when the client has its answer."
        raise NotYet(why, got=accepted.text)
    return int(number)


def _expect_status(client: Client, number: int, expected: tuple[str, ...], when: str) -> Any:
    reply = client.get(f"/jobs/{number}")
    expect(reply.status_code, 200)
    job = reply.json()
    if job["status"] not in expected:
        given = f"a job, while {when}"
        raise NotYet("The job has the wrong status.", given=given, expected=" or ".join(expected), got=show(job))
    return job


def _expect_ended(client: Client, numbers: list[int], pictures: list[str], when: str = "") -> None:
    def ended() -> bool:
        return all(office.store.jobs[number].status in ("succeeded", "failed") for number in numbers)

    if not becomes_true(ended, 4.0):
        got = show([office.store.jobs[number].status for number in numbers])
        raise NotYet("A job does not end.", given=f"{len(numbers)} jobs {when}".strip(), got=got)
    for number, picture in zip(numbers, pictures, strict=True):
        works = "blank" not in picture
        expected = {"status": "succeeded", "result": cells_in(picture)} if works else {"status": "failed"}
        when_ended = f"picture {picture!r}, {'which can be counted' if works else 'for which `count_cells` fails'}"
        job = client.get(f"/jobs/{number}").json()
        expect(job, expected, given=f"{when_ended} {when}".strip())


def _expect_resumed(answer: Answer, ended: list[int]) -> None:
    """The process ends in the middle of its work, twice: the second time after a start."""
    pictures = [_word(), _word(), f"blank {_word()}"]
    with answer.serve() as client:
        office.held = True
        numbers = [_expect_accepted(client, picture) for picture in pictures]
        office.stopping = True
    office.stopping = office.late = False
    for number in numbers:
        status = office.store.jobs[number].status
        if status not in ("queued", "running"):
            given = "the service stops while a job is under way"
            raise NotYet("The job has not ended.", given=given, expected="queued or running", got=status)
    with answer.serve() as client:
        if office.late:
            raise NotYet("The service waits for its jobs before it takes requests.", given="a start with open jobs")
        expect(client.get(f"/jobs/{numbers[0]}").status_code, 200)
        office.stopping = True
    office.stopping = False
    office.begun.clear()
    office.held = False
    stored = {number: office.store.jobs[number] for number in ended}
    with answer.serve() as client:
        _expect_ended(client, numbers, pictures, "after a stop and a start")
        if any(office.store.jobs[number] != job for number, job in stored.items()):
            raise NotYet("A job that had ended was changed at the start.")
        if len(office.begun) > len(numbers):
            given = f"a start with {len(numbers)} jobs that have not ended, and {len(ended)} that have"
            got = f"{len(office.begun)} are done"
            raise NotYet("Do each open job once, and no others.", given=given, got=got)


# ------------------------------------------------------------------------------------------- 04.5: your own service

BATCH = 100
LARGE = 900
FILLER = 20_000
"""Characters of a column that nobody needs, to make a file large."""


@exercise(
    "04.5",
    hints=[
        '`TextIOWrapper(file.file, "utf-8-sig", newline="")` makes a text of the upload for the reader. Make the '
        "reader in the endpoint, and read batches in a generator for a `StreamingResponse`. For the handlers, add "
        "`RequestIdMiddleware`.",
        "In each batch, `batch.lines` and the diagnoses of `batch.values` belong together, and `batch.mistakes` has "
        "the lines of the others. Sort both by line. `diagnose` needs at least one row.",
    ],
    right="Ward 7 has its list, and everybody else an API that can change.",
    seconds=60,
)
def serves_everybody(answer: Answer) -> None:
    with classifier.replaced() as model, answer.serve() as client:
        for tumour in model.tumours():
            _expect_v1(client, model, tumour)
            _expect_earlier(client, model, tumour)
        _expect_call_list(client, model)
        _expect_notices(client)
        _attack_with_nonsense(client)
        _expect_scores(client, model)
        _attack_with_files(client)
    with classifier.replaced() as model, answer.serve() as client:
        _expect_a_stream(client, model)
        _expect_little_memory(client)
    with classifier.replaced() as model, answer.serve(allow_500=True) as client:
        _attack_with_a_broken_model(client, model)


def _attack_with_nonsense(client: Client) -> None:
    """Errors of every kind, for the old path and the new one. Ward 7 reads `error`."""
    impossible = tumour_of(random.randrange(500)) | {"worst_radius": 0.5}
    for path in ("/predict", "/v1/predict"):
        for body, status in (({}, 422), (impossible, 400)):
            given = f"POST {path}, {'without measurements' if not body else 'a worst radius below the mean'}"
            reply = client.post(path, json=body)
            _expect_problem(reply, status, given)
            _expect_error_name(reply, given)
            if path == "/predict":
                _expect_notice(reply, given)
    listed = call_list(str(client.base_url), {"Gita": impossible})
    if not (listed and listed[0].startswith("Gita: ") and listed[0] != "Gita: None"):
        raise NotYet("Last year's program reads `error`.", given="call_list(…), an impossible tumour", got=show(listed))
    _expect_problem(_ask(client, f"/{_word()}"), 404, "an unknown path")


def _expect_error_name(reply: httpx.Response, given: str) -> None:
    if not isinstance(reply.json().get("error"), str):
        raise NotYet("Last year's program reads `error`.", given=given, got=reply.text[:200])


def _table(count: int) -> tuple[list[dict[str, object]], set[int]]:
    """Rows of a file in any order of columns, and the lines of those that are bad."""
    names = list(tumour_of(0))
    random.shuffle(names)
    table: list[dict[str, object]] = []
    wrong: set[int] = set()
    line = 2
    for number in range(count):
        tumour = tumour_of(random.randrange(569))
        row: dict[str, object] = {name: tumour[name] for name in names}
        if number % 23 == 5:
            row[random.choice(names)] = random.choice(["?", "-1", "NaN", ""])
            wrong.add(line)
        elif number % 23 == 9:
            row["worst_area"] = 0.5  # smaller than the mean
            wrong.add(line)
        row["note"] = "two\nlines" if number % 7 == 3 else ""
        table.append(row)
        line += 2 if row["note"] else 1
    return table, wrong


def _expect_scores(client: Client, model: OtherModel) -> None:
    table, wrong = _table(250)
    model.calls.clear()
    got = _scores(client, csv_text(table).encode())
    _expect_batches(model, len(table) - len(wrong))
    expected = _labels(model, table, wrong)
    _expect_rows(got, expected, wrong)
    only_bad = [row | {"mean_area": "?"} for row in table[:3]]  # none of them has a note of two lines
    got = _scores(client, csv_text(only_bad).encode())
    _expect_rows(got, {2: "", 3: "", 4: ""}, {2, 3, 4}, "a file with bad rows only")
    good = csv_text([tumour_of(number) for number in range(230)]).encode()
    model.calls.clear()
    _scores(client, good, "a file without bad rows")
    _expect_batches(model, 230)
    for encoding, what in (("utf-8", "a file with one row"), ("utf-8-sig", "a file with a byte order mark")):
        got = _scores(client, csv_text(table[:1]).encode(encoding), what)
        _expect_rows(got, {2: expected[2]}, set(), what)


def _labels(model: OtherModel, table: list[dict[str, object]], wrong: set[int]) -> dict[int, str]:
    """The label for each line, none for a bad one."""
    line = 2
    labels = {}
    for row in table:
        tumour = {name: float(str(row[name])) for name in tumour_of(0)} if line not in wrong else {}
        labels[line] = model.label(tumour) if tumour else ""
        line += 2 if row["note"] else 1
    return labels


def _scores(client: Client, content: bytes, what: str = "a file with some bad rows") -> list[list[str]]:
    reply = client.post("/v1/scores", files={"file": ("tumours.csv", content)})
    expect(reply.status_code, 200, given=f"POST /v1/scores, {what}")
    if not reply.headers.get("Content-Type", "").startswith("text/csv"):
        raise NotYet("The answer is CSV.", expected="text/csv", got=show(reply.headers.get("Content-Type")))
    return list(csv.reader(StringIO(reply.text, newline=""), strict=True))


def _expect_batches(model: OtherModel, rows: int) -> None:
    if sum(model.calls) != rows:
        given = f"a file with {rows} good rows"
        raise NotYet("The model must see each good row once.", given=given, got=f"{sum(model.calls)} rows")
    if max(model.calls) > BATCH:
        raise NotYet("The model gets too many rows at a time.", expected=f"≤ {BATCH}", got=str(max(model.calls)))
    if len(model.calls) > rows / 10:
        given = f"a file with {rows} good rows"
        raise NotYet("The model is asked for a few rows at a time.", given=given, got=f"{len(model.calls)} calls")


def _expect_rows(
    got: list[list[str]], expected: Mapping[int, str], wrong: set[int], what: str = "a file with bad rows"
) -> None:
    expect(got[:1], [["line", "label", "error"]], given=what, why="The first line names the columns.")
    if [row[:1] for row in got[1:]] != [[str(line)] for line in expected]:
        lines, rest = [str(line) for line in expected], [row[0] if row else "" for row in got[1:]]
        place = next((n for n, pair in enumerate(zip(lines, rest, strict=False)) if pair[0] != pair[1]), -1)
        why = "Each row has the line on which it begins in the file, in the order of the file."
        raise NotYet(why, given=what, expected=_around(lines, place), got=_around(rest, place))
    for line, label, error in got[1:]:
        given = f"{what}, line {line}"
        is_wrong = int(line) in wrong
        if bool(error) != is_wrong:
            why = "A bad row has an error." if is_wrong else "A good row has no error."
            raise NotYet(why, given=given, got=show([line, label, error]))
        why = "A bad row has no label." if is_wrong else "The label is wrong."
        expect(label, expected[int(line)], given=given, why=why)


def _around(lines: list[str], place: int) -> str:
    if place < 0:
        return f"{len(lines)} rows"
    return f"… {', '.join(lines[max(0, place - 1) : place + 3])} …"


def _attack_with_files(client: Client) -> None:
    for content, what in ((b"a,b\n1,2\n", "a file with other columns"), (b"", "an empty file")):
        reply = client.post("/v1/scores", files={"file": ("other.csv", content)})
        _expect_problem(reply, 422, f"POST /v1/scores, {what}")
    _expect_problem(client.post("/v1/scores"), 422, "POST /v1/scores, no file")


def _expect_a_stream(client: Client, model: OtherModel) -> None:
    """The third batch is held until the first row has arrived, and another file is scored."""
    table, wrong = _table(450)
    other, _ = _table(1)
    model.held_from = 3
    late, first, rest = True, ["", ""], list[str]()
    with (
        suppress(httpx.TransportError),
        client.stream("POST", "/v1/scores", files={"file": csv_text(table).encode()}) as reply,
    ):
        expect(reply.status_code, 200)
        lines = reply.iter_lines()
        first = [next(lines, ""), next(lines, "")]
        late = model.late
        if not late and becomes_true(lambda: len(model.calls) >= 3, 2.0):
            model.held_from = None
            what = "a file with one row, while another one is read"
            got = _scores(client, csv_text(other).encode(), what)
            _expect_rows(got, _labels(model, other, set()), set(), what)
        model.released.set()
        rest += lines
    if late or not first[1]:
        raise NotYet("The first rows come only with the last.", given="a file of 450 rows", expected="a stream")
    given, got_lines = "a file of 450 rows, and another upload meanwhile", f"{len(rest) + 2} lines"
    if len(rest) + 2 < len(table) + 1:
        why = "The stream breaks off. Does each upload have its own file and reader?"
        raise NotYet(why, given=given, expected=f"{len(table) + 1} lines", got=got_lines)
    _expect_rows(list(csv.reader(first + rest)), _labels(model, table, wrong), wrong, given)


def _expect_little_memory(client: Client) -> None:
    table: list[Mapping[str, object]] = [tumour_of(number % 569) | {"note": "x" * FILLER} for number in range(LARGE)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.csv"
        file.write_text(csv_text(table))
        del table
        megabytes = file.stat().st_size / 1e6
        url = str(client.base_url.join("/v1/scores"))
        replies: list[httpx.Response] = []
        peak = peak_mb(lambda: replies.append(send_form(url, file)))
    given = f"a file of {megabytes:.0f} MB"
    expect(replies[0].status_code, 200, given=given)
    expect(len(replies[0].text.splitlines()), LARGE + 1, given=given)
    if peak > 0.8 * megabytes:
        raise NotYet("The file is in memory as a whole.", given=given, got=f"{peak:.0f} MB at the peak")


def _attack_with_a_broken_model(client: Client, model: OtherModel) -> None:
    secret = _word()
    model.error = ConnectionError(f"postgresql://clinic:{secret}@10.0.0.7")
    tumour = tumour_of(random.randrange(500))
    for path in ("/predict", "/v1/predict"):
        reply = client.post(path, json=tumour, headers={"Connection": "close"})
        given = f"POST {path}, and the model raises ConnectionError('…:{secret}@10.0.0.7')"
        if secret in reply.text:
            raise NotYet("The response shows the error's text.", given=given, got=reply.text)
        _expect_problem(reply, 500, given)
    with suppress(httpx.TransportError):  # the status may have left
        reply = client.post("/v1/scores", files={"file": csv_text([tumour]).encode()}, headers={"Connection": "close"})
        if secret in reply.text:
            raise NotYet("The response shows the error's text.", given="POST /v1/scores", got=reply.text)
