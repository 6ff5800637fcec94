"""Gives each request an id, taken from the caller or generated, and sends it back."""

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.logs import set_log_fields

HEADER = "X-Request-ID"
ALLOWED = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Any other value is replaced by a new id, and never sent back, stored or logged."""


class RequestIdMiddleware:
    """Puts the id into ``request.state.request_id``, into each line of the log, and into ``X-Request-ID``.

    A WebSocket has an id too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(HEADER, "")
        request_id = sent if ALLOWED.fullmatch(sent) else str(uuid4())
        MutableHeaders(scope=scope)[HEADER] = request_id
        scope.setdefault("state", {})["request_id"] = request_id
        set_log_fields(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept"}:
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)
