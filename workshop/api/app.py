"""Composes the application: settings, middleware, errors, routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain

from fastapi import APIRouter, Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi_offline import FastAPIOffline
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from workshop import __version__
from workshop.api.authentication import ApiKeys, CheckedCredentials, UnverifiedNames
from workshop.api.clock import Clock
from workshop.api.dependencies import get_principal
from workshop.api.errors import add_error_handlers, error_responses
from workshop.api.health import HealthCheck, wait_until_ready
from workshop.api.middleware import request_id
from workshop.api.middleware.body_limit import BodyLimit, BodyLimitMiddleware
from workshop.api.middleware.disconnect import DisconnectMiddleware
from workshop.api.middleware.header_limit import HeaderLimitMiddleware
from workshop.api.middleware.observation import ObservationMiddleware
from workshop.api.middleware.rate_limit_headers import RateLimitHeadersMiddleware
from workshop.api.middleware.request_id import RequestIdMiddleware
from workshop.api.middleware.security_headers import SecurityHeadersMiddleware
from workshop.api.middleware.shutdown import ShutdownMiddleware
from workshop.api.middleware.ticket import TicketMiddleware
from workshop.api.middleware.timing import TimingMiddleware
from workshop.api.middleware.unexpected_errors import UnexpectedErrorsMiddleware
from workshop.api.rate_limits import RateLimits, is_at_or_below
from workshop.api.routers import auth, earlier, inference, metrics, playground, scoring, service, v1
from workshop.api.sessions import Sessions
from workshop.api.sockets import ConnectionSlots
from workshop.api.tokens import Tokens
from workshop.contracts.errors import StartError
from workshop.contracts.principals import Authenticator
from workshop.contracts.services import Services
from workshop.settings import Settings

DESCRIPTION = """
If the service has API keys or users, each request requires a key or a token as a bearer token, except those to health
checks, to this documentation, and to log in. Otherwise any token is accepted, and taken as the caller's name.

Errors are problem documents (RFC 9457), `application/problem+json`. Only the routes of OpenAI's protocol and of the
Open Inference Protocol report errors in those formats. Each response has an `X-Request-ID`, which also appears in the
log.

