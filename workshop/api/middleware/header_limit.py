"""A limit on the size of a request's headers, its path and its query."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from workshop.api.errors import problem_response

MAX_HEADER_BYTES = 2**15
"""Servers in front often allow less: nginx 32 kB together, most others 8 to 16 kB."""
TOO_LARGE = f"path, query and headers may have {MAX_HEADER_BYTES} bytes together"


class HeaderLimitMiddleware:
    """Turns away requests with more than ``MAX_HEADER_BYTES``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _size(scope) > MAX_HEADER_BYTES:
            answer = problem_response(Request(scope), HTTPException(431, TOO_LARGE, {"Connection": "close"}))
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _size(scope: Scope) -> int:
    separators = len(": \r\n")
    headers = sum(len(name) + len(value) + separators for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
