"""A limit on the size of request bodies.

Starlette has such a middleware, and ``FastAPI(max_body_size=)`` uses it, but it answers in plain text, whatever the
application's error handlers say. This one raises, so that a 413 is a problem document like every other error.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Turns away bodies of more than ``max_bytes`` bytes: by their declared length, or while they arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_long = declared.isdigit() and int(declared) > self.max_bytes
        arrived = 0
        error = HTTPException(413, f"the body may have {self.max_bytes} bytes at most")

        async def receive_within_limit() -> Message:
            nonlocal arrived
            if too_long:
                raise error
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.max_bytes:
                raise error
            return message

        await self.app(scope, receive_within_limit, send)
