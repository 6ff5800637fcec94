"""Answers to lesson 01: async and sync."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.request import ProxyHandler, build_opener

import httpx
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict

from workshop.lab import load
from workshop.lab.fixtures.lesson_01 import diagnose, look_up, make_report, old_library, prediction


def app(path: str, endpoint: Callable[..., Any], *others: tuple[str, Callable[..., Any]]) -> FastAPI:
    made = FastAPI()
    for route, function in ((path, endpoint), *others):
        made.get(route)(function)
    return made


# 01.1: fix a service


async def in_anyio_thread(patient: int) -> Any:
    return await to_thread.run_sync(old_library, await look_up(patient))


async def in_asyncio_thread(patient: int) -> Any:
    return await asyncio.to_thread(old_library, await look_up(patient))


async def in_own_pool(patient: int) -> Any:
    record = await look_up(patient)
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(old_library, record))


async def in_fastapis_thread(patient: int) -> Any:
    record = await look_up(patient)
    return await run_in_threadpool(lambda: old_library(record))


async def looked_up(patient: int) -> Any:
    return await look_up(patient)


def plain_def_with_a_dependency(record: Annotated[Any, Depends(looked_up)]) -> Any:
    return old_library(record)


def plain_def(patient: int) -> Any:
    return old_library(asyncio.run(look_up(patient)))


async def asks_nobody(patient: int) -> Any:
    return {"patient": patient, "label": "benign"}


async def sleeps_instead(patient: int) -> Any:
    record = await look_up(patient)
    await asyncio.sleep(0.1)
    return record | {"label": "benign"}


async def never_looks_up(patient: int) -> Any:
    return await to_thread.run_sync(old_library, {"patient": patient})


async def still_blocks(patient: int) -> Any:
    return old_library(await look_up(patient))


async def blocks_on_the_result(patient: int) -> Any:
    record = await look_up(patient)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(old_library, record).result()


async def awaits_a_wrapper(patient: int) -> Any:
    async def library(record: Any) -> Any:
        return old_library(record)

    return await library(await look_up(patient))


async def calls_too_early(patient: int) -> Any:
    return await to_thread.run_sync(old_library(await look_up(patient)))


async def passes_the_number(patient: int) -> Any:
    await look_up(patient)
    return await to_thread.run_sync(old_library, patient)


async def keeps_the_first(patient: int) -> Any:
    record = await look_up(patient)
    if not kept:
        kept.append(await to_thread.run_sync(old_library, record))
    return kept[0]


async def one_at_a_time(patient: int) -> Any:
    return await to_thread.run_sync(old_library, await look_up(patient), limiter=one_thread)


async def forgets_the_library(patient: int) -> Any:
    return await look_up(patient)


async def forgets_return(patient: int) -> Any:
    await to_thread.run_sync(old_library, await look_up(patient))


async def forgets_await(patient: int) -> Any:
    return to_thread.run_sync(old_library, look_up(patient))


async def forgets_to_await_the_record(patient: int) -> Any:
    return await to_thread.run_sync(old_library, look_up(patient))


kept: list[Any] = []
one_thread = CapacityLimiter(1)


# 01.2: a limit of its own


def office(limiter: CapacityLimiter | None) -> FastAPI:
    async def report() -> Any:
        return await to_thread.run_sync(make_report, limiter=limiter)

    return app("/report", report)


def office_with_executor() -> FastAPI:
    threads = ThreadPoolExecutor(60)

    async def report() -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, make_report)

    return app("/report", report)


def office_with_a_lifespan() -> FastAPI:
    @asynccontextmanager
    async def lifespan(made: FastAPI) -> Any:
        made.state.limiter = CapacityLimiter(60)
        yield

    made = FastAPI(lifespan=lifespan)

    @made.get("/report")
    async def report(request: Request) -> Any:
        return await to_thread.run_sync(make_report, limiter=request.app.state.limiter)

    return made


def office_with_a_limiter_around() -> FastAPI:
    limiter = CapacityLimiter(60)

    async def report() -> Any:
        async with limiter:
            return await to_thread.run_sync(make_report)

    return app("/report", report)


def office_with_a_limiter_as_argument() -> FastAPI:
    limiter = CapacityLimiter(60)

    async def report() -> Any:
        return await to_thread.run_sync(make_report, limiter)

    return app("/report", report)


def office_with_a_number() -> FastAPI:
    async def report() -> Any:
        return await to_thread.run_sync(make_report, limiter=60)

    return app("/report", report)


def office_with_a_limiter_per_request() -> FastAPI:
    async def report() -> Any:
        return await to_thread.run_sync(make_report, limiter=CapacityLimiter(60))

    return app("/report", report)


def office_with_a_larger_common_pool() -> FastAPI:
    async def report() -> Any:
        to_thread.current_default_thread_limiter().total_tokens = 60
        return await to_thread.run_sync(make_report)

    return app("/report", report)


def office_that_blocks() -> FastAPI:
    async def report() -> Any:
        return make_report()

    return app("/report", report)


def office_that_counts_for_itself() -> FastAPI:
    async def report() -> Any:
        return {"at_once": 1}

    return app("/report", report)


def office_that_forgets_return() -> FastAPI:
    limiter = CapacityLimiter(60)

    async def report() -> Any:
        await to_thread.run_sync(make_report, limiter=limiter)

    return app("/report", report)


# 01.3: a service with the real model


async def awaits_a_thread(row: int) -> Any:
    made = await to_thread.run_sync(diagnose, row)
    return {"label": made.label, "model_version": made.model_version}


def plain_predict(row: int) -> Any:
    return diagnose(row)


class Prediction(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), from_attributes=True)
    label: str
    model_version: str


async def predict_with_a_dependency(made: Annotated[Any, Depends(plain_predict)]) -> Prediction:
    return Prediction.model_validate(made)


async def predict_without_await(row: int) -> Any:
    made = to_thread.run_sync(diagnose, row)
    return {"label": made.label, "model_version": made.model_version}


def predict_with_another_key(row: int) -> Any:
    made = diagnose(row)
    return {"label": made.label, "version": made.model_version}


def predict_the_first(row: int) -> Any:
    if not kept_predictions:
        kept_predictions.append(diagnose(row))
    return kept_predictions[0]


async def blocking_predict(row: int) -> Any:
    return diagnose(row)


def predict_without_version(row: int) -> Any:
    return {"label": diagnose(row).label}


def predict_with_a_fixed_version(row: int) -> Any:
    return {"label": diagnose(row).label, "model_version": "1.0.0"}


def predict_with_the_first_version(row: int) -> Any:
    return {"label": diagnose(row).label, "model_version": first.model_version}


def predict_without_diagnose(row: int) -> Any:
    return prediction(row)


def predict_from_memory(row: int) -> Any:
    return {"label": "malignant", "model_version": "1.0.0"}


async def health() -> Any:
    return {"status": "healthy"}


async def health_in_other_words() -> Any:
    return {"status": "ok"}


def health_in_a_thread() -> Any:
    return {"status": "healthy"}


async def health_that_diagnoses() -> Any:
    diagnose(0)
    return {"status": "healthy"}


async def health_that_sleeps() -> Any:
    time.sleep(0.1)  # noqa: ASYNC251 - this is the mistake to be found
    return {"status": "healthy"}


def health_without_return() -> None:
    pass


kept_predictions: list[Any] = []
first = prediction(0)
HEALTH = ("/health", health)
PREDICT = "/predict/{row}"
DIAGNOSIS = "/diagnosis/{patient}"


# 01.4: a test that finds a blocked loop


def compares_totals(url: str) -> bool:
    return load(url, requests=10).total_ms > 3 * load(url, requests=1).total_ms


def compares_sequential(url: str) -> bool:
    return load(url, requests=8).total_ms > load(url, requests=8, concurrency=1).total_ms / 2


def compares_the_slowest(url: str) -> bool:
    records = sorted(load(url, requests=8), key=lambda record: record.ms)
    return records[-1].ms > 2.5 * records[0].ms


async def with_httpx(url: str) -> bool:
    async def send(times: int) -> float:
        async with httpx.AsyncClient(timeout=30) as client:
            start = time.perf_counter()
            await asyncio.gather(*(client.get(url) for _ in range(times)))
            return time.perf_counter() - start

    return await send(8) > 4 * await send(1)


def with_threads(url: str) -> bool:
    opener = build_opener(ProxyHandler({}))

    def get(_: int) -> None:
        with opener.open(url) as response:
            response.read()

    def seconds(users: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(users) as pool:
            list(pool.map(get, range(users)))
        return time.perf_counter() - start

    return seconds(10) > 4 * seconds(1)


def without_a_margin(url: str) -> bool:
    return load(url, requests=10).total_ms > load(url, requests=1).total_ms


def one_request(url: str) -> bool:
    return load(url, requests=1).total_ms > 200


def always(url: str) -> bool:
    return True


def fixed_limit(url: str) -> bool:
    return load(url, requests=8).total_ms > 500


def tight(url: str) -> bool:
    return load(url, requests=8).total_ms > 2 * load(url, requests=1).total_ms


def one_by_one(url: str) -> bool:
    return load(url, requests=8, concurrency=1).total_ms > 4 * load(url, requests=1).total_ms


def the_other_way_round(url: str) -> bool:
    return load(url, requests=8).total_ms < 4 * load(url, requests=1).total_ms


def slow_is_free(url: str) -> bool:
    return load(url, requests=8).total_ms < 350


def asks_the_middleware(url: str) -> bool:
    return any(record.ms > 2000 * record.worked_s for record in load(url, requests=8))


def no_return(url: str) -> None:
    load(url, requests=8)


BANK = {
    "01.1": {
        "right": [
            app(DIAGNOSIS, fix)
            for fix in (
                in_anyio_thread,
                in_asyncio_thread,
                in_own_pool,
                in_fastapis_thread,
                plain_def,
                plain_def_with_a_dependency,
            )
        ],
        "wrong": [
            (app(DIAGNOSIS, still_blocks), "still wait for each other"),
            (app(DIAGNOSIS, blocks_on_the_result), "still wait for each other"),
            (app(DIAGNOSIS, awaits_a_wrapper), "still wait for each other"),
            (app(DIAGNOSIS, one_at_a_time), "still wait for each other"),
            (app(DIAGNOSIS, calls_too_early), "'dict' object is not callable"),
            (app(DIAGNOSIS, passes_the_number), "needs a record from look_up, and got 7"),
            (app(DIAGNOSIS, keeps_the_first), "Each request must call `old_library`"),
            (app(DIAGNOSIS, forgets_the_library), "Return what `old_library` makes"),
            (app(DIAGNOSIS, asks_nobody), "Return what `old_library` makes"),
            (app(DIAGNOSIS, sleeps_instead), "Each request must call `old_library`"),
            (app(DIAGNOSIS, never_looks_up), "needs a record from look_up"),
            (app(DIAGNOSIS, forgets_return), "is a `return` missing"),
            (app(DIAGNOSIS, forgets_await), "error"),
            (app(DIAGNOSIS, forgets_to_await_the_record), "got <coroutine object look_up"),
            (app("/diagnoses/{patient}", in_anyio_thread), "404"),
        ],
    },
    "01.2": {
        "right": [office(CapacityLimiter(60)), office_with_executor(), office_with_a_lifespan()],
        "wrong": [
            (office(None), "too few"),
            (office(CapacityLimiter(6)), "too few"),
            (office_that_blocks(), "too few"),
            (office_with_a_limiter_around(), "too few"),
            (office_with_a_limiter_as_argument(), "takes 0 positional arguments but 1 was given"),
            (office_with_a_number(), "'int' object"),
            (office_that_counts_for_itself(), "too few"),
            (office(CapacityLimiter(100)), "too many"),
            (office_with_a_limiter_per_request(), "too many"),
            (office_with_a_larger_common_pool(), "that everything else needs"),
            (office_that_forgets_return(), "is a `return` missing"),
        ],
    },
    "01.3": {
        "right": [
            app(PREDICT, awaits_a_thread, HEALTH),
            app(PREDICT, plain_predict, HEALTH),
            app(PREDICT, plain_predict, ("/health", health_in_a_thread)),
            app(PREDICT, predict_with_a_dependency, HEALTH),
        ],
        "wrong": [
            (app(PREDICT, blocking_predict, HEALTH), "still wait for each other"),
            (app(PREDICT, predict_without_await, HEALTH), "is an `await` missing"),
            (app(PREDICT, predict_without_version, HEALTH), "model_version"),
            (app(PREDICT, predict_with_another_key, HEALTH), "'version': '1.0.0'"),
            (app(PREDICT, predict_the_first, HEALTH), "GET /predict/19"),
            (app(PREDICT, predict_with_a_fixed_version, HEALTH), "Take the version from what it returns"),
            (app(PREDICT, predict_with_the_first_version, HEALTH), "Take the version from what it returns"),
            (app(PREDICT, predict_without_diagnose, HEALTH), "Each request must call `diagnose`"),
            (app(PREDICT, predict_from_memory, HEALTH), "GET /predict/19"),
            (app(PREDICT, plain_predict), "`/health` is missing"),
            (app(PREDICT, plain_predict, ("/health", health_that_diagnoses)), "`/health` blocks the event loop"),
            (app(PREDICT, plain_predict, ("/health", health_that_sleeps)), "`/health` blocks the event loop"),
            (app(PREDICT, plain_predict, ("/health", health_without_return)), "is a `return` missing"),
            (app(PREDICT, plain_predict, ("/health", health_in_other_words)), "'healthy'"),
        ],
    },
    "01.4": {
        "right": [compares_totals, compares_sequential, compares_the_slowest, tight, with_httpx, with_threads],
        "wrong": [
            (one_request, "an endpoint that"),
            (always, "an endpoint that awaits"),
            (fixed_limit, "an endpoint that"),
            (one_by_one, "an endpoint that awaits"),
            (without_a_margin, "an endpoint that awaits"),
            (the_other_way_round, "an endpoint that"),
            (slow_is_free, "an endpoint that"),
            (asks_the_middleware, "'NoneType'"),
            (no_return, "is a `return` missing"),
        ],
    },
}
