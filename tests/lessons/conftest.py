"""Every test here runs for each lesson, or each exercise, that `solutions/` holds: a new lesson needs no new test."""

import pytest

from tests.made import made
from workshop.lab.build import Lesson, lessons


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for each lesson if it takes `lesson`, and for each exercise if it also takes `exercise`."""
    if "exercise" in metafunc.fixturenames:
        cases = [
            pytest.param(lesson, exercise, id=exercise, marks=marks(lesson, metafunc))
            for lesson in lessons()
            for exercise in exercises_of(lesson)
        ]
        metafunc.parametrize(("lesson", "exercise"), cases)
    elif "lesson" in metafunc.fixturenames:
        cases = [pytest.param(lesson, id=lesson.source.stem, marks=marks(lesson, metafunc)) for lesson in lessons()]
        metafunc.parametrize("lesson", cases)


def marks(lesson: Lesson, metafunc: pytest.Metafunc) -> list[pytest.MarkDecorator]:
    """Markers of a test that runs the lesson's code: `ray` if its source says `workshop: {ray: true}`."""
    runs_notebook = "kernel_environment" in metafunc.fixturenames
    runs_code = runs_notebook or "bank" in metafunc.fixturenames
    on_ray = runs_code and made(lesson, solved=True).metadata.workshop.get("ray")
    return [pytest.mark.notebook] * runs_notebook + [pytest.mark.ray] * bool(on_ray)


def exercises_of(lesson: Lesson) -> list[str]:
    return [cell.metadata["exercise"] for cell in made(lesson, solved=True).cells if "exercise" in cell.metadata]


@pytest.fixture
def exercise_ids(lesson: Lesson) -> list[str]:
    """The ids of the lesson's exercises, in order."""
    return exercises_of(lesson)
