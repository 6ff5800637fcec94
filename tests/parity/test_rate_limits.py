"""Limits that hold however many processes answer, counted in a real Redis that is killed and comes back."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.redis_server import running_redis
from tests.service import RECORD, client_at, concurrently, until
from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.machine import free_port
from workshop.settings import Settings

LIMIT = 20
PROCESSES = 2


class Redis:
    """A Redis that a test can kill and start again on the same port."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._running = ExitStack()
        self.port = free_port()

    def start(self) -> None:
        self._running.enter_context(running_redis(self._program, self.port, self._folder))

    def kill(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def redis(redis_server, tmp_path_factory) -> Iterator[Redis]:
    server = Redis(redis_server, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module", params=["uvicorn", pytest.param("serve", marks=pytest.mark.ray)])
def clients(request, redis, artifact, tmp_path_factory) -> Iterator[list[httpx.Client]]:
    """Clients of the same service: of two servers, or of one whose replicas share the work."""
    settings = Settings(
        artifact=artifact,
        language_models=False,
        rate_limits={"/v1/predict": f"{LIMIT}/hour"},
        redis_url=f"redis://127.0.0.1:{redis.port}",
        database_url=f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('database')}/service.sqlite",
        deployments={"api": {"replicas": PROCESSES}},
    )
    with ExitStack() as stack:
        if request.param == "uvicorn":
            apps = [create_app(build_services(settings), settings) for _ in range(PROCESSES)]
            urls = [stack.enter_context(run_app(app)).url for app in apps]
        else:
            from tests.deployed import deployed  # noqa: PLC0415

            urls = [request.getfixturevalue("cluster")]
            stack.enter_context(deployed(settings))
        yield [stack.enter_context(client_at(url)) for url in urls]


def predict(clients: list[httpx.Client], n: int, caller: str) -> Counter[int]:
    """How many of n requests, several at a time, got which status."""

    def send(index: int) -> int:
        headers = {"Authorization": f"Bearer {caller}"}
        return clients[index % len(clients)].post("/v1/predict", json=RECORD, headers=headers).status_code

    return Counter(concurrently(send, range(n)))


def admitted(clients: list[httpx.Client]) -> int:
    """How many requests of a new caller are answered: at most what Redis and each process alone may admit."""
    most = (PROCESSES + 1) * LIMIT
    statuses = predict(clients, most + LIMIT, f"caller {uuid4()}")
    assert statuses.keys() == {200, 429}
    assert LIMIT <= statuses[200] <= most
    return statuses[200]


def test_all_processes_together_admit_as_many_as_the_limit(clients):
    # On a busy machine even a Redis that is there may take too long to answer, and each process counts alone.
    assert until(lambda: admitted(clients), lambda n: n == LIMIT) == LIMIT


def test_a_redis_that_is_killed_and_comes_back_costs_no_request(clients, redis):
    redis.kill()
    try:
        admitted(clients)
    finally:
        redis.start()
    assert until(lambda: admitted(clients), lambda n: n == LIMIT) == LIMIT
