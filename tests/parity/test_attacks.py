"""Attacks on the service, in every runtime: forged tokens, stolen ones, and callers who want more than they may."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.deployed import deployed
from tests.parity.conftest import ON_SERVE
from tests.service import RECORD, client_at, socket_url
from workshop.api.app import create_app
from workshop.api.authentication import COOKIE
from workshop.api.tokens import Kind
from workshop.contracts.principals import Role
from workshop.integration import users
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.settings import Settings

NEW, OLD = "a new key, used for signing, of 40 letters", "an old key that is still accepted, 40 long"
PASSWORDS = {"ada": "the engine weaves", "eve": "apples are not pears", "vi": "looking but not touching"}
ROLES = {"ada": Role.MEMBER, "eve": Role.MEMBER, "vi": Role.VIEWER}
MACHINE_KEY = "key-of-a-machine"
NOBODYS_KEY = generate_private_key(public_exponent=65537, key_size=2048)
FRIEND = "https://friend.example"
PROXY = "127.0.0.3"
pytestmark = pytest.mark.filterwarnings("ignore:The HMAC key is")  # too short for its algorithm: forgers do not care
RUNTIMES = ["uvicorn", pytest.param("serve", marks=pytest.mark.ray)]


@pytest.fixture(scope="module")
def settings(new_settings) -> Settings:
    settings = new_settings(
        token_keys={"new": NEW, "old": OLD},
        api_keys={MACHINE_KEY: "machine"},
        wrong_keys_limit="100000/second",
        trusted_proxies=[PROXY],
        **ON_SERVE["serve, language models apart"],
    )
    for name, password in PASSWORDS.items():
        users.add(settings, name, ROLES[name], password)
    return settings


@pytest.fixture(scope="module", params=RUNTIMES)
def service(request, settings) -> Iterator[httpx.Client]:
    """A service with users and keys; on Serve, with two replicas, below a prefix."""
    if request.param == "uvicorn":
        with run_app(create_app(build_services(settings), settings)) as server, client_at(server.url) as client:
            yield client
        return
    url = request.getfixturevalue("cluster")
    with deployed(settings, name="guarded", prefix="/guarded"), client_at(f"{url}/guarded") as client:
        yield client


def log_in(service: httpx.Client, name: str = "ada", password: str | None = None, **form: str) -> dict[str, Any]:
    """The tokens of a new session."""
    credentials = {"username": name, "password": password or PASSWORDS[name]}
    answer = service.post("/v1/auth/token", data=credentials | form)
    assert answer.status_code == 200, answer.text
    return answer.json()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def ada(service) -> dict[str, Any]:
    return log_in(service)


# ------------------------------------------------------------------------------------------------- forged tokens


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def header_of(token: str) -> dict[str, Any]:
    return jwt.get_unverified_header(token)


def forged(token: str, key: Any = NEW, algorithm: str = "HS256", header: dict | None = None, **claims: Any) -> str:
    """A token like the given one, signed by the key. A claim or a part of the header that is None is left out."""
    content = {name: value for name, value in (claims_of(token) | claims).items() if value is not None}
    head = {name: value for name, value in (header_of(token) | (header or {})).items() if name != "alg"}
    return jwt.encode(content, key, algorithm, headers=head)


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def with_parts(token: str, header: dict | None = None, claims: dict | None = None, signature: str | None = None) -> str:
    """A token with parts replaced, and the old signature."""
    parts = token.split(".")
    if header is not None:
        parts[0] = part(header_of(token) | header)
    if claims is not None:
        parts[1] = part(claims_of(token) | claims)
    if signature is not None:
        parts[2] = signature
    return ".".join(parts)


HOUR = 3600
FORGERIES: dict[str, Callable[[str], str]] = {
    "no algorithm": lambda token: with_parts(token, {"alg": "none"}, signature=""),
    "no algorithm, in capitals": lambda token: with_parts(token, {"alg": "NONE"}, signature=""),
    "no algorithm, but a signature": lambda token: with_parts(token, {"alg": "none"}),
    "another algorithm, our key": lambda token: forged(token, algorithm="HS512"),
    "an asymmetric algorithm, nobody's key": lambda token: forged(token, NOBODYS_KEY, "RS256"),
    "a wrong key": lambda token: forged(token, "somebody else's key, just as long as ours"),
    "the id of our key as the key": lambda token: forged(token, "new"),
    "an unknown key id": lambda token: forged(token, header={"kid": "newest"}),
    "the old key, as the new one": lambda token: forged(token, OLD),
    "a key id that is a path": lambda token: forged(token, "\0", header={"kid": "../../../dev/null"}),
    "a key id that is SQL": lambda token: forged(token, "x", header={"kid": "' UNION SELECT 'x' --"}),
    "no key id": lambda token: with_parts(token, {"kid": None}),
    "a key in the header": lambda token: forged(
        token, "mine" * 10, header={"kid": "mine", "jwk": {"kty": "oct", "k": part("mine" * 10)}}
    ),
    "the address of a key in the header": lambda token: forged(
        token, "mine" * 10, header={"jku": "http://127.0.0.1:9/keys"}
    ),
    "an unknown extension that matters": lambda token: forged(token, header={"crit": ["exp"], "exp": 0}),
    "for another service": lambda token: forged(token, aud="another"),
    "for several services": lambda token: forged(token, aud=["workshop", "another"]),
    "from another service": lambda token: forged(token, iss="another"),
    "expired": lambda token: forged(token, exp=int(time.time()) - HOUR),
    "without an end": lambda token: forged(token, exp=None),
    "with an end that is text": lambda token: forged(token, exp="tomorrow"),
    "with an end beyond all calendars": lambda token: forged(token, exp=10**40),
    "not yet valid": lambda token: forged(token, nbf=int(time.time()) + HOUR),
    "more scopes, old signature": lambda token: with_parts(token, claims={"scope": "cases:all"}),
    "another subject, old signature": lambda token: with_parts(token, claims={"sub": "eve"}),
    "a longer life, old signature": lambda token: with_parts(token, claims={"exp": 10**10}),
    "without a signature": lambda token: with_parts(token, signature=""),
    "without its last part": lambda token: token.rpartition(".")[0],
    "a changed signature": lambda token: token[:-6] + ("AAAAAA" if not token.endswith("AAAAAA") else "BBBBBB"),
    "another kind": lambda token: forged(token, header={"typ": "JWT"}),
    "a session that never was": lambda token: forged(token, sid=str(uuid4())),
    "a session that is no UUID": lambda token: forged(token, sid="' OR 1=1 --"),
    "a scope that does not exist": lambda token: forged(token, scope="everything"),
    "without a subject": lambda token: forged(token, sub=None),
    "a subject that is a number": lambda token: with_parts(token, claims={"sub": 1}),
    "no token at all": lambda _: "a.b.c",
    "half of one": lambda token: token[: len(token) // 2],
}
KINDS = {"header": Kind.ACCESS, "subprotocol": Kind.ACCESS, "cookie": Kind.COOKIE, "ticket": Kind.TICKET}


def of_kind(token: str, kind: Kind) -> str:
    """A valid token of another kind for the same session."""
    return forged(token, header={"typ": kind.value})


@contextmanager
def conversation(service: httpx.Client, ticket: str = "", **options: Any) -> Iterator[ClientConnection]:
    """An open WebSocket."""
    query = f"?ticket={ticket}" if ticket else ""
    path = service.base_url.path.rstrip("/")
    with connect(f"{socket_url(service).replace('/v1/', f'{path}/v1/')}{query}", **options) as socket:
        yield socket


def next_type(socket: ClientConnection) -> str | tuple[int, str]:
    """The type of the next message on the WebSocket, or the code and reason with which it is closed."""
    try:
        return json.loads(socket.recv(timeout=20))["type"]
    except ConnectionClosed:
        return socket.close_code, socket.close_reason


def first_message(service: httpx.Client, means: str, token: str) -> str | tuple[int, str]:
    """What a WebSocket says that carries the token in this way."""
    options: dict[str, dict[str, Any]] = {
        "header": {"additional_headers": bearer(token)},
        "subprotocol": {"subprotocols": ["workshop.chat", f"bearer.{token}"]},
        "cookie": {"additional_headers": {"Cookie": f"{COOKIE}={token}"}},
        "ticket": {"ticket": token},
    }
    with conversation(service, **options[means]) as socket:
        return next_type(socket)


def status_of_stream(service: httpx.Client, means: str, token: str) -> int:
    """The status of a request for events that carries the token in this way."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1"}  # an answer without events, which costs nothing
    headers |= {"header": bearer(token), "cookie": {"Cookie": f"{COOKIE}={token}"}}.get(means, {})
    ticket = {"ticket": token} if means == "ticket" else {}
    return service.get("/v1/query/stream", params={"query": "Why?"} | ticket, headers=headers).status_code


