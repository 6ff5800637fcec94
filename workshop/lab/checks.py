"""Exercises and their checks.

A check looks at behaviour: it calls the learner's function or sends real HTTP to the learner's app. It never reads
source text. `check` never raises for anything that a learner's code does; every outcome is a `Verdict`.

A lesson's exercises are in `workshop/lab/exercises/lesson_NN.py`:

    @exercise("01.1", hints=["Multiply.", "`return` the product."])
    def doubles(answer: Answer) -> None:
        for number in (3, 0, -1):
            expect(answer.call(number), 2 * number, why="Twice the number.")
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import inspect
import io
import logging
import math
import pkgutil
import re
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from workshop.lab import exercises, lessons
from workshop.lab.serving import interrupt, run_app
from workshop.lab.verdicts import Hint, Outcome, Solution, Verdict

E = TypeVar("E", bound=BaseException)

TRIES = 3  # answers that are "not yet" before the solution opens
GRACE = 3.0  # seconds beyond the limit of a check, for what it has to tidy up

# ---------------------------------------------------------------------------------------------- for learners


def check(exercise_id: str, answer: object) -> Verdict:
    """Judge `answer`. Raises LookupError if there is no such exercise, and nothing else."""
    task = _find(exercise_id)
    verdict = _judge(task, answer)
    if verdict.outcome is Outcome.RIGHT:
        _right.add(exercise_id)
    elif verdict.outcome is Outcome.NOT_YET:
        _tries[exercise_id] = _tries.get(exercise_id, 0) + 1
        left = TRIES - _tries[exercise_id]
        helper = "hint" if left > 0 and task.hints else "solution"
        verdict = replace(verdict, next_step=f'`{helper}("{exercise_id}")` helps.')
    return verdict


def hint(exercise_id: str) -> Hint:
    """The next hint; the last one again when there are no more."""
    task = _find(exercise_id)
    number = min(_hints_seen.get(exercise_id, 0) + 1, len(task.hints))
    _hints_seen[exercise_id] = number
    return Hint(exercise_id, number, len(task.hints), task.hints[number - 1])


def solution(exercise_id: str) -> Solution:
    """The answer's code, after a right answer or three that were "not yet"."""
    _find(exercise_id)
    tries_left = 0 if exercise_id in _right else TRIES - _tries.get(exercise_id, 0)
    if tries_left > 0:
        return Solution(exercise_id, tries_left=tries_left)
    return Solution(exercise_id, lessons.solution_code(exercise_id))


# What this kernel's learner has done.
_right: set[str] = set()
_tries: dict[str, int] = {}
_hints_seen: dict[str, int] = {}


# ------------------------------------------------------------------------------------- for authors of checks


@dataclass(frozen=True)
class Exercise:
    id: str
    check: Callable[[Answer], None]
    hints: tuple[str, ...]
    right: str
    seconds: float


def exercise(
    exercise_id: str, *, hints: list[str], right: str = "", seconds: float = 10.0
) -> Callable[[Callable[[Answer], None]], Callable[[Answer], None]]:
    """Register the decorated function as the check of an exercise ("NN.n").

    `right` is said with a right answer. `seconds` is the time limit of the whole check.
    """
    if not re.fullmatch(r"\d\d\.\d", exercise_id):
        raise ValueError(f'{exercise_id!r} is not an exercise id such as "04.3"')
    if not hints:
        raise ValueError(f"exercise {exercise_id} has no hint")

    def register(function: Callable[[Answer], None]) -> Callable[[Answer], None]:
        known = _exercises.get(exercise_id)
        if known and known.check.__qualname__ != function.__qualname__:
            raise ValueError(f"exercise {exercise_id} is registered twice")
        _exercises[exercise_id] = Exercise(exercise_id, function, tuple(hints), right, seconds)
        return function

    return register


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


def expect(got: object, expected: object, *, why: str = "", given: str = "") -> None:
    """Raise NotYet unless `got` equals `expected`.

    Floats may differ by rounding, a tuple may stand for a list, an array or tensor for its list.
    `given` defaults to the last call or request made through the answer.
    """
    if _has_blank(got):
        raise NotAttempted
    if _same(got, expected):
        return
    if got is None:
        why = f"Got None: is a `return` missing? {why}"
    elif inspect.isawaitable(got):
        why = f"Got something that waits to be awaited: is an `await` missing? {why}"
    raise NotYet(why.strip(), given=given, expected=show(expected), got=show(got))


def comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds now, or within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def show(value: object, limit: int = 300) -> str:
    """`repr`, shortened, for a value whose `__repr__` may be the learner's."""
    try:
        text = repr(value)
    except BaseException as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 20]} … {text[-17:]}"


class Answer:
    """What the learner gave, with ways to run it. `value` is the thing itself."""

    def __init__(self, value: Any, seconds: float = 10.0) -> None:
        self.value = value
        self.given = ""  # the last call or request, as a text
        self._deadline = time.monotonic() + seconds
        self._runner = asyncio.Runner()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the answer, await the result if it is awaitable, and return it.

        Lists, dicts, sets and arrays are copied first, so the learner's code cannot change the check's own.
        """
        return self.run(self._start(args, kwargs))

    def together(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Call the async answer with each tuple of arguments and await them all at once."""

        started = [self._start(args, {}) for args in calls]
        for item in started:
            if item is ...:
                raise NotAttempted
            if not inspect.isawaitable(item):
                raise NotYet("An `async def` function is needed here.", got=show(self.value))

        async def gather() -> list[Any]:
            return await asyncio.gather(*started)

        return cast(list[Any], self.run(gather()))

    def collect(self, *args: Any, limit: int = 10_000, **kwargs: Any) -> list[Any]:
        """Call the answer, a generator function (sync or async), and return the list of what it yields."""
        made = self.call(*args, **kwargs)
        if isinstance(made, AsyncIterator):
            return cast(list[Any], self.run(_first(made, limit)))
        if isinstance(made, Iterator):
            return list(islice(made, limit))
        if made is None or isinstance(made, list | tuple):
            raise NotYet("A generator is needed here: `yield` each item.", got=show(made))
        raise NotYet("Nothing here can be iterated with `for` or `async for`.", got=show(made))

    def raises(self, expected: type[E], *args: Any, why: str = "", **kwargs: Any) -> E:
        """Call the answer and return the error of type `expected` that it raises; NotYet if it raises none."""
        try:
            got = self.call(*args, **kwargs)
        except expected as error:
            return error
        raise NotYet(why, expected=f"{expected.__name__} is raised", got=f"{show(got)} is returned")

    def run(self, result: Any) -> Any:
        """Await `result`, if it is awaitable, within the check's time limit."""
        if _has_blank(result):
            raise NotAttempted
        if not inspect.isawaitable(result):
            return result
        result = self._runner.run(self._await(result))
        if _has_blank(result):
            raise NotAttempted
        return result

    @contextmanager
    def serve(self, app: Any = None, *, allow_500: bool = False, seconds: float = 5.0) -> Iterator[Client]:
        """Serve the answer, or an ASGI app that uses it, on a free port and yield an HTTP client for it.

        An error that the app does not handle ends the check, with its traceback, unless `allow_500`.
        `seconds` is the time limit of a request.
        """
        app = self.value if app is None else app
        if not _is_app(app):
            raise NotYet("A FastAPI app is needed here.", got=show(app))
        recorder = _Recorder(app)
        name = f"check-{id(recorder)}"
        with (
            _muted_log("uvicorn.error", f"server-{name}"),
            run_app(recorder, name=name) as server,
            Client(self, server.url, seconds) as client,
        ):
            client.errors = [] if allow_500 else recorder.errors
            try:
                yield client
            except httpx.TimeoutException as error:
                raise _TooLong(seconds, _stack(server.thread)) from error
            except (Exception, NotYet) as error:  # what the app raised says more than what came of it
                if client.errors:
                    raise CouldNotCheck(client.errors[-1]) from error
                raise

    def close(self) -> None:
        self._runner.close()

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not callable(self.value):
            raise NotYet("A function is needed here.", got=show(self.value))
        name = getattr(self.value, "__name__", "answer")
        shown = [show(arg, 120) for arg in args] + [f"{key}={show(arg, 120)}" for key, arg in kwargs.items()]
        self.given = f"{'answer' if name == '<lambda>' else name}({', '.join(shown)})"
        if inspect.isroutine(self.value):
            try:
                inspect.signature(self.value).bind(*args, **kwargs)
            except TypeError as error:
                raise NotYet(f"The function does not take these arguments: {error}.") from None
            except ValueError:  # some builtins have no signature
                pass
        return self.value(*map(_copied, args), **{key: _copied(arg) for key, arg in kwargs.items()})

    async def _await(self, result: Awaitable[Any]) -> Any:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline - started) as limit:
                return await result
        except TimeoutError as error:
            if limit.expired():
                raise _TooLong(time.monotonic() - started, _trace(error.__cause__ or error)) from None
            raise


