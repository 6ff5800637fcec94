"""Answers to lesson 09: deployment handles."""

import asyncio
import threading
from typing import Any

from ray import serve

from workshop.lab.fixtures.lesson_09 import Expert, diagnose, draft, scanner_app


def prepare() -> None:
    """Start the scanner, unless it is already running."""
    if "scanner" not in serve.status().applications:
        serve.run(scanner_app(), name="scanner", route_prefix=None)


def bound(kind: Any, *args: Any, **options: Any) -> serve.Application:
    return serve.deployment(kind).options(**options).bind(*args)


# 09.1: from class to application


class Referral:
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def decide(self, probability: float) -> str:
        return "refer" if probability >= self.limit else "routine"


class ReferralByPosition(Referral):
    def __init__(self, limit: float, /) -> None:
        self.limit = limit


class AwaitedReferral:
    def __init__(self, *, limit: float) -> None:
        self.limit = limit

    async def decide(self, probability: float) -> str:
        if probability < self.limit:
            return "routine"
        return "refer"


class Strict(Referral):
    def decide(self, probability: float) -> str:
        return "refer" if probability > self.limit else "routine"


class HardCoded(Referral):
    def __init__(self) -> None:
        self.limit = 0.3


class Misspelt(Referral):
    def __init__(self, limit: float) -> None:
        self.limit = threshold  # type: ignore[name-defined]  # noqa: F821


# 09.2: all at once


async def gathers(scanner: Any, images: list[int]) -> list[str]:
    return await asyncio.gather(*(scanner.read.remote(image) for image in images))


async def starts_then_awaits(scanner: Any, images: list[int]) -> list[str]:
    started = [scanner.read.remote(image) for image in images]
    return [await response for response in started]


async def in_a_task_group(scanner: Any, images: list[int]) -> list[str]:
    async def read(image: int) -> str:
        return await scanner.read.remote(image)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(image)) for image in images]
    return [task.result() for task in tasks]


async def one_by_one(scanner: Any, images: list[int]) -> list[str]:
    return [await scanner.read.remote(image) for image in images]


async def as_they_come(scanner: Any, images: list[int]) -> list[str]:
    started = [asyncio.ensure_future(gathers(scanner, [image])) for image in sorted(images)]
    return [text for ended in started for text in await ended]


async def never_awaits(scanner: Any, images: list[int]) -> Any:
    return [scanner.read.remote(image) for image in images]


async def blocks(scanner: Any, images: list[int]) -> Any:
    return [scanner.read.remote(image).result() for image in images]


def not_async(scanner: Any, images: list[int]) -> Any:
    return [scanner.read.remote(image).result() for image in images]


async def uses_another(scanner: Any, images: list[int]) -> list[str]:
    return await gathers(serve.get_app_handle("scanner"), images)


# 09.3: ask the expert


class Cascade:
    def __init__(self, expert: Any) -> None:
        self.expert = expert

    async def label(self, patient: int) -> str:
        label, certainty = draft(patient)
        if certainty < 0.9:
            label = await self.expert.label.remote(patient)
        return label


class CascadeByOptions(Cascade):
    def __init__(self, expert: Any) -> None:
        self.ask = expert.options(method_name="label").remote

    async def label(self, patient: int) -> str:
        label, certainty = draft(patient)
        return label if certainty >= 0.9 else await self.ask(patient)


AS_IN_NOTEBOOKS = {"env_vars": {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}}
"""Where a handle's response can be had without an event loop. On the tests' Ray, Serve runs as for the service."""


class CascadeInAThread(Cascade):
    def label(self, patient: int) -> Any:
        label, certainty = draft(patient)
        return label if certainty >= 0.9 else self.expert.label.remote(patient).result()


class Oncologist(Expert):
    """An Expert under another name."""


class AlwaysAsks(Cascade):
    async def label(self, patient: int) -> str:
        return await self.expert.label.remote(patient)


class ForgetsAwait(Cascade):
    async def label(self, patient: int) -> Any:
        label, certainty = draft(patient)
        return label if certainty >= 0.9 else self.expert.label.remote(patient)


# 09.4: share a call


