"""Lesson 09: deployment handles."""

import asyncio
import time
from collections.abc import Awaitable
from statistics import median
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayError, RayTaskError

from workshop.lab.answer import Answer
from workshop.lab.applications import need_serve, running
from workshop.lab.expectations import NotYet, TooLong, expect, show
from workshop.lab.fixtures.lesson_09 import diagnose, draft, scanner_app, what_it_shows
from workshop.lab.registry import exercise

T = TypeVar("T")

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""

CALL_S = 3.0
"""How long a single call may take."""

CALLS_S = 10.0
"""How long many calls at once may take. Those for which a replica has no room are tried again after up to 0.5 s."""


async def _in_time(response: Awaitable[T], limit_s: float = CALL_S) -> T:
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await response
    except TimeoutError:
        if limit.expired():
            raise TooLong(limit_s, "") from None
        raise


def _call(answer: Answer, handle: Any, method: str, *args: Any) -> Any:
    """Call a method of the learner's deployment; an error in the replica ends the check and is shown."""
    answer.given = f"handle.{method}.remote({', '.join(map(show, args))})"
    try:
        return answer.run(_in_time(getattr(handle, method).remote(*args)))
    except RayTaskError as error:
        if "`DeploymentResponse` is not serializable" in str(error):
            raise NotYet("The method returns the response of a handle itself: is an `await` missing?") from None
        raise


@exercise(
    "09.1",
    hints=[
        "`__init__(self, limit)` keeps the limit on `self`; `decide(self, probability)` compares with it.",
        "`serve.deployment(Referral)` is the deployment. What you pass to its `.bind(…)` goes to `__init__`.",
    ],
    right="Your plain class runs in a process of its own.",
    seconds=LIMIT_S,
)
def refers_patients(answer: Answer) -> None:
    application = answer.value
    with running(application) as name:
        handle = serve.get_app_handle(name)
        for probability, decision in ((0.9, "refer"), (0.1, "routine"), (0.45, "refer"), (0.3, "refer")):
            why = "The limit is 0.3, and a probability that equals the limit is a referral."
            expect(_call(answer, handle, "decide", probability), decision, why=why)
    deployment = application._bound_deployment
    kind = deployment.func_or_class
    answer.given = f"{kind.__name__}(limit=0.7)"
    try:
        other = kind(0.7) if deployment.init_args else kind(limit=0.7)  # as the learner passed it
    except TypeError as error:
        raise NotYet("The limit is an argument of the constructor, named `limit`.", got=str(error)) from None
    answer.given += ".decide(0.5)"
    expect(answer.run(other.decide(0.5)), "routine", why="An object made with another limit uses that one.")


def _scanner() -> Any:
    """A handle to the lesson's scanner, which starts here if it does not run."""
    need_serve()
    if "scanner" not in serve.status().applications:
        return serve.run(scanner_app(), name="scanner", route_prefix=None)
    return serve.get_app_handle("scanner")


