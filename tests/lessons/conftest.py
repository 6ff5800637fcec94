"""Every test here runs for each lesson, or each exercise, that `solutions/` holds: a new lesson needs no new test."""

import pytest

from tests.cluster import cluster
from workshop.lab.build import Lesson, lessons, notebook

__all__ = ["cluster"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ray: starts a Ray cluster")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill the arguments `lesson`, and `exercise` with each exercise of it."""
    if "exercise" in metafunc.fixturenames:
        cases = [
            pytest.param(lesson, exercise, id=exercise, marks=marks(lesson))
            for lesson in lessons()
            for exercise in exercises_of(lesson)
        ]
        metafunc.parametrize(("lesson", "exercise"), cases)
    elif "lesson" in metafunc.fixturenames:
        cases = [pytest.param(lesson, id=lesson.source.stem, marks=marks(lesson)) for lesson in lessons()]
        metafunc.parametrize("lesson", cases)


def marks(lesson: Lesson) -> list[pytest.MarkDecorator]:
    """`ray`, if the lesson's source says `workshop: {ray: true}`."""
    return [pytest.mark.ray] if notebook(lesson, solved=True).metadata.workshop.get("ray") else []


def exercises_of(lesson: Lesson) -> list[str]:
    cells = notebook(lesson, solved=True).cells
    return [cell.metadata["exercise"] for cell in cells if "exercise" in cell.metadata]


@pytest.fixture
def exercise_ids(lesson: Lesson) -> list[str]:
    """The ids of the lesson's exercises, in order."""
    return exercises_of(lesson)
