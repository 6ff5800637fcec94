"""Composes the application: settings, middleware, errors, routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi_offline import FastAPIOffline
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from workshop import __version__
from workshop.api.authentication import ApiKeys, Names
from workshop.api.clock import Clock
from workshop.api.dependencies import get_principal
from workshop.api.errors import add_error_handlers, error_responses
from workshop.api.health import HealthCheck, wait_until_ready
from workshop.api.middleware.body_limit import BodyLimitMiddleware
from workshop.api.middleware.disconnect import DisconnectMiddleware
from workshop.api.middleware.ending import EndingMiddleware
from workshop.api.middleware.header_limit import HeaderLimitMiddleware
from workshop.api.middleware.request_id import RequestIdMiddleware
from workshop.api.middleware.timing import TimingMiddleware
from workshop.api.rate_limits import RateLimits, is_below
from workshop.api.routers import metrics, playground, service, v1
from workshop.api.sockets import Places
from workshop.contracts.errors import StartError
from workshop.contracts.services import Services
from workshop.settings import Settings

DESCRIPTION = """
Everything below `/v1`, and `/metrics`, requires a key as a bearer token where the service has keys. Where it has none,
any token will do and is the name of who asks.

An error is a problem document (RFC 9457), `application/problem+json`. Only the routes of OpenAI's protocol have errors
of OpenAI's form. Each response has an `X-Request-ID`, which the log has too.

The [playground](./) shows every part of the service, to try by hand.
"""

TAGS = [
    {
        "name": "predictions",
        "description": "Tell benign from malignant tumours by the measurements of their cell nuclei.",
    },
    {"name": "model", "description": "The classifier that predicts, and what it takes."},
    {"name": "cases", "description": "Measurements that are kept, predicted later, corrected, and erased on request."},
    {
        "name": "cascade",
        "description": "Questions to two language models: a cheap one, and a better one when it is unsure.",
    },
    {"name": "rag", "description": "Questions that are answered from sources."},
    {
        "name": "generation",
        "description": "One language model. A conversation with several turns has a WebSocket, `/v1/chat/ws`, "
        "whose messages are described in `workshop/api/routers/chat.py`.",
    },
    {"name": "openai", "description": "The same models for OpenAI's clients: set `base_url` to the address of `/v1`."},
    {"name": "service", "description": "Whether the service is alive and ready, and what it is doing."},
]

PROTECTED = (400, 401, 402, 404, 408, 413, 422, 429, 503, 504)
"""What routes that require a key may answer instead."""


def create_app(services: Services, settings: Settings) -> FastAPI:
    """Build the API on top of the given services.

    Args:
        services: the ports that endpoints call. The application closes them when it stops.
        settings: limits and the like.

    Raises:
        StartError: a setting names a route that is not there.
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
        app.state.authenticator = ApiKeys(settings.api_keys) if settings.api_keys else Names()
        app.state.places = Places(settings.max_websockets, settings.max_websockets_per_principal)
        app.state.health = HealthCheck()
        await wait_until_ready(services)
        yield
        await services.aclose()

    app: FastAPI = FastAPIOffline(
        title="Workshop service",
        summary="Predicts tumours and answers questions, on FastAPI in front of Ray Serve.",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        version=__version__,
        lifespan=lifespan,
        responses=error_responses(431, 500),
        generate_unique_id_function=_operation_id,
    )
    # The last one added is the outermost: the request id is known to all that follows.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(HeaderLimitMiddleware)
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(EndingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    # uvicorn has it too, but by default it believes every caller on this machine. Ours works behind Serve as well.
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.trusted_proxies])
    add_error_handlers(app)
    # Public: these, and FastAPI's documentation. All others ask for a key where keys are set.
    app.include_router(service.router)
    app.include_router(playground.router)
    for router in (v1.router, *([v1.language_router, metrics.router] if services.language is not None else [])):
        app.include_router(router, dependencies=[Depends(get_principal)], responses=error_responses(*PROTECTED))
    return app


def check_rate_limits(settings: Settings) -> None:
    """Look whether each rule limits something: a misspelt one would limit nothing, and nobody would notice.

    Raises:
        StartError: there is no limited route at a rule's path, nor below it.
    """
    routers = (v1.router, v1.language_router) if settings.language_models else (v1.router,)
    limited = {str(route.path) for router in routers for route in iter_route_contexts(router.routes)}
    for ruled in settings.rate_limits:
        if "{" in ruled or not any(is_below(path, ruled) for path in limited):
            names = ", ".join(sorted(path for path in limited if "{" not in path))
            raise StartError(
                f"setting rate_limits: there is no route at or below {ruled!r} that is limited; limited are {names}"
            )


def _operation_id(route: APIRoute) -> str:
    """Short, stable names for the methods of generated clients."""
    return route.name
