"""Authentication on every route and the WebSocket: without a key, with a wrong one and with the right one."""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.stand_ins import application, draft, main
from workshop.api.authentication import ApiKeys, UnverifiedNames
from workshop.api.clock import now
from workshop.api.dependencies import get_authenticator
from workshop.contracts.errors import UnauthenticatedError
from workshop.contracts.principals import Principal
from workshop.lab.app_server import run_app
from workshop.settings import Settings

KEY = "key-of-ada"
PUBLIC = {"/health", "/liveness", "/readiness", "/ping", "/version"}
UNLISTED = ["/", "/playground.js", "/docs", "/redoc", "/openapi.json"]
REFUSED = (1008, "this service requires a valid API key")
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def operations(client: httpx.Client) -> list[tuple[str, str, dict]]:
    """Method, path and description of everything in the OpenAPI document."""
    paths = client.get("/openapi.json").json()["paths"]
    return [
        (method, path, operation)
        for path, item in paths.items()
        for method, operation in item.items()
        if method in METHODS
    ]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def close_code_and_reason(client: httpx.Client, **options: object) -> tuple[int, str]:
    """Code and reason with which the WebSocket is closed."""
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws", **options) as socket:
        with suppress(ConnectionClosed):
            while True:
                socket.recv(timeout=10)
        return socket.close_code, socket.close_reason


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[httpx.Client]:
    """A service with keys, and practically no limit on wrong ones."""
    file = tmp_path_factory.mktemp("guarded") / "service.sqlite"
    app = application(file, draft(), main(), api_keys={KEY: "ada"}, wrong_keys_limit="1000000/second")
    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer guess", f"Basic {KEY}", KEY])
def test_every_route_but_the_public_ones_requires_a_key(guarded, authorization):
    found = operations(guarded)
    assert {path for _, path, _ in found} > PUBLIC
    for method, path, _ in found:
        answer = guarded.request(method, path, headers={"Authorization": authorization})
        if path in PUBLIC:
            assert answer.status_code == 200, path
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.headers["Content-Type"].partition("+")[0].startswith("application/")
            assert REFUSED[1] in answer.text


@pytest.mark.parametrize("path", UNLISTED)
def test_the_pages_are_public(guarded, path):
    assert guarded.get(path).status_code == 200


def test_the_key_is_checked_before_the_request_is_validated(guarded):
    nonsense = {"content": b'{"x": 1}', "headers": {"Content-Type": "application/json"}}
    assert guarded.post("/v1/predict", **nonsense).status_code == 401
    nonsense["headers"] |= bearer(KEY)
    assert guarded.post("/v1/predict", **nonsense).status_code == 422


def test_no_route_refuses_the_right_key(guarded):
    for method, path, _ in operations(guarded):
        assert guarded.request(method, path, headers=bearer(KEY)).status_code != 401, (method, path)


def test_the_document_says_which_routes_require_a_key(guarded):
    document = guarded.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for _, path, operation in operations(guarded):
        if path in PUBLIC:
            assert "security" not in operation
            assert "401" not in operation["responses"]
        else:
            assert operation["security"] == [{"key": []}]
            assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


@pytest.mark.parametrize(
    "options",
    [{}, {"additional_headers": bearer("guess")}, {"subprotocols": ["workshop.chat", "bearer.guess"]}],
    ids=["no key", "header", "subprotocol"],
)
def test_the_websocket_is_closed_without_the_right_key(guarded, options):
    assert close_code_and_reason(guarded, **options) == REFUSED


