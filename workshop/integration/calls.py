"""The one way to call a deployment. No Ray type and no Ray exception leaves this file."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError, UnserializableException
from ray.serve import context as serve_context
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from workshop.contracts.errors import ModelFailedError, OverloadedError, ServiceError, UnavailableError
from workshop.contracts.services import PROBE_TIMEOUT_S
from workshop.integration.deadline import deadline, each_in_time
from workshop.logs import log_fields

Given = ParamSpec("Given")
Result = TypeVar("Result")


@contextmanager
def contract_errors() -> Iterator[None]:
    """Turn what a handle raises into what the contract promises.

    | Ray                                         | contract           |
    |---------------------------------------------|--------------------|
    | a contract's error raised in the replica    | that error         |
    | any other error raised in the replica       | ModelFailedError   |
    | an error that cannot be unpickled here      | ModelFailedError   |
    | BackPressureError                           | OverloadedError    |
    | a replica that died or never came up        | UnavailableError   |
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ServiceError):
            raise error.cause from error
        raise ModelFailedError("the model failed") from error
    except UnserializableException as error:
        raise ModelFailedError("the model failed") from error
    except BackPressureError as error:
        raise OverloadedError("the model's queue is full", error.retry_after_s or 1.0) from error
    except (RayServeException, RayError) as error:
        raise UnavailableError("the model is not available") from error


RETRY_PAUSES_S = (0.05, 0.1, 0.2)
"""Before a call is tried again. Serve chooses a replica, and soon knows which one is gone."""


class Calls:
    """The one way to call a deployment: within a time limit, and with the contract's errors.

    A call whose replica ends is tried again with another one, and so is a stream that has not begun. That is safe: all
    methods of our deployments may be called twice. After a few tries it is an UnavailableError, so that a request that
    crashes its replica does not crash all of them.

    When the time is up or the caller is cancelled, the call is cancelled too. If it still waits for a replica, it never
    starts. In a replica, an ``async def`` method is cancelled, and with it the calls that it awaits. A plain method
    runs in a thread, which cannot be stopped: it runs to its end, and occupies its place in the replica until then.

    Args:
        handle: the deployment's handle.
        timeout_s: for a call, its wait for a replica included; for a stream, for each next piece.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._bound = handle
        self._timeout_s = timeout_s

    @cached_property
    def _handle(self) -> DeploymentHandle[Any]:
        """Calls through Ray, also where ``RAY_SERVE_USE_GRPC_BY_DEFAULT`` is set: gRPC has other errors.

        Made late: until the service runs, Serve has not replaced what was bound by a handle.
        """
        return self._bound.options(_by_reference=True)

    async def __call__(
        self,
        method: Callable[Concatenate[Any, Given], Awaitable[Result] | Result],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Result:
        """What a method of the deployment's class returns."""
        return await self._within(self._timeout_s, RETRY_PAUSES_S, method, *args, **kwargs)

    async def probe(
        self,
        method: Callable[Concatenate[Any, Given], Awaitable[Result] | Result],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Result:
        """The same for a method that a healthy replica answers at once: within ``PROBE_TIMEOUT_S``, in one try."""
        return await self._within(PROBE_TIMEOUT_S, (), method, *args, **kwargs)

    async def _within(
        self,
        timeout_s: float,
        pauses_s: Sequence[float],
        method: Callable[Concatenate[Any, Given], Awaitable[Result] | Result],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Result:
        async with deadline(timeout_s):
            for pause_s in (*pauses_s, None):
                try:
                    with contract_errors():
                        _pass_request_id_on()
                        response = getattr(self._handle, method.__name__).remote(*args, **kwargs)
                        try:
                            result: Result = await response
                        except asyncio.CancelledError:
                            response.cancel()
                            raise
                        return result
                except UnavailableError as error:
                    await _pause_or_fail(error, pause_s)
        raise AssertionError("the last try returns or raises")

    def stream(
        self,
        method: Callable[Concatenate[Any, Given], AsyncGenerator[Result, None]],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> AsyncGenerator[Result, None]:
        """What a method of the deployment's class yields. Closing the stream cancels the call."""

        async def pieces() -> AsyncGenerator[Result, None]:
            has_begun = False
            for pause_s in (*RETRY_PAUSES_S, None):
                try:
                    with contract_errors():
                        _pass_request_id_on()
                        response = getattr(self._handle.options(stream=True), method.__name__).remote(*args, **kwargs)
                        try:
                            async for piece in response:
                                has_begun = True
                                yield piece
                        finally:
                            response.cancel()  # does nothing once the stream has ended
                        return
                except UnavailableError as error:
                    await _pause_or_fail(error, None if has_begun else pause_s)

        return each_in_time(pieces(), self._timeout_s)


async def _pause_or_fail(error: UnavailableError, pause_s: float | None) -> None:
    """Wait before the next try. Raise the error if there is none, or if the replica has not ended."""
    if pause_s is None or not isinstance(error.__cause__, RayActorError):
        raise error
    await asyncio.sleep(pause_s)


def _pass_request_id_on() -> None:
    """Make Serve send our request id with the calls of this task, for the replica's log: see ``call_fields``.

    Serve itself would send whatever id the client has sent, and a new one for a batch of requests.
    """
    if request_id := log_fields().get("request_id"):
        context = serve_context._get_serve_request_context()
        if context.request_id != request_id:
            serve_context._serve_request_context.set(replace(context, request_id=request_id))  # type: ignore[arg-type]
