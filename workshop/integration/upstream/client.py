"""What the HTTP clients have in common, whatever protocol they speak."""

from collections.abc import AsyncIterator
from typing import Any

from httpx2 import AsyncByteStream, Request, Response
from opentelemetry import propagate

from workshop.api.middleware import request_id
from workshop.logs import log_fields

CONNECT_TIMEOUT_S = 5.0
MAX_RETRIES = 2
MAX_RETRY_AFTER_S = 5.0
"""If a server asks for a longer pause, there is no retry: the caller is told when to come back."""
MAX_LINE_BYTES = 8 * 2**20
"""More than ``MAX_TEXTS`` embeddings take, which are one line. An event of a stream takes a few hundred bytes."""


async def pass_on(request: Request) -> None:
    """Send the trace and the id of the request that we work on."""
    propagate.inject(request.headers)
    if "request_id" in log_fields():
        request.headers[request_id.HEADER] = log_fields()["request_id"]


async def retry_only_soon(response: Response) -> None:
    """Make a client respect MAX_RETRY_AFTER_S. By default it waits for as long as it is told."""
    if retry_after_s(response) > MAX_RETRY_AFTER_S:
        response.headers["x-should-retry"] = "false"


def retry_after_s(response: Response | None) -> float:
    """When a server wants to be asked again, in seconds, within a day."""
    seconds = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(seconds), 86_400.0) if seconds.isdecimal() else 1.0


async def limit_lines(response: Response) -> None:
    """Make a client respect ``MAX_LINE_BYTES``. It collects a line in memory, and Anthropic's in quadratic time."""
    if isinstance(response.stream, AsyncByteStream):
        response.stream = _LimitedLines(response.stream)


class _LimitedLines(AsyncByteStream):
    def __init__(self, body: AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for piece in self._body:
            end = piece.rfind(b"\n")
            length = length + len(piece) if end < 0 else len(piece) - end - 1
            if length > MAX_LINE_BYTES:
                raise ValueError("a line is too long")
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


CLIENT_OPTIONS: dict[str, Any] = {
    "event_hooks": {"request": [pass_on], "response": [retry_only_soon, limit_lines]},
    "follow_redirects": False,
}
"""Of the HTTP clients. A redirect would take our key along, wherever it leads."""
