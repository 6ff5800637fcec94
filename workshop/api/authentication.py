"""Reads a caller's credential, and finds the principal it belongs to."""

import hashlib
from collections.abc import Mapping

from fastapi import WebSocket
from fastapi.openapi.models import HTTPBearer, OAuth2, OAuthFlowPassword, OAuthFlows
from fastapi.openapi.models import SecurityBase as Scheme
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from workshop.api.sessions import Sessions
from workshop.contracts.errors import UnauthenticatedError
from workshop.contracts.principals import ANONYMOUS, SCOPES, Credential, Means, Principal, Role, Scope

SUBPROTOCOL = "workshop.chat"
KEY_PREFIX = "bearer."
COOKIE = "workshop_session"

TOKEN_PATH = "/v1/auth/token"

ANONYMOUS_SCOPES = frozenset({Scope.PREDICT, Scope.GENERATE})
"""What callers without a credential may do where they are admitted."""

_MISSING = "this request requires a valid API key or token"


class ApiKeys:
    """Finds principals by API key.

    Only digests of the keys are stored. The time of a lookup reveals nothing about a key, since nobody can choose a
    digest.

    Args:
        principals: the principal's id and role for each key.
    """

    def __init__(self, principals: Mapping[SecretStr, tuple[str, Role]]) -> None:
        self._principals = {
            _digest(key.get_secret_value()): Principal(id, role.scopes) for key, (id, role) in principals.items()
        }

    def find(self, key: str) -> Principal | None:
        """The principal of a key."""
        return self._principals.get(_digest(key))


class CheckedCredentials:
    """Authenticates callers by API key or token.

    Args:
        keys: for machines.
        sessions: for people; None if nobody can log in.
        admits_anonymous: whether callers without a credential are admitted, with ``ANONYMOUS_SCOPES``.
    """

    def __init__(self, keys: ApiKeys, sessions: Sessions | None, *, admits_anonymous: bool) -> None:
        self._keys = keys
        self._sessions = sessions
        self._admits_anonymous = admits_anonymous

    async def authenticate(self, credential: Credential) -> Principal:
        """See ``Authenticator.authenticate``."""
        if not credential.value:
            if self._admits_anonymous:
                return Principal(ANONYMOUS, ANONYMOUS_SCOPES)
            raise UnauthenticatedError(_MISSING)
        if credential.means is Means.BEARER and (principal := self._keys.find(credential.value)):
            return principal
        if self._sessions is None:
            raise UnauthenticatedError(_MISSING)
        return await self._sessions.authenticate(credential)


class UnverifiedNames:
    """Accepts any credential as the caller's name, who may do everything. For a service without keys."""

    async def authenticate(self, credential: Credential) -> Principal:
        """See ``Authenticator.authenticate``."""
        name = credential.value if credential.means is Means.BEARER else ""
        return Principal(name or ANONYMOUS, Role.ADMIN.scopes)


class ReadCredential(SecurityBase):
    """Reads the credential of a request, and describes it in OpenAPI.

    Browsers cannot set headers on a WebSocket, so they send the token as a subprotocol, prefixed with ``KEY_PREFIX``.
    An ``EventSource`` can send neither: it needs a ticket in the URL. Other requests may not carry one there.
    """

    def __init__(self) -> None:
        self.scheme_name = "key"
        self.model: Scheme = HTTPBearer(
            description="One of the keys in `WORKSHOP_API_KEYS`. If the service has neither keys nor users, any name."
        )

    async def __call__(self, connection: HTTPConnection) -> Credential:
        scheme, token = get_authorization_scheme_param(connection.headers.get("Authorization"))
        if scheme.lower() == "bearer":
            return Credential(token)
        offered = connection.scope.get("subprotocols", ())
        if key := next((name.removeprefix(KEY_PREFIX) for name in offered if name.startswith(KEY_PREFIX)), ""):
            return Credential(key)
        if _is_stream(connection) and (ticket := getattr(connection.state, "ticket", "")):
            return Credential(ticket, Means.TICKET)
        if is_same_origin(connection) and (cookie := connection.cookies.get(COOKIE)):
            return Credential(cookie, Means.COOKIE)
        return Credential("")


class LogIn(SecurityBase):
    """Describes in OpenAPI how users log in. ``ReadCredential`` reads their tokens."""

    def __init__(self) -> None:
        self.scheme_name = "user"
        scopes = {scope.value: meaning for scope, meaning in SCOPES.items()}
        # Relative to the document, which a proxy may serve under any prefix.
        flow = OAuthFlowPassword(tokenUrl=TOKEN_PATH.removeprefix("/"), scopes=scopes)
        self.model: Scheme = OAuth2(flows=OAuthFlows(password=flow), description="Users, who log in with a password.")

    async def __call__(self) -> None:
        pass


async def accept(websocket: WebSocket) -> None:
    """Accept a WebSocket, with our subprotocol if the client offered it."""
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)


def is_same_origin(connection: HTTPConnection) -> bool:
    """Whether a request that may carry a cookie was sent by a page of this service, or by no page at all.

    A browser adds our cookie to requests of our own pages only (``SameSite=Strict``). This check does not depend on
    that: https://cheatsheetseries.owasp.org, "Cross-Site Request Forgery Prevention", on fetch metadata.
    """
    if site := connection.headers.get("Sec-Fetch-Site"):
        return site in {"same-origin", "none"}
    origin = connection.headers.get("Origin")
    if origin is None:  # a program, or a browser that follows a link
        return connection.scope.get("method", "GET") in {"GET", "HEAD"}
    return origin.partition("://")[2].lower() == connection.headers.get("Host", "").lower()


def _is_stream(connection: HTTPConnection) -> bool:
    """Whether an ``EventSource`` or a WebSocket may have sent this request."""
    is_events = "text/event-stream" in connection.headers.get("Accept", "") and connection.scope.get("method") == "GET"
    return is_events or connection.scope["type"] == "websocket"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
