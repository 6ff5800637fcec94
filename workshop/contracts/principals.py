"""Callers: how they identify themselves, and what they may do."""

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

ANONYMOUS = "anonymous"
"""The id of a caller without a credential, if none is required."""
CALLER = ContextVar("caller", default=ANONYMOUS)
"""Who sent the request under way: the principal's id, or the address of an anonymous caller."""


class Scope(StrEnum):
    """What a caller may do. Each route requires one."""

    PREDICT = "predict"
    CASES_READ = "cases:read"
    CASES_WRITE = "cases:write"
    CASES_ALL = "cases:all"
    """Use the cases of all callers, not only one's own."""
    GENERATE = "generate"
    USAGE_READ = "usage:read"


SCOPES = {
    Scope.PREDICT: "Classify tumours, and read about the classifier.",
    Scope.CASES_READ: "Read one's cases.",
    Scope.CASES_WRITE: "Store, correct and erase one's cases.",
    Scope.CASES_ALL: "Use the cases of all callers.",
    Scope.GENERATE: "Ask language models.",
    Scope.USAGE_READ: "Read the statistics and metrics of the service.",
}
"""What each scope permits, for readers of the documentation."""


class Role(StrEnum):
    """A name for a set of scopes."""

    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"

    @property
    def scopes(self) -> frozenset[Scope]:
        """What callers with this role may do."""
        return _SCOPES_OF[self]


_SCOPES_OF = {
    Role.VIEWER: frozenset({Scope.PREDICT, Scope.CASES_READ}),
    Role.MEMBER: frozenset(Scope) - {Scope.CASES_ALL},
    Role.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was checked.

    Attributes:
        id: identifies the caller in budgets, rate limits, usage records and as the owner of cases.
        scopes: what the caller may do.
        expires: when the credential expires, with a time zone; None for never.
        session: the session that the credential belongs to; None for a key.
    """

    id: str
    scopes: frozenset[Scope] = frozenset()
    expires: datetime | None = None
    session: UUID | None = None


class Means(StrEnum):
    """Where a request carries its credential."""

    BEARER = "bearer"
    """In the header ``Authorization``, or as a subprotocol of a WebSocket."""
    COOKIE = "cookie"
    TICKET = "ticket"
    """In the URL. Others may see it there, so it expires soon."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request says of its caller. ``value`` is "" if it says nothing."""

    value: str
    means: Means = Means.BEARER


class Authenticator(Protocol):
    """Finds the principal of a credential."""

    async def authenticate(self, credential: Credential) -> Principal:
        """The principal of a credential.

        Raises:
            UnauthenticatedError: the credential is missing or not valid.
        """
        ...
