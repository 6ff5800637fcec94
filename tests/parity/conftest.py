"""The same service in every runtime, each on a real port."""

from collections.abc import Iterator

import httpx
import pytest

from tests.cluster import cluster, deployed
from tests.service import RATE_LIMIT, client_at
from workshop.api.app import create_app
from workshop.integration.local import local_services
from workshop.lab.serving import run_app
from workshop.settings import Placement, Settings

__all__ = ["cluster"]

REPLICAS = {"api_replicas": 2, "classifier_replicas": 2}
RUNTIMES = ["uvicorn", "serve-inline", "serve-deployment"]


@pytest.fixture(scope="session")
def new_settings(artifact, retriever_artifact, tmp_path_factory):
    """Settings with a database of their own."""

    def new_settings(**settings) -> Settings:
        database = tmp_path_factory.mktemp("database") / "service.sqlite"
        return Settings(
            artifact=artifact,
            retriever_artifact=retriever_artifact,
            rate_limits={"/v1/generate": f"{RATE_LIMIT}/minute"},
            database_url=f"sqlite+aiosqlite:///{database}",
            **settings,
        )

    return new_settings


@pytest.fixture(scope="session")
def reference(new_settings) -> Iterator[httpx.Client]:
    """What every runtime is compared with: uvicorn, models in its process."""
    settings = new_settings()
    with run_app(create_app(local_services(settings), settings)) as server, client_at(server.url) as client:
        yield client


@pytest.fixture(scope="session", params=RUNTIMES)
def service(request, reference, new_settings) -> Iterator[httpx.Client]:
    """A client of the service in one runtime after the other."""
    if request.param == "uvicorn":
        yield reference
        return
    url = request.getfixturevalue("cluster")
    settings = new_settings(placement=Placement(request.param.removeprefix("serve-")), **REPLICAS)
    with deployed(settings), client_at(url) as client:
        yield client
