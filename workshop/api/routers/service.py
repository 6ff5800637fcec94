"""Unversioned: is it up, is it ready, what is it."""

from fastapi import APIRouter, Depends, Response, status
from fastapi.responses import PlainTextResponse

from workshop import __version__
from workshop.api.clock import now
from workshop.api.dependencies import ClockDep, HealthDep, require_ready
from workshop.api.schemas.service import HealthReport, Readiness

router = APIRouter(tags=["service"])


@router.get("/health")
async def health(state: HealthDep, clock: ClockDep, response: Response) -> HealthReport:
    """The state of the service and of its parts; 503 when a part is missing that it needs."""
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


@router.get("/liveness")
async def liveness() -> dict[str, str]:
    """The process answers. If not, restart it."""
    return {"status": "alive"}


@router.get("/readiness", dependencies=[Depends(require_ready)])
async def readiness(state: HealthDep) -> Readiness:
    """The parts answer that the service needs. If not (503), send no requests."""
    return Readiness(status="degraded" if state.degraded else "ready", degraded=list(state.degraded))


@router.get("/ping", response_class=PlainTextResponse, dependencies=[Depends(require_ready)])
async def ping() -> str:
    """MLflow's name for readiness."""
    return "\n"


@router.get("/version", response_class=PlainTextResponse)
async def version() -> str:
    """The version of the service."""
    return __version__
