"""The routes of MLflow's and KServe's protocols follow the rules of `/v1`: keys, limits, readiness."""

import httpx
import pytest

from tests.service import RECORD
from tests.stand_ins import StandInClassifier
from workshop.contracts.errors import UnavailableError

pytestmark = pytest.mark.slow

KEYS = {"key-of-ada": "ada"}
ADA = {"Authorization": "Bearer key-of-ada"}
TENSORS = {"inputs": [{"name": "rows", "shape": [1, 30], "datatype": "FP64", "data": list(RECORD.values())}]}
ROUTES = [
    ("POST", "/invocations", {"inputs": [RECORD]}),
    ("GET", "/v2", None),
    ("GET", "/v2/", None),
    ("GET", "/v2/models/stand-in", None),
    ("GET", "/v2/models/stand-in/ready", None),
    ("GET", "/v2/models/stand-in/versions/1", None),
    ("GET", "/v2/models/stand-in/versions/1/ready", None),
    ("POST", "/v2/models/stand-in/infer", TENSORS),
    ("POST", "/v2/models/stand-in/versions/1/infer", TENSORS),
]


def message(answer: httpx.Response) -> str:
    """An error's message, in the format of its protocol."""
    body = answer.json()
    if answer.request.url.path.startswith("/v2"):
        assert answer.headers["Content-Type"] == "application/json"
        assert body.keys() == {"error"}
        return body["error"]
    assert answer.headers["Content-Type"] == "application/problem+json"
    return body["detail"]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_a_key_is_required(serve, method, path, body):
    with serve(api_keys=KEYS) as service:
        refused = service.client.request(method, path, json=body)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "key" in message(refused)
        assert service.client.request(method, path, json=body, headers=ADA).status_code == 200


def test_health_requires_no_key(serve):
    with serve(api_keys=KEYS) as service:
        for path in ("/ping", "/version", "/v2/health/live", "/v2/health/ready"):
            assert service.client.get(path).status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_requests_are_limited(serve, method, path, body):
    with serve(rate_limits={"/invocations": "1/minute", "/v2": "1/minute"}) as service:
        answers = [service.client.request(method, path, json=body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert int(answers[1].headers["Retry-After"]) > 0
        assert "rate limit exceeded" in message(answers[1])


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/stand-in/ready", "/v2/models/stand-in", "/ping"])
def test_a_service_that_is_not_ready_says_so(serve, monkeypatch, path):
    async def card(self):
        raise UnavailableError("no replica is ready", 7.0)

    with serve() as service:
        monkeypatch.setattr(StandInClassifier, "card", card)
        answer = service.client.get(path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
        assert "no replica is ready" in message(answer)
        assert service.client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), [route for route in ROUTES if route[0] == "POST"])
def test_a_failed_prediction_is_reported_without_internals(serve, monkeypatch, method, path, body):
    async def predict(self, rows):
        raise RuntimeError("a secret")

    with serve() as service:
        monkeypatch.setattr(StandInClassifier, "predict", predict)
        answer = service.client.request(method, path, json=body)
        assert answer.status_code == 500
        assert "secret" not in answer.text
