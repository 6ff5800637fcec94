"""Predictions are computed once for all replicas of a runtime, and never by another model than the one that runs."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray import serve
from redis import Redis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tests.parity.conftest import ON_SERVE, RUNTIMES
from tests.redis_server import running_redis
from tests.service import IMPOSSIBLE, RECORDS, ROWS, Record, client_at, concurrently, essence, probabilities
from workshop.api.app import create_app
from workshop.contracts.tumours import FEATURES
from workshop.integration.serve_app import APP_NAME, build_application
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.machine import free_port
from workshop.models.tumours import TumourClassifier, train, training_data
from workshop.settings import Settings


class Replicas:
    """Two replicas of the service that share a Redis, on uvicorn or on Serve.

    Args:
        settings: all but the model.
        cluster: the URL of Serve's proxy, or None for uvicorn.
        redis: the process.
    """

    def __init__(self, settings: Settings, cluster: str | None, redis: subprocess.Popen[bytes]) -> None:
        self.clients: list[httpx.Client] = []
        self.redis = redis
        self.settings = settings
        self._cluster = cluster
        self._open = ExitStack()

    def start(self, folder: Path) -> None:
        """Start them with the model in a folder, in place of those that run."""
        settings = self.settings.model_copy(update={"artifact": str(folder)})
        if self._cluster:
            serve.run(build_application(settings), name=APP_NAME)
            urls = [self._cluster]
        else:
            self.stop()
            apps = [create_app(build_services(settings), settings) for _ in range(2)]
            urls = [self._open.enter_context(run_app(app)).url for app in apps]
        self.clients = [self._open.enter_context(client_at(url)) for url in urls]

    def stop(self) -> None:
        """Stop what runs."""
        self._open.close()

    def ask(self, number: int, record: Record) -> httpx.Response:
        """Send one of several predictions, to one replica after the other."""
        return self.clients[number % len(self.clients)].post("/v1/predict", json=record)


@pytest.fixture(scope="module", params=RUNTIMES)
def replicas(request, redis_server, tmp_path_factory, new_settings, artifact) -> Iterator[Replicas]:
    """Replicas in one runtime after the other. Each test asks for other rows."""
    with running_redis(redis_server, free_port(), tmp_path_factory.mktemp("redis")) as (url, process):
        options = {"redis_url": url, "cache_predictions": True, "language_models": False}
        settings = new_settings(**ON_SERVE.get(request.param, {}), **options).model_copy(update={"rate_limits": {}})
        on_serve = request.param in ON_SERVE
        replicas = Replicas(settings, request.getfixturevalue("cluster") if on_serve else None, process)
        replicas.start(artifact)
        with Redis.from_url(url) as client:
            client.config_set("slowlog-log-slower-than", 0)
            client.config_set("slowlog-max-len", 100_000)
        yield replicas
        replicas.stop()
        if on_serve:
            serve.delete(APP_NAME)


@pytest.fixture
def computed(replicas) -> Callable[[], int]:
    """Counts the predictions that were computed in this test, and therefore stored, by the commands that Redis got."""
    client = Redis.from_url(replicas.settings.redis_url)
    client.slowlog_reset()

    def count() -> int:
        commands = [entry["command"].split() for entry in client.slowlog_get(100_000)]
        return sum(name == b"SET" and not key.endswith(b":claim") for name, key, *_ in commands)

    return count


def test_fifty_equal_requests_are_one_computation(replicas, reference, computed):
    answers = concurrently(lambda number: replicas.ask(number, RECORDS[1]), range(50), at_once=50)
    expected = content(reference.post("/v1/predict", json=RECORDS[1]))
    assert [content(answer) for answer in answers] == [expected] * 50
    assert computed() == 1


def test_all_routes_share_the_answers(replicas, computed):
    row = ROWS[2:3].tolist()
    tensor = {"name": "rows", "shape": [1, 30], "datatype": "FP64", "data": row}
    requests = {
        "/v1/predict": RECORDS[2],
        "/v1/batch-predict": {"records": [RECORDS[2]]},
        "/predict": RECORDS[2],
        "/batch-predict": {"records": [RECORDS[2]]},
        "/invocations": {"dataframe_split": {"columns": list(FEATURES), "data": row}},
        "/v2/models/tumour-classifier/infer": {"inputs": [tensor]},
        "/v2/models/tumour-classifier@1.0.0/infer": {"inputs": [tensor]},
        "/v2/models/tumour-classifier/versions/1.0.0/infer": {"inputs": [tensor]},
    }
    for client in replicas.clients:
        for path, body in requests.items():
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
        case = client.post("/v1/cases", json={"measurements": RECORDS[2]}).headers["Location"]
        assert client.get(f"{case}/prediction").status_code == 200
    assert computed() == 1


def test_numbers_are_the_same_however_they_are_written(replicas, computed):
    record = RECORDS[3] | {"mean_radius": 11.0}
    for number, text in enumerate(["11", "11.0", "1.1e1", "11.000", "1100e-2"]):
        client = replicas.clients[number % len(replicas.clients)]
        body = json.dumps(record).replace("11.0", text, 1)
        answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
    assert computed() == 1
    for refused in (True, "11", None):  # true is not 1
        assert replicas.ask(0, record | {"mean_radius": refused}).status_code == 422
    one, other = (content(replicas.ask(0, dict.fromkeys(FEATURES, 0.0) | {"mean_radius": n})) for n in (0.0, -0.0))
    assert one == other


def test_an_error_is_not_kept(replicas, reference, computed):
    for number in range(2):
        answer = replicas.ask(number, IMPOSSIBLE)
        assert answer.status_code == 400
        assert essence(answer) == essence(reference.post("/v1/predict", json=IMPOSSIBLE))
    assert computed() == 0


def test_a_new_model_never_answers_with_what_the_old_one_has_computed(replicas, artifact, tmp_path):
    first = TumourClassifier.load(artifact)
    scaler, _ = steps = list(first.pipeline)
    rows, labels = training_data()
    steps[1] = LogisticRegression(C=0.001, max_iter=1000).fit(scaler.transform(rows), labels)
    models = {
        "first": first,
        "other version": train("2"),
        "same version": TumourClassifier(make_pipeline(*steps), first.card),
    }
    for name, model in models.items():
        if model is not first:
            model.save(tmp_path / name)
            replicas.start(tmp_path / name)
        for number in range(4):
            answer = replicas.ask(number, RECORDS[4])
            np.testing.assert_allclose(probabilities(answer), model.predict(ROWS[4:5]).probabilities, atol=1e-12)
            assert answer.json()["model_version"] == model.card.version


def test_when_redis_dies_predictions_go_on(replicas):
    before = [content(replicas.ask(number, RECORDS[number])) for number in range(20)]
    replicas.redis.kill()
    replicas.redis.wait()
    assert concurrently(lambda number: content(replicas.ask(number, RECORDS[number])), range(20)) == before
    assert replicas.ask(0, RECORDS[21]).status_code == 200


def content(prediction: httpx.Response) -> dict:
    """A prediction without its time, rounded: a row's last digits depend on those that are computed with it."""
    assert prediction.status_code == 200, prediction.text
    body = prediction.json()
    del body["timestamp"]
    body["probabilities"] = {name: round(value, 12) for name, value in body["probabilities"].items()}
    return body | {"confidence": round(body["confidence"], 12)}
