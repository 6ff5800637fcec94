"""Traces when the collector fails, and when there is none. What they contain: see ``test_observability``."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from socket import create_server

import httpx
import pytest

from tests.cli.test_observability import json_lines
from tests.collector import running_collector
from tests.service import RECORD, until
from workshop.machine import free_port

pytestmark = pytest.mark.slow

SMALL_QUEUE = {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
"""Spans are dropped soon, instead of after thousands of requests."""


@contextmanager
def down() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def silent() -> Iterator[str]:
    with create_server(("127.0.0.1", 0)) as server:  # connects, but never answers
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def overloaded() -> Iterator[str]:
    with running_collector(HTTPStatus.SERVICE_UNAVAILABLE) as collector:
        yield collector.url


@contextmanager
def refusing() -> Iterator[str]:
    with running_collector(HTTPStatus.UNAUTHORIZED) as collector:
        yield collector.url


@pytest.mark.parametrize("failing", [down, silent, overloaded, refusing])
def test_a_collector_that_fails_harms_no_request_and_no_stop(run, failing):
    with failing() as url:
        run = run("api", "--port", "0", OTEL_EXPORTER_OTLP_ENDPOINT=url, **SMALL_QUEUE)
        with httpx.Client(base_url=run.url()) as client:
            for _ in range(100):
                assert client.post("/v1/predict", json=RECORD).status_code == 200
            # Something was lost, which one line says, and requests go on.
            until(lambda: "Failed to export" in run.err, bool)
            assert client.get("/ping").status_code == 200
        assert run.send(signal.SIGTERM) == 0
    assert len(json_lines(run.err)) == len(run.err.splitlines()), run.err
    assert "Failed to export" in run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize("off", [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}])
def test_without_a_collector_there_are_no_traces(run, off):
    run = run("api", "--port", "0", **off)
    traced = {"traceparent": f"00-{1:032x}-{1:016x}-01"}
    assert httpx.get(f"{run.url()}/ping", headers=traced).status_code == 200
    [line] = until(lambda: [line for line in json_lines(run.err) if "status" in line], bool)
    run.send(signal.SIGTERM)
    assert "trace_id" not in line
    assert "OTLP" not in run.err


@pytest.mark.parametrize("ratio", ["half", "2", "nan"])
def test_serve_refuses_a_ratio_that_is_none(run, ratio):
    run = run(
        "serve", "--port", "0", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318", OTEL_TRACES_SAMPLER_ARG=ratio
    )
    assert run.wait() == 1
    assert f"workshop: OTEL_TRACES_SAMPLER_ARG={ratio} is not a number from 0 to 1" in run.err
