"""An ASGI app around the learner's, which keeps the errors that the learner's app does not handle."""

import asyncio
import sys
import threading

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from workshop.lab.mistakes import ORIGIN_DEPTH


class ErrorRecorder:
    """Keeps the errors that `app` does not handle. Holds a 500 back until the app has raised the error behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.errors: list[BaseException] = []
        self._n_ending = 0
        self._none_is_ending = threading.Condition()

    def wait_for_late_errors(self, seconds: float) -> None:
        """Wait until no call is about to end. After its whole response, the app may still raise an error."""
        with self._none_is_ending:
            self._none_is_ending.wait_for(lambda: not self._n_ending, seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sys.set_coroutine_origin_tracking_depth(ORIGIN_DEPTH)  # of this thread, which serves only this app
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []
        started = ending = False

        async def relay(message: Message) -> None:
            nonlocal started, ending
            started = True
            if message["type"] == "http.response.body" and not message.get("more_body") and not ending:
                ending = True
                self._count_ending(1)
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
        finally:
            if ending:
                self._count_ending(-1)
        for message in held:
            await send(message)

    def _count_ending(self, change: int) -> None:
        with self._none_is_ending:
            self._n_ending += change
            self._none_is_ending.notify_all()


def _reasons(error: BaseException) -> list[BaseException]:
    """The error itself, or those in a group such as a `TaskGroup` raises."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [reason for one in error.exceptions for reason in _reasons(one)]