In the [playground](./) you can try every part of the service.
"""

TAGS = [
    {
        "name": "predictions",
        "description": "Classify tumours as benign or malignant from measurements of their cell nuclei.",
    },
    {"name": "model", "description": "The classifier behind the predictions, and its input features."},
    {
        "name": "prediction jobs",
        "description": "CSV files of any length, classified in the background: upload one, follow the progress, and "
        "fetch the result.",
    },
    {"name": "cases", "description": "Stored measurements: predict them later, correct them, erase them on request."},
    {
        "name": "cascade",
        "description": "Questions to two language models: first a cheap one, then a better one if the first is unsure.",
    },
    {"name": "rag", "description": "Questions answered from sources."},
    {
        "name": "generation",
        "description": "A single language model. For conversations with several turns there is a WebSocket, "
        "`/v1/chat/ws`; its messages are described in `workshop/api/routers/chat.py`.",
    },
    {"name": "auth", "description": "Log in and out, where the service has users."},
    {"name": "openai", "description": "The same models for OpenAI clients: set `base_url` to the URL of `/v1`."},
    {"name": "mlflow", "description": "The classifier for clients of `mlflow models serve`."},
    {
        "name": "inference",
        "description": "The classifier in the Open Inference Protocol, for clients of KServe and Triton.",
    },
    {"name": "service", "description": "Whether the service is alive and ready, and what it is doing."},
    {"name": "earlier", "description": "Routes of earlier services, for their clients. New ones should use `/v1`."},
]

PROTECTED = (400, 401, 402, 403, 404, 408, 413, 415, 422, 429, 503, 504)
"""Error statuses of routes that require a key."""

UNLIMITED = (metrics.router, auth.router, auth.session_router)
"""Routers without a limit on the rate of requests."""


def create_app(services: Services, settings: Settings) -> FastAPI:
    """Build the API on top of the given services.

    Args:
        services: what the endpoints call. The application closes them when it stops.
        settings: limits, keys and other options.

    Raises:
        StartError: a setting names a route that does not exist.
    """

    check_rate_limits(settings)
    authenticator, sessions = _authentication(services, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # On app.state rather than yielded: Serve does not pass lifespan state on to requests.
        app.state.services = services
        app.state.settings = settings
        app.state.clock = Clock()
        app.state.context_lengths = {}
        app.state.rate_limits = RateLimits(
            settings.rate_limits, settings.wrong_keys_limit, settings.redis_url, settings.anonymous_limit
        )
        app.state.sessions = sessions
        app.state.authenticator = authenticator
        app.state.connection_slots = ConnectionSlots(settings.max_websockets, settings.max_websockets_per_principal)
        app.state.health = HealthCheck()
        try:
            await wait_until_ready(services)
            services.start()
            yield
        finally:  # also after a failed start
            await services.aclose()

    app: FastAPI = FastAPIOffline(
        title="Workshop service",
        summary="Classifies tumours and answers questions, on FastAPI in front of Ray Serve.",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        version=__version__,
        lifespan=lifespan,
        responses=error_responses(431, 500),
        generate_unique_id_function=_operation_id,
        # Spans of requests, if the process exports traces. Metrics and the log are our own.
        telemetry={"metrics": False, "logs": False},
    )
    # The last one added is the outermost. All middleware below RequestIdMiddleware knows the request id.
    app.add_middleware(UnexpectedErrorsMiddleware)
    app.add_middleware(BodyLimitMiddleware, limit=BodyLimit(settings.max_body_bytes, settings.body_timeout_s))
    app.add_middleware(HeaderLimitMiddleware)
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(RateLimitHeadersMiddleware)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(ObservationMiddleware, metrics=services.metrics)
    app.add_middleware(ShutdownMiddleware)
    app.add_middleware(TicketMiddleware)
    if settings.allowed_origins:  # their pages send keys or tokens: cookies are for our own
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("*",),
            expose_headers=("Location", "RateLimit", "RateLimit-Policy", "Retry-After", request_id.HEADER),
        )
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    # uvicorn includes it too, but trusts every caller on the same machine by default. This one also works behind Serve.
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.trusted_proxies])
    add_error_handlers(app)
    # The routes of models first: FastAPI tries one after the other. All of these require a key if keys are set.
    has_language, has_jobs = services.language is not None, services.prediction_jobs is not None
    for router in _protected_routers(settings, has_language=has_language, has_jobs=has_jobs):
        app.include_router(router, dependencies=[Depends(get_principal)], responses=error_responses(*PROTECTED))
    # Public: these routes and FastAPI's documentation.
    app.include_router(service.router)
    app.include_router(inference.health_router)
    app.include_router(playground.router)
    if sessions is not None:
        app.include_router(auth.oauth_router)
        app.include_router(auth.page_router)
    return app


def _authentication(services: Services, settings: Settings) -> tuple[Authenticator, Sessions | None]:
    """What checks credentials, and what issues tokens: None if nobody can log in."""
    if not settings.checks_credentials:
        return UnverifiedNames(), None
    keys = ApiKeys({key: (owner.principal, owner.role) for key, owner in (settings.api_keys or {}).items()})
    sessions = None
    if settings.token_keys is not None and services.users is not None:
        tokens = Tokens(settings.token_keys, settings.token_issuer)
        sessions = Sessions(tokens, services.users, settings.access_token_s, settings.session_s)
    admits_anonymous = settings.anonymous_limit is not None
    return CheckedCredentials(keys, sessions, admits_anonymous=admits_anonymous), sessions


def _protected_routers(settings: Settings, *, has_language: bool, has_jobs: bool) -> list[APIRouter]:
    routers = [v1.router, scoring.router, inference.router, auth.router, metrics.router]
    if settings.token_keys:
        routers.append(auth.session_router)
    if has_jobs:
        routers.append(v1.jobs_router)
    if has_language:
        routers.append(v1.language_router)
    if settings.earlier_clients:
        routers += [earlier.router, earlier.metrics_router]
        if has_language:
            routers += [earlier.language_router, earlier.usage_router]
    return routers


def check_rate_limits(settings: Settings) -> None:
    """Check that each rule limits a route: a misspelt path would limit nothing, and nobody would notice.

    Raises:
        StartError: there is no rate-limited route at or below a rule's path.
    """
    routers = _protected_routers(settings, has_language=settings.language_models, has_jobs=True)
    routes = chain.from_iterable(iter_route_contexts(router.routes) for router in routers if router not in UNLIMITED)
    limited = {str(route.path) for route in routes}
    for rule_path in settings.rate_limits:
        if "{" in rule_path or not any(is_at_or_below(path, rule_path) for path in limited):
            names = ", ".join(sorted(path for path in limited if "{" not in path))
            raise StartError(
                f"setting rate_limits: there is no rate-limited route at or below {rule_path!r}; these exist: {names}"
            )


def _operation_id(route: APIRoute) -> str:
    """The function's name: short and stable, so that generated clients get readable methods."""
    return route.name
