"""Who asks, and how the service finds out."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

ANONYMOUS = "anonymous"
"""The id of a caller without a credential, where none is required."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential was checked.

    Attributes:
        id: what budgets, rate limits and usage records are kept by.
        scopes: what it may do.
        expires: when its credential ends, with a time zone; None for never.
    """

    id: str
    scopes: frozenset[str] = frozenset()
    expires: datetime | None = None


class Authenticator(Protocol):
    """Tells whose credential it is."""

    async def authenticate(self, credential: str) -> Principal:
        """The principal of a bearer token; "" stands for none.

        Raises:
            UnauthenticatedError: nobody's.
        """
        ...
