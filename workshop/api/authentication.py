"""Reads a caller's credential, and finds the principal it belongs to."""

import hashlib
from collections.abc import Mapping

from fastapi import WebSocket
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from workshop.contracts.errors import UnauthenticatedError
from workshop.contracts.principals import ANONYMOUS, Principal

SUBPROTOCOL = "workshop.chat"
KEY_PREFIX = "bearer."


class ApiKeys:
    """Authenticates principals by API key.

    Only digests of the keys are stored. The time of a lookup reveals nothing about a key, since nobody can choose a
    digest.

    Args:
        principals: the principal's id for each key.
    """

    def __init__(self, principals: Mapping[SecretStr, str]) -> None:
        self._principals = {_digest(key.get_secret_value()): Principal(id) for key, id in principals.items()}

    async def authenticate(self, credential: str) -> Principal:
        """See ``Authenticator.authenticate``."""
        principal = self._principals.get(_digest(credential))
        if principal is None:
            raise UnauthenticatedError("this service requires a valid API key")
        return principal


class UnverifiedNames:
    """Accepts any credential as the caller's name. For a service without keys."""

    async def authenticate(self, credential: str) -> Principal:
        """See ``Authenticator.authenticate``."""
        return Principal(credential or ANONYMOUS)


class BearerToken(SecurityBase):
    """Reads the bearer token of a request, or "" if there is none, and describes it in OpenAPI.

    Browsers cannot set headers on a WebSocket, so they send the token as a subprotocol, prefixed with ``KEY_PREFIX``.
    """

    def __init__(self) -> None:
        self.scheme_name = "key"
        self.model = HTTPBearer(
            description="One of the keys in `WORKSHOP_API_KEYS`. Without that setting, any name is accepted."
        )

    async def __call__(self, connection: HTTPConnection) -> str:
        scheme, token = get_authorization_scheme_param(connection.headers.get("Authorization"))
        if scheme.lower() == "bearer":
            return token
        offered = connection.scope.get("subprotocols", ())
        return next((name.removeprefix(KEY_PREFIX) for name in offered if name.startswith(KEY_PREFIX)), "")


async def accept(websocket: WebSocket) -> None:
    """Accept a WebSocket, with our subprotocol if the client offered it."""
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
