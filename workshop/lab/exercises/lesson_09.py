"""Lesson 09: deployment handles."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from workshop.lab.answer import Answer
from workshop.lab.expectations import CheckFailed, NotYet, expect, show
from workshop.lab.registry import exercise

_names = (f"check-{number}" for number in count(1))


@contextmanager
def _running(application: object) -> Iterator[str]:
    """Run the application for the length of the block, without HTTP, and yield its name."""
    _need_serve()
    if isinstance(application, serve.Deployment):
        raise NotYet("This is a deployment. `.bind(…)` makes an application of it.", got=show(application))
    if isinstance(application, type):
        raise NotYet("This is a class. `serve.deployment(…)` makes a deployment of it.", got=show(application))
    if isinstance(application, DeploymentHandle):
        raise NotYet("This is a handle: it runs already. Pass what you would give to `serve.run`.")
    if not isinstance(application, serve.Application):
        raise NotYet("A bound application is needed here.", got=show(application))
    name = next(_names)
    try:
        serve.run(application, name=name, route_prefix=None)
        yield name
    except RuntimeError as error:
        raise NotYet("The replica does not start.", got=_last_line(str(error))) from error
    finally:
        # To wait for the end takes seconds, and nothing that follows needs it.
        serve.delete(name, _blocking=False)


def _need_serve() -> None:
    if not ray.is_initialized():
        raise CheckFailed("Ray Serve is not running. `start_serve()` starts it; then check again.")


def _call(answer: Answer, handle: Any, method: str, *args: Any) -> Any:
    """Call a method of the learner's deployment; an error in the replica ends the check and is shown."""
    answer.given = f"handle.{method}.remote({', '.join(map(show, args))})"

    async def call() -> Any:
        return await getattr(handle, method).remote(*args)

    return answer.run(call())


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()


@exercise(
    "09.1",
    hints=[
        "`__init__(self, limit)` keeps the limit on `self`; `decide(self, probability)` compares with it.",
        "`serve.deployment(Referral)` is the deployment. What you pass to its `.bind(…)` goes to `__init__`.",
    ],
    right="A plain class became a process of its own.",
    seconds=90,
)
def refers_patients(answer: Answer) -> None:
    with _running(answer.value) as name:
        handle = serve.get_app_handle(name)
        for probability, decision in ((0.9, "refer"), (0.1, "routine"), (0.45, "refer"), (0.3, "refer")):
            why = "The limit is 0.3, and the limit itself is a referral."
            expect(_call(answer, handle, "decide", probability), decision, why=why)


class Scanner:
    """The checks' own deployment, for answers that take a handle.

    It reads one image per call, and waits until all the images that it was told to expect are there.
    """

    PATIENCE_S = 4.0

    async def expect(self, images: int) -> None:
        """Begin anew: so many images will come."""
        self._expected = images
        self._reading = self._most = 0
        self._patience_s = self.PATIENCE_S
        self._all_there = asyncio.Event()

    async def read(self, image: int) -> str:
        """What the image shows."""
        self._reading += 1
        self._most = max(self._most, self._reading)
        if self._reading == self._expected:
            self._all_there.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_there.wait(), self._patience_s)
        self._patience_s = 0.05  # whoever sends one by one need not wait for long
        self._reading -= 1
        return what_it_shows(image)

    async def most(self) -> int:
        """The largest number of images that were read at the same time."""
        return self._most

    def fail(self, kind: type[Exception], *args: object) -> None:
        """Raise an error of this kind."""
        raise kind(*args)


def what_it_shows(image: int) -> str:
    return f"image {image}: {'shadow' if image % 3 == 0 else 'clear'}"


_SCANNER = "scanner of the checks"


def _scanner() -> Any:
    """A handle. The deployment stays until Serve stops: to make it anew for each check would take seconds."""
    _need_serve()
    if _SCANNER not in serve.status().applications:
        serve.run(serve.deployment(max_ongoing_requests=100)(Scanner).bind(), name=_SCANNER, route_prefix=None)
    return serve.get_app_handle(_SCANNER)


@exercise(
    "09.2",
    hints=[
        "`scanner.read.remote(image)` only starts the call. Start all of them before you await one.",
        "`await asyncio.gather(*calls)` waits for all, and keeps the order.",
    ],
    right="All images were read at the same time.",
    seconds=90,
)
def reads_together(answer: Answer) -> None:
    scanner = _scanner()
    for images in ([4, 3, 9], [12, 5, 6, 1, 7, 3, 2, 8]):
        answer.run(_answer_of(scanner.expect.remote(len(images))))
        [got] = answer.together((scanner, images))
        answer.given = f"read_all(scanner, {images})"
        why = "One text per image, in the order of the images."
        expect(got, [what_it_shows(image) for image in images], why=why)
        most = answer.run(_answer_of(scanner.most.remote()))
        if most < len(images):
            raise NotYet(
                "The images wait for each other.",
                expected=f"{len(images)} images are read at the same time",
                got=f"{most}",
            )


async def _answer_of(response: Any) -> Any:
    return await response


def draft(patient: int) -> tuple[str, float]:
    """A quick opinion: the label, and how certain it is, from 0 to 1."""
    return ("malignant" if patient % 4 == 0 else "benign"), 1 - (patient % 5) / 20


