"""Callers, and how the service authenticates them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

ANONYMOUS = "anonymous"
"""The id of a caller without a credential, if none is required."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was checked.

    Attributes:
        id: identifies the caller in budgets, rate limits and usage records.
        scopes: what the caller may do.
        expires: when the credential expires, with a time zone; None for never.
    """

    id: str
    scopes: frozenset[str] = frozenset()
    expires: datetime | None = None


class Authenticator(Protocol):
    """Finds the principal of a credential."""

    async def authenticate(self, credential: str) -> Principal:
        """The principal of a bearer token; "" if the request has none.

        Raises:
            UnauthenticatedError: the token is not valid.
        """
        ...
