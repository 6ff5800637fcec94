"""The whole service on a real cluster, when a part of it breaks."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from tests.deployed import deployed
from tests.processes import descendants
from tests.service import RECORD, ROWS
from workshop.models.tumours import TumourClassifier, train
from workshop.settings import Placement, Settings

VERSION_REQUESTS = 'http_requests_total{method="GET",route="/version",status="200"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def service(cluster, folder) -> Iterator[httpx.Client]:
    """The service, with a model that has one class more than its card. Each prediction therefore runs into a bug."""
    pipeline = DummyClassifier(strategy="uniform").fit(ROWS, np.arange(len(ROWS)) % 3)
    TumourClassifier(pipeline, train().card).save(folder / "artifact")
    settings = Settings(
        artifact=folder / "artifact",
        database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
        placement=Placement.DEPLOYMENT,
        language_models=False,
    )
    with deployed(settings), httpx.Client(base_url=cluster, timeout=30) as client:
        yield client


def kill(deployment: str) -> None:
    """Kill its one replica, and wait until it has ended: until then, it may still answer."""
    [replica] = descendants(f":{deployment}")
    replica.kill()
    replica.wait(60)


def wait_for(service: httpx.Client, status: int) -> httpx.Response:
    end = time.monotonic() + 120
    while (answer := service.get("/readiness")).status_code != status:
        assert time.monotonic() < end, f"readiness is still {answer.status_code}"
        time.sleep(0.1)
    return answer


def test_readiness_is_503_while_the_classifier_is_gone_and_comes_back(service, folder):
    wait_for(service, 200)
    (folder / "artifact").rename(folder / "away")  # otherwise another replica is there before anybody has looked
    kill("classifier")
    answer = wait_for(service, 503)
    (folder / "away").rename(folder / "artifact")
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["error"] == "UnavailableError"
    assert service.get("/liveness").status_code == 200
    wait_for(service, 200)
    assert service.get("/health").json()["model_loaded"] is True


def test_a_bug_is_a_500_with_one_request_id_and_no_internals(service):
    answers = [service.post("/v1/predict", json=RECORD) for _ in range(2)]
    for answer in answers:
        assert answer.status_code == 500
        assert answer.json()["error"] == "InternalError"
        assert "ValueError" not in answer.text
        [request_id] = answer.headers.get_list("X-Request-ID")
        assert answer.json()["request_id"] == str(UUID(request_id))


def test_totals_go_on_where_a_killed_replica_has_stopped(service):
    def version_requests() -> float:
        [line] = [line for line in service.get("/metrics").text.splitlines() if VERSION_REQUESTS in line]
        return float(line.split()[-1])

    wait_for(service, 200)
    for _ in range(3):
        service.get("/version")
    before = version_requests()  # so they are stored
    kill("api")
    end = time.monotonic() + 60
    while (answer := service.get("/version")).status_code != 200:
        assert time.monotonic() < end, answer.text
        time.sleep(0.1)
    assert version_requests() >= before + 1
