"""The exercises of all lessons: each has an id, a check and hints.

A lesson's exercises are in `workshop/lab/exercises/lesson_NN.py`, which is imported when one of them is first used:

    @exercise("01.1", hints=["Multiply.", "`return` the product."])
    def doubles(answer: Answer) -> None:
        for number in (3, 0, -1):
            expect(answer.call(number), 2 * number, why="Twice the number.")
"""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass

from workshop.lab import exercises
from workshop.lab.answer import Answer

Check = Callable[[Answer], None]


@dataclass(frozen=True)
class Exercise:
    id: str
    check: Check
    hints: tuple[str, ...]
    right: str
    seconds: float


_exercises: dict[str, Exercise] = {}


def exercise(exercise_id: str, *, hints: list[str], right: str = "", seconds: float = 10.0) -> Callable[[Check], Check]:
    """Register the decorated function as the check of an exercise ("NN.n").

    `right` is shown with a right answer. `seconds` is the time limit of the whole check.
    """
    if not re.fullmatch(r"\d\d\.\d", exercise_id):
        raise ValueError(f'{exercise_id!r} is not an exercise id such as "04.3"')
    if not hints:
        raise ValueError(f"exercise {exercise_id} has no hint")

    def register(function: Check) -> Check:
        known = _exercises.get(exercise_id)
        if known and known.check.__qualname__ != function.__qualname__:
            raise ValueError(f"exercise {exercise_id} is registered twice")
        _exercises[exercise_id] = Exercise(exercise_id, function, tuple(hints), right, seconds)
        return function

    return register


def find_exercise(exercise_id: str) -> Exercise:
    """The exercise with this id. Raises LookupError, which lists all ids, if there is none."""
    lesson = f"{exercises.__name__}.lesson_{str(exercise_id).partition('.')[0]}"
    if exercise_id not in _exercises and importlib.util.find_spec(lesson):
        importlib.import_module(lesson)
    if exercise_id in _exercises:
        return _exercises[exercise_id]
    for module in pkgutil.iter_modules(exercises.__path__, f"{exercises.__name__}."):
        importlib.import_module(module.name)
    raise LookupError(f"There is no exercise {exercise_id!r}. There are: {', '.join(sorted(_exercises))}.")
