"""Metrics for Prometheus."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder

from workshop.api.dependencies import UsageDep
from workshop.api.metrics import CascadeCollector

router = APIRouter(tags=["service"])

_TEXT = {"schema": {"type": "string"}}
FORMATS: dict[int | str, dict[str, Any]] = {
    200: {"content": dict.fromkeys(("text/plain", "application/openmetrics-text"), _TEXT)}
}
"""The documentation of the responses."""


@router.get("/metrics", summary="Export metrics for Prometheus", response_class=Response, responses=FORMATS)
async def metrics(usage: UsageDep, accept: Annotated[str, Header()] = "") -> Response:
    """Metrics of the whole service, in the format that the scraper requests."""
    encode, content_type = choose_encoder(accept)
    return Response(encode(CascadeCollector(await usage.totals(cascades_only=True))), media_type=content_type)
