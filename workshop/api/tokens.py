"""JSON Web Tokens: signed statements of who a caller is, which any replica can check."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

import jwt
from pydantic import SecretStr

from workshop.api.clock import now
from workshop.contracts.errors import UnauthenticatedError
from workshop.contracts.principals import Scope

ALGORITHM = "HS256"
LEEWAY_S = 5.0
"""How far the clocks of two replicas may differ."""

REQUIRED = ["iss", "aud", "sub", "exp", "nbf", "jti"]


class Kind(StrEnum):
    """What a token is for. It stands in the header ``typ``, and no kind passes for another."""

    ACCESS = "at+jwt"  # RFC 9068
    REFRESH = "refresh+jwt"
    COOKIE = "cookie+jwt"
    TICKET = "ticket+jwt"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says.

    Attributes:
        subject: the id of a principal.
        scopes: what the bearer may do, at most.
        expires: with a time zone.
        session: the token is valid no longer than this session; None for a ticket that was issued for a key.
        id: unique.
        stream_expires: when a stream ends that was opened with this ticket; None for never.
    """

    subject: str
    scopes: frozenset[Scope]
    expires: datetime
    session: UUID | None
    id: UUID
    stream_expires: datetime | None


class Tokens:
    """Signs tokens and checks them.

    To replace a key, put the new one in front, and remove the old one when the tokens that it signed have expired.

    Args:
        keys: secrets by their ids (``kid``). The first one signs; each may check.
        issuer: the name of this service. Its tokens are for itself, so it is the audience, too.
    """

    def __init__(self, keys: Mapping[str, SecretStr], issuer: str) -> None:
        self._keys = {key_id: key.get_secret_value() for key_id, key in keys.items()}
        self._issuer = issuer

    def sign(
        self,
        kind: Kind,
        subject: str,
        scopes: frozenset[Scope],
        expires: datetime,
        session: UUID | None = None,
        id: UUID | None = None,
        stream_expires: datetime | None = None,
    ) -> str:
        """A new token. See ``Claims``; without ``id`` it gets a new one."""
        key_id, key = next(iter(self._keys.items()))
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": subject,
            "scope": " ".join(sorted(scopes)),
            "iat": now(),
            "nbf": now(),
            "exp": expires,
            "jti": str(id or uuid4()),
        }
        if session is not None:
            claims["sid"] = str(session)
        if stream_expires is not None:
            claims["stream_exp"] = int(stream_expires.timestamp())
        return jwt.encode(claims, key, ALGORITHM, headers={"typ": kind, "kid": key_id})

    def read(self, kind: Kind, token: str) -> Claims:
        """Check a token.

        Raises:
            UnauthenticatedError: it has another kind, has expired, or was not signed by this service.
        """
        required = REQUIRED if kind is Kind.TICKET else [*REQUIRED, "sid"]
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            decoded = jwt.decode_complete(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._issuer,
                leeway=timedelta(seconds=LEEWAY_S),
                options={"require": required, "strict_aud": True},
            )
            if decoded["header"].get("typ") != kind:
                raise UnauthenticatedError("this is another kind of token")
            claims = decoded["payload"]
            return Claims(
                subject=claims["sub"],
                scopes=frozenset(map(Scope, claims.get("scope", "").split())),
                expires=_time(claims["exp"]),
                session=UUID(claims["sid"]) if "sid" in claims else None,
                id=UUID(claims["jti"]),
                stream_expires=_time(claims["stream_exp"]) if "stream_exp" in claims else None,
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired") from None
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError, OverflowError):  # the last: a date too far
            raise UnauthenticatedError("the token is not valid") from None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
