"""Dependencies of the endpoints, as annotated types, so that signatures read like sentences.

All are ``async def``, even those that await nothing: FastAPI runs a plain ``def`` dependency in a thread, which costs
more than the rest of the request.

What every request depends on has few dependencies of its own. FastAPI calls each dependency once, but goes through what
it depends on wherever it occurs.
"""

from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Security, WebSocket, WebSocketException, status
from fastapi.exceptions import RequestValidationError
from fastapi.security import SecurityScopes
from starlette.requests import HTTPConnection

from workshop.api.authentication import LogIn, ReadCredential, accept
from workshop.api.clock import Clock
from workshop.api.errors import explain
from workshop.api.health import HealthCheck
from workshop.api.middleware import rate_limit_headers
from workshop.api.rate_limits import Quota, RateLimits
from workshop.api.sessions import Sessions
from workshop.api.sockets import ConnectionSlots, is_cross_origin
from workshop.contracts.cases import CaseStore
from workshop.contracts.classifier import Classifier, ModelCard
from workshop.contracts.errors import ForbiddenError, NotFoundError, UnauthenticatedError, UnavailableError
from workshop.contracts.generator import TextGenerator
from workshop.contracts.prediction_jobs import PredictionJobs
from workshop.contracts.principals import ANONYMOUS, CALLER, Authenticator, Credential, Principal, Scope
from workshop.contracts.services import Health, LanguageServices, Services
from workshop.contracts.usage import UsageStore
from workshop.logs import add_log_fields
from workshop.settings import Settings


def request_path(connection: HTTPConnection) -> str:
    """The path below the prefix under which a proxy serves the application."""
    path: str = connection.scope["path"]
    return path.removeprefix(connection.scope.get("root_path", ""))


async def get_services(connection: HTTPConnection) -> Services:
    """The services behind the API. Tests override this dependency to replace them."""
    return cast(Services, connection.app.state.services)


async def get_settings(connection: HTTPConnection) -> Settings:
    return cast(Settings, connection.app.state.settings)


async def get_clock(request: Request) -> Clock:
    return cast(Clock, request.app.state.clock)


async def get_classifier(services: Annotated[Services, Depends(get_services)]) -> Classifier:
    return services.classifier


async def get_model_card(classifier: Annotated[Classifier, Depends(get_classifier)]) -> ModelCard:
    return await classifier.card()


async def get_health(request: Request, services: Annotated[Services, Depends(get_services)]) -> Health:
    check = cast(HealthCheck, request.app.state.health)
    return await check(services)


async def require_ready(health: Annotated[Health, Depends(get_health)]) -> None:
    """Raise UnavailableError if a required part is missing."""
    if health.missing:
        pauses = [error.retry_after_s for error in health.missing.values() if isinstance(error, UnavailableError)]
        reasons = (f"{name}: {explain(error).message}" for name, error in health.missing.items())
        raise UnavailableError("; ".join(reasons), max(pauses, default=1.0))


async def get_cases(services: Annotated[Services, Depends(get_services)]) -> CaseStore:
    return services.cases


async def get_prediction_jobs(services: Annotated[Services, Depends(get_services)]) -> PredictionJobs:
    return cast(PredictionJobs, services.prediction_jobs)  # without it, these routes do not exist


async def get_rate_limits(connection: HTTPConnection) -> RateLimits:
    return cast(RateLimits, connection.app.state.rate_limits)


RateLimitsDep = Annotated[RateLimits, Depends(get_rate_limits)]


def spend(connection: HTTPConnection, quota: Quota | None) -> None:
    """Note a quota for the headers of the response. Raises RateLimitedError if it is exceeded."""
    if quota is not None:
        connection.scope.setdefault("state", {}).setdefault(rate_limit_headers.STATE, {})[quota.policy] = quota
        quota.require()


async def get_principal(
    connection: HTTPConnection,
    credential: Annotated[Credential, Security(ReadCredential())],
    _log_in: Annotated[None, Security(LogIn())],
) -> Principal:
    """The principal of the request's credential. All protected routes depend on it, before anything else.

    Wrong credentials are counted by address. A valid one is accepted however many wrong ones came from its address, so
    callers who share an address cannot lock each other out.

    Raises:
        UnauthenticatedError: the credential is missing or not valid.
        RateLimitedError: this address has sent too many wrong ones, or an anonymous caller too many requests.
    """
    # FastAPI caches a dependency below ``Security`` by scopes too, and would call this again for each set of them.
    if not hasattr(connection.state, "principal"):
        authenticator: Authenticator = connection.app.state.authenticator
        rate_limits: RateLimits = connection.app.state.rate_limits
        try:
            principal = await authenticator.authenticate(credential)
        except UnauthenticatedError:
            if credential.value:
                spend(connection, await rate_limits.count_wrong_key(client_address(connection)))
            raise
        CALLER.set(principal.id)
        if principal.id == ANONYMOUS:
            CALLER.set(client_address(connection))
            spend(connection, await rate_limits.count_anonymous(client_address(connection)))
        if principal.id != credential.value:  # without keys, a name may be a real key, sent to the wrong service
            add_log_fields(principal=principal.id)
        connection.state.principal = principal
    return cast(Principal, connection.state.principal)


