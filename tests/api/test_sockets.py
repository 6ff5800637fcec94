"""Limits on open WebSockets, allowed origins, and addresses behind proxies."""

import asyncio
from contextlib import ExitStack
from socket import SHUT_RDWR

import pytest
from starlette.websockets import WebSocket, WebSocketState
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.service import until
from workshop.api.schemas.chat import Text
from workshop.api.sockets import WINDOW, ConnectionSlots, Peer
from workshop.contracts.errors import OverloadedError, RateLimitedError

pytestmark = pytest.mark.slow

ADA, GRACE = ({"Authorization": f"Bearer {name}"} for name in ("ada", "grace"))


def address(service) -> str:
    return f"ws{service.server.url.removeprefix('http')}/v1/chat/ws"


def first_message(service, headers) -> tuple[int | None, str]:
    """``None`` and the service's first message, or the code and reason with which it closes instead."""
    with connect(address(service), additional_headers=headers) as socket:
        try:
            return None, socket.recv(timeout=60)
        except ConnectionClosed:
            return socket.close_code, socket.close_reason


def test_open_connections_are_limited_per_caller_and_in_total(serve):
    with serve(max_websockets=3, max_websockets_per_principal=2) as service, ExitStack() as stack:
        for headers in (ADA, ADA, GRACE):
            socket = stack.enter_context(connect(address(service), additional_headers=headers))
            assert '"ready"' in socket.recv(timeout=60)
        assert first_message(service, GRACE) == (1013, "too many WebSockets are open; try again later")
        socket.close()
        assert until(lambda: first_message(service, ADA), lambda found: found[0] == 1008)[1].endswith(
            "2 WebSockets open"
        )
        assert first_message(service, GRACE)[0] is None


def opened(service, stack: ExitStack) -> ClientConnection | None:
    """A connection that the service has accepted, or None if no slot is free."""
    socket = stack.enter_context(connect(address(service)))
    try:
        socket.recv(timeout=60)
    except ConnectionClosed:
        return None
    return socket


@pytest.mark.parametrize("way", ["closed", "cut off", "oversized message"])
def test_a_slot_is_released_however_a_connection_ends(serve, way):
    with serve(max_websockets=1) as service, ExitStack() as stack:
        for _ in range(3):
            socket = until(lambda: opened(service, stack), bool)
            assert socket is not None
            assert opened(service, stack) is None
            match way:
                case "closed":
                    socket.close()
                case "cut off":
                    socket.socket.shutdown(SHUT_RDWR)
                case _:
                    socket.send("x" * 2**19)


def test_slots_forget_callers_who_have_left():
    slots = ConnectionSlots(2, 1)
    with slots.reserve("a"), slots.reserve("b"), pytest.raises(OverloadedError), slots.reserve("c"):
        pass
    with slots.reserve("a"):
        with pytest.raises(RateLimitedError), slots.reserve("a"):
            pass
        with slots.reserve("c"):
            pass
    assert not slots._taken


def test_only_a_trusted_proxy_may_forward_an_address(serve):
    limits = {"rate_limits": {"/v1/stats": "2/minute"}}
    headers = [{"X-Forwarded-For": f"203.0.113.{n}"} for n in range(4)]
    with serve(**limits) as service:
        assert [service.client.get("/v1/stats", headers=each).status_code for each in headers] == [200, 200, 429, 429]
    with serve(**limits, trusted_proxies=["127.0.0.0/8"]) as service:
        assert [service.client.get("/v1/stats", headers=each).status_code for each in headers] == [200] * 4
        forged = [{"X-Forwarded-For": f"203.0.113.{n}, 198.51.100.1"} for n in range(4)]
        assert [service.client.get("/v1/stats", headers=each).status_code for each in forged] == [200, 200, 429, 429]


def test_wrong_keys_cannot_be_tried_from_forged_addresses(serve):
    with serve(api_keys={"key": "ada"}, wrong_keys_limit="2/minute") as service:
        headers = [{"X-Forwarded-For": f"203.0.113.{n}", "Authorization": "Bearer guess"} for n in range(4)]
        assert [service.client.get("/v1/stats", headers=each).status_code for each in headers] == [401, 401, 429, 429]


@pytest.mark.parametrize(
    "origin", ["https://attacker.example", "null", "", "http://", "http://[", "https://friend.example:1"]
)
def test_pages_of_other_origins_are_rejected(serve, origin):
    with serve(allowed_origins=["https://Friend.example"]) as service:
        if origin:
            with pytest.raises(InvalidStatus), connect(address(service), origin=origin):
                pass
        with connect(address(service), origin="HTTPS://friend.Example"):
            pass


@pytest.mark.anyio
async def test_a_cancelled_heartbeat_ends_even_if_the_window_fills_at_the_same_moment():
    async def discard(message: dict) -> None:
        pass

    websocket = WebSocket({"type": "websocket"}, discard, discard)
    websocket.application_state = WebSocketState.CONNECTED
    peer = Peer(websocket)
    heartbeat = asyncio.create_task(peer.heartbeat())
    await asyncio.sleep(0)
    await peer.send(Text(id="1", text="a" * WINDOW))
    heartbeat.cancel()
    await asyncio.wait([heartbeat], timeout=5)
    assert heartbeat.cancelled()
