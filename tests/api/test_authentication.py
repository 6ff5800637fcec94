"""Authentication on every route and the WebSocket: without a key, with a wrong one and with the right one."""

import asyncio
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from threading import Event

import httpx
import jwt
import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.service import concurrently
from tests.stand_ins import application, database_url, draft, main, records_in
from workshop.api.authentication import ApiKeys, CheckedCredentials, UnverifiedNames
from workshop.api.clock import now
from workshop.api.passwords import Passwords
from workshop.contracts.errors import UnauthenticatedError
from workshop.contracts.principals import Credential, Means, Principal, Role, Scope
from workshop.integration import users
from workshop.lab.app_server import run_app
from workshop.settings import Settings

KEY = "key-of-ada"
PASSWORD = "the engine weaves"
TOKEN_KEY = "signs tokens, and has more than 32 letters"
PUBLIC = {"/health", "/liveness", "/readiness", "/ping", "/version", "/v2/health/live", "/v2/health/ready"}
UNLISTED = ["/", "/playground.js", "/docs", "/redoc", "/openapi.json"]
REFUSED = (1008, "this request requires a valid API key or token")
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
                socket.recv(timeout=60)
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
            assert [set(way) for way in operation["security"]] == [{"key"}, {"user"}]
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
            assert '"ready"' in ws.recv(timeout=60)


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

    async def authenticate(self, credential: Credential) -> Principal:
        self.calls += 1
        return Principal("ada", Role.ADMIN.scopes, expires=now() + timedelta(seconds=self.seconds))


@pytest.fixture
def permissive(file) -> Iterator[tuple[Permissive, httpx.Client]]:
    authenticator = Permissive(0.5)
    app = application(file, draft(), main(), rate_limits={"/v1": "100/minute"}, daily_budget=1.0)
    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        app.state.authenticator = authenticator
        yield authenticator, client


def test_the_websocket_is_closed_when_the_credential_expires(permissive):
    _, client = permissive
    assert close_code_and_reason(client) == (1008, "the credential has expired")


def test_an_answer_ends_when_the_credential_expires_and_what_it_cost_is_charged(file):
    model = main(endless=True)
    app = application(file, draft(), model)
    question = {"messages": [{"role": "user", "content": "Why?"}]}
    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        app.state.authenticator = Permissive(0.5)
        answer = client.post("/v1/chat/stream", json=question).text
        assert "the credential has expired" in answer
        assert model.over.wait(10)
    [record] = records_in(file)
    assert record["completion_tokens"] >= answer.count("copies") > 0


def test_a_credential_that_is_valid_for_years_keeps_the_websocket_open(permissive):
    authenticator, client = permissive
    authenticator.seconds = timedelta(days=10_000).total_seconds()
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws") as socket:
        assert '"ready"' in socket.recv(timeout=60)
        socket.send('{"type": "ping", "id": "1"}')
        assert socket.recv(timeout=60) == '{"type":"pong","id":"1"}'


def test_the_authenticator_is_called_once_per_request(permissive):
    authenticator, client = permissive
    client.post("/v1/query", json={"query": "What is a replica?"}).raise_for_status()
    assert authenticator.calls == 1


def authenticated(authenticator, key: str, means: Means = Means.BEARER) -> Principal:
    return asyncio.run(authenticator.authenticate(Credential(key, means)))


def key_check(principals: dict[str, str], **options: bool) -> CheckedCredentials:
    keys = ApiKeys({SecretStr(key): (principal, Role.MEMBER) for key, principal in principals.items()})
    return CheckedCredentials(keys, None, **{"admits_anonymous": False} | options)


def test_only_its_key_identifies_a_principal():
    check = key_check({"a" * 40: "ada", "b" * 40: "grace"})
    assert authenticated(check, "a" * 40) == Principal("ada", Role.MEMBER.scopes)
    for guess in ("", "a" * 39, "a" * 41, "ada", "\ud800", "\0", "é" * 10_000):
        with pytest.raises(UnauthenticatedError):
            authenticated(check, guess)
    for means in (Means.COOKIE, Means.TICKET):
        with pytest.raises(UnauthenticatedError):
            authenticated(check, "a" * 40, means)


