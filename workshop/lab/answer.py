"""The learner's answer, as a check sees it: call it, run it, serve it."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, cast

import httpx

from workshop.lab.app_server import Server, run_app
from workshop.lab.error_recorder import ErrorRecorder
from workshop.lab.expectations import CouldNotCheck, NotAttempted, NotYet, TooLong, has_blank, show
from workshop.lab.tracebacks import codes, stack, trace

E = TypeVar("E", bound=BaseException)

UNUSED = object()
"""The value of ``Answer.last`` while the check has not used the answer."""
SETTLED = 20
"""Turns of the event loop after which nothing more happens by itself."""
LATE_S = 1.0
"""How long to wait for the error of an app whose response has ended."""


class Answer:
    """What the learner gave, with ways to run it. `value` is the thing itself."""

    def __init__(self, value: Any, seconds: float = 10.0) -> None:
        self._value = value
        self.given = ""  # the last call or request, as a text
        self.last: Any = UNUSED  # what the check last got from the answer: itself, a result, a response
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._runner = asyncio.Runner()

    @property
    def value(self) -> Any:
        self.last = self._value
        return self._value

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the answer, await the result if it is awaitable, and return it.

        Lists, dicts, sets and arrays are copied first, so the learner's code cannot change the check's own.
        """
        return self.run(self._start(args, kwargs))

    def instance(self, *args: Any, methods: Sequence[str], **kwargs: Any) -> Any:
        """Call the answer, a class, and return the object; NotYet if it lacks one of the methods."""
        made = self.call(*args, **kwargs)
        for method in methods:
            if not callable(getattr(made, method, None)):
                raise NotYet(f"A class with a method `{method}` is needed here.", got=show(made))
        return made

    def together(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Call the async answer with each tuple of arguments and await them all at once."""

        started = [self._start(args, {}) for args in calls]
        for item in started:
            if item is ...:
                raise NotAttempted
            if not inspect.isawaitable(item):
                raise NotYet("An `async def` function is needed here.", got=show(self._value))

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
        if inspect.isawaitable(result):
            result = self._runner.run(self._await(result))
        if has_blank(result):
            raise NotAttempted
        self.last = result
        return result

    @contextmanager
    def serve(self, app: Any = None, *, allow_500: bool = False, seconds: float = 5.0) -> Iterator[Client]:
        """Serve the answer, or an ASGI app that uses it, on a free port and yield an HTTP client for it.

        An error that the app does not handle ends the check, with its traceback, unless `allow_500`.
        `seconds` is the time limit of a request.
        """
        app = self._value if app is None else app
        if not _is_app(app):
            raise NotYet("A FastAPI app is needed here.", got=show(app))
        recorder = ErrorRecorder(app)
        name = f"check-{id(recorder)}"
        with (
            _muted_log("uvicorn.error", f"server-{name}"),
            _started(recorder, name) as server,
            Client(self, server.url, seconds) as client,
        ):
            client.errors = [] if allow_500 else recorder.errors
            try:
                yield client
            except (Exception, NotYet) as error:
                from_client = RUN_THE_ANSWER.isdisjoint(codes(error))  # raised by the check's client, not by the answer
                if isinstance(error, httpx.TimeoutException) and from_client:
                    raise TooLong(seconds, stack(server.thread)) from error
                recorder.wait_for_late_errors(LATE_S)
                if client.errors:  # the app's own error is more helpful than its consequence
                    raise CouldNotCheck(client.errors[-1]) from error
                if isinstance(error, httpx.TransportError) and from_client:
                    raise NotYet("The app did not complete its response.", got=str(error)) from error
                raise

    def close(self) -> None:
        self._runner.close()

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not callable(self._value):
            raise NotYet("A function is needed here.", got=show(self._value))
        name = getattr(self._value, "__name__", "answer")
        shown = [show(arg, 120) for arg in args] + [f"{key}={show(arg, 120)}" for key, arg in kwargs.items()]
        self.given = f"{'answer' if name == '<lambda>' else name}({', '.join(shown)})"
        if inspect.isroutine(self._value):
            try:
                inspect.signature(self._value).bind(*args, **kwargs)
            except TypeError as error:
                raise NotYet(f"The function does not take these arguments: {error}.") from None
            except ValueError:  # some builtins have no signature
                pass
        return self._value(*map(_copied, args), **{key: _copied(arg) for key, arg in kwargs.items()})

    async def _await(self, result: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()) as limit:
                return await result
        except TimeoutError as error:
            if limit.expired():
                raise TooLong(self._seconds, trace(error.__context__ or error)) from None
            raise


RUN_THE_ANSWER = {function.__code__ for function in (Answer._start, Answer._await, Answer.collect)}
"""An error that comes through one of these was raised by the learner's code, or by what that has called."""


class Client(httpx.Client):
    """An `httpx.Client` of the learner's app."""

    def __init__(self, answer: Answer, url: str, seconds: float) -> None:
        hooks: dict[str, list[Callable[..., Any]]] = {"request": [self._note], "response": [self._keep]}
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

    def _keep(self, response: httpx.Response) -> None:
        self._answer.last = response
        if response.status_code == 500 and self.errors:
            raise CouldNotCheck(self.errors[-1])


def _is_app(value: object) -> bool:
    """Whether `value` can be called with scope, receive and send. A class can, but sends no response."""
    if not callable(value) or isinstance(value, type):
        return False
    try:
        inspect.signature(value).bind(None, None, None)
    except TypeError:
        return False
    return True


def _started(app: ErrorRecorder, name: str) -> Server:
    try:
        return run_app(app, name=name)
    except Exception as error:
        raise CouldNotCheck(error) from error


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


async def settle() -> None:
    """Let everything that can go on do so, until it waits for something."""
    for _ in range(SETTLED):
        await asyncio.sleep(0)


def outcome_of(call: asyncio.Future[Any]) -> str:
    """What has become of a call, for a verdict."""
    if not call.done():
        return "it waits"
    if call.cancelled():
        return "it was cancelled"
    error = call.exception()
    return f"{type(error).__name__} is raised" if error else f"{show(call.result())} is returned"


async def _first(items: AsyncIterator[Any], limit: int) -> list[Any]:
    got: list[Any] = []
    async for item in items:
        got.append(item)
        if len(got) == limit:
            break
    return got


def _copied(value: Any) -> Any:
    is_data = isinstance(value, list | dict | set | tuple | bytearray) or hasattr(type(value), "__array__")
    return copy.deepcopy(value) if is_data else value


def _text(request: httpx.Request) -> str:
    try:
        body = request.content.decode()
    except (httpx.RequestNotRead, UnicodeDecodeError):
        return ""
    return body if len(body) <= 200 else f"{body[:200]} …"
