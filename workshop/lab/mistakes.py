"""Two mistakes whose error does not name them: a missing `await`, and a NumPy value in JSON."""

import inspect
import itertools
import linecache
import re
import traceback
import warnings
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeGuard

from workshop.lab.expectations import show
from workshop.lab.tracebacks import is_learners_file, last_line

ORIGIN_DEPTH = 10
"""How many frames of its creation a coroutine remembers, while a check runs."""


def find_unawaited(
    value: object, error: BaseException | None, caught: Iterable[warnings.WarningMessage]
) -> Coroutine[Any, Any, Any] | None:
    """A coroutine that the learner's code has not awaited.

    Args:
        value: what the answer returned.
        error: the error that ended it, if any.
        caught: warnings raised while it ran, including those about dropped coroutines.
    """
    held = itertools.chain(_inside(value), _values_in(error) if error and "coroutine" in last_line(error) else ())
    dropped = (warning.source for warning in caught if inspect.iscoroutine(warning.source) and _origin(warning.source))
    return next(itertools.chain(filter(_is_unawaited, held), dropped), None)


def is_array(value: object) -> bool:
    """Whether this is an array, a tensor, or a single value of an array's type."""
    return hasattr(type(value), "tolist")


def not_plain(value: object) -> str:
    """A sentence about an array, or one of its values, where a plain Python value is needed."""
    library = type(value).__module__.partition(".")[0]
    return f"`{show(value, 60)}` comes from {library}. A plain Python value is needed here: `.tolist()` makes one."


def missing_await(coroutine: Coroutine[Any, Any, Any]) -> str:
    """A sentence that says where the coroutine was made, as far as it is known."""
    name = getattr(coroutine, "__name__", "")
    if origin := _origin(coroutine):
        filename, line, _ = origin
        code = linecache.getline(filename, line).strip()
        return f"`{name}` was not awaited: is an `await` missing in line {line}" + (f", `{code}`?" if code else "?")
    return f"`{name}` was not awaited: is an `await` missing?"


def not_json(error: BaseException) -> str:
    """The sentence on an array that JSON cannot hold, if that is what the error says, else ""."""
    # What `json`, Pydantic and FastAPI say of a type that they do not know.
    if not re.search(r"JSON serializable|serialize unknown type|vars\(\) argument", last_line(error)):
        return ""
    return next((not_plain(value) for value in _values_in(error) if is_array(value)), "")


def _origin(coroutine: Any) -> tuple[str, int, str] | None:
    """File, line and function of the learner's code that made the coroutine."""
    return next((frame for frame in coroutine.cr_origin or () if is_learners_file(frame[0])), None)


def _is_unawaited(value: object) -> TypeGuard[Coroutine[Any, Any, Any]]:
    return inspect.iscoroutine(value) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED


def _values_in(error: BaseException) -> Iterator[object]:
    """What the variables of the error's frames hold, the innermost frame first, then those of its causes."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        for frame, _ in reversed(list(traceback.walk_tb(following.__traceback__))):
            for value in list(frame.f_locals.values()):
                yield from _inside(value)
        following = following.__cause__ or following.__context__


def _inside(value: object, depth: int = 3) -> Iterator[object]:
    """The value, and what it holds if it is a plain container."""
    yield value
    if depth and type(value) in (dict, list, tuple, set):
        for item in list(value.values() if type(value) is dict else value)[:1000]:  # type: ignore[call-overload]
            yield from _inside(item, depth - 1)
