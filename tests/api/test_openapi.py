"""The OpenAPI document describes the whole service, and the service behaves as documented."""

from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from docs.openapi import FILE
from docs.openapi import document as current_document
from tests.stand_ins import application, draft, main
from workshop.api.schemas.openai import ErrorAnswer
from workshop.lab.app_server import run_app

KEY = {"Authorization": "Bearer key-of-ada"}
JSON = {"Content-Type": "application/json"}
CASE = f"/v1/cases/{UUID(int=0)}"


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[httpx.Client]:
    file = tmp_path_factory.mktemp("openapi") / "service.sqlite"
    app = application(file, draft(), main(), api_keys={"key-of-ada": "ada"}, max_body_bytes=10_000)
    with run_app(app) as server, httpx.Client(base_url=server.url, headers=KEY, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def document(client) -> dict:
    return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operations(document) -> list[dict]:
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_the_document_is_as_reviewed():
    assert current_document() == FILE.read_text(), "review the change, then: .venv/bin/python -m docs.openapi"


def test_the_document_groups_the_operations(document, operations):
    assert document["info"]["title"] == "Workshop service"
    assert "tumour" not in document["info"]["title"].lower()
    groups = [tag["name"] for tag in document["tags"]]
    assert len(groups) == len(set(groups))
    assert {tag for operation in operations for tag in operation["tags"]} == set(groups)
    assert all(tag["description"].endswith(".") for tag in document["tags"])


def test_every_operation_is_described(operations):
    for operation in operations:
        [_] = operation["tags"]
        assert operation["summary"] != operation["operationId"].replace("_", " ").title()
        assert operation["description"].endswith(".")
        assert "``" not in operation["description"]
    summaries = [operation["summary"] for operation in operations]
    assert len(set(summaries) - {"Continue a conversation"}) >= len(summaries) - 1


@pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/cases", "GET, POST"),
        ("DELETE", "/v1/query", "GET, POST"),
        ("POST", CASE, "DELETE, GET, PUT"),
        ("GET", "/v1/predict", "POST"),
        ("DELETE", "/health", "GET"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_a_405_lists_all_methods_of_a_path(tmp_path, prefix, method, path, allowed):
    app = application(tmp_path / "service.sqlite", draft(), main())
    with run_app(app, root_path=prefix) as server:
        answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert answer.headers["Content-Type"] == "application/problem+json"


OPENAI = {
    "a wrong key": (401, {"headers": {"Authorization": "Bearer guess"}}),
    "malformed": (400, {"content": b"{", "headers": JSON}),
    "a surrogate": (400, {"content": b'{"model": "\\ud800"}', "headers": JSON}),
    "a wrong value": (400, {"json": {"model": 3}}),
    "an unknown model": (404, {"json": {"model": "gpt", "input": "text"}}),
    "too large": (413, {"json": {"model": "x" * 10_001}}),
}


@pytest.mark.parametrize("mistake", OPENAI)
def test_errors_of_openais_protocol_match_the_document(client, document, mistake):
    status, request = OPENAI[mistake]
    answer = client.post("/v1/embeddings", **request)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    ErrorAnswer.model_validate_json(answer.content, strict=True)
    described = document["paths"]["/v1/embeddings"]["post"]["responses"][str(status)]["content"]
    assert described == {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
