"""Log-in and log-out: OAuth 2.0 for programs (RFC 6749, RFC 7009), a cookie for the playground, tickets for streams."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response, status
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from workshop.api.authentication import COOKIE, TOKEN_PATH, is_same_origin
from workshop.api.clock import now
from workshop.api.dependencies import PrincipalDep, RateLimitsDep, client_address, require_json, spend
from workshop.api.errors import Explanation, error_responses
from workshop.api.rate_limits import RateLimits
from workshop.api.routes import JsonRoute, ProtocolRoute
from workshop.api.schemas.auth import LogInRequest, Me, Revocation, TicketAnswer, TokenAnswer, TokenRequest
from workshop.api.sessions import TICKET_LIMIT_S, Sessions, TokenPair
from workshop.contracts.errors import UnauthenticatedError
from workshop.contracts.principals import Scope

NO_STORE = {"Cache-Control": "no-store"}


class OAuthError(BaseModel):
    """The body of an error of OAuth 2.0."""

    error: str
    error_description: str


class OAuthRoute(ProtocolRoute):
    """A route that reports errors in the format of OAuth 2.0 (RFC 6749, section 5.2)."""

    def error_response(self, request: Request, explanation: Explanation) -> JSONResponse:
        """The response to an error."""
        code, error = explanation.status, "invalid_request"
        if code == HTTPStatus.UNAUTHORIZED:  # the password or the refresh token: that status is for clients
            code, error = HTTPStatus.BAD_REQUEST, "invalid_grant"
        elif code == HTTPStatus.SERVICE_UNAVAILABLE:
            error = "temporarily_unavailable"
        elif code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            error = "server_error"
        content = OAuthError(error=error, error_description=explanation.text).model_dump()
        return JSONResponse(content, code, {**NO_STORE, **(explanation.headers or {})})


async def get_sessions(connection: HTTPConnection) -> Sessions:
    return cast(Sessions, connection.app.state.sessions)


SessionsDep = Annotated[Sessions, Depends(get_sessions)]


@asynccontextmanager
async def limit_wrong_passwords(request: Request, rate_limits: RateLimits) -> AsyncIterator[None]:
    """Count a wrong password in this block.

    Raises:
        RateLimitedError: this address has sent too many wrong keys or passwords, perhaps at the same time as this one.
    """
    address = client_address(request)
    spend(request, await rate_limits.wrong_keys(address))
    try:
        yield
    except UnauthenticatedError:
        spend(request, await rate_limits.count_wrong_key(address))
        raise
    spend(request, await rate_limits.wrong_keys(address))


oauth_router = APIRouter(
    prefix="/v1/auth",
    tags=["auth"],
    route_class=OAuthRoute,
    responses=error_responses(400, 408, 413, 415, 429, 503, answer={"model": OAuthError}),
)
"""Public: a caller has no token yet, or wants to be rid of it."""


@oauth_router.post(TOKEN_PATH.removeprefix("/v1/auth"), summary="Log in, or renew a log-in")
async def create_token(
    form: Annotated[TokenRequest, Form()],
    sessions: SessionsDep,
    request: Request,
    response: Response,
    rate_limits: RateLimitsDep,
) -> TokenAnswer:
    """Tokens for a name and a password, or for a refresh token, which can be used once."""
    scopes = _scopes(form.scope)
    if form.refresh_token is not None and form.grant_type == "refresh_token":
        pair = await sessions.renew(form.refresh_token, scopes)
    else:
        async with limit_wrong_passwords(request, rate_limits):
            pair = await sessions.log_in(form.username or "", form.password or "", scopes)
    response.headers.update(NO_STORE)
    return _answer(pair)


@oauth_router.post("/revoke", summary="Log out")
async def revoke_token(form: Annotated[Revocation, Form()], sessions: SessionsDep) -> None:
    """End the session of a token. All its tokens are void from now on. A token that is not valid is no error."""
    await sessions.end(form.token)


def _scopes(text: str) -> frozenset[Scope] | None:
    """The scopes that a client asks for. Unknown ones are ignored, as RFC 6749 allows: the answer says what it got."""
    if not text.strip():
        return None
    return frozenset(Scope(name) for name in text.split() if name in frozenset(Scope))


def _answer(pair: TokenPair) -> TokenAnswer:
    return TokenAnswer(
        access_token=pair.access,
        expires_in=max(0, int((pair.expires - now()).total_seconds())),
        refresh_token=pair.refresh,
        scope=" ".join(sorted(pair.scopes)),
    )


page_router = APIRouter(prefix="/v1/auth", tags=["auth"], route_class=JsonRoute)
"""Public: for the pages of this service."""


@page_router.post(
    "/login",
    summary="Log in with a cookie",
    status_code=status.HTTP_204_NO_CONTENT,
    dependencies=[Depends(require_json)],
    responses=error_responses(401, 403, 408, 413, 415, 422, 429, 503),
)
async def log_in(
    form: LogInRequest, sessions: SessionsDep, request: Request, response: Response, rate_limits: RateLimitsDep
) -> None:
    """Set a cookie that scripts cannot read, and that browsers send with requests of this service's pages only."""
    if not is_same_origin(request):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "only pages of this service may log in with a cookie")
    async with limit_wrong_passwords(request, rate_limits):
        value, expires = await sessions.log_in_page(form.username, form.password)
    response.set_cookie(COOKIE, value, expires=expires, **_cookie_options(request))


session_router = APIRouter(prefix="/v1/auth", tags=["auth"], route_class=JsonRoute)
"""For callers who are known."""


@session_router.post("/logout", summary="Log out with a cookie", status_code=status.HTTP_204_NO_CONTENT)
async def log_out(principal: PrincipalDep, sessions: SessionsDep, request: Request, response: Response) -> None:
    """End the caller's session, and delete the cookie."""
    await sessions.end_page(principal)
    response.delete_cookie(COOKIE, **_cookie_options(request))


@session_router.post("/ticket", summary="Get a ticket for a stream")
async def create_ticket(principal: PrincipalDep, sessions: SessionsDep, response: Response) -> TicketAnswer:
    """A token for the URL of an `EventSource` or a WebSocket: `?ticket=…`. It expires after 30 seconds."""
    response.headers.update(NO_STORE)
    return TicketAnswer(ticket=sessions.ticket(principal), expires_in=TICKET_LIMIT_S)


router = APIRouter(prefix="/v1/auth", tags=["auth"], route_class=JsonRoute)
"""Exists without users, too."""


@router.get("/me", summary="Show the caller")
async def show_me(principal: PrincipalDep) -> Me:
    """Who the caller is, what it may do, and when its credential expires."""
    return Me.of(principal)


def _cookie_options(request: Request) -> dict[str, Any]:
    return {
        "path": f"{request.scope.get('root_path', '')}/",
        "secure": request.url.scheme == "https",
        "httponly": True,
        "samesite": "strict",
    }
