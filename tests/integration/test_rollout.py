"""Versions of a registered model are activated, tried out and withdrawn while the service runs, in each runtime."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deployed import deployed
from tests.load import under_load
from tests.registered import trained
from tests.service import RECORD, client_at, until
from workshop.api.app import create_app
from workshop.integration.registry import activate, add, find_all, try_out, withdraw
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.settings import DeploymentOptions, Deployments, ModelDeploymentOptions, Placement, Settings


@dataclass(frozen=True)
class Service:
    """The service with a registered model of its own."""

    client: httpx.Client
    settings: Settings
    folder: Path

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def add(self, **model: float) -> str:
        return add(self.settings, trained(self.folder / "trained", **model))

    def answers(self, caller: str = "ada") -> str:
        """The version that answers."""
        answer = self.client.post("/v1/predict", json=RECORD, headers={"Authorization": f"Bearer {caller}"})
        return answer.json()["model_version"]

    def infers(self, name: str, caller: str) -> str:
        """The version that answers a request for a model, or for a version of it."""
        tensor = {"name": "x", "shape": [1, 30], "datatype": "FP64", "data": list(RECORD.values())}
        headers = {"Authorization": f"Bearer {caller}"}
        answer = self.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["model_version"]

    def follows(self, number: str) -> None:
        assert until(self.answers, lambda seen: seen == number, patience=60) == number

    def withdrawn(self, number: str) -> str:
        """Why a version was withdrawn, or ""."""
        [version] = [version for version in find_all(self.settings) if version.number == number]
        return version.withdrawn


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """An MLflow database with its tables, which take seconds to make."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.raises(Exception, match="not found"):
        find_all(settings_in(folder, "nothing"))
    return folder / "mlflow.sqlite"


def settings_in(folder: Path, name: str, **settings) -> Settings:
    return Settings(
        artifact=f"models:/{name}@champion",
        mlflow_tracking_uri=f"sqlite:///{folder}/mlflow.sqlite",
        mlflow_files=f"{folder}/files",
        database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
        files_url=f"file://{folder}/jobs",
        language_models=False,
        registry_poll_s=0.2,
        **settings,
    )


RUNTIMES = ["uvicorn", pytest.param("inline", marks=pytest.mark.ray), pytest.param("deployment", marks=pytest.mark.ray)]


@pytest.fixture(scope="module", params=RUNTIMES)
def start(request, template, tmp_path_factory) -> Iterator[Callable[[], Service]]:
    """Start the service with version 1 active."""
    with ExitStack() as stack:

        def start() -> Service:
            folder = tmp_path_factory.mktemp("service")
            (folder / "mlflow.sqlite").write_bytes(template.read_bytes())
            options = Deployments(
                api=DeploymentOptions(replicas=2, cpus=0.5, max_ongoing_requests=1000),
                classifier=ModelDeploymentOptions(replicas=2, cpus=0.5),
            )
            settings = settings_in(folder, "tumours", deployments=options)
            activate(settings, add(settings, trained(folder / "trained")))
            if request.param == "uvicorn":
                url = stack.enter_context(run_app(create_app(build_services(settings), settings))).url
            else:
                url = request.getfixturevalue("cluster")
                stack.enter_context(deployed(settings.model_copy(update={"placement": Placement(request.param)})))
            return Service(stack.enter_context(client_at(url)), settings, folder)

        yield start


@pytest.fixture(scope="module")
def service(start) -> Service:
    return start()


def test_another_version_is_activated_without_a_restart(service):
    assert service.answers() == "1"
    second = service.add(regularization=2)
    with under_load(service.url) as load:
        activate(service.settings, second)
        service.follows(second)
        load.more()
        activate(service.settings, "1")
        service.follows("1")
    assert set(load.ended) == {200}
    assert load.partial == []
    assert {second, "1"} <= {version for seen in load.versions.values() for version in seen}


def test_a_caller_gets_the_same_version_each_time(service):
    number = service.add(regularization=3)
    callers = [f"caller-{n}" for n in range(40)]
    try_out(service.settings, number, 0.5)
    assert until(lambda: {service.answers(caller) for caller in callers}, lambda seen: seen == {"1", number})
    rounds = [[service.answers(caller) for caller in callers] for _ in range(5)]
    # Replicas learn of it one after another, so the first rounds may differ.
    assert rounds[-1] == rounds[-2] == rounds[-3]
    assert 10 <= rounds[-1].count(number) <= 30
    on_trial = next(caller for caller in callers if service.answers(caller) == number)
    for name in ("tumour-classifier@1", "tumour-classifier/versions/1"):
        assert service.infers(name, on_trial) == "1"  # who asks for a version gets it
    assert service.infers("tumour-classifier", on_trial) == number
    assert withdraw(service.settings) == number
    assert until(lambda: {service.answers(caller) for caller in callers}, lambda seen: seen == {"1"}) == {"1"}


def test_a_bad_version_is_withdrawn_and_nobody_notices_it(service):
    number = service.add(features=29)
    with under_load(service.url) as load:
        try_out(service.settings, number, 0.5)
        assert until(lambda: service.withdrawn(number), bool, patience=60)
        load.more()
    assert set(load.ended) == {200}
    assert {version for seen in load.versions.values() for version in seen} == {"1"}
    assert "requests failed" in service.withdrawn(number)
    found = until(lambda: failures(service, number), bool)
    assert found > service.settings.max_challenger_failures


def failures(service: Service, number: str) -> float:
    lines = service.client.get("/metrics").text.splitlines()
    wanted = f'model_version_requests_total{{outcome="failed",version="{number}"}}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


def test_a_version_that_cannot_be_loaded_changes_nothing_until_it_can(service):
    number = service.add(regularization=4)
    for file in service.folder.glob("files/*/artifacts/model/card.json"):
        file.rename(file.with_suffix(".away"))
    with under_load(service.url) as load:
        activate(service.settings, number)
        load.more(200)
        assert {version for seen in load.versions.values() for version in seen} == {"1"}
        for file in service.folder.glob("files/*/artifacts/model/card.away"):
            file.rename(file.with_suffix(".json"))
        service.follows(number)
        load.more()
    assert set(load.ended) == {200}
    activate(service.settings, "1")
    service.follows("1")