@pytest.mark.parametrize("means", KINDS)
def test_the_right_token_is_accepted(service, ada, means):
    token = of_kind(ada["access_token"], KINDS[means])
    assert first_message(service, means, token) == "ready"
    if means != "subprotocol":
        assert status_of_stream(service, means, token) == 204


@pytest.mark.parametrize("means", KINDS)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_is_refused(service, ada, means, forgery):
    token = FORGERIES[forgery](of_kind(ada["access_token"], KINDS[means]))
    if means != "subprotocol":
        assert status_of_stream(service, means, token) == 401
    code, reason = first_message(service, means, token)
    assert code == 1008, reason


@pytest.mark.parametrize("means", KINDS)
@pytest.mark.parametrize("kind", Kind)
def test_a_token_is_good_for_one_use_only(service, ada, means, kind):
    """A refresh token is no access token, a ticket no cookie, and so on."""
    token = of_kind(ada["access_token"], kind)
    is_right = kind is KINDS[means]
    assert (first_message(service, means, token) == "ready") is is_right
    if means != "subprotocol":
        assert (status_of_stream(service, means, token) == 204) is is_right


def test_a_token_of_the_old_key_is_still_accepted(service, ada):
    token = forged(ada["access_token"], OLD, header={"kid": "old"})
    assert service.get("/v1/auth/me", headers=bearer(token)).json()["principal"] == "ada"


