"""Limits on what clients may send before the application sees it: uvicorn has none for headers.

Used by our own uvicorn, and by the servers of Serve, which run uvicorn too: see ``ingress.server_middleware``.
"""

import asyncio
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workshop.api.errors import bare_problem
from workshop.api.middleware import request_id
from workshop.api.middleware.header_limit import MAX_HEADER_BYTES, TOO_LARGE
from workshop.api.middleware.security_headers import security_headers
from workshop.api.sockets import MAX_MESSAGE_BYTES
from workshop.machine import open_file_limit

MAX_CONNECTIONS = min(4096, open_file_limit() * 3 // 4)
"""In one process, idle ones and WebSockets included. The rest of the files is for models, databases and logs."""
HEADER_TIMEOUT_S = 10.0
"""From the first byte of a request to the last of its headers, and from the connection to its first request."""
BODY_TIMEOUT_S = 60.0
"""How long the rest of a body may take once nobody reads it. While it is read, the application has its own limit."""
FILES = "/v1/prediction-jobs"
"""Where a body may be as long as a file, below any path prefix."""
RETRY_AFTER_S = "5"
"""What a client is told whose connection is one too many."""
LINGER_S = 2.0
"""A client that is still sending reads our answer only if we do not close the connection at once."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection whose client sends headers of a limited size, in a limited time.

    Headers that are too large get a 431, those that are not HTTP a 400, and a connection too many a 503. A client
    that is too slow is disconnected. An answer in progress is never cut short.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unread = 0  # bytes since the last byte of a body: headers, trailers, and chunk framing
        self._is_refused = False
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again later")
        else:
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
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")

    def handle_websocket_upgrade(self) -> None:
        self._allow(None)  # another protocol takes over
        self.config.ws_max_size = MAX_MESSAGE_BYTES  # Serve has no option for it
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

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self._is_refused = True
        self._allow(None)
        if self._is_responding:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.cycle.keep_alive = False  # closes the connection after the answer
                return
            self.cycle.disconnected = True  # the application waits for a body that will not come
            self.cycle.message_event.set()
        self.transport.write(_refusal(status, detail))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


class BodyPauseMiddleware:
    """Reads no more of a body than the application accepts, which then responds with a 413.

    Serve's proxy reads bodies ahead of the application, all of it into memory, also those that nobody wants.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_file_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived = 0
        max_bytes = self.max_file_bytes if scope["path"].endswith(FILES) else self.max_bytes

        async def receive_until_too_long() -> Message:
            nonlocal arrived
            if arrived > max_bytes:
                await asyncio.Event().wait()  # until the response is complete, when the proxy stops reading
            message = await receive()
            arrived += len(message.get("body", b""))
            return message

        await self.app(scope, receive_until_too_long, send)


def _refusal(status: HTTPStatus, detail: str) -> bytes:
    problem = bare_problem(status, detail, str(uuid4()))
    body = problem.model_dump_json().encode()
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        request_id.HEADER: problem.request_id,
        **security_headers({"path": "", "scheme": ""}),
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_AFTER_S
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