class _Passed:
    """The handle that a check passes. Notes whether it is used: the learner has another one of the same scanner."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.used = False

    def __getattr__(self, name: str) -> Any:
        self.used = True
        return getattr(self._handle, name)


@exercise(
    "09.2",
    hints=[
        "`scanner.read.remote(image)` only starts the call. Start all of them before you await one.",
        "`await asyncio.gather(*calls)` waits for all, and keeps the order.",
    ],
    right="All images were read at the same time.",
)
def reads_together(answer: Answer) -> None:
    scanner = _scanner()
    for images in ([4, 3, 9], [12, 5, 6, 1, 7, 3, 2, 8]):
        answer.run(_in_time(scanner.expect.remote(len(images))))
        try:
            passed = _Passed(scanner)
            [got] = answer.together((passed, images))
        finally:
            most = answer.run(_in_time(scanner.most.remote()))
        answer.given, answer.last = f"read_all(scanner, {images})", got
        why = "One text per image, in the order of the images."
        expect(got, [what_it_shows(image) for image in images], why=why)
        if not passed.used:
            raise NotYet("The scanner that was passed is not used.", expected="calls of `scanner.read`")
        if most < len(images):
            raise NotYet(
                "The images wait for each other.",
                expected=f"{len(images)} images are read at the same time",
                got=f"{most}",
            )


@exercise(
    "09.3",
    hints=[
        "`__init__(self, expert)` receives a handle, so `self.expert.label.remote(patient)` must be awaited.",
        "Pass an application where the constructor expects the handle: `….bind(serve.deployment(Expert).bind())`.",
    ],
    right="Two deployments work together, and the expert is asked only where it is needed.",
    seconds=LIMIT_S,
)
def asks_the_expert(answer: Answer) -> None:
    with running(answer.value) as name:
        cascade = serve.get_app_handle(name)
        others = set(serve.status().applications[name].deployments) - {cascade.deployment_name}
        if len(others) != 1:
            raise NotYet(
                "Besides the one that is called, one deployment is needed: that of `Expert`.",
                expected="two deployments",
                got=", ".join(sorted({cascade.deployment_name, *others})),
            )
        expert = serve.get_deployment_handle(others.pop(), name)
        asked = 0
        for patient, label, unsure in ((5, "benign", 0), (3, "malignant", 1), (4, "benign", 1), (12, "malignant", 0)):
            certainty = f"The draft is {draft(patient)[1]:.0%} certain"
            why = f"{certainty}: the label of {'the expert' if unsure else 'the draft'} counts."
            expect(_call(answer, cascade, "label", patient), label, why=why)
            asked += unsure
            times = answer.run(_in_time(expert.asked.remote()))
            if times != asked:
                raise NotYet(f"{certainty}: the expert {'was not' if times < asked else 'need not be'} asked.")


MOST = 16
TRIES = 3
"""On a busy machine, calls that start together may arrive far apart, and a lone one may take longer."""


@exercise(
    "09.4",
    hints=[
        "Under `@serve.batch(max_batch_size=…, batch_wait_timeout_s=…)` the method takes a list and returns a list.",
        "A replica takes five requests at a time, unless its deployment says `max_ongoing_requests`.",
    ],
    right="Callers ask for one patient each, and share the calls.",
    seconds=LIMIT_S,
)
def diagnoses_together(answer: Answer) -> None:
    with running(answer.value) as name:
        handle = serve.get_app_handle(name)
        for _ in range(TRIES):
            if (largest := _largest_call(answer, handle, MOST)) == MOST:
                largest = _largest_call(answer, handle, 2 * MOST)
                break
        if largest != MOST:
            raise NotYet(_why(largest), expected=f"{MOST} patients in the largest call", got=f"{largest}")
        _expect_wait(answer, handle)


def _largest_call(answer: Answer, handle: Any, callers: int) -> int:
    """The largest number of patients in one call, when this many callers ask at the same time."""
    patients = list(range(100, 100 + callers))
    answer.given = f"handle.diagnose.remote(patient) for {callers} patients at once"

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(handle.diagnose.remote(patient) for patient in patients))

    got = answer.run(_in_time(ask_all(), CALLS_S))
    expect([one["patient"] for one in got], patients, why="Each caller gets the result for its own patient.")
    return int(max(one["in_this_call"] for one in got))


def _why(largest: int) -> str:
    if largest > MOST:
        return "That is too many in one call."
    if largest == 1:
        return "Every call of `diagnose` got a single patient."
    return "Too few share a call. Is it the size of a batch, the wait, or the room in the replica?"


def _expect_wait(answer: Answer, handle: Any) -> None:
    waits_ms = []
    for _ in range(TRIES):
        start = time.perf_counter()
        expect(_call(answer, handle, "diagnose", 7), diagnose([7])[0], why="The result for a lone patient.")
        waits_ms.append(1000 * (time.perf_counter() - start))
    usual = median(waits_ms)
    if not 50 < usual < 500:
        why = "A lone caller waits too long for others." if usual > 500 else "A lone caller hardly waits for others."
        raise NotYet(why, expected="a result after about 200 ms", got=f"a result after {usual:.0f} ms")


@exercise(
    "09.5",
    hints=[
        "Python rebuilds an error from its class and its `args`. `args` is what `super().__init__` was given.",
        "Give `super().__init__` the row and the field, and write the text in `__str__`.",
    ],
    right="The error arrives with its class, its row and its field.",
)
def survives_the_trip(answer: Answer) -> None:
    kind: Any = answer.value
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise NotYet("An exception class is needed here.", got=show(kind))
    scanner = _scanner()
    for row, field in ((3, "mean_area"), (0, "worst_radius")):
        made = answer.call(row, field)
        expect((made.row, made.field), (row, field), why="It has its row and its field as attributes.")
        expect(str(made), f"row {row}: {field} is impossible", why="This is its text.")
        answer.given = f"raise {kind.__name__}({row}, {field!r})  # in a replica"
        try:
            answer.run(_in_time(scanner.fail.remote(kind, row, field)))
        except RayTaskError as error:
            arrived = error.cause
        except RayError as error:
            raise NotYet(
                "It could not be rebuilt on this side.", expected=kind.__name__, got=type(error).__name__
            ) from None
        if not isinstance(arrived, answer.value):
            raise NotYet("Something else arrived.", expected=kind.__name__, got=show(arrived))
        expect((arrived.row, arrived.field), (row, field), why="Its row or its field was lost on the way.")
        expect(str(arrived), str(made), why="Its text changed on the way.")