def test_only_a_ticket_may_belong_to_no_session(service, ada):
    """Those for the keys of machines do."""
    for means, kind in KINDS.items():
        token = forged(of_kind(ada["access_token"], kind), sid=None)
        assert (first_message(service, means, token) == "ready") is (means == "ticket")
    for kind in Kind:
        token = forged(of_kind(ada["access_token"], kind), sid=None)
        assert service.post("/v1/auth/revoke", data={"token": token}).status_code == 200


def test_a_huge_token_is_refused(service):
    assert service.get("/v1/cases", headers=bearer("a." * 8000 + "b")).status_code == 401
    assert service.post("/v1/auth/revoke", data={"token": "a" * 100_000}).status_code == 400


# ------------------------------------------------------------------------------------------------- stolen tokens


@pytest.mark.parametrize("how", ["revoke access", "revoke refresh", "log out"])
def test_no_token_of_a_session_works_after_its_end(service, ada, how):
    access, refresh = ada["access_token"], ada["refresh_token"]
    ticket = service.post("/v1/auth/ticket", headers=bearer(access)).json()["ticket"]
    match how:
        case "revoke access":
            assert service.post("/v1/auth/revoke", data={"token": access}).status_code == 200
        case "revoke refresh":
            assert service.post("/v1/auth/revoke", data={"token": refresh}).status_code == 200
        case "log out":
            assert service.post("/v1/auth/logout", headers=bearer(access)).status_code == 204
    assert service.get("/v1/cases", headers=bearer(access)).status_code == 401
    assert first_message(service, "header", access) == (1008, "the session has ended")
    assert status_of_stream(service, "ticket", ticket) == 401
    answer = service.post("/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": refresh})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_a_refresh_token_that_is_used_twice_ends_the_session(service, ada):
    def renew(token: str) -> httpx.Response:
        return service.post("/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": token})

    renewed = renew(ada["refresh_token"]).json()
    assert service.get("/v1/cases", headers=bearer(renewed["access_token"])).status_code == 200
    assert renew(ada["refresh_token"]).status_code == 400
    assert service.get("/v1/cases", headers=bearer(renewed["access_token"])).status_code == 401
    assert renew(renewed["refresh_token"]).status_code == 400


def test_a_session_can_be_renewed_without_a_log_in_but_not_beyond_its_end(service, ada):
    before = claims_of(ada["refresh_token"])
    form = {"grant_type": "refresh_token", "refresh_token": ada["refresh_token"]}
    after = claims_of(service.post("/v1/auth/token", data=form).json()["refresh_token"])
    assert (after["sid"], abs(after["exp"] - before["exp"]) <= 1) == (before["sid"], True)
    assert after["jti"] != before["jti"]


