"""Several processes on one port: uvicorn's workers, and gunicorn's."""

import json
import signal
from collections.abc import Callable

import httpx
import psutil
import pytest

from tests.cli.conftest import Run
from tests.processes import of_each
from tests.service import RECORD, until
from workshop.integration.uvicorn_server import Worker, configuration
from workshop.machine import free_port

pytestmark = pytest.mark.slow

LIMIT = 5
LIMITS = f'{{"/v1/predict": "{LIMIT}/hour"}}'
UNCHECKED = """
from workshop.cli import main
from workshop.integration import preflight

preflight.check_models = lambda settings: None
main()
"""
"""What passes the check and fails in each worker: here a model that is missing."""


def api(run: Callable[..., Run], **environment: str) -> tuple[Run, str]:
    """``api`` with two workers, and its URL."""
    started = run("api", "--workers", "2", "--port", "0", **environment)
    return started, started.url()


def gunicorn(run: Callable[..., Run], **environment: str) -> tuple[Run, str]:
    """The same with gunicorn."""
    address = f"127.0.0.1:{free_port()}"
    worker = "workshop.integration.gunicorn_worker.Worker"
    app = "workshop.integration.services:app()"
    started = run("-k", worker, "-w", "2", "-b", address, app, program=("-m", "gunicorn"), **environment)
    return started, f"http://{address}"


SERVERS = {"uvicorn": api, "gunicorn": gunicorn}


def status(url: str, path: str = "/health") -> int | str:
    """The status of an answer on a new connection, or the name of the error."""
    try:
        return httpx.get(url + path, timeout=60).status_code
    except httpx.HTTPError as error:
        return type(error).__name__


def workers(run: Run, url: str) -> set[psutil.Process]:
    """The processes that hold the service's port, other than their parent."""
    port = int(url.rpartition(":")[2])
    connections = of_each(run.processes(), lambda process: process.net_connections("tcp"))
    return {
        process
        for process, found in connections.items()
        if process.pid != run.process.pid and any(each.laddr.port == port for each in found if each.laddr)
    }


@pytest.mark.parametrize("server", SERVERS)
def test_workers_count_together_in_redis_and_one_that_is_killed_comes_back(run, server, redis):
    run, url = SERVERS[server](run, REDIS_URL=redis[0], WORKSHOP_RATE_LIMITS=LIMITS)
    assert until(lambda: status(url), lambda seen: seen == 200, patience=120) == 200
    before = until(lambda: workers(run, url), lambda found: len(found) == 2, patience=60)
    assert len(before) == 2

    def predict(caller: str) -> int:
        headers = {"Authorization": f"Bearer {caller}"}
        return httpx.post(url + "/v1/predict", json=RECORD, headers=headers, timeout=60).status_code

    def admitted() -> int:
        """How many requests of a new caller are answered."""
        callers.append(f"caller-{len(callers)}")
        return [predict(callers[-1]) for _ in range(3 * LIMIT)].count(200)

    # Several callers: on a busy machine Redis may take too long to answer, and each process counts alone for a while.
    callers: list[str] = []
    assert until(admitted, lambda n: n == LIMIT) == LIMIT
    victim, survivor = before
    victim.kill()
    after = until(lambda: workers(run, url), lambda found: len(found - {victim}) == 2, patience=120)
    assert survivor in after
    assert len(after - before) == 1
    survivor.kill()  # from now on, the new one answers
    assert until(lambda: status(url), lambda seen: seen == 200, patience=120) == 200
    assert until(lambda: predict(callers[-1]), lambda seen: seen == 429) == 429  # it knows of the others' count
    assert run.send(signal.SIGTERM) == 0
    assert not run.leftovers()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("stop", [Run.interrupt, lambda run: run.send(signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_ends_all_of_them(run, server, stop):
    run, url = SERVERS[server](run)
    assert until(lambda: status(url), lambda seen: seen == 200, patience=120) == 200
    assert stop(run) == 0
    assert "Traceback" not in run.err
    assert not run.leftovers()
    assert status(url) == "ConnectError"


@pytest.mark.parametrize("server", SERVERS)
def test_every_worker_writes_the_log(run, server):
    run, url = SERVERS[server](run)
    assert until(lambda: status(url), lambda seen: seen == 200, patience=120) == 200
    assert [status(url, "/liveness") for _ in range(40)] == [200] * 40
    assert run.send(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in run.err.splitlines() if line.startswith("{")]
    assert [line.get("path") for line in lines].count("/liveness") == 40


@pytest.mark.parametrize("server", SERVERS)
def test_workers_whose_parent_is_killed_end_too(run, server):
    run, url = SERVERS[server](run)
    assert until(lambda: len(workers(run, url)), lambda n: n == 2, patience=120) == 2
    assert until(lambda: status(url), lambda seen: seen == 200, patience=120) == 200
    run.send(signal.SIGKILL)
    assert not run.leftovers()


def test_a_worker_that_cannot_start_ends_the_service(run, tmp_path):
    missing = str(tmp_path / "nothing")
    run = run("api", "--workers", "2", "--port", "0", program=("-c", UNCHECKED), WORKSHOP_ARTIFACT=missing)
    assert run.wait() == 1
    assert 1 <= run.err.count(missing) <= 2  # each worker says it at most once
    assert run.err.splitlines()[-1] == "workshop: a worker could not start; the reason is above"
    assert "Traceback" not in run.err
    assert not run.leftovers()


def test_a_worker_that_dies_while_it_is_asked_is_not_waited_for():
    worker = Worker(configuration("tests.nowhere:app"), [])
    worker.start()
    worker.process.kill()
    assert not worker.ping(timeout=10**6)
    worker.join()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORKSHOP_ARTIFACT": "/no/such/folder"}, "/no/such/folder"),
        ({"WORKSHOP_RATE_LIMITS": LIMITS}, "set REDIS_URL"),
    ],
    ids=["a missing model", "limits that do not hold"],
)
def test_gunicorn_ends_if_the_service_cannot_start(run, environment, says):
    run, _ = gunicorn(run, **environment)
    assert run.wait() != 0
    assert says in run.err
    assert run.err.count("Booting worker") == 2  # no other try
    assert not run.leftovers()


def test_gunicorn_does_not_open_a_service_without_keys_to_other_machines(run):
    run = run(
        *("-k", "workshop.integration.gunicorn_worker.Worker", "-b", "0.0.0.0:0"),
        "workshop.integration.services:app()",
        program=("-m", "gunicorn"),
    )
    assert run.wait() != 0
    assert "WORKSHOP_UNVERIFIED_NAMES=true" in run.err