class Expert:
    """A slow and thorough opinion. Counts how often it is asked."""

    def __init__(self) -> None:
        self._asked = 0

    async def label(self, patient: int) -> str:
        """The label."""
        self._asked += 1
        return "malignant" if patient % 3 == 0 else "benign"

    async def asked(self) -> int:
        """How often ``label`` was called."""
        return self._asked


@exercise(
    "09.3",
    hints=[
        "`__init__(self, expert)` receives a handle, so the answer of `self.expert.label.remote(patient)` is awaited.",
        "An application in the place of an argument: `….bind(serve.deployment(Expert).bind())`.",
    ],
    right="Two deployments, one answer, and the expert only where it is needed.",
    seconds=90,
)
def asks_the_expert(answer: Answer) -> None:
    with _running(answer.value) as name:
        cascade = serve.get_app_handle(name)
        if "Expert" not in serve.status().applications[name].deployments:
            raise NotYet("There is no deployment of `Expert` in this application.", expected="two deployments")
        expert = serve.get_deployment_handle("Expert", name)
        asked = 0
        for patient, label, unsure in ((5, "benign", 0), (3, "malignant", 1), (4, "benign", 1), (12, "malignant", 0)):
            certainty = f"The draft is {draft(patient)[1]:.0%} certain"
            why = f"{certainty}: the label of {'the expert' if unsure else 'the draft'} counts."
            expect(_call(answer, cascade, "label", patient), label, why=why)
            asked += unsure
            times = answer.run(_answer_of(expert.asked.remote()))
            if times != asked:
                raise NotYet(f"{certainty}: the expert {'was not' if times < asked else 'need not be'} asked.")


def diagnose(patients: list[int]) -> list[dict[str, Any]]:
    """One answer per patient, in the order of the patients. Each says how many were diagnosed in the same call."""
    if not isinstance(patients, list | tuple):
        raise TypeError(f"diagnose takes a list of patients, not {patients!r}")
    return [
        {"patient": patient, "label": "malignant" if patient % 3 == 0 else "benign", "in_this_call": len(patients)}
        for patient in patients
    ]


_CALLERS = 24
_MOST = 16


@exercise(
    "09.4",
    hints=[
        "Under `@serve.batch(max_batch_size=…, batch_wait_timeout_s=…)` the method takes a list and returns a list.",
        "A replica lets in five requests at a time, unless its deployment says `max_ongoing_requests`.",
    ],
    right="Callers ask for one patient each, and share the calls.",
    seconds=120,
)
def diagnoses_together(answer: Answer) -> None:
    with _running(answer.value) as name:
        handle = serve.get_app_handle(name)
        expect(_call(answer, handle, "diagnose", 7), diagnose([7])[0], why="A caller asks for one patient.")
        for attempt in range(3):  # on a busy machine simultaneous calls may arrive far apart
            patients = list(range(100 * attempt, 100 * attempt + _CALLERS))
            got = _burst(answer, handle, patients)
            expect([one["patient"] for one in got], patients, why="Each caller gets the answer for its own patient.")
            largest = max(one["in_this_call"] for one in got)
            if 5 < largest <= _MOST:
                return
        if largest > _MOST:
            why = "That is too many in one call."
        elif largest == 1:
            why = "Every call of `diagnose` got a single patient."
        else:
            why = "The calls are shared, but something lets only a few callers in."
        raise NotYet(why, expected=f"up to {_MOST} patients in one call", got=f"{largest} at most")


def _burst(answer: Answer, handle: Any, patients: list[int]) -> list[Any]:
    answer.given = f"handle.diagnose.remote(patient) for {len(patients)} patients at once"

    async def burst() -> list[Any]:
        return await asyncio.gather(*(handle.diagnose.remote(patient) for patient in patients))

    got: list[Any] = answer.run(burst())
    return got


@exercise(
    "09.5",
    hints=[
        "Python rebuilds an error from its class and its `args`. `args` is what `super().__init__` was given.",
        "Give `super().__init__` the row and the field. The text is then the business of `__str__`.",
    ],
    right="It arrives as itself, with all that it knows.",
    seconds=90,
)
def survives_the_trip(answer: Answer) -> None:
    kind: Any = answer.value
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise NotYet("A class of errors is needed here.", got=show(kind))
    scanner = _scanner()
    for row, field in ((3, "mean_area"), (0, "worst_radius")):
        made = answer.call(row, field)
        expect((made.row, made.field), (row, field), why="It knows its row and its field.")
        expect(str(made), f"row {row}: {field} is impossible", why="This is its text.")
        answer.given = f"raise {kind.__name__}({row}, {field!r})  # in a replica"
        try:
            answer.run(_answer_of(scanner.fail.remote(kind, row, field)))
        except RayTaskError as error:
            arrived = error.cause
        except RayError as error:
            raise NotYet(
                "It could not be rebuilt on this side.", expected=kind.__name__, got=type(error).__name__
            ) from None
        if not isinstance(arrived, answer.value):
            raise NotYet("Something else arrived.", expected=kind.__name__, got=show(arrived))
        expect((arrived.row, arrived.field), (row, field), why="It lost what it knew on the way.")
        expect(str(arrived), str(made), why="Its text changed on the way.")