def test_a_user_who_is_removed_or_changed_loses_all_sessions(service, settings):
    password = "only for a while"
    users.add(settings, "temp", Role.ADMIN, password)
    tokens = log_in(service, "temp", password)
    assert "cases:all" in service.get("/v1/auth/me", headers=bearer(tokens["access_token"])).json()["scopes"]
    users.add(settings, "temp", Role.VIEWER, password)
    assert service.get("/v1/auth/me", headers=bearer(tokens["access_token"])).status_code == 401
    tokens = log_in(service, "temp", password)
    users.remove(settings, "temp")
    assert service.get("/v1/auth/me", headers=bearer(tokens["access_token"])).status_code == 401
    answer = service.post("/v1/auth/token", data={"username": "temp", "password": password})
    assert answer.json()["error_description"] == "the name or the password is wrong"


def test_a_ticket_is_for_streams_only(service, ada):
    ticket = service.post("/v1/auth/ticket", headers=bearer(ada["access_token"])).json()["ticket"]
    assert claims_of(ticket)["exp"] - time.time() <= 30
    assert service.get("/v1/cases", params={"ticket": ticket}).status_code == 401
    assert service.post("/v1/cases", params={"ticket": ticket}, json={}).status_code == 401
    assert service.get("/v1/cases", headers=bearer(ticket)).status_code == 401
    as_stream = {"Accept": "text/event-stream"}  # anyone can say so
    assert service.get("/v1/cases", params={"ticket": ticket}, headers=as_stream).status_code == 403


@pytest.mark.parametrize("who", ["ada", "a machine"])
def test_a_stream_may_outlast_the_ticket_but_not_what_it_was_issued_for(service, ada, who):
    token = ada["access_token"] if who == "ada" else MACHINE_KEY
    ticket = service.post("/v1/auth/ticket", headers=bearer(token)).json()["ticket"]
    assert status_of_stream(service, "ticket", ticket) == 204
    headers = {"Accept": "text/event-stream"}
    stream = service.get("/v1/auth/me", params={"ticket": ticket}, headers=headers).json()
    issued_for = service.get("/v1/auth/me", headers=bearer(token)).json()
    assert (stream["principal"], stream["expires"]) == (issued_for["principal"], issued_for["expires"])


@pytest.mark.parametrize("means", ["header", "ticket"])
def test_a_conversation_ends_when_the_token_expires(service, ada, means):
    soon = int(time.time()) + 2
    if means == "header":
        options = {"additional_headers": bearer(forged(ada["access_token"], exp=soon))}
    else:
        options = {"ticket": forged(of_kind(ada["access_token"], Kind.TICKET), stream_exp=soon)}
    with conversation(service, **options) as socket:
        assert next_type(socket) == "ready"
        assert next_type(socket) == (1008, "the credential has expired")


def test_a_conversation_ends_at_the_next_question_after_a_log_out(service, ada):
    with conversation(service, additional_headers=bearer(ada["access_token"])) as socket:
        assert next_type(socket) == "ready"
        service.post("/v1/auth/revoke", data={"token": ada["refresh_token"]})
        socket.send('{"type": "ask", "id": "1", "content": "Why?"}')
        assert next_type(socket) == (1008, "the session has ended")


# --------------------------------------------------------------------------------------------- more than they may


@pytest.fixture
def case(service, ada) -> Iterator[str]:
    """The path of a case of ada."""
    answer = service.post("/v1/cases", json={"measurements": RECORD}, headers=bearer(ada["access_token"]))
    assert answer.status_code == 201, answer.text
    path = f"/v1/cases/{answer.json()['id']}"
    yield path
    service.delete(path, headers=bearer(log_in(service)["access_token"]))


TRESPASSES = {
    "read": ("GET", "", None),
    "change": ("PUT", "", {"measurements": RECORD, "diagnosis": "benign"}),
    "delete": ("DELETE", "", None),
    "predict": ("GET", "/prediction", None),
}


@pytest.mark.parametrize("trespass", TRESPASSES)
@pytest.mark.parametrize("who", ["eve", "machine"])
def test_the_case_of_another_does_not_exist(service, case, ada, trespass, who):
    method, path, body = TRESPASSES[trespass]
    token = MACHINE_KEY if who == "machine" else log_in(service, who)["access_token"]
    answer = service.request(method, case + path, json=body, headers=bearer(token))
    nothing = service.request(method, f"/v1/cases/{uuid4()}{path}", json=body, headers=bearer(token))
    assert (answer.status_code, nothing.status_code) == (404, 404)
    assert case.rpartition("/")[2] not in service.get("/v1/cases?limit=100", headers=bearer(token)).text
    kept = service.get(case, headers=bearer(ada["access_token"])).json()
    assert (kept["measurements"], kept["diagnosis"]) == (RECORD, None)


