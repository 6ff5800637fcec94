"""The lessons' notebooks as their sources make them."""

from functools import cache
from typing import Any

from workshop.lab.build import Lesson, notebook


@cache
def made(lesson: Lesson, *, solved: bool) -> Any:
    """The notebook, made once in a test run, since it takes a while. Do not change it."""
    return notebook(lesson, solved=solved)
