"""Limits the total size of a request's path, query and headers."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from workshop.api.errors import problem_response

MAX_HEADER_BYTES = 2**15
"""Reverse proxies often allow less: nginx 32 kB in total, most others 8 to 16 kB."""
TOO_LARGE = f"path, query and headers together may have at most {MAX_HEADER_BYTES} bytes"


class HeaderLimitMiddleware:
    """Rejects requests with more than ``MAX_HEADER_BYTES`` with a 431."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _size(scope) > MAX_HEADER_BYTES:
            response = problem_response(Request(scope), HTTPException(431, TOO_LARGE, {"Connection": "close"}))
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _size(scope: Scope) -> int:
    separators = len(": \r\n")
    headers = sum(len(name) + len(value) + separators for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