PrincipalDep = Annotated[Principal, Depends(get_principal)]


async def require_session(connection: HTTPConnection, principal: Principal) -> None:
    """Raise UnauthenticatedError for a user who has logged out since the connection was opened."""
    if principal.session is not None:
        await cast(Sessions, connection.app.state.sessions).find(principal.session)


async def require_scopes(needed: SecurityScopes, principal: PrincipalDep) -> None:
    """Raise ForbiddenError unless the caller has all the scopes that a route requires."""
    if missing := set(needed.scopes) - principal.scopes:
        scopes = " ".join(sorted(missing))
        raise ForbiddenError(f"this request requires the scope {scopes}", scopes)


def requires(scope: Scope) -> Any:
    """A dependency of routes that require a scope."""
    return Security(require_scopes, scopes=[scope.value])


def client_address(connection: HTTPConnection) -> str:
    """What callers are counted by who may choose their names: their address, or "" if the server does not know it.

    Of an IPv6 address it is the network, since one subscriber has all addresses of a /64.
    """
    return _network(connection.client.host if connection.client else "")


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))
    return host


def rate_limit_key(connection: HTTPConnection, principal: Principal) -> str:
    """What a caller's requests are counted by: its principal, or its address if it is anonymous."""
    return client_address(connection) if principal.id == ANONYMOUS else f"principal {principal.id}"


async def limit_rate(connection: HTTPConnection) -> None:
    """Raise RateLimitedError for a caller who sends too many requests to a route. Comes after ``get_principal``."""
    rate_limits: RateLimits = connection.app.state.rate_limits
    caller = rate_limit_key(connection, connection.state.principal)
    spend(connection, await rate_limits.count(request_path(connection), caller))


async def count_question(websocket: WebSocket, principal: Principal, rate_limits: RateLimits) -> None:
    """Count a question on a WebSocket as if it were a request of its own. Raises RateLimitedError."""
    quotas = [await rate_limits.count(request_path(websocket), rate_limit_key(websocket, principal))]
    if principal.id == ANONYMOUS:
        quotas.append(await rate_limits.count_anonymous(client_address(websocket)))
    for quota in quotas:
        if quota is not None:
            quota.require()


async def accept_socket(
    websocket: WebSocket, principal: PrincipalDep, settings: Annotated[Settings, Depends(get_settings)]
) -> AsyncIterator[Principal]:
    """Accept a WebSocket, and hold one of the connection slots until it ends. Yields the principal.

    A browser lets any page open a WebSocket to any service, and sends the page's origin. Other origins get a 403.
    """
    if is_cross_origin(websocket, settings.allowed_origins):
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION)  # not accepted yet, so the server responds with a 403
    slots: ConnectionSlots = websocket.app.state.connection_slots
    with slots.reserve(rate_limit_key(websocket, principal)):
        await accept(websocket)
        yield principal


async def get_language(services: Annotated[Services, Depends(get_services)]) -> LanguageServices:
    return cast(LanguageServices, services.language)  # without it, these routes do not exist


LanguageDep = Annotated[LanguageServices, Depends(get_language)]


async def get_generators(language: LanguageDep) -> Mapping[str, TextGenerator]:
    return language.generators


def find_generator(generators: Mapping[str, TextGenerator], model: str) -> TextGenerator:
    """The model with this name. Raises NotFoundError."""
    if model not in generators:
        raise NotFoundError(f"there is no model {model}; available models: {', '.join(generators)}")
    return generators[model]


async def get_usage(language: LanguageDep) -> UsageStore:
    return language.usage


async def require_json(request: Request) -> None:
    """Raise RequestValidationError unless the content type of the request is JSON."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"Input should be application/json, not {content_type or 'nothing'}"
        raise RequestValidationError([{"loc": ("header", "content-type"), "type": "json_content_type", "msg": message}])


SettingsDep = Annotated[Settings, Depends(get_settings)]
SocketPrincipalDep = Annotated[Principal, Depends(accept_socket)]
GeneratorsDep = Annotated[Mapping[str, TextGenerator], Depends(get_generators)]
UsageDep = Annotated[UsageStore, Depends(get_usage)]
ServicesDep = Annotated[Services, Depends(get_services)]
HealthDep = Annotated[Health, Depends(get_health)]
ClockDep = Annotated[Clock, Depends(get_clock)]
ClassifierDep = Annotated[Classifier, Depends(get_classifier)]
ModelCardDep = Annotated[ModelCard, Depends(get_model_card)]
CasesDep = Annotated[CaseStore, Depends(get_cases)]
PredictionJobsDep = Annotated[PredictionJobs, Depends(get_prediction_jobs)]