def test_an_admin_sees_the_cases_of_all(service, case, settings):
    users.add(settings, "root", Role.ADMIN, "sees everything")
    headers = bearer(log_in(service, "root", "sees everything")["access_token"])
    assert service.get(case, headers=headers).status_code == 200
    assert case.rpartition("/")[2] in service.get("/v1/cases?limit=100", headers=headers).text


FORBIDDEN = {
    "store a case": ("POST", "/v1/cases", {"measurements": RECORD}, "cases:write"),
    "ask the cascade": ("POST", "/v1/query", {"query": "Why?"}, "generate"),
    "ask a model": ("POST", "/v1/generate", {"prompt": "Why?"}, "generate"),
    "ask in OpenAI's protocol": (
        "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Why?"}]}, "generate"
    ),
    "ask at an earlier route": ("POST", "/api/query", {"query": "Why?"}, "generate"),
    "read the statistics": ("GET", "/v1/stats", None, "usage:read"),
    "read the metrics": ("GET", "/metrics", None, "usage:read"),
    "read the earlier statistics": ("GET", "/api/stats", None, "usage:read"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize("who", ["a viewer", "a member with a token for cases only"])
def test_nobody_does_what_the_scopes_do_not_permit(service, what, who):
    method, path, body, scope = FORBIDDEN[what]
    tokens = log_in(service, "vi") if who == "a viewer" else log_in(service, "ada", scope="cases:read")
    answer = service.request(method, path, json=body, headers=bearer(tokens["access_token"]))
    assert answer.status_code == 403, answer.text
    assert answer.headers["WWW-Authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'
    assert service.get("/v1/cases", headers=bearer(tokens["access_token"])).status_code == 200


def test_the_websocket_requires_a_scope_too(service):
    token = log_in(service, "vi")["access_token"]
    assert first_message(service, "header", token) == (1008, "this request requires the scope generate")


def test_nobody_gets_more_scopes_than_the_role_has(service):
    asked = "cases:all usage:read cases:read predict"
    tokens = log_in(service, "vi", scope=asked)
    assert tokens["scope"] == "cases:read predict"
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "scope": asked}
    assert service.post("/v1/auth/token", data=form).json()["scope"] == "cases:read predict"


def test_a_signed_token_permits_no_more_than_the_role_does(service):
    """Whatever was signed: the role counts as it is now."""
    token = forged(log_in(service, "vi")["access_token"], scope="predict cases:all generate")
    assert service.get("/v1/auth/me", headers=bearer(token)).json()["scopes"] == ["predict"]


def test_a_renewal_brings_back_no_scope_that_the_log_in_gave_away(service):
    tokens = log_in(service, scope="predict")
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "scope": "predict generate"}
    assert service.post("/v1/auth/token", data=form).json()["scope"] == "predict"


# ------------------------------------------------------------------------------------------ cookies and foreign pages


def cookie_of(service: httpx.Client, name: str = "ada", **headers: str) -> httpx.Response:
    body = {"username": name, "password": PASSWORDS[name]}
    with httpx.Client(base_url=service.base_url, timeout=30) as browser:
        return browser.post("/v1/auth/login", json=body, headers=headers)


def origin_of(service: httpx.Client) -> str:
    return f"http://{service.base_url.netloc.decode()}"


