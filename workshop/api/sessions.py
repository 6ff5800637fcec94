"""Log-ins: sessions of users, and the tokens that belong to them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from workshop.api.clock import now
from workshop.api.passwords import Passwords
from workshop.api.tokens import Claims, Kind, Tokens
from workshop.contracts.errors import NotFoundError, UnauthenticatedError
from workshop.contracts.principals import Credential, Means, Principal, Scope
from workshop.contracts.users import Session, UserStore

TICKET_LIMIT_S = 30
TICKET_SCOPES = frozenset({Scope.PREDICT, Scope.GENERATE})
"""What streams need: others may see a ticket, and it should not show them the cases."""

_KINDS: Mapping[Means, Kind] = {
    Means.BEARER: Kind.ACCESS,
    Means.COOKIE: Kind.COOKIE,
    Means.TICKET: Kind.TICKET,
}

_WRONG = "the name or the password is wrong"


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a client needs to make requests, and to go on when the access token has expired.

    Attributes:
        access: for requests.
        refresh: gets the next pair, once.
        expires: when ``access`` does.
        scopes: of both.
    """

    access: str
    refresh: str
    expires: datetime
    scopes: frozenset[Scope]


class Sessions:
    """Opens, renews and ends sessions, and finds principals by the tokens of their sessions.

    Args:
        tokens: signs and checks.
        users: knows users and sessions.
        access_token_s: how long an access token is valid.
        session_s: how long a session lasts.
    """

    def __init__(self, tokens: Tokens, users: UserStore, access_token_s: float, session_s: float) -> None:
        self._tokens = tokens
        self._users = users
        self._access_token = timedelta(seconds=access_token_s)
        self._session = timedelta(seconds=session_s)
        self._passwords = Passwords()

    async def authenticate(self, credential: Credential) -> Principal:
        """See ``Authenticator.authenticate``.

        The session is looked up for each request. So a log-out, another role or a deleted user takes effect at once.
        """
        claims = self._tokens.read(_KINDS[credential.means], credential.value)
        scopes = claims.scopes
        if claims.session is not None:
            scopes &= (await self.find(claims.session)).user.role.scopes
        expires = claims.stream_expires if credential.means is Means.TICKET else claims.expires
        return Principal(claims.subject, scopes, expires, claims.session)

    async def find(self, session_id: UUID) -> Session:
        """A session. Raises UnauthenticatedError if it has ended."""
        session = await self._users.session(session_id)
        if session is None:
            raise UnauthenticatedError("the session has ended")
        return session

    async def log_in(self, name: str, password: str, scopes: frozenset[Scope] | None = None) -> TokenPair:
        """Open a session for a client that stores its tokens.

        Args:
            name: the user's.
            password: as the user typed it.
            scopes: what the tokens should permit; None for all that the user may do.

        Raises:
            UnauthenticatedError: there is no such user, or the password is wrong.
        """
        refresh_id = uuid4()
        session = await self._open(name, password, refresh_id)
        return self._pair(session, refresh_id, session.user.role.scopes if scopes is None else scopes)

    async def log_in_page(self, name: str, password: str) -> tuple[str, datetime]:
        """Open a session for a page of this service. Returns the value of its cookie, and when it expires.

        Raises:
            UnauthenticatedError: there is no such user, or the password is wrong.
        """
        session = await self._open(name, password, uuid4())
        scopes = session.user.role.scopes
        return self._tokens.sign(Kind.COOKIE, name, scopes, session.expires, session.id), session.expires

    async def renew(self, refresh_token: str, scopes: frozenset[Scope] | None = None) -> TokenPair:
        """The next tokens of a session. The refresh token is void then.

        A second use ends the session: see ``UserStore.renew_session``.

        Raises:
            UnauthenticatedError: the token is not valid, or the session has ended.
        """
        claims = self._tokens.read(Kind.REFRESH, refresh_token)
        next_id = uuid4()
        session = await self._users.renew_session(_session_of(claims), claims.id, next_id)
        if session is None:
            raise UnauthenticatedError("the session has ended")
        return self._pair(session, next_id, claims.scopes if scopes is None else scopes & claims.scopes)

    async def end(self, token: str) -> None:
        """End the session of an access or refresh token. A token that is not valid has none to end."""
        for kind in (Kind.ACCESS, Kind.REFRESH):
            with suppress(UnauthenticatedError):
                await self._users.end_session(_session_of(self._tokens.read(kind, token)))

    async def end_page(self, principal: Principal) -> None:
        """End the session that a caller's credential belongs to."""
        if principal.session is not None:
            await self._users.end_session(principal.session)

    def ticket(self, principal: Principal) -> str:
        """A short-lived token for the URL of a stream. The stream may last as long as the principal's credential."""
        return self._tokens.sign(
            Kind.TICKET,
            principal.id,
            principal.scopes & TICKET_SCOPES,
            now() + timedelta(seconds=TICKET_LIMIT_S),
            principal.session,
            stream_expires=principal.expires,
        )

    async def _open(self, name: str, password: str, refresh_id: UUID) -> Session:
        user = await self._users.get(name)
        if not await self._passwords.verify(password, user.password_hash if user else None) or user is None:
            raise UnauthenticatedError(_WRONG)
        try:
            return await self._users.open_session(user, refresh_id, now() + self._session)
        except NotFoundError:
            raise UnauthenticatedError(_WRONG) from None

    def _pair(self, session: Session, refresh_id: UUID, scopes: frozenset[Scope]) -> TokenPair:
        scopes &= session.user.role.scopes
        expires = min(now() + self._access_token, session.expires)
        name = session.user.name
        return TokenPair(
            access=self._tokens.sign(Kind.ACCESS, name, scopes, expires, session.id),
            refresh=self._tokens.sign(Kind.REFRESH, name, scopes, session.expires, session.id, refresh_id),
            expires=expires,
            scopes=scopes,
        )


def _session_of(claims: Claims) -> UUID:
    assert claims.session is not None  # only tickets may have none
    return claims.session
