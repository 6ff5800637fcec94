"""Unversioned: is it up, is it ready, what is it."""

from fastapi import APIRouter, Depends, Response, status
from fastapi.responses import PlainTextResponse

from workshop import __version__
from workshop.api.clock import now
from workshop.api.dependencies import ClockDep, ServicesDep, require_ready
from workshop.api.schemas.tumours import Health
from workshop.contracts.errors import ServiceError

router = APIRouter(tags=["service"])


@router.get("/health")
async def health(services: ServicesDep, clock: ClockDep, response: Response) -> Health:
    """The state of the service; 503 when it cannot predict."""
    try:
        await require_ready(services)
        model_loaded = True
    except ServiceError:
        model_loaded = False
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return Health(
        status="healthy" if model_loaded else "unhealthy",
        version=__version__,
        model_loaded=model_loaded,
        uptime_seconds=clock.uptime_s,
        timestamp=now(),
    )


@router.get("/liveness")
async def liveness() -> dict[str, str]:
    """The process answers. If not, restart it."""
    return {"status": "alive"}


@router.get("/readiness", dependencies=[Depends(require_ready)])
async def readiness() -> dict[str, str]:
    """The models and the database answer. If not (503), send no requests."""
    return {"status": "ready"}


@router.get("/ping", response_class=PlainTextResponse, dependencies=[Depends(require_ready)])
async def ping() -> str:
    """MLflow's name for readiness."""
    return "\n"


@router.get("/version", response_class=PlainTextResponse)
async def version() -> str:
    """The version of the service."""
    return __version__
