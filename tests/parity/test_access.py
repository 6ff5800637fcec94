"""Access rules whose outcome a server in front of the application could change."""

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.service import RATE_LIMIT, socket_url


def test_a_forged_address_does_not_lift_the_rate_limit(service):
    n_replicas = 2
    headers = ({"X-Forwarded-For": f"203.0.113.{n}"} for n in range(n_replicas * RATE_LIMIT + 1))
    # From an address of its own: anonymous callers are counted by address.
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=service.base_url, transport=transport, timeout=30) as client:
        statuses = [client.post("/v1/generate", json={}, headers=each).status_code for each in headers]
    assert statuses[:RATE_LIMIT] == [422] * RATE_LIMIT
    assert 429 in statuses  # at some point, one of the replicas was asked once too often


@pytest.mark.parametrize("origin", ["https://foe.example", "http://127.0.0.1", "http://127.0.0.1.example", "null"])
def test_a_page_of_another_origin_opens_no_websocket(service, origin):
    with pytest.raises(InvalidStatus) as caught, connect(socket_url(service), origin=origin):
        pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize("origin", [None, "http://own", "https://own", "https://friend.example"])
def test_programs_and_own_and_allowed_pages_may_open_a_websocket(service, origin):
    own = service.base_url.netloc.decode()
    with connect(socket_url(service), origin=origin and origin.replace("own", own)) as socket:
        assert '"ready"' in socket.recv(timeout=30)
