"""Each exercise has an answer bank: answers that must be right, and wrong ones with what the learner must read.

`tests/lessons/banks/lesson_NN.py` holds

    BANK = {"NN.n": {"right": [answer, …], "wrong": [(answer, "a piece of the verdict's text"), …]}}

and, where the checks need something running, a context manager `environment`.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from workshop.lab import check, hint, solution
from workshop.lab.build import Lesson
from workshop.lab.verdicts import Outcome

BANKS = Path(__file__).parent / "banks"


@cache
def bank_of(lesson: Lesson) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bank_{lesson.number}", BANKS / f"lesson_{lesson.number}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _ray_for_a_lesson_that_needs_it(request: pytest.FixtureRequest) -> None:
    """The test run's one cluster: a bank's `environment` finds it running."""
    if request.node.get_closest_marker("ray"):
        request.getfixturevalue("cluster")


@contextmanager
def answers(lesson: Lesson, exercise: str, kind: str) -> Iterator[list]:
    bank = bank_of(lesson)
    with getattr(bank, "environment", nullcontext)():
        yield bank.BANK[exercise][kind]


def test_every_exercise_has_a_bank_and_every_bank_an_exercise(lesson, exercise_ids):
    assert sorted(bank_of(lesson).BANK) == sorted(exercise_ids)
    assert all(exercise.startswith(f"{lesson.number}.") for exercise in exercise_ids)


def test_right_answers_are_right(lesson, exercise):
    with answers(lesson, exercise, "right") as right:
        assert len(right) >= 2
        for number, answer in enumerate(right):
            verdict = check(exercise, answer)
            assert verdict.outcome is Outcome.RIGHT, f"right answer {number}: {verdict!r}"


def test_wrong_answers_are_told_why(lesson, exercise):
    with answers(lesson, exercise, "wrong") as wrong:
        assert len(wrong) >= 3
        for number, (answer, message) in enumerate(wrong):
            verdict = check(exercise, answer)
            assert verdict.outcome in (Outcome.NOT_YET, Outcome.COULD_NOT_CHECK), f"wrong answer {number}: {verdict!r}"
            assert message in repr(verdict), f"wrong answer {number}"
            verdict._repr_html_()


def test_a_blank_is_not_attempted(lesson, exercise):
    assert check(exercise, ...).outcome is Outcome.NOT_ATTEMPTED


def test_there_are_hints_and_a_solution(lesson, exercise):
    assert hint(exercise).of >= 2
    with answers(lesson, exercise, "right") as right:
        check(exercise, right[0])
    assert solution(exercise).code
