"""Composes the application: settings, middleware, errors, routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi_offline import FastAPIOffline
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from workshop import __version__
from workshop.api.authentication import ApiKeys, UnverifiedNames
from workshop.api.clock import Clock
from workshop.api.dependencies import get_principal
from workshop.api.errors import add_error_handlers, error_responses
from workshop.api.health import HealthCheck, wait_until_ready
from workshop.api.middleware.body_limit import BodyLimitMiddleware
from workshop.api.middleware.disconnect import DisconnectMiddleware
from workshop.api.middleware.header_limit import HeaderLimitMiddleware
from workshop.api.middleware.request_id import RequestIdMiddleware
from workshop.api.middleware.shutdown import ShutdownMiddleware
from workshop.api.middleware.timing import TimingMiddleware
from workshop.api.rate_limits import RateLimits, is_at_or_below
from workshop.api.routers import earlier, metrics, playground, service, v1
from workshop.api.sockets import ConnectionSlots
from workshop.contracts.errors import StartError
from workshop.contracts.services import Services
from workshop.settings import Settings

DESCRIPTION = """
If the service has API keys, each request requires one as a bearer token, except those to health checks and to this
documentation. Otherwise any token is accepted, and taken as the caller's name.

Errors are problem documents (RFC 9457), `application/problem+json`. Only the routes of OpenAI's protocol report errors
in OpenAI's format. Each response has an `X-Request-ID`, which also appears in the log.

In the [playground](./) you can try every part of the service.
"""

TAGS = [
    {
        "name": "predictions",
        "description": "Classify tumours as benign or malignant from measurements of their cell nuclei.",
    },
    {"name": "model", "description": "The classifier behind the predictions, and its input features."},
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
    {"name": "openai", "description": "The same models for OpenAI clients: set `base_url` to the URL of `/v1`."},
    {"name": "service", "description": "Whether the service is alive and ready, and what it is doing."},
    {"name": "earlier", "description": "Routes of earlier services, for their clients. New ones should use `/v1`."},
]

PROTECTED = (400, 401, 402, 404, 408, 413, 422, 429, 503, 504)
"""Error statuses of routes that require a key."""


def create_app(services: Services, settings: Settings) -> FastAPI:
    """Build the API on top of the given services.

    Args:
        services: what the endpoints call. The application closes them when it stops.
        settings: limits, keys and other options.

    Raises:
        StartError: a setting names a route that does not exist.
    """

    check_rate_limits(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # On app.state rather than yielded: Serve does not pass lifespan state on to requests.
        app.state.services = services
        app.state.settings = settings
        app.state.clock = Clock()
        app.state.context_lengths = {}
        app.state.rate_limits = RateLimits(settings.rate_limits, settings.wrong_keys_limit, settings.redis_url)
        app.state.authenticator = ApiKeys(settings.api_keys) if settings.api_keys else UnverifiedNames()
        app.state.connection_slots = ConnectionSlots(settings.max_websockets, settings.max_websockets_per_principal)
        app.state.health = HealthCheck()
        await wait_until_ready(services)
        yield
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
    )
    # The last one added is the outermost. All middleware below RequestIdMiddleware knows the request id.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(HeaderLimitMiddleware)
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(ShutdownMiddleware)
    app.add_middleware(RequestIdMiddleware)
    # uvicorn includes it too, but trusts every caller on the same machine by default. This one also works behind Serve.
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.trusted_proxies])
    add_error_handlers(app)
    # Public: these routes and FastAPI's documentation. All others require a key if keys are set.
    app.include_router(service.router)
    app.include_router(playground.router)
    for router in _protected_routers(settings, has_language=services.language is not None):
        app.include_router(router, dependencies=[Depends(get_principal)], responses=error_responses(*PROTECTED))
    return app


def _protected_routers(settings: Settings, *, has_language: bool) -> list[APIRouter]:
    routers = [v1.router]
    if has_language:
        routers += [v1.language_router, metrics.router]
    if settings.earlier_clients:
        routers += [earlier.router, earlier.language_router] if has_language else [earlier.router]
    return routers


def check_rate_limits(settings: Settings) -> None:
    """Check that each rule limits a route: a misspelt path would limit nothing, and nobody would notice.

    Raises:
        StartError: there is no rate-limited route at or below a rule's path.
    """
    routers = _protected_routers(settings, has_language=settings.language_models)
    routes = chain.from_iterable(
        iter_route_contexts(router.routes) for router in routers if router is not metrics.router
    )
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
