"""Lesson 01: async and sync."""

import asyncio
import threading
import time
from typing import Any

from anyio import from_thread, to_thread
from fastapi import FastAPI

from workshop.lab.answer import Answer, Client
from workshop.lab.app_server import run_app
from workshop.lab.expectations import NotYet, expect
from workshop.lab.registry import exercise

TOGETHER = 10


def _expect_overlap(client: Client, path: str, *, work_s: float, work: str) -> None:
    """Ten requests at once must take nowhere near ten times as long as one, on this machine, now."""
    alone = min(_seconds(client, 1, path) for _ in range(3))
    if alone < work_s:
        raise NotYet(f"That was too fast. Was `{work}` called?", got=f"an answer after {1000 * alone:.0f} ms")
    together = _seconds(client, TOGETHER, path)
    if together > alone * TOGETHER / 2:
        raise NotYet(
            "The requests still wait for each other.",
            given=f"{TOGETHER} times GET {path} at once",
            expected=f"about as long as one request, {1000 * alone:.0f} ms",
            got=f"{1000 * together:.0f} ms",
        )


def _seconds(client: Client, times: int, path: str) -> float:
    start = time.perf_counter()
    client.together(times, "GET", path)
    return time.perf_counter() - start


@exercise(
    "01.1",
    hints=[
        "`old_library` cannot be awaited, so it must run somewhere else than on the event loop.",
        "`await to_thread.run_sync(function, argument)` runs a function in a thread and waits for what it returns.",
    ],
    right="The loop is free while the library works.",
    seconds=30,
)
def cures_the_clinic(answer: Answer) -> None:
    with answer.serve(seconds=15) as client:
        for patient in (7, 12):
            got = client.get(f"/diagnosis/{patient}")
            expect(got.status_code, 200)
            expect(got.json(), {"patient": patient, "label": "benign"}, why="The answer itself must stay the same.")
        _expect_overlap(client, "/diagnosis/3", work_s=0.1, work="old_library")


class _Reports:
    """Counts how many reports are made at the same time."""

    LIMIT = 60
    PATIENCE_S = 1.5

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._most = 0
        self.common_threads = 0

    def make(self) -> dict[str, int]:
        common = _common_threads_in_use()
        with self._changed:
            self.common_threads = max(self.common_threads, common)
            self._running += 1
            self._most = max(self._most, self._running)
            self._changed.notify_all()
            # Until nobody new has come for a while, or one too many has.
            while (before := self._most) <= self.LIMIT and self._changed.wait_for(
                lambda: self._most > before, self.PATIENCE_S
            ):
                pass
            self._running -= 1
            return {"at_once": self._most}

    def reset(self) -> None:
        with self._changed:
            self._running = self._most = self.common_threads = 0


def _common_threads_in_use() -> int:
    """How many threads of the process's common pool work at the moment."""
    try:
        return from_thread.run_sync(lambda: int(to_thread.current_default_thread_limiter().borrowed_tokens))
    except RuntimeError:  # this thread is of another pool
        return 0


_reports = _Reports()


def make_report() -> dict[str, int]:
    """Takes a second or two, and blocks. Returns how many reports were made at the same time."""
    return _reports.make()


@exercise(
    "01.2",
    hints=[
        "Make the limiter once, outside the endpoint: `CapacityLimiter(60)`.",
        "Pass it to `to_thread.run_sync(make_report, limiter=…)`, and await that.",
    ],
    right="Sixty reports at once, and the common pool stays free.",
    seconds=30,
)
def sixty_reports_at_once(answer: Answer) -> None:
    with answer.serve(seconds=20) as client:
        _reports.reset()
        first = client.get("/report")
        expect(first.status_code, 200)
        expect(first.json(), {"at_once": 1}, why="The endpoint returns what `make_report` returns.")
        _reports.reset()
        replies = client.together(_Reports.LIMIT + 5, "GET", "/report")
        most = max(reply.json()["at_once"] for reply in replies)
        if most != _Reports.LIMIT:
            raise NotYet(
                "That is too many." if most > _Reports.LIMIT else "That is too few: something else is the limit.",
                given=f"{_Reports.LIMIT + 5} times GET /report at once",
                expected=f"{_Reports.LIMIT} reports are made at the same time",
                got=f"{most}",
            )
        if _reports.common_threads:
            raise NotYet(
                "The reports take the threads that everything else needs.",
                expected="no thread of the common pool is in use",
                got=f"{_reports.common_threads} are",
            )


@exercise(
    "01.3",
    hints=[
        "`diagnose` blocks. Either make the endpoint a plain `def`, or await `to_thread.run_sync(diagnose, row)`.",
        'The version is `model.card.version`. `/health` is a second endpoint: `@service.get("/health")`.',
    ],
    right="It predicts, it says which model it was, and nobody waits for anybody else.",
    seconds=40,
)
def first_service(answer: Answer) -> None:
    with answer.serve(seconds=15) as client:
        for row, label in ((0, "malignant"), (19, "benign")):
            got = client.get(f"/predict/{row}")
            expect(got.status_code, 200)
            expect(got.json(), {"label": label, "model_version": "1.0.0"})
        health = client.get("/health")
        expect(health.status_code, 200, why="`/health` is missing, or fails.")
        expect(health.json(), {"status": "healthy"})
        _expect_overlap(client, "/predict/5", work_s=0.2, work="diagnose")


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
    seconds=60,
)
def finds_blocking(answer: Answer) -> None:
    # Short ones that block and a long one that does not: no fixed limit tells them apart.
    for seconds, blocking in ((0.05, True), (0.3, False), (0.2, True), (1.0, False)):
        with run_app(_endpoint(seconds, blocking=blocking)) as server:
            # A machine that is busy with something else at the wrong moment spoils a measurement, not three of them.
            for _ in range(3):
                if (got := answer.call(server.url)) is blocking:
                    break
        way = "blocks" if blocking else "awaits"
        why = "Compare with what a single request takes."
        expect(got, blocking, given=f"an endpoint that {way} for {1000 * seconds:.0f} ms", why=why)