def test_the_cookie_is_out_of_reach_for_scripts_and_foreign_pages(service):
    answer = cookie_of(service, Origin=origin_of(service))
    assert answer.status_code == 204, answer.text
    parts = {item.strip().lower() for item in answer.headers["Set-Cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", f"path={service.base_url.path.rstrip('/')}/"} <= parts


@pytest.mark.parametrize(("proxy", "is_secure"), [(PROXY, True), ("127.0.0.4", False)])
def test_the_cookie_is_for_https_only_if_a_trusted_proxy_says_so(service, proxy, is_secure):
    headers = {"Origin": origin_of(service).replace("http:", "https:"), "X-Forwarded-Proto": "https"}
    body = {"username": "ada", "password": PASSWORDS["ada"]}
    transport = httpx.HTTPTransport(local_address=proxy)
    with httpx.Client(base_url=service.base_url, transport=transport, timeout=30) as client:
        answer = client.post("/v1/auth/login", json=body, headers=headers)
    assert answer.status_code == 204, answer.text
    assert ("; secure" in answer.headers["Set-Cookie"].lower()) is is_secure


FOREIGN: dict[str, dict[str, str]] = {
    "a foreign origin": {"Origin": "https://evil.example"},
    "a foreign site": {"Sec-Fetch-Site": "cross-site"},
    "another service on this machine": {"Sec-Fetch-Site": "same-site"},
    "a page without an origin": {"Origin": "null"},
    "a friend": {"Origin": FRIEND},
    "no origin at all": {},
}


@pytest.mark.parametrize("page", FOREIGN)
def test_a_foreign_page_can_do_nothing_with_the_cookie(service, page):
    value = cookie_of(service, Origin=origin_of(service)).cookies[COOKIE]
    cookie = {"Cookie": f"{COOKIE}={value}"}
    own = service.post("/v1/cases", json={}, headers=cookie | {"Origin": origin_of(service)})
    assert own.status_code == 422  # let in
    assert service.post("/v1/cases", json={}, headers=cookie | FOREIGN[page]).status_code == 401
    assert service.post("/v1/auth/logout", headers=cookie | FOREIGN[page]).status_code == 401
    if FOREIGN[page]:  # a program may read without an origin
        assert service.get("/v1/cases", headers=cookie | FOREIGN[page]).status_code == 401


@pytest.mark.parametrize("page", FOREIGN)
def test_a_foreign_page_cannot_log_anybody_in(service, page):
    assert cookie_of(service, **FOREIGN[page]).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_foreign_page_cannot_open_a_conversation(service, ada, origin):
    value = cookie_of(service, Origin=origin_of(service)).cookies[COOKIE]
    own = {"Cookie": f"{COOKIE}={value}", "Origin": origin_of(service)}
    with conversation(service, additional_headers=own) as socket:
        assert next_type(socket) == "ready"
    with conversation(service, additional_headers=own | {"Origin": origin}) as socket:
        assert next_type(socket) == (1008, "this request requires a valid API key or token")
    with (
        pytest.raises(InvalidStatus) as refused,
        conversation(service, additional_headers=bearer(ada["access_token"]) | {"Origin": origin}),
    ):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", f"{FRIEND}.evil.example", "null", FRIEND])
def test_only_a_friendly_page_may_read_answers_and_only_without_the_cookie(service, ada, origin):
    """CORS: the browser hides an answer from a page whose origin is not named in it."""
    page = {"Origin": origin}
    asked = page | {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    answers = [
        service.options("/v1/cases", headers=asked),
        service.get("/v1/cases", headers=page | bearer(ada["access_token"])),
        service.get("/v1/cases", headers=page),
    ]
    assert [answer.status_code for answer in answers] == [200 if origin == FRIEND else 400, 200, 401]
    for answer in answers:
        assert answer.headers.get("Access-Control-Allow-Origin") == (FRIEND if origin == FRIEND else None)
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "X-Request-ID" in answer.headers


# --------------------------------------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("ada", ""), ("ada", "the engine weave"), ("ada", "THE ENGINE WEAVES"), ("ada", "the engine weaves "),
        ("ADA", "the engine weaves"), ("", ""), ("nobody", "the engine weaves"), ("ada' --", "the engine weaves"),
        ("ada\0", "the engine weaves"), ("ada", "the engine weaves\0"), ("ada", "a" * 256), ("é" * 64, "\u202e"),
    ],
)  # fmt: skip
def test_a_wrong_password_says_nothing_of_the_user(service, name, password):
    answer = service.post("/v1/auth/token", data={"username": name, "password": password})
    assert answer.status_code == 400
    assert answer.json()["error"] in {"invalid_grant", "invalid_request"}
    if answer.json()["error"] == "invalid_grant":
        assert answer.json()["error_description"] == "the name or the password is wrong"
    assert "weaves" not in answer.text


@pytest.mark.parametrize(
    "form",
    [
        {}, {"username": "ada"}, {"grant_type": "refresh_token"}, {"grant_type": "implicit"},
        {"grant_type": "password", "refresh_token": "x"}, {"username": "ada", "password": "a" * 100_000},
        {"grant_type": "refresh_token", "refresh_token": "a" * 100_000},
    ],
    ids=lambda form: ascii(form)[:40],
)  # fmt: skip
def test_a_malformed_log_in_is_a_clear_error(service, form):
    answer = service.post("/v1/auth/token", data=form)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), answer.text
    assert len(answer.json()["error_description"]) > 10
    assert "aaaa" not in answer.text


def test_a_log_in_is_not_cached(service):
    answer = service.post("/v1/auth/token", data={"username": "ada", "password": PASSWORDS["ada"]})
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["token_type"] == "Bearer"
