"""Unversioned routes: health, probes and version."""

from fastapi import APIRouter, Depends, Response, status
from fastapi.responses import PlainTextResponse

from workshop import __version__
from workshop.api.clock import now
from workshop.api.dependencies import ClockDep, HealthDep, ServicesDep, require_ready
from workshop.api.errors import error_responses
from workshop.api.schemas.service import HealthReport, Readiness

router = APIRouter(tags=["service"], responses=error_responses(503))


@router.get("/health", summary="Show the health of the service", responses={503: {"model": HealthReport}})
async def health(state: HealthDep, services: ServicesDep, clock: ClockDep, response: Response) -> HealthReport:
    """The health of the service and its parts. The status is 503 if a required part is missing."""
    if state.missing:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    models = services.language.generators.keys() if services.language else set()
    return HealthReport(
        status="unhealthy" if state.missing else "degraded" if state.degraded else "healthy",
        version=__version__,
        model_loaded="classifier" not in state.missing,
        agent_initialized=bool(models) and models.isdisjoint(state.degraded),
        missing=list(state.missing),
        degraded=list(state.degraded),
        uptime_seconds=clock.uptime_s,
        timestamp=now(),
    )


@router.get("/liveness", summary="Check whether the process is alive")
async def liveness() -> dict[str, str]:
    """Asks no model. If there is no response, restart the process."""
    return {"status": "alive"}


@router.get("/readiness", summary="Check whether the service is ready", dependencies=[Depends(require_ready)])
async def readiness(state: HealthDep) -> Readiness:
    """The status is 503 if a required part does not answer. Do not send requests then."""
    return Readiness(status="degraded" if state.degraded else "ready", degraded=list(state.degraded))


@router.get(
    "/ping",
    summary="Check whether the service is ready, for MLflow",
    response_class=PlainTextResponse,
    dependencies=[Depends(require_ready)],
)
async def ping() -> str:
    """The same as `/readiness`, at the path that MLflow uses."""
    return "\n"


@router.get("/version", summary="Show the version of the service", response_class=PlainTextResponse)
async def version() -> str:
    """The version as plain text."""
    return __version__
