"""Limits on what a client may send before the application sees it: uvicorn has none for headers.

Used by our own uvicorn, and by the proxies of Serve, which run uvicorn too: see ``proxy_middleware``.
"""

import asyncio
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import uvicorn.protocols.http.auto
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workshop.api.clock import now
from workshop.api.errors import Problem
from workshop.api.middleware import request_id
from workshop.api.middleware.header_limit import MAX_HEADER_BYTES, TOO_LARGE
from workshop.api.middleware.request_id import RequestIdMiddleware

HEADER_TIMEOUT_S = 10.0
"""From the first byte of a request to the last of its headers, and from the connection to its first request."""
BODY_TIMEOUT_S = 60.0
"""How long the rest of a body may take once nobody reads it. While it is read, the application has its own limit."""
LINGER_S = 2.0
"""A client that is still sending reads our answer only if we do not close the connection at once."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection whose client sends headers of a limited size, in a limited time.

    Headers that are too large get a 431; a client that is too slow is disconnected. An answer in progress is
    never cut short.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unread = 0  # bytes since the last byte of a body: headers, trailers, and chunk framing
        self._is_refused = False
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._allow(HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._allow(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unread += len(data)
        if self._limit is None:
            self._allow(HEADER_TIMEOUT_S)
        super().data_received(data)
        if self._unread > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse()

    def handle_websocket_upgrade(self) -> None:
        self._allow(None)  # another protocol takes over
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        self._unread = 0
        self._allow(BODY_TIMEOUT_S)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        self._allow(None)
        super().on_message_complete()

    @property
    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _allow(self, seconds: float | None) -> None:
        """Give the client this long from now on; None is no limit."""
        if self._limit is not None:
            self._limit.cancel()
        self._limit = None if seconds is None else self.loop.call_later(seconds, self._on_limit)

    def _on_limit(self) -> None:
        if (
            self._is_responding
        ):  # the application is slow, not the client; or it is waiting for the body, within its own limit
            self._allow(HEADER_TIMEOUT_S)
        else:
            self.transport.close()

    def _refuse(self) -> None:
        self._is_refused = True
        self._allow(None)
        if self._is_responding:
            self.cycle.keep_alive = False  # closes the connection after the answer
            return
        self.transport.write(_refusal())
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def proxy_middleware() -> list[Middleware]:
    """Serve calls this in each proxy before it listens, by ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.

    There is no option for the protocol: the proxy asks uvicorn for its default one.
    """
    uvicorn.protocols.http.auto.AutoHTTPProtocol = LimitedHttpProtocol
    return [Middleware(RequestIdMiddleware)]  # Serve sends back whatever id a client sends


def _refusal() -> bytes:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    problem = Problem(
        title=status.phrase,
        status=status,
        detail=TOO_LARGE,
        instance="",
        error="RequestHeaderFieldsTooLarge",
        timestamp=now(),
        request_id=str(uuid4()),
    )
    body = problem.model_dump_json().encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n"
        f"{request_id.HEADER}: {problem.request_id}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
