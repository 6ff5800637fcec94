"""Requests and answers of the routes that issue and revoke tokens (RFC 6749, RFC 7009)."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from workshop.api.passwords import MAX_PASSWORD
from workshop.api.schemas.base import StrictModel
from workshop.contracts.principals import Principal, Scope
from workshop.contracts.users import NAME_PATTERN

UserName = Annotated[str, Field(pattern=NAME_PATTERN)]
Password = Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD)]
Token = Annotated[str, Field(min_length=1, max_length=4096)]


class TokenRequest(BaseModel):
    """A form with a password, or with the refresh token that an earlier answer gave. Other fields are ignored."""

    grant_type: Literal["password", "refresh_token"] = "password"
    username: UserName | None = None
    password: Password | None = None
    refresh_token: Token | None = None
    scope: Annotated[str, Field(max_length=256)] = ""
    """The scopes that the tokens should have, separated by blanks; without any, all that the user may have."""

    @model_validator(mode="after")
    def _check_grant(self) -> Self:
        if self.grant_type == "password" and (self.username is None or self.password is None):
            raise ValueError("the grant type password requires username and password")
        if self.grant_type == "refresh_token" and self.refresh_token is None:
            raise ValueError("the grant type refresh_token requires a refresh_token")
        return self


class TokenAnswer(BaseModel):
    """An access token, and the token that gets the next one. ``expires_in`` is in seconds."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int
    refresh_token: str
    scope: str


class Revocation(BaseModel):
    """A form with any token of the session that should end. Other fields are ignored."""

    token: Token


class LogInRequest(StrictModel):
    """Name and password, for a cookie."""

    username: UserName
    password: Password


class TicketAnswer(BaseModel):
    """A ticket for the URL of a stream or a WebSocket. ``expires_in`` is in seconds."""

    ticket: str
    expires_in: int


class Me(BaseModel):
    """The caller, as the service sees it."""

    principal: str
    scopes: list[Scope]
    expires: datetime | None

    @classmethod
    def of(cls, principal: Principal) -> Self:
        """From the contract's type."""
        return cls(principal=principal.id, scopes=sorted(principal.scopes), expires=principal.expires)
