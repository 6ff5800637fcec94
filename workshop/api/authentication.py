"""Where a caller's credential comes from, and whose it is."""

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
    """Knows principals by their keys.

    Only digests are kept. Looking one up takes no time that depends on a key: nobody can choose a digest.

    Args:
        principals: by their keys.
    """

    def __init__(self, principals: Mapping[SecretStr, str]) -> None:
        self._principals = {_digest(key.get_secret_value()): Principal(id) for key, id in principals.items()}

    async def authenticate(self, credential: str) -> Principal:
        """See ``Authenticator.authenticate``."""
        principal = self._principals.get(_digest(credential))
        if principal is None:
            raise UnauthenticatedError("this service requires a valid API key")
        return principal


class Names:
    """Takes everybody's word: a key is a name. For a service without keys."""

    async def authenticate(self, credential: str) -> Principal:
        """See ``Authenticator.authenticate``."""
        return Principal(credential or ANONYMOUS)


class BearerToken(SecurityBase):
    """The bearer token of a request, or "". Calling it with a connection returns it; OpenAPI describes it.

    Browsers cannot set headers on a WebSocket: they offer the token as a subprotocol, with ``KEY_PREFIX`` before it.
    """

    def __init__(self) -> None:
        self.scheme_name = "key"
        self.model = HTTPBearer(description="A key of `WORKSHOP_API_KEYS`. Without that setting, any name will do.")

    async def __call__(self, connection: HTTPConnection) -> str:
        scheme, token = get_authorization_scheme_param(connection.headers.get("Authorization"))
        if scheme.lower() == "bearer":
            return token
        offered = connection.scope.get("subprotocols", ())
        return next((name.removeprefix(KEY_PREFIX) for name in offered if name.startswith(KEY_PREFIX)), "")


async def accept(websocket: WebSocket) -> None:
    """Accept a WebSocket, with our subprotocol where it was offered."""
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