def test_without_keys_a_key_is_a_name():
    assert authenticated(UnverifiedNames(), "ada").id == "ada"
    assert authenticated(UnverifiedNames(), "").id == "anonymous"


def test_each_key_has_a_role(serve):
    keys = {"key-of-ada": {"principal": "ada", "role": "viewer"}, "key-of-bo": "bo", "key-of-al": {"principal": "al"}}
    with serve(api_keys=keys) as service:
        statuses = {
            key: service.client.get("/v1/stats", headers=bearer(key)).status_code for key in (*keys, "key-of-eve")
        }
    assert statuses == {"key-of-ada": 403, "key-of-bo": 200, "key-of-al": 200, "key-of-eve": 401}


def test_anonymous_callers_are_admitted_seldom_and_may_do_little(serve):
    with serve(api_keys={KEY: "ada"}, anonymous_limit="5/minute") as service:
        client = service.client
        assert client.post("/v1/query", json={"query": "What is a replica?"}).status_code == 200
        refused = client.get("/v1/cases")
        assert (refused.status_code, refused.json()["error"]) == (403, "ForbiddenError")
        assert client.get("/v1/cases", headers=bearer("guess")).status_code == 401
        with connect(f"ws{service.server.url.removeprefix('http')}/v1/chat/ws") as socket:
            assert '"anonymous"' in socket.recv(timeout=60)
        statuses = [client.get("/v1/model/metadata").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert client.get("/v1/cases", headers=bearer(KEY)).status_code == 200


@pytest.fixture
def with_ada(serve, file):
    """Start a service with a user."""
    users.add(Settings(database_url=database_url(file)), "ada", Role.MEMBER, PASSWORD)
    return partial(serve, token_keys={"1": TOKEN_KEY})


def form(password: str) -> dict[str, str]:
    return {"username": "ada", "password": password}


def test_wrong_passwords_are_rate_limited_and_tokens_still_work(with_ada, monkeypatch):
    checked = []
    verify = Passwords.verify

    async def watched(self: Passwords, password: str, password_hash: str | None) -> bool:
        checked.append(password)
        return await verify(self, password, password_hash)

    monkeypatch.setattr(Passwords, "verify", watched)
    with with_ada(wrong_keys_limit="3/minute") as service:
        post = service.client.post
        tokens = post("/v1/auth/token", data=form(PASSWORD)).json()
        origin = {"Origin": service.server.url}
        assert post("/v1/auth/token", data=form("guess")).status_code == 400
        assert post("/v1/auth/login", json=form("guess"), headers=origin).status_code == 401
        assert post("/v1/auth/token", data={"username": "eve", "password": "guess"}).status_code == 400
        for password in ("guess", PASSWORD):
            assert post("/v1/auth/token", data=form(password)).status_code == 429
            assert post("/v1/auth/login", json=form(password), headers=origin).status_code == 429
        assert checked == [PASSWORD, "guess", "guess", "guess"]  # a check takes much memory and time
        renewal = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        tokens = post("/v1/auth/token", data=renewal).raise_for_status().json()
        assert service.client.get("/v1/cases", headers=bearer(tokens["access_token"])).status_code == 200


def test_passwords_cannot_be_guessed_at_the_same_time_either(with_ada, monkeypatch):
    """Each guess was admitted before the first one was found wrong. The right one comes last."""
    limit, n_wrong = 3, 6
    admitted, others_are_done = [], Event()

    async def verify(self: Passwords, password: str, password_hash: str | None) -> bool:
        admitted.append(password)
        while len(admitted) <= n_wrong or (password == PASSWORD and not others_are_done.is_set()):
            await asyncio.sleep(0.01)
        return password == PASSWORD

    monkeypatch.setattr(Passwords, "verify", verify)
    with with_ada(wrong_keys_limit=f"{limit}/minute") as service, ThreadPoolExecutor(1) as thread:

        def log_in(password: str) -> int:
            return service.client.post("/v1/auth/token", data=form(password)).status_code

        right = thread.submit(log_in, PASSWORD)
        guesses = concurrently(log_in, [f"guess-{n}" for n in range(n_wrong)])
        others_are_done.set()
        assert sorted(guesses) == [400] * limit + [429] * (n_wrong - limit)
        assert right.result() == 429


def test_the_cookie_is_for_https_only_if_the_page_came_over_https(with_ada):
    forwarded = {"X-Forwarded-Proto": "https"}
    for trusted, is_secure in ([], False), (["127.0.0.0/8"], True):
        with with_ada(trusted_proxies=trusted) as service:
            origin = {"Origin": service.server.url.replace("http:", "https:")}
            answer = service.client.post("/v1/auth/login", json=form(PASSWORD), headers=origin | forwarded)
            assert answer.status_code == 204
            assert ("; secure" in answer.headers["Set-Cookie"].lower()) is is_secure


def test_no_token_outlives_its_session(with_ada):
    with with_ada(access_token_s=900, session_s=60) as service:
        tokens = service.client.post("/v1/auth/token", data=form(PASSWORD)).json()
        assert 0 < tokens["expires_in"] <= 60
        ends = [
            jwt.decode(tokens[kind], TOKEN_KEY, ["HS256"], audience="workshop")["exp"]
            for kind in ("access_token", "refresh_token")
        ]
        assert ends[0] == ends[1]


def test_a_ticket_does_not_appear_in_the_access_log(with_ada, file, caplog):
    caplog.set_level(logging.INFO, logger="uvicorn.access")
    app = application(file, draft(), main(), token_keys={"1": TOKEN_KEY})
    with run_app(app, access_log=True) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        tokens = client.post("/v1/auth/token", data=form(PASSWORD)).json()
        ticket = client.post("/v1/auth/ticket", headers=bearer(tokens["access_token"])).json()["ticket"]
        parameters = {"query": "Why? Über & unter", "ticket": ticket}
        client.get("/v1/query/stream", params=parameters, headers={"Accept": "text/event-stream"}).raise_for_status()
    [line] = [record.getMessage() for record in caplog.records if "/v1/query/stream" in record.getMessage()]
    assert str(httpx.QueryParams({"query": parameters["query"]})) in line
    assert "ticket" not in line


def test_without_users_there_is_no_log_in(guarded):
    for path in ("/v1/auth/token", "/v1/auth/login", "/v1/auth/ticket", "/v1/auth/revoke"):
        assert guarded.post(path, headers=bearer(KEY)).status_code == 404
    me = guarded.get("/v1/auth/me", headers=bearer(KEY)).json()
    assert (me["principal"], me["expires"]) == ("ada", None)


def test_keys_never_appear_in_representations_logs_or_responses(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    settings = Settings(api_keys={KEY: "ada"}, token_keys={"1": TOKEN_KEY})
    check = key_check({KEY: "ada"})
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(vars(check))):
        assert KEY not in text
        assert TOKEN_KEY not in text
    with pytest.raises(UnauthenticatedError) as caught:
        authenticated(check, "guess-of-eve")
    assert "guess-of-eve" not in str(caught.value)
    answer = guarded.get("/v1/cases", headers=bearer("guess-of-eve"))
    assert not re.search("guess-of-eve|" + KEY, answer.text + str(answer.headers) + caplog.text)


def test_a_principal_is_a_value():
    principal = Principal("ada", frozenset({Scope.PREDICT}))
    assert replace(principal, id="ada") == principal
    assert hash(principal) == hash(Principal("ada", frozenset({Scope.PREDICT})))
