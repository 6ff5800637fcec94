"""Customers with classifiers of their own, in each runtime: which one answers, and which ones stay in memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.csv_files import GOOD, csv_of, result_of
from tests.deployed import deployed
from tests.registered import trained
from tests.service import RECORD, RECORDS, client_at
from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.settings import DeploymentOptions, Deployments, Placement, Settings

CUSTOMERS = ["ada", "bob", "cleo"]
BROKEN = "dora"
RUNTIMES = ["uvicorn", pytest.param("inline", marks=pytest.mark.ray), pytest.param("deployment", marks=pytest.mark.ray)]


@dataclass(frozen=True)
class Service:
    """A service with room for two classifiers of customers in one process."""

    client: httpx.Client
    folder: Path

    def ask(self, caller: str, path: str = "/v1/predict", body: object = RECORD) -> httpx.Response:
        return self.client.post(path, json=body, headers={"Authorization": f"Bearer {caller}"})

    def version(self, caller: str) -> str:
        answer = self.ask(caller)
        assert answer.status_code == 200, answer.text
        return answer.json()["model_version"]

    def move(self, customer: str, *, back: bool = False) -> None:
        """Move the files of a customer's classifier away, so that it cannot be loaded, or back."""
        here, away = self.folder / customer, self.folder / f"{customer} moved away"
        (away if back else here).rename(here if back else away)


@pytest.fixture(scope="module", params=RUNTIMES)
def start(request, artifact, tmp_path_factory) -> Iterator[Callable[..., Service]]:
    """Start the service. The classifier of each customer has the customer's name as its version; one cannot predict."""
    with ExitStack() as stack:

        def start(**options) -> Service:
            folder = tmp_path_factory.mktemp("service")
            models = {name: trained(folder / name, version=name, regularization=5) for name in CUSTOMERS}
            models |= {BROKEN: trained(folder / BROKEN, features=29)}
            settings = Settings(
                artifact=artifact,
                customer_artifacts=models,
                max_loaded_models=2,
                database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
                files_url=f"file://{folder}/jobs",
                language_models=False,
                placement=Placement(request.param) if request.param != "uvicorn" else Placement.INLINE,
                deployments=Deployments(api=DeploymentOptions(cpus=0.5, max_ongoing_requests=1000)),
                **options,
            )
            if request.param == "uvicorn":
                url = stack.enter_context(run_app(create_app(build_services(settings), settings))).url
            else:
                url = request.getfixturevalue("cluster")
                stack.enter_context(deployed(settings))
            return Service(stack.enter_context(client_at(url)), folder)

        yield start


@pytest.fixture(scope="module")
def service(start) -> Service:
    return start()


def test_each_customer_has_an_own_classifier_and_all_others_share_one(service):
    assert [service.version(name) for name in CUSTOMERS] == CUSTOMERS
    assert service.version("somebody else") == "1.0.0"
    [own, shared] = [service.ask(name).json()["probabilities"] for name in ("ada", "somebody else")]
    assert own != shared


def test_so_do_all_routes(service):
    assert service.ask("bob", "/v1/batch-predict", {"records": RECORDS[:3]}).json()["model_version"] == "bob"
    card = service.client.get("/v1/model/metadata", headers={"Authorization": "Bearer bob"}).json()
    assert card["version"] == "bob"
    assert service.client.get("/readiness").json() == {"status": "ready", "degraded": []}


def test_the_classifiers_that_were_used_last_stay_in_memory(service):
    for name in ("ada", "bob"):
        service.version(name)
    for name in CUSTOMERS:
        service.move(name)
    try:
        assert [service.version(name) for name in ("bob", "ada")] == ["bob", "ada"]
        refused = service.ask("cleo")
        assert (refused.status_code, refused.json()["detail"]) == (503, "the model cannot be loaded")
        assert int(refused.headers["Retry-After"]) >= 1
        assert [service.version(name) for name in ("bob", "ada")] == ["bob", "ada"]  # it has displaced none
        service.move("cleo", back=True)
        assert service.version("cleo") == "cleo"
        assert service.version("ada") == "ada"
        assert service.ask("bob").status_code == 503
        service.move("bob", back=True)
        assert service.version("bob") == "bob"
        assert service.ask("cleo").status_code == 200
        assert service.ask("ada").status_code == 503
    finally:
        for name in CUSTOMERS:
            if not (service.folder / name).exists():
                service.move(name, back=True)


def test_a_classifier_that_fails_harms_nobody_else(service):
    assert service.ask(BROKEN).status_code == 500
    assert [service.version(name) for name in [*CUSTOMERS, "somebody else"]] == [*CUSTOMERS, "1.0.0"]


def test_a_file_is_predicted_by_the_classifier_of_its_owner(service):
    service.client.headers["Authorization"] = "Bearer cleo"
    try:
        _, *rows = result_of(service.client, csv_of([GOOD] * 3))
    finally:
        del service.client.headers["Authorization"]
    assert [row[-1] for row in rows] == ["cleo"] * 3
