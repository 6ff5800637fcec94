"""Lesson 01: async and sync."""

import asyncio
import time
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI

from workshop.lab.answer import Answer, Client
from workshop.lab.app_server import run_app
from workshop.lab.expectations import NotYet, expect
from workshop.lab.fixtures.lesson_01 import (
    DIAGNOSE_S,
    Meeting,
    diagnoses,
    label_of,
    library,
    new_version,
    prediction,
    record_of,
    reports,
)
from workshop.lab.load_generator import in_parallel
from workshop.lab.registry import exercise

TOGETHER = 5
"""Requests at the same time: asyncio.to_thread has no more threads than this on one core."""
REPORTS = 60


def _all_at_once(client: Client, paths: list[str], meeting: Meeting, function: str) -> list[httpx.Response]:
    """Send the requests together. All must be inside the blocking function at the same time."""
    with meeting.expecting(len(paths)):
        replies = in_parallel(*(partial(client.get, path) for path in paths))
    given = f"{len(paths)} requests at once, such as GET {paths[0]}"
    if meeting.calls < len(paths):
        raise NotYet(f"Each request must call `{function}`.", given=given, got=f"{meeting.calls} calls")
    if meeting.most < len(paths):
        raise NotYet(
            "The requests still wait for each other.",
            given=given,
            expected=f"{len(paths)} calls of `{function}` at the same time",
            got=f"{meeting.most} at a time",
        )
    return replies


@exercise(
    "01.1",
    hints=[
        "`old_library` cannot be awaited, so it must not run on the event loop.",
        "`await to_thread.run_sync(function, argument)` runs a function in a thread and waits for what it returns.",
    ],
    right="The loop is free while the library works.",
)
def fixes_the_clinic(answer: Answer) -> None:
    why = "Return what `old_library` makes of the patient's record."
    with answer.serve() as client:
        got = client.get("/diagnosis/7")
        expect(got.status_code, 200)
        expect(got.json(), record_of(7) | {"label": label_of(record_of(7))}, why=why)
        patients = range(20, 20 + TOGETHER)
        replies = _all_at_once(client, [f"/diagnosis/{patient}" for patient in patients], library, "old_library")
        for patient, reply in zip(patients, replies, strict=True):
            record = record_of(patient)
            expect(reply.json(), record | {"label": label_of(record)}, why=why, given=f"GET /diagnosis/{patient}")


@exercise(
    "01.2",
    hints=[
        "Make the limiter once, outside the endpoint: `CapacityLimiter(60)`.",
        "Pass it to `to_thread.run_sync(make_report, limiter=…)`, and await that.",
    ],
    right="Sixty reports at once, and the forty threads stay free.",
)
def sixty_reports_at_once(answer: Answer) -> None:
    with answer.serve() as client:
        with reports.expecting(1):
            first = client.get("/report")
        expect(first.status_code, 200)
        expect(first.json(), {"at_once": 1}, why="The endpoint returns what `make_report` returns.")
        reports.common_threads = 0
        with reports.expecting(REPORTS + 1):
            client.together(REPORTS + 5, "GET", "/report")
    if reports.most != REPORTS:
        raise NotYet(
            "That is too many." if reports.most > REPORTS else "That is too few: something else is the limit.",
            given=f"{REPORTS + 5} times GET /report at once",
            expected=f"{REPORTS} reports are made at the same time",
            got=f"{reports.most}",
        )
    if reports.common_threads:
        raise NotYet(
            "The reports take the threads that everything else needs.",
            expected="none of the forty common threads is in use",
            got=f"{reports.common_threads} are",
        )


@exercise(
    "01.3",
    hints=[
        "`diagnose` blocks. Either make the endpoint a plain `def`, or await `to_thread.run_sync(diagnose, row)`.",
        'The result has a `label` and a `model_version`. `/health` is a second endpoint: `@service.get("/health")`.',
    ],
    right="Every prediction names its model, and no request waits for another.",
)
def serves_the_model(answer: Answer) -> None:
    def expect_prediction(got: httpx.Response, row: int, why: str = "") -> None:
        expect(got.status_code, 200, given=f"GET /predict/{row}")
        made = prediction(row)
        expected = {"label": made.label, "model_version": made.model_version}
        expect(got.json(), expected, given=f"GET /predict/{row}", why=why)

    with answer.serve() as client:
        for row in (0, 19):
            expect_prediction(client.get(f"/predict/{row}"), row)
        with new_version("1.0.1"):
            why = "`diagnose` has got a newer model. Take the version from what it returns."
            expect_prediction(client.get("/predict/19"), 19, why)
        rows = range(TOGETHER)
        replies = _all_at_once(client, [f"/predict/{row}" for row in rows], diagnoses, "diagnose")
        for row, reply in zip(rows, replies, strict=True):
            expect_prediction(reply, row)
        health = client.get("/health")
        expect(health.status_code, 200, why="`/health` is missing, or fails.")
        expect(health.json(), {"status": "healthy"})
        _expect_a_free_loop(client, "/health")


def _expect_a_free_loop(client: Client, path: str, times: int = 10) -> None:
    """Requests to `path` must not wait for each other for as long as they would if each ran `diagnose` on the loop."""
    alone, together = (min(_seconds(client, path, count) for _ in range(2)) for count in (1, times))
    if together - alone > times * DIAGNOSE_S / 4:
        raise NotYet(
            f"`{path}` blocks the event loop.",
            given=f"{times} times GET {path} at once",
            expected=f"about as long as one request, {1000 * alone:.0f} ms",
            got=f"{1000 * together:.0f} ms",
        )


def _seconds(client: Client, path: str, times: int) -> float:
    start = time.perf_counter()
    client.together(times, "GET", path)
    return time.perf_counter() - start


def _endpoint(seconds: float, *, blocking: bool) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def wait() -> dict[str, Any]:
        if blocking:
            time.sleep(seconds)  # noqa: ASYNC251 - this is the mistake to be found
        else:
            await asyncio.sleep(seconds)
        return {}

    return app


@exercise(
    "01.4",
    hints=[
        "Measure a single request first: `load(url, requests=1).total_ms`.",
        "Then several at once. If they take about as many times as long, they wait for each other.",
    ],
    right="This test would have found `/mixed`.",
)
def finds_blocking(answer: Answer) -> None:
    # No fixed limit tells these apart: ten of the first take less time than one of the last, and more than the second.
    for seconds, blocking in ((0.02, True), (0.05, False), (0.6, False)):
        with run_app(_endpoint(seconds, blocking=blocking)) as server:
            # A machine that is busy with something else at the wrong moment spoils a measurement, not three of them.
            for _ in range(3):
                if (got := answer.call(server.url)) is blocking:
                    break
        way = "blocks" if blocking else "awaits"
        why = "Compare with what a single request takes."
        expect(got, blocking, given=f"an endpoint that {way} for {1000 * seconds:.0f} ms", why=why)
