"""What the client of a request is told that the server ends before its time, because it stops."""

import asyncio
from contextlib import suppress

from starlette.requests import Request
from starlette.status import WS_1012_SERVICE_RESTART
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.errors import problem_response
from workshop.contracts.errors import UnavailableError

STOPPING = UnavailableError("the service stops, and another one may take over: ask again", retry_after_s=5.0)


class EndingMiddleware:
    """Answers for a request that is cancelled: with a 503, or with an error at the end of a stream.

    A stream puts a function into ``request.state.error_chunk`` that writes an error in the stream's own form.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._end_socket(scope, receive, send)
        elif scope["type"] == "http":
            await self._end_request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _end_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            with suppress(Exception):  # it may be closed already
                await send({"type": "websocket.close", "code": WS_1012_SERVICE_RESTART, "reason": STOPPING.message})

    async def _end_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = has_ended = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started, has_ended
            has_started = True
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        try:
            await self.app(scope, receive, send_and_note)
        except (asyncio.CancelledError, ExceptionGroup) as error:
            # FastAPI's server-sent events may raise a group when they are cancelled.
            if isinstance(error, ExceptionGroup) and not task.cancelling():
                raise
            # Not raised again: nothing is outside of this but the server, which wants an answer.
            request = Request(scope)
            if not has_started:
                await problem_response(request, STOPPING)(scope, receive, send)
            elif not has_ended and hasattr(request.state, "error_chunk"):
                await send({"type": "http.response.body", "body": request.state.error_chunk(STOPPING)})