class Client(httpx.Client):
    """An `httpx.Client` of the learner's app."""

    def __init__(self, answer: Answer, url: str, seconds: float) -> None:
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [self._note], "response": [self._stop_at_500]}
        super().__init__(base_url=url, timeout=seconds, trust_env=False, event_hooks=hooks)
        self.errors: list[BaseException] = []
        self._answer = answer

    def together(self, times: int, method: str, url: str, **options: Any) -> list[httpx.Response]:
        """Send the same request `times` times at once."""
        with ThreadPoolExecutor(times) as pool:
            return list(pool.map(lambda _: self.request(method, url, **options), range(times)))

    def socket_url(self, path: str) -> str:
        """The address of a WebSocket route, for `websockets.sync.client.connect`."""
        return f"ws://{self.base_url.netloc.decode()}{path}"

    def _note(self, request: httpx.Request) -> None:
        url = request.url.raw_path.decode()
        self._answer.given = f"{request.method} {url} {_text(request)}".rstrip()

    def _stop_at_500(self, response: httpx.Response) -> None:
        if response.status_code == 500 and self.errors:
            raise CouldNotCheck(self.errors[-1])


# ------------------------------------------------------------------------------------------------- machinery

_exercises: dict[str, Exercise] = {}


def _find(exercise_id: str) -> Exercise:
    lesson = f"{exercises.__name__}.lesson_{str(exercise_id).partition('.')[0]}"
    if exercise_id not in _exercises and importlib.util.find_spec(lesson):
        importlib.import_module(lesson)
    if exercise_id in _exercises:
        return _exercises[exercise_id]
    for module in pkgutil.iter_modules(exercises.__path__, f"{exercises.__name__}."):
        importlib.import_module(module.name)
    raise LookupError(f"There is no exercise {exercise_id!r}. There are: {', '.join(sorted(_exercises))}.")


class _TooLong(EndOfCheck):
    def __init__(self, seconds: float, where: str) -> None:
        super().__init__(seconds)
        self.seconds, self.where = seconds, where


def _judge(task: Exercise, value: object) -> Verdict:
    """Run the check in a thread of its own: the notebook's event loop is not disturbed, and a limit can be kept."""
    answer = Answer(value, task.seconds)
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(_run(task, answer)), name=f"check-{task.id}", daemon=True)
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        thread.start()
        thread.join(task.seconds + GRACE)
    if verdicts:
        verdict = verdicts[0]
    else:
        verdict = _too_long(task, answer, task.seconds, _stack(thread))
        interrupt(thread)
    lines = printed.getvalue()[-1000:].splitlines()[-10:]
    return replace(verdict, printed="\n".join(lines) if verdict.outcome is not Outcome.RIGHT else "")


def _run(task: Exercise, answer: Answer) -> Verdict:
    try:
        if _has_blank(answer.value):
            raise NotAttempted
        task.check(answer)
        return Verdict(task.id, Outcome.RIGHT, task.right)
    except NotAttempted:
        return _not_attempted(task)
    except NotYet as no:
        given = no.given or answer.given
        return Verdict(task.id, Outcome.NOT_YET, no.message, given, no.expected, no.got)
    except _TooLong as no:
        return _too_long(task, answer, no.seconds, no.where)
    except CouldNotCheck as no:
        return _failed(task, answer, no.error)
    except BaseException as error:
        return _failed(task, answer, error)
    finally:
        answer.close()


def _not_attempted(task: Exercise) -> Verdict:
    return Verdict(task.id, Outcome.NOT_ATTEMPTED, "Replace the `...` above, then run the cell again.")


def _too_long(task: Exercise, answer: Answer, seconds: float, where: str) -> Verdict:
    message = f"No answer within {seconds:.2g} s."
    if where:
        message += " It was still busy here:"
    return Verdict(task.id, Outcome.NOT_YET, message, answer.given, traceback=where)


