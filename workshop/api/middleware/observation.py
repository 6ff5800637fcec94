"""Counts and logs each request when it has ended, and each WebSocket when it is closed."""

import logging
import time

from starlette.status import WS_1000_NORMAL_CLOSURE, WS_1005_NO_STATUS_RCVD
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.metrics import OTHER, count_request
from workshop.contracts.metrics import MetricStore

logger = logging.getLogger(__name__)

CANCELLED = 499
"""The status of a request that ended without a response: the client has left, or the service is shutting down."""
MAX_PATH = 200
"""The most characters of a path that are logged."""


class ObservationMiddleware:
    """Counts HTTP requests, and writes a line into the log for each of them and for each WebSocket.

    The log has the path as well as the route's template, but never the query, which may contain a credential.

    Args:
        app: the application.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: MetricStore) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = CANCELLED

        async def send_and_note(message: Message) -> None:
            nonlocal status
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                case "websocket.close":
                    status = message.get("code", WS_1000_NORMAL_CLOSURE)
            await send(message)

        async def receive_and_note() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "websocket.disconnect":
                status = message.get("code", WS_1005_NO_STATUS_RCVD)
            return message

        try:
            await self.app(scope, receive if scope["type"] == "http" else receive_and_note, send_and_note)
        except Exception:
            if status == CANCELLED:
                status = 500  # Starlette sends it, outside of all other middleware
            raise
        finally:
            seconds, route = time.perf_counter() - start, _route(scope)
            method = scope.get("method", "WEBSOCKET")
            if scope["type"] == "http":
                count_request(self.metrics, method, route, status, seconds)
            what = {"method": method, "route": route, "path": scope["path"][:MAX_PATH]}
            how = {"status": status, "duration_ms": round(1000 * seconds, 3)}
            logger.info("%s %s %d", method, what["path"], status, extra=what | how)


def _route(scope: Scope) -> str:
    """The template of the route's path, such as ``/v1/cases/{case_id}``, after the request was handled."""
    context = scope.get("fastapi", {}).get("effective_route_context")
    route = getattr(context, "starlette_route", None) or context  # the former for a WebSocket
    return getattr(route, "path_format", None) or OTHER
