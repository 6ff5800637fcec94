"""Limits the size of request bodies, and the time they take to arrive.

Starlette has such a middleware, and ``FastAPI(max_body_size=)`` uses it, but it responds in plain text and bypasses the
application's error handlers. This one raises, so that a 413 is a problem document like every other error.
"""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Rejects bodies of more than ``max_bytes`` bytes with a 413, by their declared length or while they arrive.

    A body that has not arrived ``timeout_s`` seconds after the headers is rejected with a 408. The time to answer does
    not count.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        too_long = declared.isdigit() and int(declared) > self.max_bytes
        arrived = 0
        deadline: float | None = asyncio.get_running_loop().time() + self.timeout_s
        error = HTTPException(413, f"the body may have at most {self.max_bytes} bytes")
        too_slow = HTTPException(408, f"the body must arrive within {self.timeout_s:g} s", {"Connection": "close"})

        async def receive_within_limits() -> Message:
            nonlocal arrived, deadline
            if too_long:
                raise error
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise too_slow from None
            if not message.get("more_body"):
                deadline = None
            arrived += len(message.get("body", b""))
            if arrived > self.max_bytes:
                raise error
            return message

        await self.app(scope, receive_within_limits, send)
