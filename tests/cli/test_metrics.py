"""Metrics of a service with several worker processes."""

import signal
from contextlib import suppress

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.conftest import START_S
from tests.cli.test_observability import json_lines
from tests.service import RECORD, concurrently, until
from workshop.machine import free_port

pytestmark = pytest.mark.slow


def test_every_worker_reports_what_all_have_counted_and_one_that_is_killed_takes_nothing_away(run):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = ("-m", "uvicorn", "--factory", "workshop.integration.services:app", "--workers", "2")
    run = run("--port", str(port), program=program)

    def predicted() -> float:
        with suppress(httpx.TransportError):  # a new connection each time: any worker may answer
            families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
            samples = [sample for family in families for sample in family.samples]
            return sum(sample.value for sample in samples if sample.name == "prediction_requests_total")
        return -1.0

    def predict(_: int) -> int:
        return httpx.post(f"{url}/v1/predict", json=RECORD, timeout=30).status_code

    def workers() -> set[int]:
        found = set()
        for child in psutil.Process(run.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in str(child.cmdline()):  # not multiprocessing's own helper
                    found.add(child.pid)
        return found

    assert until(predicted, lambda seen: seen == 0, START_S) == 0
    assert concurrently(predict, range(60)) == [200] * 60
    assert until(predicted, lambda seen: seen == 60) == 60
    assert {predicted() for _ in range(20)} == {60}

    first, *_ = before = workers()
    assert len(before) == 2
    psutil.Process(first).kill()
    until(workers, lambda now: len(now) == 2 and first not in now, START_S)
    assert until(predicted, lambda seen: seen >= 0, START_S) == 60
    assert predict(0) == 200
    assert until(predicted, lambda seen: seen == 61) == 61
    run.send(signal.SIGTERM)
    assert sum(line.get("route") == "/v1/predict" for line in json_lines(run.err)) == 61
