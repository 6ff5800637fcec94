"""Traces with OpenTelemetry, sent over OTLP to the collector that the standard variables name.

FastAPI makes a span for each request, Ray Serve one for each call of a deployment, and both pass the trace on, as W3C
``traceparent``. This is the only place that knows OpenTelemetry's SDK, which is an extra: import it only if
``Settings.exports_traces`` is true. Without it, nothing is recorded.
"""

import os
from contextlib import suppress

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from workshop.contracts.errors import StartError

SAMPLER_ARG = "OTEL_TRACES_SAMPLER_ARG"
SERVICE = "workshop"
TIMEOUT_S = 3
"""How long an export may take, its retries included: a stop waits for the last one."""
DELAY_MS = 1000
"""How long spans are collected. A replica that stops may lose those of this time."""
QUERY = "url.query"


class _WithoutQuery(SpanProcessor):
    """Hides the query of a URL: it has what the caller asks, and may have a credential."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.attributes and QUERY in span.attributes:
            span.set_attribute(QUERY, "REDACTED")


def span_processors() -> list[SpanProcessor]:
    """What is done with each span. Ray Serve calls this in each of its processes, and makes the provider itself."""
    os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE)
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", str(TIMEOUT_S))
    os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", str(DELAY_MS))
    return [_WithoutQuery(), BatchSpanProcessor(OTLPSpanExporter())]


def sampling_ratio() -> float:
    """The share of traces to record, for Ray Serve: OpenTelemetry's own provider reads its variable itself.

    Raises:
        StartError: the variable is not a number from 0 to 1.
    """
    text = os.environ.get(SAMPLER_ARG) or "1"
    with suppress(ValueError):
        if 0 <= (ratio := float(text)) <= 1:
            return ratio
    raise StartError(f"{SAMPLER_ARG}={text} is not a number from 0 to 1")


def set_up_traces() -> None:
    """Record and export the spans of this process. Those of its last moments are exported when it ends."""
    processors = span_processors()
    provider = TracerProvider()
    for processor in processors:
        provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
