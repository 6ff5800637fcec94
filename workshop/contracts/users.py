"""People who log in with a password, and their sessions."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from workshop.contracts.principals import Role

NAME_PATTERN = r"^[\w.@+-]{1,64}$"
"""The name of a user: letters, digits and a few signs."""


@dataclass(frozen=True, slots=True)
class User:
    """Someone who may log in.

    Attributes:
        name: unique; also the id of the user as a principal.
        role: what the user may do.
        password_hash: in the PHC string format, which names the algorithm.
    """

    name: str
    role: Role
    password_hash: str


@dataclass(frozen=True, slots=True)
class Session:
    """What a user's tokens depend on: when it ends, none of them is valid any longer.

    Attributes:
        id: stands in each token.
        user: as it is now, not as it was at the log-in.
        expires: with a time zone.
    """

    id: UUID
    user: User
    expires: datetime


class UserStore(Protocol):
    """Stores users and sessions. All replicas of a service share one store. All methods raise UnavailableError."""

    async def put(self, user: User) -> None:
        """Add a user, or replace the one of the same name, whose sessions end."""
        ...

    async def get(self, name: str) -> User | None: ...

    async def all(self) -> list[User]:
        """By name."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a user and its sessions. Raises NotFoundError."""
        ...

    async def open_session(self, user: User, refresh_id: UUID, expires: datetime) -> Session:
        """Open a session for a user, which ends at ``expires``.

        Args:
            user: as it was when the password was checked.
            refresh_id: of the token that may renew it.
            expires: with a time zone.

        Raises:
            NotFoundError: the user was changed or deleted meanwhile.
        """
        ...

    async def session(self, session_id: UUID) -> Session | None:
        """The session if it has not ended."""
        ...

    async def renew_session(self, session_id: UUID, refresh_id: UUID, next_refresh_id: UUID) -> Session | None:
        """Replace the token that may renew a session.

        A token that was replaced before ends the session: somebody has a copy, the user or a thief.

        Returns:
            The session, or None if it has ended, also if it ends now.
        """
        ...

    async def end_session(self, session_id: UUID) -> None:
        """End a session, if it has not ended."""
        ...

    async def aclose(self) -> None:
        """Release the store's resources."""
        ...
