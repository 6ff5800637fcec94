"""The API on uvicorn, with stand-ins behind its contracts. No model, no Ray."""

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from tests.service import RECORD
from workshop.api.app import create_app
from workshop.api.dependencies import get_services
from workshop.api.schemas.tumours import CaseContent, Measurements, StoredCase
from workshop.contracts import errors
from workshop.contracts.classifier import FeatureRange, FloatMatrix, ModelCard, Scores
from workshop.contracts.services import Services
from workshop.contracts.tumours import FEATURES
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore

CARD = ModelCard(
    name="stand-in",
    version="7",
    accuracy=0.5,
    f1=0.25,
    classes=("no", "yes"),
    positive_class="yes",
    features=tuple(FeatureRange(name, "1", 0.0, 1.0) for name in FEATURES),
)
SECRET = "SECRET-internals"


@dataclass
class StandIn:
    """A classifier that predicts "no", or raises."""

    error: Exception | None = None

    async def predict(self, rows: FloatMatrix) -> Scores:
        if self.error is not None:
            raise self.error
        return Scores(np.tile([0.75, 0.25], (len(rows), 1)), CARD.classes, CARD.version)

    async def card(self) -> ModelCard:
        if self.error is not None:
            raise self.error
        return CARD


@pytest.fixture
def store(tmp_path) -> SqlCaseStore:
    return SqlCaseStore(f"sqlite+aiosqlite:///{tmp_path}/cases.sqlite")


@contextmanager
def client_of(services: Services, replaced: Services | None = None, **settings) -> Iterator[httpx.Client]:
    app = create_app(services, Settings(**settings))
    if replaced is not None:
        app.dependency_overrides[get_services] = lambda: replaced
    with run_app(app) as server, httpx.Client(base_url=server.url) as client:
        yield client


@contextmanager
def failing(store: SqlCaseStore, error: Exception) -> Iterator[httpx.Client]:
    """The API, with a model that was healthy at startup but now raises an error."""
    with client_of(Services(StandIn(), store), Services(StandIn(error), store)) as client:
        yield client


def test_a_dependency_override_replaces_the_services(store):
    with client_of(Services(StandIn(), store), Services(StandIn(errors.NotFoundError("another")), store)) as client:
        assert client.post("/v1/predict", json=RECORD).json()["detail"] == "another"


