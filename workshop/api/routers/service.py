"""Unversioned: is it up, is it ready, what is it."""

from fastapi import APIRouter, Depends, Response, status
from fastapi.responses import PlainTextResponse

from workshop import __version__
from workshop.api.clock import now
from workshop.api.dependencies import ClockDep, ServicesDep, require_ready
from workshop.api.errors import error_responses
from workshop.api.schemas.tumours import Health
from workshop.contracts.errors import ServiceError

router = APIRouter(tags=["service"], responses=error_responses(503))


@router.get("/health", summary="Tell the state of the service", responses={503: {"model": Health}})
async def health(services: ServicesDep, clock: ClockDep, response: Response) -> Health:
    """Version, uptime, and whether the models answer. The status is 503 when they do not."""
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


@router.get("/liveness", summary="Tell whether the process is alive")
async def liveness() -> dict[str, str]:
    """Asks no model. If there is no answer, restart the process."""
    return {"status": "alive"}


@router.get("/readiness", summary="Tell whether requests may be sent", dependencies=[Depends(require_ready)])
async def readiness() -> dict[str, str]:
    """The models and the database answer. If they do not, the status is 503: send no requests."""
    return {"status": "ready"}


@router.get(
    "/ping",
    summary="Tell whether requests may be sent, for MLflow",
    response_class=PlainTextResponse,
    dependencies=[Depends(require_ready)],
)
async def ping() -> str:
    """The same as `/readiness`, under the name that MLflow uses."""
    return "\n"


@router.get("/version", summary="Tell the version of the service", response_class=PlainTextResponse)
async def version() -> str:
    """As text, without anything else."""
    return __version__
