"""The same service in every runtime, each on a real port."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from tests.deployed import deployed
from tests.service import RATE_LIMIT, client_at
from tests.stand_ins import records_in
from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.settings import Placement, Settings

TWO: dict[str, Any] = {"replicas": 2}
ON_SERVE = {
    "serve, language models apart": {
        "placement": Placement.DEPLOYMENT,
        "deployments": {"api": TWO, "classifier": {"placement": Placement.INLINE}},
    },
    "serve, classifier apart": {
        "placement": Placement.INLINE,
        "deployments": {"api": TWO, "classifier": TWO | {"placement": Placement.DEPLOYMENT}},
    },
}
"""Settings, by runtime. Together, they cover each model both inside and outside the API's process."""
RUNTIMES = ["uvicorn", *(pytest.param(runtime, marks=pytest.mark.ray) for runtime in ON_SERVE)]


@pytest.fixture(scope="session")
def new_settings(artifact, retriever_artifact, tmp_path_factory):
    """Settings with a database of their own."""

    def new_settings(**settings) -> Settings:
        database = tmp_path_factory.mktemp("database") / "service.sqlite"
        return Settings(
            artifact=artifact,
            retriever_artifact=retriever_artifact,
            rate_limits={"/v1/generate": f"{RATE_LIMIT}/minute"},
            allowed_origins=["https://friend.example"],
            database_url=f"sqlite+aiosqlite:///{database}",
            files_url=f"file://{database.with_name('files')}",
            **settings,
        )

    return new_settings


@dataclass(frozen=True)
class Running:
    """A service, and the settings that it runs with."""

    client: httpx.Client
    settings: Settings

    def records(self) -> list[dict[str, Any]]:
        """What has been charged so far."""
        return records_in(Path(make_url(self.settings.database_url).database or ""))


@pytest.fixture(scope="session")
def on_uvicorn(new_settings) -> Iterator[Running]:
    """Models in the process of the API."""
    settings = new_settings()
    with run_app(create_app(build_services(settings), settings)) as server, client_at(server.url) as client:
        yield Running(client, settings)


@pytest.fixture(scope="session")
def reference(on_uvicorn) -> httpx.Client:
    """What every runtime is compared with."""
    return on_uvicorn.client


@pytest.fixture(scope="package", params=RUNTIMES)
def running(request, on_uvicorn, new_settings) -> Iterator[Running]:
    """The service in one runtime after the other."""
    if request.param == "uvicorn":
        yield on_uvicorn
        return
    url = request.getfixturevalue("cluster")
    settings = new_settings(**ON_SERVE[request.param])
    with deployed(settings), client_at(url) as client:
        yield Running(client, settings)


@pytest.fixture(scope="package")
def service(running) -> httpx.Client:
    """A client of the service in one runtime after the other."""
    return running.client
