"""Tells clients when the server ends their requests because it is shutting down."""

import asyncio
from contextlib import suppress

from starlette.requests import Request
from starlette.status import WS_1012_SERVICE_RESTART
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.errors import problem_response
from workshop.contracts.errors import UnavailableError

STOPPING = UnavailableError("the service is shutting down; try again", retry_after_s=5.0)


class ShutdownMiddleware:
    """Responds to a cancelled request with a 503, or with an error at the end of its stream.

    A streaming endpoint sets ``request.state.error_chunk`` to a function that encodes an error in the stream's format.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._handle_websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._handle_http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            with suppress(Exception):  # it may be closed already
                await send({"type": "websocket.close", "code": WS_1012_SERVICE_RESTART, "reason": STOPPING.message})

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = has_ended = False

        async def send_and_track(message: Message) -> None:
            nonlocal has_started, has_ended
            has_started = True
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        try:
            await self.app(scope, receive, send_and_track)
        except (asyncio.CancelledError, ExceptionGroup) as error:
            # FastAPI's server-sent events may raise a group when cancelled.
            if isinstance(error, ExceptionGroup) and not task.cancelling():
                raise
            # Not raised again: only the server is outside this middleware, and it expects a response.
            request = Request(scope)
            if not has_started:
                await problem_response(request, STOPPING)(scope, receive, send)
            elif not has_ended and hasattr(request.state, "error_chunk"):
                await send({"type": "http.response.body", "body": request.state.error_chunk(STOPPING)})
