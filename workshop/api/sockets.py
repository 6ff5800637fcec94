"""What keeps a WebSocket healthy, whatever is said on it.

uvicorn and Serve's proxy send pings of the protocol, which find dead peers, but the application sees nothing of them.
And Serve takes all that an application sends, however slow its reader is, and keeps it in memory. So we send pings of
our own, as messages: a ``pong`` says that the peer is there, and that it has read all that was sent before the ping.
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
"""The longest text fits, whatever JSON makes of its characters. Above 16 MiB, the server itself says 1009."""
HEARTBEAT_S = 20.0
"""From ping to ping. Many proxies cut a connection that is silent for a minute."""
PONG_TIMEOUT_S = 20.0
"""Whoever needs longer to read ``WINDOW`` characters is taken for dead."""
WINDOW = 2**14
"""Characters that may be unread before answers wait. At 100 ms to the peer and back: 160 000 a second."""
MAX_UNREAD = 2**18
"""Characters that may be unread at all: errors and pongs, which cannot wait, come on top of the window."""
CLOSE_TIMEOUT_S = 1.0
"""Who does not read does not read why we close either."""


class Peer:
    """The other side of an accepted WebSocket. Its methods raise WebSocketDisconnect once it has left."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._unread = 0
        self._has_room = asyncio.Event()
        self._is_full = asyncio.Event()
        self._ping = Ping()
        self._ponged = asyncio.Event()
        self._count(0)

    async def receive(self) -> str | bytes:
        """The next message.

        Raises:
            WebSocketException: 1009, it is too large.
        """
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", status.WS_1005_NO_STATUS_RCVD))
        message: str | bytes = event["text"] if event.get("text") is not None else event["bytes"]
        n_bytes = len(message.encode() if isinstance(message, str) else message)
        if n_bytes > MAX_MESSAGE_BYTES:
            reason = f"a message may have {MAX_MESSAGE_BYTES} bytes"
            raise WebSocketException(status.WS_1009_MESSAGE_TOO_BIG, reason)
        return message

    async def send(self, message: BaseModel) -> None:
        """Send a message. Who has much to say asks for ``room`` before.

        Raises:
            WebSocketException: 1008, the peer has left too much unread.
        """
        if self._unread > MAX_UNREAD:
            raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "read before you send more")
        text = message.model_dump_json(exclude_none=True)
        self._count(len(text))
        try:
            await self._websocket.send_text(text)
        except RuntimeError:  # the server has closed it, and we have not read yet that it has
            raise WebSocketDisconnect(status.WS_1006_ABNORMAL_CLOSURE) from None

    async def room(self) -> None:
        """Wait until the peer has read what it was sent, but for a window."""
        await self._has_room.wait()

    def pong(self, pong: Pong) -> None:
        """The peer has read all that was sent before our ping."""
        if pong.id == self._ping.id:
            self._ponged.set()

    async def heartbeat(self) -> None:
        """Ask, from time to time and whenever the window is full, how far the peer is.

        Raises:
            WebSocketException: 1011, it does not say.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_full.wait(), HEARTBEAT_S)
            try:
                async with asyncio.timeout(PONG_TIMEOUT_S):
                    await self._ask_whether_it_reads()
            except TimeoutError:
                raise WebSocketException(status.WS_1011_INTERNAL_ERROR, "no pong came") from None

    async def close(self, code: int, reason: str) -> None:
        """Close the connection, if it is still open."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._websocket.close(code, reason)

    async def _ask_whether_it_reads(self) -> None:
        self._ping = Ping(id=token_hex(4))  # nobody can answer it who has not read it
        self._ponged.clear()
        sent_before = self._unread
        await self.send(self._ping)
        await self._ponged.wait()
        self._count(-sent_before)

    def _count(self, characters: int) -> None:
        self._unread += characters
        if self._unread > WINDOW:
            self._is_full.set()
            self._has_room.clear()
        else:
            self._is_full.clear()
            self._has_room.set()


class Places:
    """How many WebSockets are open in this process.

    Args:
        total: how many there may be.
        per_caller: how many of them may be of one caller.
    """

    def __init__(self, total: int, per_caller: int) -> None:
        self._total = total
        self._per_caller = per_caller
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken_by(self, caller: str) -> Iterator[None]:
        """Take a place for the length of the block.

        Raises:
            OverloadedError: there is none left.
            RateLimitedError: this caller has as many as it may have.
        """
        if self._taken.total() >= self._total:
            raise OverloadedError("too many WebSockets are open; try again later")
        if self._taken[caller] >= self._per_caller:
            raise RateLimitedError(f"a caller may have {self._per_caller} WebSockets open", 1.0)
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1
            self._taken += Counter()  # forgets callers who have none left


def is_foreign(websocket: WebSocket, allowed: Collection[str]) -> bool:
    """Whether a page of another origin asks, which is not among the allowed. A program sends no origin.

    Only the host is compared: behind a proxy that speaks TLS, the service does not learn the scheme.
    """
    origin = websocket.headers.get("Origin", "").lower()
    _, _, host = origin.partition("://")
    return bool(origin) and host != websocket.headers.get("Host", "").lower() and origin not in allowed


async def end_at(expires: datetime | None) -> None:
    """Wait until a credential ends, if it does.

    Raises:
        WebSocketException: 1008, it has ended.
    """
    if expires is not None:
        await asyncio.sleep((expires - now()).total_seconds())
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "the key has expired")


@asynccontextmanager
async def connection(websocket: WebSocket) -> AsyncIterator[tuple[Peer, asyncio.TaskGroup]]:
    """The peer, and a group for tasks that end with the connection.

    The block ends with an error, whatever happens: WebSocketDisconnect, or WebSocketException to close the connection.
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
