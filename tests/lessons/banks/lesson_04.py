"""Answers to lesson 04: routes."""

import asyncio
import csv
import math
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from io import BytesIO, StringIO, TextIOWrapper
from itertools import count
from typing import Any

from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException

from workshop.api.errors import add_error_handlers
from workshop.api.middleware.request_id import RequestIdMiddleware
from workshop.api.routers.earlier import EarlierRoute
from workshop.api.schemas.tumours import Measurements, to_rows
from workshop.contracts import errors
from workshop.lab.fixtures.lesson_04 import classifier, count_cells, job_store
from workshop.models.tumour_csv import TumourCsvReader
from workshop.models.tumours import CLASSES, TumourClassifier
from workshop.settings import Settings

# 04.1: a router for scans


class Scan(BaseModel):
    patient: str
    radius: float


def scans(
    *,
    status: int = 201,
    location: str = "url_for",
    latest_first: bool = True,
    latest: str = "max",
    number: str = "count",
    put: str = "one",
    deleted: int = 204,
    delete_checks: bool = True,
    missing: int = 404,
    with_number: bool = True,
) -> APIRouter:
    router = APIRouter(prefix="/scans")
    kept: dict[int, Scan] = {}
    numbers = count(1)

    def find(n: int) -> Any:
        if n not in kept:
            raise HTTPException(missing)
        return {"number": n, **kept[n].model_dump()} if with_number else kept[n].model_dump()

    async def add_scan(scan: Scan, request: Request, response: Response):
        n = next(numbers) if number == "count" else len(kept) + 1 if number == "len" else max(kept, default=0) + 1
        if number == "slow":  # another request gets the same number meanwhile
            await asyncio.sleep(0.05)
        kept[n] = scan
        if location == "url_for":
            response.headers["Location"] = request.url_for("get_scan", number=n).path
        elif location == "whole url":
            response.headers["Location"] = str(request.url_for("get_scan", number=n))
        elif location == "request":
            response.headers["Location"] = f"{request.url.path}/{n}"
        elif location == "fixed":
            response.headers["Location"] = f"/scans/{n}"
        elif location == "relative":
            response.headers["Location"] = f"scans/{n}"
        elif location == "latest":
            response.headers["Location"] = request.url_for("get_latest").path
        return find(n)

    async def get_latest():
        if latest == "null" and not kept:
            return None
        n = max(kept, default=0) if latest in ("max", "null") else min(kept, default=0) if latest == "min" else 1
        return find(n if latest != "len" else len(kept))

    async def get_scan(number: int):
        return find(number)

    async def replace_scan(number: int, scan: Scan):
        if put != "creates" and not (put == "creates unknown" and number > max(kept)):
            find(number)
        kept[number] = scan
        if put == "all":
            kept.update(dict.fromkeys(kept, scan))
        return find(number)

    async def replace_with_anything(number: int, scan: dict[str, Any]):
        find(number)
        kept[number] = Scan.model_construct(**scan)
        return find(number)

    async def delete_scan(number: int):
        if delete_checks:
            find(number)
        kept.pop(number, None)

    router.post("", status_code=status)(add_scan)
    if latest_first:
        router.get("/latest")(get_latest)
    router.get("/{number}")(get_scan)
    if not latest_first:
        router.get("/latest")(get_latest)
    router.put("/{number}")(replace_with_anything if put == "anything" else replace_scan)
    router.delete("/{number}", status_code=deleted)(delete_scan)
    return router


def scans_in_a_list() -> APIRouter:
    router = APIRouter()
    kept: list[Scan | None] = []

    def shown(n: int):
        if n not in range(len(kept)) or (scan := kept[n]) is None:
            return JSONResponse({"detail": "unknown"}, 404)
        return {"number": n, "patient": scan.patient, "radius": scan.radius}

    @router.post("/scans")
    def add(scan: Scan, request: Request):
        kept.append(scan)
        n = len(kept) - 1
        return JSONResponse(shown(n), 201, {"Location": f"{request.url}/{n}"})

    @router.get("/scans/{number:int}")
    def get(number: int):
        return shown(number)

    @router.get("/scans/latest")
    def latest():
        return shown(max((n for n, scan in enumerate(kept) if scan), default=-1))

    @router.put("/scans/{number:int}")
    def put(number: int, scan: Scan):
        found = shown(number)
        if isinstance(found, dict):
            kept[number] = scan
            return shown(number)
        return found

    @router.delete("/scans/{number:int}")
    def delete(number: int):
        found = shown(number)
        if isinstance(found, dict):
            kept[number] = None
            return Response(status_code=204)
        return found

    return router