class WardByHand:
    """Collects calls by itself: the first call waits for others, and runs the model for all of them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, asyncio.Future[Any]]] = []

    async def diagnose(self, patient: int) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((patient, answer))
        if len(self.waiting) == 1:
            await asyncio.sleep(0.15)
            while self.waiting:
                batch, self.waiting = self.waiting[:16], self.waiting[16:]
                for (_, future), one in zip(batch, diagnose([patient for patient, _ in batch]), strict=True):
                    future.set_result(one)
        return await answer


def ward(max_batch_size: int = 16, batch_wait_timeout_s: float = 0.2, room: int = 100) -> serve.Application:
    class Ward:
        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_timeout_s)
        async def diagnose(self, patients: list[int]) -> list[Any]:
            return diagnose(patients)

    return bound(Ward, max_ongoing_requests=room)


# 09.5: an error that survives


class PassesBoth(Exception):
    def __init__(self, row: int, field: str) -> None:
        super().__init__(row, field)
        self.row, self.field = row, field

    def __str__(self) -> str:
        return f"row {self.row}: {self.field} is impossible"


class SaysHowToRebuild(Exception):
    def __init__(self, row: int, field: str) -> None:
        super().__init__(f"row {row}: {field} is impossible")
        self.row, self.field = row, field

    def __reduce__(self) -> Any:
        return type(self), (self.row, self.field)


class ReadsArgs(Exception):
    row = property(lambda self: self.args[0])
    field = property(lambda self: self.args[1])

    def __str__(self) -> str:
        return f"row {self.row}: {self.field} is impossible"


class PassesTheText(Exception):
    def __init__(self, row: int, field: str) -> None:
        super().__init__(f"row {row}: {field} is impossible")
        self.row, self.field = row, field


class HasNoText(Exception):
    def __init__(self, row: int, field: str) -> None:
        super().__init__(row, field)
        self.row, self.field = row, field


class KeepsNothing(Exception):
    def __str__(self) -> str:
        return "row {}: {} is impossible".format(*self.args)


class HoldsALock(PassesBoth):
    def __init__(self, row: int, field: str) -> None:
        super().__init__(row, field)
        self.lock = threading.Lock()


class HasADefault(Exception):
    def __init__(self, row: int, field: str = "unknown") -> None:
        super().__init__(row)
        self.row, self.field = row, field

    def __str__(self) -> str:
        return f"row {self.row}: {self.field} is impossible"


class HidesTheLoss(Exception):
    def __init__(self, row: int, field: str = "unknown") -> None:
        super().__init__(f"row {row}: {field} is impossible")
        self.row, self.field = row, field


class HasOneText(PassesBoth):
    def __str__(self) -> str:
        return "row 3: mean_area is impossible"


BANK = {
    "09.1": {
        "right": [bound(ReferralByPosition, 0.3), serve.deployment(AwaitedReferral).bind(limit=0.3)],
        "wrong": [
            (Referral, "This is a class"),
            (serve.deployment(Referral), "`.bind(…)` makes an application"),
            (Referral(0.3), "bound application"),
            (bound(Strict, 0.3), "equals the limit is a referral"),
            (bound(HardCoded), "argument of the constructor"),
            (bound(Misspelt, 0.3), "name 'threshold' is not defined"),
        ],
    },
    "09.2": {
        "right": [gathers, starts_then_awaits, in_a_task_group],
        "wrong": [
            (one_by_one, "The images wait for each other"),
            (as_they_come, "in the order of the images"),
            (never_awaits, "One text per image"),
            (blocks, "Use `await response` instead"),
            (not_async, "`async def` function"),
            (uses_another, "The scanner that was passed is not used"),
        ],
    },
    "09.3": {
        "right": [
            bound(Cascade, bound(Expert, name="the expert")),
            bound(CascadeByOptions, bound(Oncologist, max_ongoing_requests=10)),
            bound(CascadeInAThread, bound(Expert), ray_actor_options={"runtime_env": AS_IN_NOTEBOOKS}),
        ],
        "wrong": [
            (bound(Cascade, Expert), "one deployment is needed: that of `Expert`"),
            (bound(AlwaysAsks, bound(Expert)), "need not be asked"),
            (bound(ForgetsAwait, bound(Expert)), "is an `await` missing?"),
        ],
    },
    "09.4": {
        "right": [ward(room=16), bound(WardByHand, max_ongoing_requests=100)],
        "wrong": [
            (ward(room=5), "Too few share a call"),
            (ward(max_batch_size=32), "too many in one call"),
            (ward(batch_wait_timeout_s=1), "waits too long"),
        ],
    },
    "09.5": {
        "right": [PassesBoth, SaysHowToRebuild, ReadsArgs, HasADefault],
        "wrong": [
            (PassesTheText, "could not be rebuilt"),
            (HasNoText, "This is its text"),
            (KeepsNothing, "no attribute 'row'"),
            (PassesBoth(1, "mean_area"), "An exception class"),
            (HoldsALock, "Something else arrived"),
            (HidesTheLoss, "Its text changed on the way"),
            (HasOneText, "This is its text"),
        ],
    },
}
