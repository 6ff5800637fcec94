"""What a client sees of the service itself: its state, its documents, its headers, in every runtime."""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import urljoin
from uuid import UUID

import pytest

from tests.service import RECORD, ROWS, concurrently
from workshop import __version__
from workshop.contracts.tumours import FEATURES, UNITS

VOLATILE = ("timestamp", "uptime_seconds")


def test_health(service, reference):
    body = service.get("/health").json()
    assert (body["status"], body["model_loaded"], body["version"]) == ("healthy", True, __version__)
    assert body["uptime_seconds"] > 0
    assert datetime.now(UTC) - datetime.fromisoformat(body["timestamp"]) < timedelta(minutes=1)
    assert list(body) == list(reference.get("/health").json())


def test_uptime_grows(service):
    uptimes = [service.get("/health").json()["uptime_seconds"] for _ in range(2)]
    assert len(set(uptimes)) == 2


@pytest.mark.parametrize(
    "path",
    ["/ping", "/version", "/liveness", "/readiness", "/v1/model/metadata", "/v1/model/features", "/openapi.json"],
)
def test_a_path_has_the_same_answer_in_every_runtime(service, reference, path):
    answer, same = service.get(path), reference.get(path)
    assert answer.status_code == same.status_code == 200
    assert answer.headers["Content-Type"] == same.headers["Content-Type"]
    assert answer.content == same.content


def test_mlflow_clients_get_what_they_expect(service):
    assert service.get("/ping").text == "\n"
    assert service.get("/version").text == __version__


def test_metadata(service):
    body = service.get("/v1/model/metadata").json()
    assert (body["name"], body["classes"], body["n_features"]) == ("tumour-classifier", ["malignant", "benign"], 30)
    assert body["accuracy"] > 0.97
    assert body["f1"] > 0.97


def test_features_come_in_the_models_order_with_unit_and_range(service):
    features = service.get("/v1/model/features").json()
    assert [feature["name"] for feature in features] == list(FEATURES)
    assert {feature["name"]: feature["unit"] for feature in features} == UNITS
    for feature, column in zip(features, ROWS.T, strict=True):
        assert column.min() <= feature["minimum"] < feature["maximum"] <= column.max()


ANSWERS = {
    "success": lambda client, headers: client.post("/v1/predict", json=RECORD, headers=headers),
    "validation error": lambda client, headers: client.post("/v1/predict", json={}, headers=headers),
    "unknown path": lambda client, headers: client.get("/v1/nothing", headers=headers),
    "text": lambda client, headers: client.get("/ping", headers=headers),
    "page": lambda client, headers: client.get("/docs", headers=headers),
    "nothing": lambda client, headers: client.delete(
        client.post("/v1/cases", json={"measurements": RECORD}).headers["Location"], headers=headers
    ),
}


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_a_given_request_id_comes_back_once(service, ask):
    answer = ask(service, {"X-Request-ID": "callers-own-id"})
    assert answer.headers.get_list("X-Request-ID") == ["callers-own-id"]
    if answer.is_error:
        assert answer.json()["request_id"] == "callers-own-id"


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_without_a_given_id_each_request_gets_its_own(service, ask):
    first, second = ask(service, {}), ask(service, {})
    [one], [other] = (answer.headers.get_list("X-Request-ID") for answer in (first, second))
    assert UUID(one) != UUID(other)
    if first.is_error:
        assert first.json()["request_id"] == one


def test_concurrent_requests_keep_their_ids_apart(service):
    def ask(name: str) -> tuple[str, str]:
        answer = service.post("/v1/predict", json={}, headers={"X-Request-ID": name})
        return answer.headers["X-Request-ID"], answer.json()["request_id"]

    names = [f"request-{number}" for number in range(50)]
    assert concurrently(ask, names) == [(name, name) for name in names]


@pytest.mark.parametrize("ask", ANSWERS.values(), ids=ANSWERS)
def test_each_answer_says_once_how_long_it_took(service, ask):
    [seconds] = ask(service, {}).headers.get_list("X-Process-Time")
    assert 0 < float(seconds) < 30


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_needs_nothing_from_elsewhere(service, page):
    answer = service.get(page)
    assert answer.headers["Content-Type"].startswith("text/html")
    assets = re.findall(r"""(?:src|href|url|spec-url)\s*[=:]\s*["']([^"']+)["']""", answer.text)
    assert "/openapi.json" in assets
    assert any(asset.endswith(".js") for asset in assets)
    assert "://" not in answer.text
    for asset in assets:
        assert service.get(urljoin(page, asset)).status_code == 200, asset


def test_the_schema_is_complete(service):
    """Each operation has a unique name, describes what it does, and declares its errors."""
    answer = service.get("/openapi.json")
    document = answer.json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert "Problem" in document["components"]["schemas"]
    for operation in operations:
        assert operation["description"]
        assert {"500", "503"} <= set(operation["responses"])
        assert ("422" in operation["responses"]) == ("security" in operation), operation["operationId"]
    assert set(re.findall(r'"\$ref":"#/components/schemas/(\w+)"', answer.text)) <= set(
        document["components"]["schemas"]
    )
