"""Limits the size of request bodies, and the time they take to arrive. Compressed ones are rejected.

Starlette has such a middleware, and ``FastAPI(max_body_size=)`` uses it, but it responds in plain text and bypasses the
application's error handlers. This one raises, so that a 413 is a problem document like every other error.
"""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """The most bytes of a body, and the most seconds from the headers to its end."""

    max_bytes: int
    timeout_s: float


class BodyLimitMiddleware:
    """Rejects bodies that are too long with a 413, by their declared length or while they arrive.

    Those that arrive too slowly are rejected with a 408. The time to answer does not count. A body in any content
    coding is rejected with a 415: a thousand times its size may be in it.

    Args:
        limit: of all routes. A route may replace ``request.state.body_limit`` before it reads the body.
    """

    def __init__(self, app: ASGIApp, limit: BodyLimit) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["body_limit"] = self.limit
        headers = Headers(scope=scope)
        length = declared_length(headers)
        is_compressed = _is_compressed(headers)
        arrived = 0
        start = asyncio.get_running_loop().time()
        is_complete = False

        async def receive_within_limits() -> Message:
            nonlocal arrived, is_complete
            limit: BodyLimit = state["body_limit"]
            if is_compressed:
                raise HTTPException(415, "the body must not be compressed", {"Accept-Encoding": "identity"})
            if length is not None and length > limit.max_bytes:
                raise _too_long(limit)
            try:
                async with asyncio.timeout_at(None if is_complete else start + limit.timeout_s):
                    message = await receive()
            except TimeoutError:
                detail = f"the body must arrive within {limit.timeout_s:g} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            is_complete = not message.get("more_body")
            arrived += len(message.get("body", b""))
            if arrived > limit.max_bytes:
                raise _too_long(limit)
            return message

        await self.app(scope, receive_within_limits, send)


def declared_length(headers: Headers) -> int | None:
    """The length of the body in bytes, if the client declares it."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _is_compressed(headers: Headers) -> bool:
    lines = headers.getlist("content-encoding")
    return any(coding.strip().lower() not in ("", "identity") for line in lines for coding in line.split(","))


def _too_long(limit: BodyLimit) -> HTTPException:
    return HTTPException(413, f"the body may have at most {limit.max_bytes} bytes")
