"""A prediction job on a real cluster whose replicas die."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray

from tests.csv_files import GOOD, csv_of, rows_of, state, upload
from tests.deployed import deployed
from tests.service import until
from workshop.contracts.tumours import FEATURES
from workshop.settings import Placement, Settings

ROWS = 60_000
"""Enough for seconds, so that there is time to end the replicas."""


@pytest.fixture(scope="module")
def service(cluster, artifact, tmp_path_factory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(
        artifact=artifact,
        database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
        files_url=f"file://{folder}/files",
        placement=Placement.INLINE,
        deployments={"api": {"replicas": 2}},
        language_models=False,
    )
    with deployed(settings), httpx.Client(base_url=cluster, timeout=60) as client:
        yield client


def kill_the_api() -> None:
    names = [name for name in ray.util.list_named_actors(all_namespaces=True) if "#api#" in name["name"]]
    assert len(names) == 2
    for name in names:
        ray.kill(ray.get_actor(**name), no_restart=True)


def look(service: httpx.Client, job: str) -> dict[str, Any]:
    """The state of a job; empty while no replica answers."""
    try:
        response = service.get(job)
    except httpx.TransportError:
        return {}
    return response.json() if response.is_success else {}


def test_the_next_replica_runs_the_job_again(service):
    job = upload(service, csv_of(([number, *GOOD] for number in range(ROWS)), ["id", *FEATURES]))
    assert until(lambda: state(service, job), lambda job: job["rows"] > 0)["status"] == "running"
    kill_the_api()
    last = until(lambda: look(service, job), lambda job: job.get("status") == "succeeded", patience=180)
    assert (last["status"], last["rows"], last["attempt"]) == ("succeeded", ROWS, 2)
    result = rows_of(service.get(f"{job}/result"))
    assert [row[0] for row in result[1:]] == [str(number) for number in range(ROWS)]
