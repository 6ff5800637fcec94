"""Each exercise has an answer bank: right answers, and wrong ones with a message that the learner must see.

`tests/lessons/banks/lesson_NN.py` holds

    BANK = {"NN.n": {"right": [answer, …], "wrong": [(answer, "a piece of the verdict's text"), …]}}

and, if the lesson by then runs something that is slow to start, a function `prepare` that starts it.
"""

import importlib.util
import random
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from workshop.lab import check, hint
from workshop.lab.build import Lesson
from workshop.lab.lessons import solution_code
from workshop.lab.verdicts import Outcome

pytestmark = pytest.mark.slow

BANKS = Path(__file__).parent / "banks"


@cache
def bank_of(lesson: Lesson) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bank_{lesson.number}", BANKS / f"lesson_{lesson.number}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bank(request: pytest.FixtureRequest, lesson: Lesson, exercise: str) -> dict[str, list]:
    """The answers to one exercise. If its lesson needs Ray, its check uses the tests' cluster.

    Checks draw what they ask. Here they draw the same each time: with other numbers, an answer with several mistakes
    is told of another one first.
    """
    random.seed(exercise)
    if request.node.get_closest_marker("ray"):
        request.getfixturevalue("cluster")
    answers = bank_of(lesson)
    if hasattr(answers, "prepare"):
        answers.prepare()
    return answers.BANK[exercise]


def test_every_exercise_has_a_bank_and_every_bank_an_exercise(lesson, exercise_ids):
    assert sorted(bank_of(lesson).BANK) == sorted(exercise_ids)
    assert all(exercise.startswith(f"{lesson.number}.") for exercise in exercise_ids)


def test_right_answers_are_right(exercise, bank):
    assert len(bank["right"]) >= 2
    for number, answer in enumerate(bank["right"]):
        verdict = check(exercise, answer)
        assert verdict.outcome is Outcome.RIGHT, f"right answer {number}: {verdict!r}"


def test_wrong_answers_are_told_why(exercise, bank):
    assert len(bank["wrong"]) >= 3
    for number, (answer, message) in enumerate(bank["wrong"]):
        verdict = check(exercise, answer)
        assert verdict.outcome in (Outcome.NOT_YET, Outcome.COULD_NOT_CHECK), f"wrong answer {number}: {verdict!r}"
        assert message in repr(verdict), f"wrong answer {number}"
        verdict._repr_html_()


def test_a_blank_is_not_attempted(lesson, exercise):
    assert check(exercise, ...).outcome is Outcome.NOT_ATTEMPTED


def test_there_are_hints_and_a_solution(lesson, exercise):
    assert hint(exercise).of >= 2
    assert solution_code(exercise)
