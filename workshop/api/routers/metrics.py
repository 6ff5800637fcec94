"""Metrics for Prometheus."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder

from workshop.api.dependencies import ClockDep, HealthDep, ServicesDep, SettingsDep, requires
from workshop.api.metrics import CASCADE, EARLIER_CASCADE, MetricsCollector
from workshop.contracts.principals import Scope

router = APIRouter(tags=["service"], dependencies=[requires(Scope.USAGE_READ)])

_TEXT = {"schema": {"type": "string"}}
FORMATS: dict[int | str, dict[str, Any]] = {
    200: {"content": dict.fromkeys(("text/plain", "application/openmetrics-text"), _TEXT)}
}
"""The documentation of the responses."""


@router.get("/metrics", summary="Export metrics for Prometheus", response_class=Response, responses=FORMATS)
async def metrics(
    services: ServicesDep,
    settings: SettingsDep,
    state: HealthDep,
    clock: ClockDep,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Metrics of the whole service, in the format that the scraper requests."""
    cascades = [CASCADE, EARLIER_CASCADE] if settings.earlier_clients else [CASCADE]
    collector = MetricsCollector(
        await services.metrics.totals(),
        model_loaded="classifier" not in state.missing,
        uptime_s=clock.uptime_s,
        cascades=cascades if services.language else [],
    )
    encode, content_type = choose_encoder(accept)
    return Response(encode(collector), media_type=content_type)