def test_the_response_has_the_values_of_the_contract(store):
    with client_of(Services(StandIn(), store)) as client:
        answer = client.post("/v1/predict", json=RECORD).json()
    assert (answer["prediction"], answer["label"], answer["confidence"]) == (0, "no", 0.75)
    assert answer["probabilities"] == {"no": 0.75, "yes": 0.25}
    assert answer["model_version"] == "7"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInputError("impossible", 3, "mean_area"), 400),
        (errors.NotFoundError("there is no such model"), 404),
        (errors.UnavailableError("no replica is up", 2.2), 503),
        (errors.OverloadedError("too much is waiting", 7.0), 503),
        (errors.DeadlineExceededError("too slow", 0.5), 504),
        (errors.ModelFailedError("the model failed"), 500),
        (errors.ServiceError("it broke"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_error_of_the_contract_has_its_status(store, error, status):
    with failing(store, error) as client:
        answer = client.post("/v1/predict", json=RECORD)
    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem["error"] == type(error).__name__
    assert problem["detail"] == error.message
    if isinstance(error, errors.UnavailableError):
        assert answer.headers["Retry-After"] == str(math.ceil(error.retry_after_s))
    else:
        assert "Retry-After" not in answer.headers


def test_an_invalid_value_names_its_row_and_field(store):
    with failing(store, errors.InvalidInputError("too small", 3, "mean_area")) as client:
        [detail] = client.post("/v1/predict", json=RECORD).json()["details"]
    assert "3" in detail["field"]
    assert "mean_area" in detail["field"]
    assert detail["rule"]
    assert detail["message"] == "too small"


class SpecialOverload(errors.OverloadedError):
    """A subclass that is not in the table of errors."""


def test_a_subclass_has_the_status_of_its_nearest_base_class(store):
    with failing(store, SpecialOverload("full", 4.0)) as client:
        answer = client.post("/v1/predict", json=RECORD)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/batch-predict"])
def test_a_bug_is_a_500_that_reveals_no_internals(store, path):
    with failing(store, KeyError(SECRET)) as client:
        answer = client.post(
            path, json=RECORD if path == "/v1/predict" else {"records": [RECORD]}, headers={"X-Request-ID": "bug-1"}
        )
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "bug-1"
    for internal in (SECRET, "KeyError", "Traceback", ".py"):
        assert internal not in answer.text


def test_a_page_of_another_origin_can_read_that_something_went_wrong(store):
    failing_now = Services(StandIn(KeyError(SECRET)), store)
    with client_of(Services(StandIn(), store), failing_now, allowed_origins=["https://friend.example"]) as client:
        answer = client.post("/v1/predict", json=RECORD, headers={"Origin": "https://friend.example"})
    assert answer.status_code == 500
    assert answer.headers["Access-Control-Allow-Origin"] == "https://friend.example"
    assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    for name in ("X-Request-ID", "X-Process-Time", "X-Content-Type-Options"):
        assert len(answer.headers.get_list(name)) == 1


@pytest.mark.parametrize("error", [errors.ModelFailedError(SECRET), KeyError(SECRET)])
def test_the_log_has_what_the_response_hides(store, error, caplog):
    with failing(store, error) as client:
        client.post("/v1/predict", json=RECORD)
    assert "Traceback" in caplog.text
    assert SECRET in caplog.text


def test_without_a_model_the_service_is_alive_but_neither_healthy_nor_ready(store):
    with failing(store, errors.UnavailableError("gone", 3.0)) as client:
        assert client.get("/liveness").status_code == 200
        health = client.get("/health")
        assert (health.status_code, health.json()["status"], health.json()["model_loaded"]) == (503, "unhealthy", False)
        for path in ("/readiness", "/ping", "/v1/model/metadata"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3"), path


@pytest.mark.parametrize("error", [errors.UnavailableError("no model"), RuntimeError("no model")])
def test_a_service_whose_model_does_not_answer_does_not_start(store, error):
    with pytest.raises(type(error), match="no model"), client_of(Services(StandIn(error), store)):
        pass


def test_the_application_closes_its_store_when_it_stops(store):
    closed = []

    class Closing(StandIn):
        ready = store.ready

        async def aclose(self) -> None:
            closed.append(True)

    with client_of(Services(StandIn(), Closing())):
        assert not closed
    assert closed == [True]
    with pytest.raises(errors.UnavailableError), client_of(Services(StandIn(errors.UnavailableError("")), Closing())):
        pass
    assert closed == [True, True]


@pytest.mark.parametrize(("size", "status"), [(100, 422), (101, 413)])
@pytest.mark.parametrize("send", [bytes, lambda body: iter([body[:60], body[60:]])], ids=["declared", "chunked"])
def test_the_size_of_a_body_is_limited_by_a_setting(store, size, status, send):
    with client_of(Services(StandIn(), store), max_body_bytes=100) as client:
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/predict", content=send(b"[" + b" " * (size - 1)), headers=headers).status_code == status


def test_the_schema_has_the_models_features_in_the_models_order():
    assert tuple(Measurements.model_fields) == FEATURES


def test_values_are_in_the_order_of_the_features_whatever_the_order_of_the_json():
    shuffled = Measurements.model_validate(dict(reversed(RECORD.items())))
    assert shuffled.values() == tuple(RECORD[name] for name in FEATURES)


def test_a_stored_case_has_the_fields_that_a_client_may_send_and_an_id():
    assert set(StoredCase.model_fields) == {*CaseContent.model_fields, "id"}


def test_everything_above_runs_on_uvicorn_and_without_ray():
    program = "import sys, tests.api.test_app; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "uvicorn" in imported
    assert {"ray", "workshop.integration", "workshop.deployments"}.isdisjoint(imported)
