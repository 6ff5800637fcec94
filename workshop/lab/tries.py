"""How often the learner has tried each exercise.

The tries are kept in a file, so that they outlast the kernel: each is a line with the id of the exercise. Several
notebooks may append to it at the same time. A damaged line is ignored. Where the file cannot be written, the tries last
as long as the kernel; `LAB_TRIES_FILE` names a file elsewhere.
"""

import os
from pathlib import Path

from workshop.settings import PROJECT

FILE = Path(os.environ.get("LAB_TRIES_FILE", PROJECT / ".tries"))

_unsaved: list[str] = []


def add_try(exercise_id: str) -> None:
    """Count one more try."""
    try:
        with FILE.open("a", encoding="utf-8") as file:
            file.write(f"{exercise_id}\n")
    except OSError:
        _unsaved.append(exercise_id)


def count_tries(exercise_id: str) -> int:
    """The tries so far, in this kernel and those before it."""
    try:
        saved = FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        saved = []
    return [*saved, *_unsaved].count(exercise_id)
