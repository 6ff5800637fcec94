"""Unversioned: is it up, is it ready, what is it."""

from fastapi import APIRouter, Depends, Response, status
from fastapi.responses import PlainTextResponse

from workshop import __version__
from workshop.api.clock import now
from workshop.api.dependencies import ClockDep, HealthDep, require_ready
from workshop.api.errors import error_responses
from workshop.api.schemas.service import HealthReport, Readiness

router = APIRouter(tags=["service"], responses=error_responses(503))


@router.get("/health", summary="Tell the state of the service", responses={503: {"model": HealthReport}})
async def health(state: HealthDep, clock: ClockDep, response: Response) -> HealthReport:
    """The state of the service and of its parts. The status is 503 when a part is missing that the service needs."""
    if state.missing:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return HealthReport(
        status="unhealthy" if state.missing else "degraded" if state.degraded else "healthy",
        version=__version__,
        model_loaded="classifier" not in state.missing,
        missing=list(state.missing),
        degraded=list(state.degraded),
        uptime_seconds=clock.uptime_s,
        timestamp=now(),
    )


@router.get("/liveness", summary="Tell whether the process is alive")
async def liveness() -> dict[str, str]:
    """Asks no model. If there is no answer, restart the process."""
    return {"status": "alive"}


@router.get("/readiness", summary="Tell whether requests may be sent", dependencies=[Depends(require_ready)])
async def readiness(state: HealthDep) -> Readiness:
    """The parts answer that the service needs. If they do not, the status is 503: send no requests."""
    return Readiness(status="degraded" if state.degraded else "ready", degraded=list(state.degraded))


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
