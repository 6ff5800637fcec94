"""Keeps WebSockets healthy: heartbeats, flow control and limits on connections.

uvicorn and Serve's proxy send protocol-level pings, which detect dead peers, but the application does not see them. And
Serve accepts everything an application sends, however slow the reader is, and buffers it in memory. So we send our own
pings, as messages: a ``pong`` confirms that the peer is alive and has read everything sent before the ping.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from secrets import token_hex

from fastapi import WebSocket, WebSocketDisconnect, WebSocketException, status
from pydantic import BaseModel

from workshop.api.clock import now
from workshop.api.schemas.chat import Ping, Pong
from workshop.contracts.errors import OverloadedError, RateLimitedError

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**18
"""Fits the longest text, in an alphabet of at most two bytes per character. Above 16 MiB, the server itself closes with
1009."""
HEARTBEAT_S = 20.0
"""Interval between pings. Many proxies drop a connection that is silent for a minute."""
PONG_TIMEOUT_S = 20.0
"""A peer that takes longer to read ``WINDOW`` characters is considered dead."""
WINDOW = 2**14
"""Unread characters before answers wait. At a round trip of 100 ms, this allows 160 000 characters per second."""
MAX_UNREAD = 2**18
"""The limit on unread characters. Errors and pongs, which cannot wait, may exceed the window up to this limit."""
CLOSE_TIMEOUT_S = 1.0
"""How long to wait for a closing handshake. A peer that has stopped reading does not answer it."""


class Peer:
    """The other side of an accepted WebSocket. Methods raise WebSocketDisconnect once the peer has left."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._unread = 0
        self._has_room = asyncio.Event()
        self._is_full = asyncio.Event()
        self._ping = Ping()
        self._pong_received = asyncio.Event()
        self._count(0)

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        Raises:
            WebSocketException: 1009, the message is too large.
        """
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", status.WS_1005_NO_STATUS_RCVD))
        message: str | bytes = event["text"] if event.get("text") is not None else event["bytes"]
        n_bytes = len(message.encode() if isinstance(message, str) else message)
        if n_bytes > MAX_MESSAGE_BYTES:
            reason = f"a message may have at most {MAX_MESSAGE_BYTES} bytes"
            raise WebSocketException(status.WS_1009_MESSAGE_TOO_BIG, reason)
        return message

    async def send(self, message: BaseModel) -> None:
        """Send a message. Callers that send much call ``drain`` in between.

        Raises:
            WebSocketException: 1008, the peer has left too much unread.
        """
        if self._unread > MAX_UNREAD:
            raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "too many unread messages")
        text = message.model_dump_json(exclude_none=True)
        self._count(len(text))
        try:
            await self._websocket.send_text(text)
        except RuntimeError:  # the server has closed the connection, but we have not received that event yet
            raise WebSocketDisconnect(status.WS_1006_ABNORMAL_CLOSURE) from None

    async def drain(self) -> None:
        """Wait until at most ``WINDOW`` characters are unread."""
        await self._has_room.wait()

    def pong(self, pong: Pong) -> None:
        """Note that the peer has read everything sent before our ping."""
        if pong.id == self._ping.id:
            self._pong_received.set()

    async def heartbeat(self) -> None:
        """Ping the peer regularly, and whenever the window is full.

        Raises:
            WebSocketException: 1011, the peer does not answer.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._is_full.wait()
            try:
                async with asyncio.timeout(PONG_TIMEOUT_S):
                    await self._ping_and_wait()
            except TimeoutError:
                raise WebSocketException(status.WS_1011_INTERNAL_ERROR, "no pong received") from None

    async def close(self, code: int, reason: str) -> None:
        """Close the connection if it is still open."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._websocket.close(code, reason)

    async def _ping_and_wait(self) -> None:
        self._ping = Ping(id=token_hex(4))  # random, so that only a peer that has read the ping can answer it
        self._pong_received.clear()
        sent_before = self._unread
        await self.send(self._ping)
        await self._pong_received.wait()
        self._count(-sent_before)

    def _count(self, characters: int) -> None:
        self._unread += characters
        if self._unread > WINDOW:
            self._is_full.set()
            self._has_room.clear()
        else:
            self._is_full.clear()
            self._has_room.set()


class ConnectionSlots:
    """Limits the number of open WebSockets in this process.

    Args:
        total: the limit for all callers together.
        per_caller: the limit for each caller.
    """

    def __init__(self, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._taken: Counter[str] = Counter()

    @contextmanager
    def reserve(self, caller: str) -> Iterator[None]:
        """Hold a slot during the block.

        Raises:
            OverloadedError: no slot is left.
            RateLimitedError: this caller has reached its limit.
        """
        if self._taken.total() >= self._total:
            raise OverloadedError("too many WebSockets are open; try again later")
        if self._taken[caller] >= self._per_caller:
            raise RateLimitedError(f"a caller may have at most {self._per_caller} WebSockets open", 1.0)
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1
            self._taken += Counter()  # drops callers whose count is zero


def is_cross_origin(websocket: WebSocket, allowed: Collection[str]) -> bool:
    """Whether the request comes from a page of another origin that is not allowed. Programs send no origin.

    Only the host is compared: behind a proxy that terminates TLS, the service does not know the scheme.
    """
    origin = websocket.headers.get("Origin", "").lower()
    _, _, host = origin.partition("://")
    return bool(origin) and host != websocket.headers.get("Host", "").lower() and origin not in allowed


async def close_at_expiry(expires: datetime | None) -> None:
    """Wait until a credential expires. Returns at once if it never does.

    Raises:
        WebSocketException: 1008, the credential has expired.
    """
    if expires is not None:
        await asyncio.sleep((expires - now()).total_seconds())
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "the credential has expired")


@asynccontextmanager
async def connection(websocket: WebSocket) -> AsyncIterator[tuple[Peer, asyncio.TaskGroup]]:
    """Yield the peer, and a group for tasks that end with the connection.

    The block must end with an exception: WebSocketDisconnect, or WebSocketException to close the connection.
    """
    peer = Peer(websocket)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(peer.heartbeat())
            yield peer, tasks
    except ExceptionGroup as group:
        match group.exceptions[0]:
            case WebSocketDisconnect():
                pass
            case WebSocketException(code=code, reason=reason):
                await peer.close(code, reason)
            case error:
                logger.error("%s: %s", websocket.url.path, error, exc_info=error)
                await peer.close(status.WS_1011_INTERNAL_ERROR, "something went wrong in the service")