def an_app() -> FastAPI:
    app = FastAPI()
    app.include_router(scans())
    return app


# 04.2: keep the earlier client working

NOTICE = {"Deprecation": "@1767225600", "Link": '</v1/predict>; rel="successor-version"'}


class Diagnosis(BaseModel):
    label: str
    probabilities: dict[str, float]


async def diagnose(rows) -> list[Diagnosis]:
    scores = await classifier.predict(rows)
    found = []
    for row in scores.probabilities.tolist():
        probabilities = dict(zip(scores.classes, row, strict=True))
        label = "malignant" if probabilities["malignant"] >= classifier.threshold else "benign"
        found.append(Diagnosis(label=label, probabilities=probabilities))
    return found


async def predict_v1(measurements: Measurements) -> Diagnosis:
    [diagnosis] = await diagnose(to_rows([measurements]))
    return diagnosis


def noticed_route(statuses: range = range(600)):
    class NoticedRoute(APIRoute):
        async def handle(self, scope, receive, send):
            async def send_noticed(message):
                if message["type"] == "http.response.start" and message["status"] in statuses:
                    MutableHeaders(scope=message).update(NOTICE)
                await send(message)

            await super().handle(scope, receive, send_noticed)

    return NoticedRoute


class CatchingRoute(APIRoute):
    """Turns the error into a response itself, and adds the headers to both."""

    def get_route_handler(self):
        handler = super().get_route_handler()

        async def handle(request):
            try:
                response = await handler(request)
            except RequestValidationError as error:
                response = JSONResponse({"detail": [item["msg"] for item in error.errors()]}, 422)
            response.headers.update(NOTICE)
            return response

        return handle


def bridge(endpoint, route_class=None, *, deprecated: bool = True) -> FastAPI:
    app = FastAPI()
    app.post("/v1/predict")(predict_v1)
    old = APIRouter(route_class=route_class or noticed_route())
    old.post("/predict", deprecated=deprecated)(endpoint)
    app.include_router(old)
    return app


async def translate(measurements: Measurements):
    diagnosis = await predict_v1(measurements)
    probability = [diagnosis.probabilities[name] for name in CLASSES]
    return {"prediction": CLASSES.index(diagnosis.label), "probability": probability}


class Old(BaseModel):
    prediction: int
    probability: list[float]


async def translate_with_a_model(measurements: Measurements) -> Old:
    [found] = await diagnose(to_rows([measurements]))
    chances = found.probabilities
    return Old(prediction=int(found.label == "benign"), probability=[chances["malignant"], chances["benign"]])


def with_a_middleware(path: str = "/predict", endpoint=translate) -> FastAPI:
    app = FastAPI()
    app.post("/v1/predict")(predict_v1)
    app.post("/predict", deprecated=True)(endpoint)

    @app.middleware("http")
    async def notice(request, call_next):
        response = await call_next(request)
        if request.url.path.endswith(path):
            response.headers.update(NOTICE)
        return response

    return app


def with_exact_middleware() -> FastAPI:
    app = FastAPI()
    app.post("/v1/predict")(predict_v1)
    app.post("/predict", deprecated=True)(translate)

    class Notice:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def send_noticed(message):
                if message["type"] == "http.response.start" and scope["path"] == "/predict":
                    MutableHeaders(scope=message).update(NOTICE)
                await send(message)

            await self.app(scope, receive, send_noticed)

    app.add_middleware(Notice)
    return app


def with_a_dependency() -> FastAPI:
    app = FastAPI()
    app.post("/v1/predict")(predict_v1)

    @app.post("/predict", deprecated=True)
    async def old(measurements: Measurements, response: Response):
        response.headers.update(NOTICE)
        return await translate(measurements)

    return app


async def the_order_of_version_1(measurements: Measurements):
    diagnosis = await predict_v1(measurements)
    return {
        "prediction": CLASSES.index(diagnosis.label),
        "probability": list(diagnosis.probabilities.values()),
    }


async def the_larger_one(measurements: Measurements):
    old = await translate(measurements)
    return old | {"prediction": old["probability"].index(max(old["probability"]))}


