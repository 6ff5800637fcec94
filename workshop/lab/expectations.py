"""What a check expects of an answer, and the exceptions that end a check."""

import inspect
import math
import re
import time
from collections.abc import Callable
from typing import Any, cast


class EndOfCheck(BaseException):
    """Ends a check. Not an Exception, so that an `except Exception` in a check lets it through."""


class NotYet(EndOfCheck):
    """The answer is wrong. The texts `given`, `expected` and `got` are shown with the message; `show` makes them."""

    def __init__(self, message: str, *, given: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(message)
        self.message, self.given, self.expected, self.got = message, given, expected, got


class NotAttempted(EndOfCheck):
    """A blank (`...`) is still there."""


class CouldNotCheck(EndOfCheck):
    """The learner's code failed with `error`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(type(error)))
        self.error = error


class TooLong(EndOfCheck):
    """The learner's code did not finish in time. `where` is the part of its stack that the learner wrote."""

    def __init__(self, seconds: float, where: str) -> None:
        super().__init__(seconds)
        self.seconds, self.where = seconds, where


class CheckFailed(EndOfCheck):
    """The check cannot run, for a reason that is not in the answer, such as a Ray that is not running."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def expect(got: object, expected: object, *, why: str = "", given: str = "", exact: bool = False) -> None:
    """Raise NotYet unless `got` equals `expected`.

    Floats may differ by rounding, a tuple may stand for a list, an array or tensor for its list. A dict may have
    more keys than the expected one, at any depth, unless `exact` is true or the expected one is empty.
    `given` defaults to the last call or request made through the answer.
    """
    if has_blank(got):
        raise NotAttempted
    if _same(got, expected, exact):
        return
    if got is None:
        why = f"Got None: is a `return` missing? {why}"
    elif inspect.isawaitable(got) and not inspect.iscoroutine(got):  # of a coroutine, the verdict says more
        why = f"Got something that must be awaited: is an `await` missing? {why}"
    raise NotYet(why.strip(), given=given, expected=show(expected), got=show(got))


def becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds now, or within this time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def show(value: object, limit: int = 300) -> str:
    """`repr`, shortened and without addresses, for a value whose `__repr__` may be the learner's."""
    try:
        text = re.sub(r" at 0x[0-9a-fA-F]+>", ">", repr(value))
    except BaseException as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 20]} … {text[-17:]}"


def has_blank(value: object) -> bool:
    """Whether the value is `...`, or a container with `...` in it."""
    if type(value) is dict:
        return any(item is ... for item in value.values())
    if type(value) in (list, tuple, set):
        return any(item is ... for item in cast(list[object], value))
    return value is ...


def _same(got: Any, expected: Any, exact: bool) -> bool:
    got, expected = _plain(got), _plain(expected)
    if isinstance(expected, float) and isinstance(got, int | float):
        both_nan = math.isnan(expected) and math.isnan(got)
        return both_nan or math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        return len(got) == len(expected) and all(_same(*pair, exact) for pair in zip(got, expected, strict=True))
    if isinstance(expected, dict) and isinstance(got, dict):
        same_keys = got.keys() == expected.keys() if exact or not expected else got.keys() >= expected.keys()
        return same_keys and all(_same(got[key], expected[key], exact) for key in expected)
    return bool(got == expected)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(type(value), "tolist") else value
