"""Composes the application: settings, middleware, errors, routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from workshop import __version__
from workshop.api.clock import Clock
from workshop.api.errors import PROBLEM_RESPONSES, add_error_handlers
from workshop.api.health import HealthCheck, wait_until_ready
from workshop.api.middleware.body_limit import BodyLimitMiddleware
from workshop.api.middleware.disconnect import DisconnectMiddleware
from workshop.api.middleware.ending import EndingMiddleware
from workshop.api.middleware.header_limit import HeaderLimitMiddleware
from workshop.api.middleware.request_id import RequestIdMiddleware
from workshop.api.middleware.timing import TimingMiddleware
from workshop.api.rate_limits import RateLimits, is_below
from workshop.api.routers import metrics, playground, service, v1
from workshop.contracts.errors import StartError
from workshop.contracts.services import Services
from workshop.settings import Settings


def create_app(services: Services, settings: Settings) -> FastAPI:
    """Build the API on top of the given services.

    Args:
        services: the ports that endpoints call. The application closes them when it stops.
        settings: limits and the like.

    Raises:
        StartError: a setting names a route that is not there.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # On app.state rather than yielded: Serve does not pass lifespan state on to requests.
        app.state.services = services
        app.state.settings = settings
        app.state.clock = Clock()
        app.state.context_lengths = {}
        app.state.rate_limits = RateLimits(settings.rate_limits, settings.redis_url)
        app.state.health = HealthCheck()
        await wait_until_ready(services)
        yield
        await services.aclose()

    app: FastAPI = FastAPIOffline(
        title="Tumour classifier",
        summary="Tells benign from malignant tumours by the measurements of their cell nuclei.",
        version=__version__,
        lifespan=lifespan,
        responses=PROBLEM_RESPONSES,
        generate_unique_id_function=_operation_id,
    )
    # The last one added is the outermost: the request id is known to all that follows.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(HeaderLimitMiddleware)
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(EndingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    add_error_handlers(app)
    app.include_router(service.router)
    app.include_router(v1.router)
    if services.language is not None:
        app.include_router(v1.language_router)
        app.include_router(metrics.router)
    app.include_router(playground.router)
    sockets = [] if services.language is None else [app.url_path_for("chat")]
    for ruled in settings.rate_limits:  # a misspelt one would limit nothing, and nobody would notice
        if not any(is_below(path, ruled) for path in [*app.openapi()["paths"], *sockets]):
            raise StartError(f"setting rate_limits: there is no route at or below {ruled}")
    return app


def _operation_id(route: APIRoute) -> str:
    """Short, stable names for the methods of generated clients."""
    return route.name