async def a_copy(measurements: Measurements):
    scores = await classifier.predict(to_rows([measurements]))
    probability = scores.probabilities[0].tolist()
    return {"prediction": probability.index(max(probability)), "probability": probability}


own_model = TumourClassifier.load(Settings().artifact)


async def a_model_of_its_own(measurements: Measurements):
    probability = own_model.predict(to_rows([measurements])).probabilities[0].tolist()
    return {"prediction": 0 if probability[0] >= 0.3 else 1, "probability": probability}


async def a_copied_threshold(measurements: Measurements):
    old = await translate(measurements)
    return old | {"prediction": 0 if old["probability"][0] >= 0.3 else 1}


async def swapped(measurements: Measurements):
    old = await translate(measurements)
    return old | {"prediction": 1 - old["prediction"]}


async def as_text(measurements: Measurements):
    old = await translate(measurements)
    return old | {"prediction": str(old["prediction"])}


async def as_bool(measurements: Measurements):
    old = await translate(measurements)
    return old | {"prediction": old["prediction"] == 1}


async def only_the_prediction(measurements: Measurements):
    return {"prediction": (await translate(measurements))["prediction"]}


async def without_await(measurements: Measurements):
    diagnosis = predict_v1(measurements)
    return {"prediction": CLASSES.index(diagnosis.label), "probability": []}


async def redirected():
    return RedirectResponse("/v1/predict")


# 04.3: every error

STATUS = {
    errors.InvalidInputError: 400,
    errors.NotFoundError: 404,
    errors.UnavailableError: 503,
    errors.ServiceError: 500,
}


def status_of(error):
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(request, status, error, detail, headers=None, details=(), media_type="application/problem+json"):
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    body |= {"instance": request.url.path, "error": error, "details": list(details)}
    return JSONResponse(body, status, headers, media_type=media_type)


