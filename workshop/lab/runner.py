"""Run a check on an answer, and turn whatever happens into a verdict."""

import gc
import inspect
import io
import json
import sys
import threading
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import httpx

from workshop.lab.answer import RUN_THE_ANSWER, UNUSED, Answer
from workshop.lab.app_server import interrupt
from workshop.lab.expectations import (
    CheckFailed,
    CouldNotCheck,
    NotAttempted,
    NotYet,
    TooLong,
    has_blank,
    show,
)
from workshop.lab.mistakes import ORIGIN_DEPTH, find_unawaited, is_array, missing_await, not_json, not_plain
from workshop.lab.registry import Exercise
from workshop.lab.standstill import STANDSTILL_S, StandstillWatch
from workshop.lab.tracebacks import codes, is_learners_file, last_line, stack, trace, without_ray
from workshop.lab.verdicts import Outcome, Verdict

GRACE = 3.0  # seconds beyond the limit of a check, for what it has to clean up
RUNS = 3  # at most, while the machine stands still again and again

WRONG_TYPE = (TypeError, AttributeError, LookupError, ValueError)
"""What a check raises when it works with something of another type or shape than it needs."""


def judge(task: Exercise, value: object) -> Verdict:
    """Run the check. If the machine stood still meanwhile, run it again: many checks measure time."""
    if has_blank(value):
        return _not_attempted(task)
    for _ in range(RUNS):
        with StandstillWatch() as watch:
            verdict = _judge_once(task, value)
        if watch.longest_s < STANDSTILL_S:
            break
    return verdict


def _judge_once(task: Exercise, value: object) -> Verdict:
    """Run the check in a thread of its own: the notebook's event loop is not disturbed, and a limit can be kept."""
    answer = Answer(value, task.seconds)
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(_run(task, answer)), name=f"check-{task.id}", daemon=True)
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "coroutine .* was never awaited", RuntimeWarning)
        gc.freeze()  # the search below leaves out what was there before: in a long session, that takes seconds
        thread.start()
        thread.join(task.seconds + GRACE)
        if not verdicts or verdicts[0].outcome is not Outcome.RIGHT:
            gc.collect()  # a coroutine that nobody awaited is reported now, and not while a later check runs
        gc.unfreeze()
    if verdicts:
        verdict = verdicts[0]
    else:
        verdict = _too_long(task, answer, task.seconds, stack(thread))
        interrupt(thread)
    if verdict.outcome is Outcome.RIGHT:
        return verdict
    for warning in caught:
        if not inspect.iscoroutine(warning.source):
            printed.write(warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno))
    lines = printed.getvalue()[-1000:].splitlines()[-10:]
    return replace(_with_mistake(verdict, answer, caught), printed="\n".join(lines))


def _run(task: Exercise, answer: Answer) -> Verdict:
    sys.set_coroutine_origin_tracking_depth(ORIGIN_DEPTH)  # of this thread
    try:
        task.check(answer)
        verdict = Verdict(task.id, Outcome.RIGHT, task.right)
    except NotAttempted:
        verdict = _not_attempted(task)
    except NotYet as no:
        verdict = Verdict(task.id, Outcome.NOT_YET, no.message, no.given or answer.given, no.expected, no.got)
    except TooLong as no:
        verdict = _too_long(task, answer, no.seconds, no.where)
    except CouldNotCheck as no:
        verdict = _failed(task, answer, no.error)
    except CheckFailed as no:
        verdict = Verdict(task.id, Outcome.CHECK_FAILED, no.message)
    except BaseException as error:
        if _is_learners(error, task):
            verdict = _failed(task, answer, error)
        elif isinstance(error, WRONG_TYPE) and answer.last is not UNUSED:
            verdict = _unusable(task, answer, error)
        else:
            verdict = _broken(task, answer, error)
    finally:
        answer.close()
    return verdict


def _is_learners(error: BaseException, task: Exercise) -> bool:
    """Whether the error comes from the learner's code, rather than from the check."""
    return any(
        code in RUN_THE_ANSWER or (is_learners_file(code.co_filename) and code is not task.check.__code__)
        for code in codes(error)
    )


def _not_attempted(task: Exercise) -> Verdict:
    return Verdict(task.id, Outcome.NOT_ATTEMPTED, "Replace the `...` above, then run the cell again.")


def _too_long(task: Exercise, answer: Answer, seconds: float, where: str) -> Verdict:
    message = f"No answer within {seconds:.2g} s."
    if where:
        message += " It was still busy here:"
    return Verdict(task.id, Outcome.NOT_YET, message, answer.given, traceback=where)


def _failed(task: Exercise, answer: Answer, error: BaseException) -> Verdict:
    """The learner's code has raised an error."""
    last = last_line(error)
    # The blank was called, added, returned as JSON, … An IndexError of NumPy names `...` as an index that it takes.
    if "ellipsis" in last.lower() and not isinstance(error, IndexError):
        return _not_attempted(task)
    message = "Your code stopped with an error."
    if isinstance(error, SystemExit):
        message = "Your code asked Python to exit."
    return Verdict(
        task.id, Outcome.COULD_NOT_CHECK, message, answer.given, traceback=trace(error) + last, error=without_ray(error)
    )


def _unusable(task: Exercise, answer: Answer, error: BaseException) -> Verdict:
    """The check has failed with what it got from the answer."""
    got = answer.last
    if isinstance(got, httpx.Response):
        got = got.text if got.is_closed else ""
    if got is None or (isinstance(got, str) and got == "null"):
        message = "This is None: is a `return` missing?"
    elif is_array(got):
        message = not_plain(got)
    elif isinstance(error, json.JSONDecodeError):
        message = "This is not JSON."
    else:
        message = f"The check cannot use this: {last_line(error)}."
    return Verdict(task.id, Outcome.NOT_YET, message, answer.given, got=show(got))


def _broken(task: Exercise, answer: Answer, error: BaseException) -> Verdict:
    """The check has failed, and the answer has nothing to do with it."""
    message = "The check itself failed: the fault is in the workshop or this machine, not in your answer."
    where = "".join(traceback.format_exception(error, limit=-3)).strip()
    return Verdict(task.id, Outcome.CHECK_FAILED, message, answer.given, traceback=where, error=error)


def _with_mistake(verdict: Verdict, answer: Answer, caught: list[warnings.WarningMessage]) -> Verdict:
    """The verdict, with a sentence on a missing `await`, or on a NumPy value that JSON cannot hold."""
    if verdict.outcome not in (Outcome.NOT_YET, Outcome.COULD_NOT_CHECK):
        return verdict
    coroutine = find_unawaited(answer.last, verdict.error, caught)
    if coroutine is not None:
        sentence = missing_await(coroutine)
        coroutine.close()  # or Python would warn of it in some later cell
    else:
        sentence = not_json(verdict.error) if verdict.error else ""
    return replace(verdict, message=f"{sentence} {verdict.message}".strip())
