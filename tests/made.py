"""The lessons' notebooks, built from their sources."""

from functools import cache
from typing import Any

from workshop.lab.build import Lesson, notebook


@cache
def made(lesson: Lesson, *, solved: bool) -> Any:
    """The notebook, built once per test run, since that takes a while. Do not modify it."""
    return notebook(lesson, solved=solved)
