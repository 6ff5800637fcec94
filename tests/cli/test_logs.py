"""The log of a process on uvicorn: lines of JSON on standard error. With Ray Serve: see ``test_observability``."""

import signal
from contextlib import suppress

import httpx
import pytest

from tests.cli.conftest import START_S
from tests.cli.test_observability import json_lines
from tests.service import until
from workshop.machine import free_port

pytestmark = pytest.mark.slow


def of_requests(text: str) -> list[dict]:
    return [line for line in json_lines(text) if "status" in line]


def test_a_file_gets_json_and_every_line_of_it_is_json(run):
    run = run("api", "--port", "0")
    httpx.get(f"{run.url()}/health")
    until(lambda: of_requests(run.err), bool)
    run.send(signal.SIGTERM)
    assert len(json_lines(run.err)) == len(run.err.splitlines())


def test_text_on_request(run):
    run = run("api", "--port", "0", WORKSHOP_LOG_FORMAT="text")
    httpx.get(f"{run.url()}/health", headers={"X-Request-ID": "callers-own-id"})
    line = "workshop.api.middleware.observation: GET /health 200 [request_id=callers-own-id]"
    until(lambda: line in run.err, bool)
    run.send(signal.SIGTERM)
    assert line in run.err
    assert not json_lines(run.err)


def test_at_a_higher_level_requests_have_no_lines(run):
    run = run("api", "--port", "0", WORKSHOP_LOG_LEVEL="WARNING")
    httpx.get(f"{run.url()}/health")
    run.send(signal.SIGTERM)
    assert run.err == ""


def test_under_uvicorns_own_command_line_there_is_the_same_log(run):
    port = free_port()
    program = ("-m", "uvicorn", "--factory", "workshop.integration.services:app")
    run = run("--port", str(port), program=program)

    def health() -> int:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code
        return 0

    assert until(health, lambda status: status == 200, START_S) == 200
    [line] = until(lambda: of_requests(run.err), bool)
    assert line["route"] == "/health"
    run.send(signal.SIGTERM)
    assert len(json_lines(run.err)) == len(run.err.splitlines()), run.err
