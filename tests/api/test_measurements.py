"""Measurements that the model cannot handle, and models that fail."""

import http.client
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.service import RECORD, client_at
from workshop.api.app import create_app
from workshop.contracts.services import Services
from workshop.integration.classifier import InProcessClassifier
from workshop.integration.services import batched
from workshop.lab.app_server import run_app
from workshop.models.tumours import train
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "cases.sqlite"


def service(model, file):
    url = f"sqlite+aiosqlite:///{file}"
    settings = Settings(database_url=url, language_models=False)
    return run_app(create_app(Services(batched(InProcessClassifier(model), settings), SqlCaseStore(url)), settings))


def test_a_case_stored_under_older_rules_can_be_read_but_not_predicted(file):
    with service(train(), file) as server, client_at(server.url) as client:
        case_id = client.post("/v1/cases", json={"measurements": RECORD}).json()["id"]
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE cases SET measurements = replace(measurements, '2019.0', '1e308')")
        [listed] = client.get("/v1/cases").json()
        assert listed == client.get(f"/v1/cases/{case_id}").json()
        assert (listed["id"], listed["measurements"]) == (case_id, RECORD | {"worst_area": 1e308})
        refused = client.get(f"/v1/cases/{case_id}/prediction")
        assert refused.status_code == 400
        assert [detail["field"] for detail in refused.json()["details"]] == ["row 0: worst_area"]
        corrected = client.put(f"/v1/cases/{case_id}", json={"measurements": RECORD})
        assert corrected.status_code == 200


def test_a_client_keeps_its_connection_when_the_model_fails(file):
    class Failing:
        card = train().card

        def predict(self, rows):
            raise ValueError("Input X contains infinity")

    with service(Failing(), file) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(2):
            body, headers = json.dumps(RECORD), {"Content-Type": "application/json"}
            connection.request("POST", "/v1/predict", body, headers)
            socket = connection.sock
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["error"]) == (500, "ModelFailedError")
            assert connection.sock is socket, "the service closed the connection"
