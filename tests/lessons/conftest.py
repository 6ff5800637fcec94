"""Every test here runs for each lesson, or each exercise, that `solutions/` holds: a new lesson needs no new test."""

import pytest

from tests.made import made
from workshop.lab.build import Lesson, lessons


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill the arguments `lesson`, and `exercise` with each exercise of it."""
    if "exercise" in metafunc.fixturenames:
        runs_code = "bank" in metafunc.fixturenames
        cases = [
            pytest.param(lesson, exercise, id=exercise, marks=marks(lesson) if runs_code else ())
            for lesson in lessons()
            for exercise in exercises_of(lesson)
        ]
        metafunc.parametrize(("lesson", "exercise"), cases)
    elif "lesson" in metafunc.fixturenames:
        metafunc.parametrize("lesson", [pytest.param(lesson, id=lesson.source.stem) for lesson in lessons()])


def marks(lesson: Lesson) -> list[pytest.MarkDecorator]:
    """`ray`, if the lesson's source says `workshop: {ray: true}`."""
    return [pytest.mark.ray] if made(lesson, solved=True).metadata.workshop.get("ray") else []


def exercises_of(lesson: Lesson) -> list[str]:
    return [cell.metadata["exercise"] for cell in made(lesson, solved=True).cells if "exercise" in cell.metadata]


@pytest.fixture
def exercise_ids(lesson: Lesson) -> list[str]:
    """The ids of the lesson's exercises, in order."""
    return exercises_of(lesson)