@pytest.mark.parametrize("way", ["header", "subprotocol"])
def test_wrong_keys_are_rate_limited_and_the_right_key_still_works(serve, way):
    with serve(api_keys={KEY: "ada"}, wrong_keys_limit="5/minute") as service:
        client = service.client
        for n in range(3):
            assert client.get("/v1/cases", headers=bearer(f"guess-{n}")).status_code == 401
        for n in range(2):
            assert close_code_and_reason(client, additional_headers=bearer(f"guess-{n}")) == REFUSED
        answer = client.get("/v1/cases", headers=bearer("guess"))
        assert (answer.status_code, answer.json()["error"]) == (429, "RateLimitedError")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        offer = bearer("guess") if way == "header" else None
        protocols = ["workshop.chat", "bearer.guess"] if way == "subprotocol" else None
        code, reason = close_code_and_reason(client, additional_headers=offer, subprotocols=protocols)
        assert (code, "5 per 1 minute" in reason) == (1008, True)
        assert client.get("/v1/cases").status_code == 401  # a missing key does not count as a wrong one
        assert client.get("/v1/cases", headers=bearer(KEY)).status_code == 200
        with connect(f"ws{service.server.url.removeprefix('http')}/v1/chat/ws", additional_headers=bearer(KEY)) as ws:
            assert '"ready"' in ws.recv(timeout=10)


def test_replicas_that_share_a_redis_count_wrong_keys_together(serve, redis):
    url, _ = redis
    options = {"api_keys": {KEY: "ada"}, "wrong_keys_limit": "2/minute", "redis_url": url}
    with serve(**options) as one, serve(**options) as two:
        tries = [each.client.get("/v1/cases", headers=bearer("guess")).status_code for each in (one, two, one, two)]
    assert tries == [401, 401, 429, 429]


class Permissive:
    """Accepts every credential, and makes it expire after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0

    async def authenticate(self, credential: str) -> Principal:
        self.calls += 1
        return Principal("ada", expires=now() + timedelta(seconds=self.seconds))


@pytest.fixture
def permissive(file) -> Iterator[tuple[Permissive, httpx.Client]]:
    authenticator = Permissive(0.5)
    app = application(file, draft(), main(), rate_limits={"/v1": "100/minute"}, daily_budget=1.0)
    app.dependency_overrides[get_authenticator] = lambda: authenticator
    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield authenticator, client


def test_the_websocket_is_closed_when_the_credential_expires(permissive):
    _, client = permissive
    assert close_code_and_reason(client) == (1008, "the key has expired")


def test_a_credential_that_is_valid_for_years_keeps_the_websocket_open(permissive):
    authenticator, client = permissive
    authenticator.seconds = timedelta(days=10_000).total_seconds()
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws") as socket:
        assert '"ready"' in socket.recv(timeout=10)
        socket.send('{"type": "ping", "id": "1"}')
        assert socket.recv(timeout=10) == '{"type":"pong","id":"1"}'


def test_the_authenticator_is_called_once_per_request(permissive):
    authenticator, client = permissive
    client.post("/v1/query", json={"query": "What is a replica?"}).raise_for_status()
    assert authenticator.calls == 1


def authenticated(authenticator, key: str) -> Principal:
    return asyncio.run(authenticator.authenticate(key))


def test_only_its_key_identifies_a_principal():
    keys = ApiKeys({SecretStr("a" * 40): "ada", SecretStr("b" * 40): "grace"})
    assert authenticated(keys, "a" * 40) == Principal("ada")
    for guess in ("", "a" * 39, "a" * 41, "ada", "\ud800", "\0", "é" * 10_000):
        with pytest.raises(UnauthenticatedError):
            authenticated(keys, guess)


def test_without_keys_a_key_is_a_name():
    assert authenticated(UnverifiedNames(), "ada").id == "ada"
    assert authenticated(UnverifiedNames(), "").id == "anonymous"


def test_keys_never_appear_in_representations_logs_or_responses(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    settings = Settings(api_keys={KEY: "ada"})
    keys = ApiKeys(settings.api_keys)
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(vars(keys))):
        assert KEY not in text
    with pytest.raises(UnauthenticatedError) as caught:
        authenticated(keys, "guess-of-eve")
    assert "guess-of-eve" not in str(caught.value)
    answer = guarded.get("/v1/cases", headers=bearer("guess-of-eve"))
    assert not re.search("guess-of-eve|" + KEY, answer.text + str(answer.headers) + caplog.text)


def test_a_principal_is_a_value():
    principal = Principal("ada", frozenset({"read"}))
    assert replace(principal, id="ada") == principal
    assert hash(principal) == hash(Principal("ada", frozenset({"read"})))
