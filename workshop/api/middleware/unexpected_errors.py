"""Responds to errors that nobody expected.

Starlette would do it outside of all other middleware: the response would lack its headers, and a page of another origin
could not read it.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.errors import problem_response


class UnexpectedErrorsMiddleware:
    """Responds with a problem document if the application raises before it has begun to respond.

    The error goes on, and the server logs it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if not has_started:
                await problem_response(Request(scope), error)(scope, receive, send)
            raise