async def service_error(request, error):
    headers = {}
    if isinstance(error, errors.UnavailableError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return problem(request, status_of(error), type(error).__name__, error.message, headers)


def fields_of(error):
    return [{"field": ".".join(map(str, item["loc"])), "message": item["msg"]} for item in error.errors()]


async def invalid_request(request, error):
    return problem(request, 422, type(error).__name__, "invalid", details=fields_of(error))


async def http_exception(request, error):
    return problem(request, error.status_code, "HTTPException", error.detail, error.headers)


async def the_rest(request, error):
    return problem(request, 500, "InternalError", "something went wrong")


HANDLERS = {
    errors.ServiceError: service_error,
    RequestValidationError: invalid_request,
    StarletteHTTPException: http_exception,
    Exception: the_rest,
}


def adding(*without, **others):
    """A right answer, or one that lacks handlers or has others. Keys are names of classes."""
    handlers = {kind: others.get(kind.__name__, handler) for kind, handler in HANDLERS.items()}

    def add(app):
        for kind, handler in handlers.items():
            if kind not in without:
                app.add_exception_handler(kind, handler)

    return add


def one_handler_for_all(app):
    async def handle(request, error):
        for kind, handler in HANDLERS.items():
            if isinstance(error, kind):
                return await handler(request, error)
        raise error

    for kind in HANDLERS:
        app.add_exception_handler(kind, handle)


def a_handler_for_each_class(app):
    def handle(request, error):
        wait = {"Retry-After": f"{-(-error.retry_after_s // 1):.0f}"} if hasattr(error, "retry_after_s") else None
        return problem(request, status_of(error), type(error).__name__, error.message, wait)

    for kind in STATUS:
        app.exception_handler(kind)(handle)
    adding(errors.ServiceError)(app)


def fastapis_own(app):
    adding(StarletteHTTPException)(app)
    app.add_exception_handler(HTTPException, http_exception)


async def by_exact_class(request, error):
    return problem(request, STATUS[type(error)], type(error).__name__, error.message, {"Retry-After": "1"})


async def first_that_fits(request, error):
    status = 500 if isinstance(error, errors.ServiceError) else 400
    return problem(request, status, type(error).__name__, error.message)


async def without_retry_after(request, error):
    return problem(request, status_of(error), type(error).__name__, error.message)


async def rounded_down(request, error):
    wait = {"Retry-After": str(int(getattr(error, "retry_after_s", 0)))}
    return problem(request, status_of(error), type(error).__name__, error.message, wait)


async def rounded(request, error):
    wait = {"Retry-After": str(round(getattr(error, "retry_after_s", 0)))}
    return problem(request, status_of(error), type(error).__name__, error.message, wait)


async def one_more(request, error):
    wait = {"Retry-After": str(int(getattr(error, "retry_after_s", 0)) + 1)}
    return problem(request, status_of(error), type(error).__name__, error.message, wait)


async def retry_with_exact_class(request, error):
    wait = {"Retry-After": str(math.ceil(error.retry_after_s))} if type(error) is errors.UnavailableError else {}
    return problem(request, status_of(error), type(error).__name__, error.message, wait)


async def as_plain_json(request, error):
    status = error.status_code
    return problem(request, status, "HTTPException", error.detail, error.headers, media_type="application/json")


async def without_headers(request, error):
    return problem(request, error.status_code, "HTTPException", error.detail)


async def with_the_text(request, error):
    return problem(request, 500, "InternalError", str(error))


async def with_status_200(request, error):
    response = await the_rest(request, error)
    response.status_code = 200
    return response


async def repeats_the_input(request, error):
    return problem(request, 422, "RequestValidationError", str(error.errors()))


async def passes_everything_on(request, error):
    return problem(request, 422, "RequestValidationError", "invalid", details=error.errors())


async def lists_nothing(request, error):
    return problem(request, 422, "RequestValidationError", "invalid")


async def lists_the_first(request, error):
    response = await invalid_request(request, error)
    first = error.errors()[0]
    details = [{"field": ".".join(first["loc"]), "message": first["msg"]}]
    return problem(request, response.status_code, "RequestValidationError", "invalid", details=details)


async def gives_the_body_back(request, error):
    return problem(request, 422, "RequestValidationError", {"body": error.body}, details=fields_of(error))


async def joins_numbers(request, error):
    details = [{"field": ".".join(item["loc"]), "message": item["msg"]} for item in error.errors()]
    return problem(request, 422, "RequestValidationError", "invalid", details=details)


async def names_the_last(request, error):
    details = [{"field": str(item["loc"][-1]), "message": item["msg"]} for item in error.errors()]
    return problem(request, 422, "RequestValidationError", "invalid", details=details)


async def as_400(request, error):
    return problem(request, 400, "RequestValidationError", "invalid")


# 04.4: jobs that survive


async def run_job(number):
    job = await job_store.get(number)
    await job_store.update(number, "running")
    try:
        result = await count_cells(job.text)
    except Exception:
        await job_store.update(number, "failed")
    else:
        await job_store.update(number, "succeeded", result)


async def job_store_unfinished():
    return await job_store.unfinished()


def resuming(run=run_job, which=job_store_unfinished):
    @asynccontextmanager
    async def lifespan(app):
        tasks = [asyncio.create_task(run(number)) for number in await which()]
        yield
        for task in tasks:
            task.cancel()

    return lifespan


def laboratory(run=run_job, lifespan: Any = None, create=None, status: int = 202) -> FastAPI:
    app = FastAPI(lifespan=resuming(run) if lifespan is None else lifespan or None)

    async def create_job(picture: str, background: BackgroundTasks):
        number = await job_store.add(picture)
        background.add_task(run, number)
        return {"number": number}

    @app.get("/jobs/{number}")
    async def get_job(number: int):
        job = await job_store.get(number)
        if job is None:
            raise HTTPException(404)
        return {"status": job.status, "result": job.result}

    app.post("/jobs", status_code=status)(create or create_job)
    return app


def with_a_worker() -> FastAPI:
    """One task looks for jobs, for as long as the service runs."""

    @asynccontextmanager
    async def lifespan(app):
        async def work():
            while True:
                for number in await job_store.unfinished():
                    await run_job(number)
                await asyncio.sleep(0.02)

        task = asyncio.create_task(work())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def create_job(picture: str):
        return {"number": await job_store.add(picture)}

    return laboratory(lifespan=lifespan, create=create_job)


def with_a_queue() -> FastAPI:
    @asynccontextmanager
    async def lifespan(app):
        app.state.queue = queue = asyncio.Queue()
        for number in await job_store.unfinished():
            queue.put_nowait(number)

        async def work():
            while True:
                await run_job(await queue.get())

        workers = [asyncio.create_task(work()) for _ in range(2)]
        yield
        for worker in workers:
            worker.cancel()

    async def create_job(picture: str, request: Request):
        number = await job_store.add(picture)
        await request.app.state.queue.put(number)
        return {"number": number}

    return laboratory(lifespan=lifespan, create=create_job)


tasks = set()


async def with_create_task(picture: str):
    number = await job_store.add(picture)
    task = asyncio.create_task(run_job(number))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return {"number": number}


async def starts_it_twice(picture: str, background: BackgroundTasks):
    answer = await with_create_task(picture)
    background.add_task(run_job, answer["number"])
    return answer


async def only_the_number(picture: str):
    return await job_store.add(picture)


async def in_the_endpoint(picture: str):
    number = await job_store.add(picture)
    await run_job(number)
    return {"number": number}


kept_in_memory = count(1)


async def without_the_store(picture: str, background: BackgroundTasks):
    background.add_task(count_cells, picture)
    return {"number": next(kept_in_memory)}


async def forgets_to_await_the_store(picture: str, background: BackgroundTasks):
    number = job_store.add(picture)
    background.add_task(run_job, number)
    return {"number": number}


async def lets_errors_through(number):
    job = await job_store.get(number)
    await job_store.update(number, "succeeded", await count_cells(job.text))


async def fails_when_stopped(number):
    job = await job_store.get(number)
    try:
        result = await count_cells(job.text)
    except BaseException:
        await job_store.update(number, "failed")
        raise
    await job_store.update(number, "succeeded", result)


async def succeeds_too_early(number):
    await job_store.update(number, "succeeded")
    job = await job_store.get(number)
    await job_store.update(number, "succeeded", await count_cells(job.text))


async def forgets_the_result(number):
    await run_job(number)
    job = await job_store.get(number)
    await job_store.update(number, job.status)


async def stores_the_text_of_the_error(number):
    job = await job_store.get(number)
    try:
        await job_store.update(number, "succeeded", await count_cells(job.text))
    except Exception as error:
        await job_store.update(number, "failed", str(error))


@asynccontextmanager
async def waits_for_them(app):
    await asyncio.gather(*[run_job(number) for number in await job_store.unfinished()])
    yield


@asynccontextmanager
async def resumes_at_the_stop(app):
    yield
    for number in await job_store.unfinished():
        tasks.add(asyncio.create_task(run_job(number)))


@asynccontextmanager
async def fails_what_is_open(app):
    for number in await job_store.unfinished():
        await job_store.update(number, "failed")
    yield


@asynccontextmanager
async def resumes_the_first(app):
    for number in (await job_store.unfinished())[:1]:
        tasks.add(asyncio.create_task(run_job(number)))
    yield


async def every_job():
    return list(job_store.jobs)


async def each_twice():
    return 2 * await job_store.unfinished()


# 04.5: your own service


def csv_lines(rows):
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def scored(batch, found):
    rows = {mistake.line: ("", f"{mistake.column}: {mistake.error}") for mistake in batch.mistakes}
    rows |= {line: (diagnosis.label, "") for line, diagnosis in zip(batch.lines, found, strict=True)}
    return csv_lines((line, *rest) for line, rest in sorted(rows.items()))


async def rows_of(reader, n=100, write=scored):
    yield csv_lines([("line", "label", "error")])
    while (batch := await asyncio.to_thread(reader.read, n)) is not None:
        yield write(batch, await diagnose(batch.values) if batch.lines else [])


def reader_of(file):
    return TumourCsvReader(TextIOWrapper(file.file, "utf-8-sig", newline=""))


async def score_file(file: UploadFile):
    return StreamingResponse(rows_of(reader_of(file)), media_type="text/csv")


def service(score=score_file, old=translate, *, route_class=EarlierRoute, handlers=True) -> FastAPI:
    app = FastAPI()
    app.post("/v1/predict")(predict_v1)
    if handlers:
        add_error_handlers(app)
        app.add_middleware(RequestIdMiddleware)
    router = APIRouter(route_class=route_class, deprecated=True)
    router.post("/predict")(old)
    app.include_router(router)
    app.post("/v1/scores")(score)
    return app


def service_with_handlers_of_its_own() -> FastAPI:
    """The learner's own handlers from exercise 3, and a synchronous reader."""
    app = service(score_line_by_line, translate_with_a_model, route_class=noticed_route(), handlers=False)
    STATUS.setdefault(errors.InvalidFileError, 422)
    one_handler_for_all(app)
    return app


async def score_line_by_line(file: UploadFile):
    reader = reader_of(file)

    async def lines():
        yield "line,label,error\n"
        while batch := reader.read(80):
            found = iter(await diagnose(batch.values)) if len(batch.lines) else iter(())
            bad = {mistake.line: mistake.error for mistake in batch.mistakes}
            for line in sorted({*batch.lines, *bad}):
                label = "" if line in bad else next(found).label
                yield f'{line},{label},"{bad.get(line, "")}"\n'

    return StreamingResponse(lines(), media_type="text/csv")


def with_batches_of(n):
    async def score(file: UploadFile):
        return StreamingResponse(rows_of(reader_of(file), n), media_type="text/csv")

    return score


def writing(write):
    async def score(file: UploadFile):
        return StreamingResponse(rows_of(reader_of(file), write=write), media_type="text/csv")

    return score


class newest:
    reader: Any = None


async def one_reader_for_all(file: UploadFile):
    newest.reader = reader_of(file)

    class Newest:
        def read(self, n):
            return newest.reader.read(n)

    return StreamingResponse(rows_of(Newest()), media_type="text/csv")


async def without_a_mark(file: UploadFile):
    reader = TumourCsvReader(TextIOWrapper(file.file, "utf-8", newline=""))
    return StreamingResponse(rows_of(reader), media_type="text/csv")


async def all_at_once(file: UploadFile):
    text = "".join([piece async for piece in rows_of(reader_of(file))])
    return Response(text, media_type="text/csv")


async def reads_it_whole(file: UploadFile):
    text = BytesIO(await file.read())
    reader = TumourCsvReader(TextIOWrapper(text, "utf-8-sig", newline=""))
    return StreamingResponse(rows_of(reader), media_type="text/csv")


async def reader_in_the_stream(file: UploadFile):
    async def lines():
        yield ""
        async for piece in rows_of(reader_of(file)):
            yield piece

    return StreamingResponse(lines(), media_type="text/csv")


async def late_reader(file: UploadFile):
    async def lines():
        yield "line,label,error\n"
        first = True
        async for piece in rows_of(reader_of(file)):
            if not first:
                yield piece
            first = False

    return StreamingResponse(lines(), media_type="text/csv")


async def as_text_html(file: UploadFile):
    return StreamingResponse(rows_of(reader_of(file)))


def good_ones_only(batch, found):
    return csv_lines((line, diagnosis.label, "") for line, diagnosis in zip(batch.lines, found, strict=True))


def bad_ones_last(batch, found):
    good = [(line, diagnosis.label, "") for line, diagnosis in zip(batch.lines, found, strict=True)]
    return csv_lines(good + [(mistake.line, "", mistake.error) for mistake in batch.mistakes])


def every_mistake(batch, found):
    good = [(line, diagnosis.label, "") for line, diagnosis in zip(batch.lines, found, strict=True)]
    twice = [(mistake.line, "", mistake.error) for mistake in batch.mistakes]
    return csv_lines(sorted(good + twice + twice))


def counted_rows(batch, found):
    lines = sorted({*batch.lines, *(mistake.line for mistake in batch.mistakes)})
    place = {line: number for number, line in enumerate(lines, start=2)}
    rows = csv.reader(StringIO(scored(batch, found), newline=""))
    return csv_lines((place[int(line)], *rest) for line, *rest in rows)


def from_line_1(batch, found):
    rows = csv.reader(StringIO(scored(batch, found), newline=""))
    return csv_lines((int(line) - 1, *rest) for line, *rest in rows)


def not_quoted(batch, found):
    return "".join(
        f"{line},{rest}\n"
        for line, rest in sorted(
            [(line, f"{diagnosis.label},") for line, diagnosis in zip(batch.lines, found, strict=True)]
            + [(mistake.line, f",{mistake.column}, {mistake.error}") for mistake in batch.mistakes]
        )
    )


def errors_as_labels(batch, found):
    rows = csv.reader(StringIO(scored(batch, found), newline=""))
    return csv_lines((line, label or "bad", error) for line, label, error in rows)


async def with_a_larger_half(rows):
    scores = await classifier.predict(rows)
    return [Diagnosis(label=scores.classes[place], probabilities={}) for place in scores.probabilities.argmax(axis=1)]


async def by_the_larger_half(file: UploadFile):
    reader = reader_of(file)

    async def lines():
        yield "line,label,error\n"
        while (batch := reader.read(100)) is not None:
            yield scored(batch, await with_a_larger_half(batch.values) if batch.lines else [])

    return StreamingResponse(lines(), media_type="text/csv")


async def asks_for_no_rows(file: UploadFile):
    reader = reader_of(file)

    async def lines():
        yield "line,label,error\n"
        while (batch := reader.read(20)) is not None:
            yield scored(batch, await diagnose(batch.values))

    return StreamingResponse(lines(), media_type="text/csv")


async def leaks(file: UploadFile):
    try:
        reader = reader_of(file)
    except Exception as error:
        raise HTTPException(500, str(error)) from error
    return StreamingResponse(rows_of(reader), media_type="text/csv")


async def leaks_the_model(measurements: Measurements):
    try:
        return await translate(measurements)
    except OSError as error:
        raise HTTPException(500, str(error)) from error


def as_it_was() -> FastAPI:
    app = FastAPI()
    app.post("/v1/predict")(predict_v1)

    @app.post("/predict")
    async def old(measurements: Measurements):
        scores = await classifier.predict(to_rows([measurements]))
        return {"label": scores.classes[0], "probability": scores.probabilities[0].tolist()}

    app.post("/v1/scores")(all_at_once)
    return app


NEWEST = "This is not the newest scan that is left"
LINES = "Each row has the line on which it begins"
SAYS_ELSE = "Version 1 says something else"

BANK = {
    "04.1": {
        "right": [
            scans(),
            scans(location="whole url", delete_checks=True),
            scans(location="request"),
            scans(location="relative"),
            scans_in_a_list(),
        ],
        "wrong": [
            (scans(status=200), "expected 201"),
            (scans(location="none"), "There is no `Location`"),
            (scans(location="fixed"), "from `Location`"),
            (scans(location="latest"), "after other scans were added"),
            (scans(latest_first=False), "Routes are tried in their order"),
            (scans(latest="null"), "no scan is left"),
            (scans(latest="min"), NEWEST),
            (scans(latest="first"), NEWEST),
            (scans(latest="len"), NEWEST),
            (scans(number="len"), "A new scan has the number of a deleted one"),
            (scans(number="max"), "A new scan has the number of a deleted one"),
            (scans(number="slow"), "A new scan has the number of a deleted one"),
            (scans(put="creates"), "A PUT creates no scan"),
            (scans(put="creates unknown"), "A PUT creates no scan"),
            (scans(put="all"), "after a PUT of another scan"),
            (scans(put="anything"), "This is no scan"),
            (scans(deleted=200), "expected 204"),
            (scans(delete_checks=False), "expected 404"),
            (scans(missing=400), "expected 404"),
            (scans(with_number=False), "The scan has no `number`"),
            (an_app(), "An APIRouter is needed here"),
        ],
    },
    "04.2": {
        "right": [
            bridge(translate),
            bridge(translate_with_a_model, CatchingRoute),
            with_exact_middleware(),
        ],
        "wrong": [
            (bridge(a_copy), "is wrong"),
            (bridge(the_larger_one), SAYS_ELSE),
            (bridge(a_model_of_its_own), "`probability` is wrong"),
            (bridge(a_copied_threshold), SAYS_ELSE),
            (bridge(the_order_of_version_1), "`probability` is wrong"),
            (bridge(swapped), SAYS_ELSE),
            (bridge(as_text), SAYS_ELSE),
            (bridge(as_bool), "`prediction` is a number"),
            (bridge(only_the_prediction), "A name is missing"),
            (bridge(predict_v1), "A name is missing"),
            (bridge(without_await), "is an `await` missing"),
            (bridge(redirected), "expected 200"),
            (with_a_dependency(), "status 422"),
            (bridge(translate, noticed_route(range(200, 300))), "status 422"),
            (bridge(translate, APIRoute), "`Deprecation` is missing"),
            (bridge(translate, deprecated=False), "does not say that `/predict` is deprecated"),
            (with_a_middleware(), "Version 1 is not deprecated"),
        ],
    },
    "04.3": {
        "right": [adding(), one_handler_for_all, a_handler_for_each_class],
        "wrong": [
            (adding(Exception), "an endpoint raises ConnectionError"),
            (adding(RequestValidationError), "where a number is needed"),
            (adding(errors.ServiceError), "an endpoint raises NotFoundError"),
            (fastapis_own, "an unknown path"),
            (adding(ServiceError=by_exact_class), "an endpoint raises LostError"),
            (adding(ServiceError=first_that_fits), "expected 404"),
            (adding(ServiceError=without_retry_after), "`Retry-After` is missing"),
            (adding(ServiceError=rounded_down), "`Retry-After` is missing or wrong"),
            (adding(ServiceError=rounded), "`Retry-After` is missing or wrong"),
            (adding(ServiceError=one_more), "raises OverloadedError"),
            (adding(ServiceError=retry_with_exact_class), "raises OverloadedError"),
            (adding(HTTPException=as_plain_json), "This is not a problem document"),
            (adding(HTTPException=without_headers), "The headers of the error are lost"),
            (adding(Exception=with_the_text), "shows the error's text"),
            (adding(Exception=with_status_200), "expected 500"),
            (adding(RequestValidationError=repeats_the_input), "repeats what was sent"),
            (adding(RequestValidationError=passes_everything_on), "repeats what was sent"),
            (adding(RequestValidationError=lists_nothing), "`details` must list each mistake"),
            (adding(RequestValidationError=lists_the_first), "`details` must list each mistake"),
            (adding(RequestValidationError=gives_the_body_back), "repeats what was sent"),
            (adding(RequestValidationError=joins_numbers), "expected 422"),
            (adding(RequestValidationError=names_the_last), "has a `field`"),
            (adding(RequestValidationError=as_400), "expected 422"),
        ],
    },
    "04.4": {
        "right": [
            laboratory(stores_the_text_of_the_error),
            with_a_worker(),
            with_a_queue(),
            laboratory(create=with_create_task),
        ],
        "wrong": [
            (laboratory(lifespan=False), "A job does not end"),
            (laboratory(create=in_the_endpoint), "The client waits for the work"),
            (laboratory(create=without_the_store), "There is no such job in `job_store`"),
            (laboratory(create=forgets_to_await_the_store), "await"),
            (laboratory(status=200), "expected 202"),
            (laboratory(lets_errors_through), "RuntimeError"),
            (laboratory(fails_when_stopped), "The job has not ended"),
            (laboratory(succeeds_too_early), "The job has the wrong status"),
            (laboratory(forgets_the_result), "which can be counted"),
            (laboratory(create=starts_it_twice), "A job is done more than once"),
            (laboratory(create=only_the_number), "The answer has no `number`"),
            (laboratory(lifespan=waits_for_them), "The service waits for its jobs"),
            (laboratory(lifespan=resumes_at_the_stop), "A job does not end"),
            (laboratory(lifespan=fails_what_is_open), "after a stop and a start"),
            (laboratory(lifespan=resumes_the_first), "A job does not end"),
            (laboratory(lifespan=resuming(which=every_job)), "A job that had ended"),
            (laboratory(lifespan=resuming(which=each_twice)), "Do each open job once"),
        ],
    },
    "04.5": {
        "right": [service(), service_with_handlers_of_its_own(), service(with_batches_of(50))],
        "wrong": [
            (as_it_was(), "A name is missing"),
            (service(old=a_copy), "is wrong"),
            (service(reader_in_the_stream), "response already started"),
            (service(old=predict_v1), "A name is missing"),
            (service(route_class=APIRoute), "`Deprecation` is missing"),
            (service(handlers=False), "This is not a problem document"),
            (service(old=leaks_the_model), "The response shows the error's text"),
            (service(with_batches_of(105)), "The model gets too many rows at a time"),
            (service(with_batches_of(1000)), "The model gets too many rows at a time"),
            (service(with_batches_of(1)), "The model is asked for a few rows at a time"),
            (service(all_at_once), "The first rows come only with the last"),
            (service(one_reader_for_all), "I/O operation on closed file"),
            (service(without_a_mark), "a file with a byte order mark"),
            (service(reads_it_whole), "The file is in memory as a whole"),
            (service(late_reader), "response already started"),
            (service(as_text_html), "The answer is CSV"),
            (service(leaks), "expected 422"),
            (service(by_the_larger_half), "The label is wrong"),
            (service(asks_for_no_rows), "stopped with an error"),
            (service(writing(good_ones_only)), LINES),
            (service(writing(bad_ones_last)), LINES),
            (service(writing(every_mistake)), LINES),
            (service(writing(counted_rows)), LINES),
            (service(writing(from_line_1)), LINES),
            (service(writing(not_quoted)), "The check cannot use this"),
            (service(writing(errors_as_labels)), "A bad row has no label"),
        ],
    },
}