def _failed(task: Exercise, answer: Answer, error: BaseException) -> Verdict:
    last_line = "".join(traceback.format_exception_only(error)).strip()
    if "ellipsis" in last_line.lower():  # the blank was called, added, returned as JSON, …
        return _not_attempted(task)
    message = "Your code stopped with an error."
    if isinstance(error, SystemExit):
        message = "Your code asked Python to exit."
    text = _trace(error) + (last_line if len(last_line) <= 1500 else f"{last_line[:1500]} …")
    return Verdict(task.id, Outcome.COULD_NOT_CHECK, message, answer.given, traceback=text, error=error)


_NOT_THE_LEARNERS = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    f"{Path(__file__).parents[1]}/",
    "<frozen",
)


def _trace(error: BaseException) -> str:
    return _lines(traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__)))


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    frames = traceback.StackSummary.extract(traceback.walk_stack(frame)) if frame else traceback.StackSummary()
    frames.reverse()
    return _lines(frames)


def _lines(frames: traceback.StackSummary) -> str:
    """The learner's own frames, one or two lines each; the last ten if there are more."""
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_LEARNERS)]
    return "".join(
        f"line {frame.lineno}, in {frame.name}\n" + (f"    {frame.line}\n" if frame.line else "") for frame in own[-10:]
    )


class _Recorder:
    """Keeps the errors that `app` does not handle. Holds a 500 back until the app has raised what is behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.errors: list[BaseException] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []
        started = False

        async def relay(message: Message) -> None:
            nonlocal started
            started = True
            if held or message.get("status") == 500:
                held.append(message)
            else:
                await send(message)

        try:
            await self.app(scope, receive, relay)
        except BaseException as error:
            ends = (asyncio.CancelledError, ClientDisconnect, WebSocketDisconnect)
            reasons = [reason for reason in _reasons(error) if not isinstance(reason, ends)]
            if not reasons:
                raise
            self.errors.append(reasons[0])
            if (started and not held) or scope["type"] == "websocket":
                raise  # the server cuts the connection
            held = held or [{"type": "http.response.start", "status": 500}, {"type": "http.response.body"}]
        for message in held:
            await send(message)


def _reasons(error: BaseException) -> list[BaseException]:
    """The error itself, or those in a group such as a `TaskGroup` raises."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [reason for one in error.exceptions for reason in _reasons(one)]


def _is_app(value: object) -> bool:
    """Whether `value` can be called with scope, receive and send. A class can, but gives no answer."""
    if not callable(value) or isinstance(value, type):
        return False
    try:
        inspect.signature(value).bind(None, None, None)
    except TypeError:
        return False
    return True


@contextmanager
def _muted_log(logger: str, thread: str) -> Iterator[None]:
    """Drop what the server in `thread` logs: the verdict says it."""

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.threadName != thread

    logging.getLogger(logger).addFilter(elsewhere)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(elsewhere)


async def _first(items: AsyncIterator[Any], limit: int) -> list[Any]:
    got: list[Any] = []
    async for item in items:
        got.append(item)
        if len(got) == limit:
            break
    return got


def _has_blank(value: object) -> bool:
    if type(value) is dict:
        return any(item is ... for item in value.values())
    if type(value) in (list, tuple, set):
        return any(item is ... for item in cast(list[object], value))
    return value is ...


def _copied(value: Any) -> Any:
    is_data = isinstance(value, list | dict | set | tuple | bytearray) or hasattr(type(value), "__array__")
    return copy.deepcopy(value) if is_data else value


def _same(got: Any, expected: Any) -> bool:
    got, expected = _plain(got), _plain(expected)
    if isinstance(expected, float) and isinstance(got, int | float):
        both_nan = math.isnan(expected) and math.isnan(got)
        return both_nan or math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        return len(got) == len(expected) and all(map(_same, got, expected))
    if isinstance(expected, dict) and isinstance(got, dict):
        return got.keys() == expected.keys() and all(_same(got[key], expected[key]) for key in expected)
    return bool(got == expected)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(type(value), "tolist") else value


def _text(request: httpx.Request) -> str:
    try:
        body = request.content.decode()
    except (httpx.RequestNotRead, UnicodeDecodeError):
        return ""
    return body if len(body) <= 200 else f"{body[:200]} …"
