"""`check`, `hint` and `solution`, for learners."""

from dataclasses import replace

from workshop.lab import lessons
from workshop.lab.registry import find_exercise
from workshop.lab.runner import judge
from workshop.lab.tries import add_try, count_tries
from workshop.lab.verdicts import Hint, Outcome, Solution, Verdict

TRIES = 3  # before the solution opens

# What this kernel's learner has done.
_right: set[str] = set()
_hints_seen: dict[str, int] = {}


def check(exercise_id: str, answer: object) -> Verdict:
    """Judge `answer`. Raises LookupError if there is no such exercise, and nothing else.

    An answer that is not right, or cannot be checked, counts as a try. A check that fails by itself does not.
    """
    task = find_exercise(exercise_id)
    verdict = judge(task, answer)
    match verdict.outcome:
        case Outcome.RIGHT:
            _right.add(exercise_id)
        case Outcome.NOT_YET | Outcome.COULD_NOT_CHECK:
            if count_tries(exercise_id) < TRIES:
                add_try(exercise_id)
            helper = "hint" if count_tries(exercise_id) < TRIES else "solution"
            return replace(verdict, next_step=f'`{helper}("{exercise_id}")` helps.')
        case Outcome.CHECK_FAILED:
            return replace(verdict, next_step="This does not count as a try.")
    return verdict


def hint(exercise_id: str) -> Hint:
    """The next hint; the last one again when there are no more."""
    task = find_exercise(exercise_id)
    number = min(_hints_seen.get(exercise_id, 0) + 1, len(task.hints))
    _hints_seen[exercise_id] = number
    return Hint(exercise_id, number, len(task.hints), task.hints[number - 1])


def solution(exercise_id: str) -> Solution:
    """The answer's code, after a right answer or three tries."""
    find_exercise(exercise_id)
    tries_left = 0 if exercise_id in _right else TRIES - count_tries(exercise_id)
    if tries_left > 0:
        return Solution(exercise_id, tries_left=tries_left)
    return Solution(exercise_id, lessons.solution_code(exercise_id))
