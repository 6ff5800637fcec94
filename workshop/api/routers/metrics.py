"""Metrics for Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder

from workshop.api.dependencies import UsageDep
from workshop.api.metrics import CascadeCollector

router = APIRouter(tags=["service"])


@router.get("/metrics", response_class=Response)
async def metrics(usage: UsageDep, accept: Annotated[str, Header()] = "") -> Response:
    """The state of the whole service, in the format that the scraper asks for."""
    encode, content_type = choose_encoder(accept)
    return Response(encode(CascadeCollector(await usage.totals(cascades_only=True))), media_type=content_type)
