"""Answers to lesson 01: async and sync."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI

from workshop.lab import load
from workshop.lab.exercises.lesson_01 import make_report


def app(path: str, endpoint: Callable[..., Any], *others: tuple[str, Callable[..., Any]]) -> FastAPI:
    made = FastAPI()
    for route, function in ((path, endpoint), *others):
        made.get(route)(function)
    return made


# 01.1: cure a service


async def look_up(patient: int) -> dict[str, Any]:
    await asyncio.sleep(0.05)
    return {"patient": patient}


def old_library(record: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.1)
    return record | {"label": "benign"}


async def in_anyio_thread(patient: int) -> Any:
    return await to_thread.run_sync(old_library, await look_up(patient))


async def in_asyncio_thread(patient: int) -> Any:
    return await asyncio.to_thread(old_library, await look_up(patient))


async def in_own_pool(patient: int) -> Any:
    record = await look_up(patient)
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(old_library, record))


async def asks_nobody(patient: int) -> Any:
    return {"patient": patient, "label": "benign"}


def plain_def(patient: int) -> Any:
    return old_library(asyncio.run(look_up(patient)))


async def still_blocks(patient: int) -> Any:
    return old_library(await look_up(patient))


async def forgets_the_library(patient: int) -> Any:
    return await look_up(patient)


async def forgets_return(patient: int) -> Any:
    await to_thread.run_sync(old_library, await look_up(patient))


async def forgets_await(patient: int) -> Any:
    return to_thread.run_sync(old_library, look_up(patient))


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


def office_with_a_limiter_per_request() -> FastAPI:
    async def report() -> Any:
        return await to_thread.run_sync(make_report, limiter=CapacityLimiter(60))

    return app("/report", report)


def office_with_a_larger_common_pool() -> FastAPI:
    async def report() -> Any:
        to_thread.current_default_thread_limiter().total_tokens = 60
        return await to_thread.run_sync(make_report)

    return app("/report", report)


# 01.3: the first service


def diagnose(row: int) -> str:
    time.sleep(0.2)
    return {0: "malignant", 19: "benign"}.get(row, "benign")


async def awaits_a_thread(row: int) -> Any:
    return {"label": await to_thread.run_sync(diagnose, row), "model_version": "1.0.0"}


def plain_predict(row: int) -> Any:
    return {"label": diagnose(row), "model_version": "1.0.0"}


async def blocking_predict(row: int) -> Any:
    return {"label": diagnose(row), "model_version": "1.0.0"}


def predict_without_version(row: int) -> Any:
    return {"label": diagnose(row)}


async def health() -> Any:
    return {"status": "healthy"}


HEALTH = ("/health", health)
PREDICT = "/predict/{row}"
DIAGNOSIS = "/diagnosis/{patient}"


# 01.4: the test that finds it


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


def one_request(url: str) -> bool:
    return load(url, requests=1).total_ms > 200


def always(url: str) -> bool:
    return True


def fixed_limit(url: str) -> bool:
    return load(url, requests=8).total_ms > 500


def tight(url: str) -> bool:
    return load(url, requests=8).total_ms > 2 * load(url, requests=1).total_ms


def no_return(url: str) -> None:
    load(url, requests=8)


BANK = {
    "01.1": {
        "right": [app(DIAGNOSIS, cure) for cure in (in_anyio_thread, in_asyncio_thread, in_own_pool, plain_def)],
        "wrong": [
            (app(DIAGNOSIS, still_blocks), "still wait for each other"),
            (app(DIAGNOSIS, forgets_the_library), "The answer itself must stay the same"),
            (app(DIAGNOSIS, asks_nobody), "Was `old_library` called"),
            (app(DIAGNOSIS, forgets_return), "is a `return` missing"),
            (app(DIAGNOSIS, forgets_await), "error"),
            (app("/diagnoses/{patient}", in_anyio_thread), "404"),
        ],
    },
    "01.2": {
        "right": [office(CapacityLimiter(60)), office_with_executor()],
        "wrong": [
            (office(None), "too few"),
            (office(CapacityLimiter(6)), "too few"),
            (office(CapacityLimiter(100)), "too many"),
            (office_with_a_limiter_per_request(), "too many"),
            (office_with_a_larger_common_pool(), "that everything else needs"),
        ],
    },
    "01.3": {
        "right": [app(PREDICT, awaits_a_thread, HEALTH), app(PREDICT, plain_predict, HEALTH)],
        "wrong": [
            (app(PREDICT, blocking_predict, HEALTH), "still wait for each other"),
            (app(PREDICT, predict_without_version, HEALTH), "model_version"),
            (app(PREDICT, plain_predict), "`/health` is missing"),
        ],
    },
    "01.4": {
        "right": [compares_totals, compares_sequential, compares_the_slowest, tight, with_httpx],
        "wrong": [
            (one_request, "an endpoint that"),
            (always, "an endpoint that awaits"),
            (fixed_limit, "an endpoint that blocks for 50 ms"),
            (no_return, "is a `return` missing"),
        ],
    },
}
