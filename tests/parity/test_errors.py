"""Every mistake gets the same answer in every runtime, and the answer says what is wrong."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import httpx
import pytest

from tests.service import IMPOSSIBLE, RECORD, essence, with_literal

PROBLEM = {
    "type",
    "title",
    "status",
    "detail",
    "instance",
    "error",
    "details",
    "timestamp",
    "request_id",
}
NOT_JSON = ("content-type", "json_content_type")
JSON = {"Content-Type": "application/json"}
LIMIT = 4 * 2**20
UNKNOWN_CASE = f"/v1/cases/{UUID(int=0)}"
WITHOUT_AREA = {name: value for name, value in RECORD.items() if name != "mean_area"}


@dataclass
class Mistake:
    """A request, the status of its answer, and the (field, rule) pairs that the answer names."""

    status: int
    names: list[tuple[str, str]]
    path: str = "/v1/predict"
    method: str = "POST"
    json: object = None
    content: bytes | Callable[[], object] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, client: httpx.Client) -> httpx.Response:
        content = self.content() if callable(self.content) else self.content
        return client.request(self.method, self.path, json=self.json, content=content, headers=self.headers)


def value(literal: str, rule: str) -> Mistake:
    """A prediction with this JSON text for the mean radius."""
    return Mistake(422, [("mean_radius", rule)], content=with_literal("mean_radius", literal), headers=JSON)


def text(content: bytes, *names: tuple[str, str], status: int = 422) -> Mistake:
    return Mistake(status, list(names), content=content, headers=JSON)


def batch(records: list[object], *names: tuple[str, str], status: int = 422) -> Mistake:
    return Mistake(status, list(names), "/v1/batch-predict", json={"records": records})


MISTAKES = {
    "missing feature": Mistake(422, [("mean_area", "missing")], json=WITHOUT_AREA),
    "no feature at all": Mistake(422, [(name, "missing") for name in RECORD], json={}),
    "extra feature": Mistake(422, [("colour", "extra_forbidden")], json=RECORD | {"colour": 1.0}),
    "misspelt feature": Mistake(
        422, [("mean_area", "missing"), ("mean_aera", "extra_forbidden")], json=WITHOUT_AREA | {"mean_aera": 1.0}
    ),
    "text for a number": value('"17.99"', "float_type"),
    "true for a number": value("true", "float_type"),
    "null for a number": value("null", "float_type"),
    "list for a number": value("[17.99]", "float_type"),
    "NaN": value("NaN", "finite_number"),
    "Infinity": value("Infinity", "finite_number"),
    "-Infinity": value("-Infinity", "finite_number"),
    "larger than any float": value("1e400", "finite_number"),
    "larger than any float, written out": value("1" + "0" * 400, "float_type"),
    "negative": value("-1", "greater_than_equal"),
    "several at once": Mistake(
        422,
        [("mean_area", "float_type"), ("mean_radius", "greater_than_equal"), ("x", "extra_forbidden")],
        json=RECORD | {"mean_area": "large", "mean_radius": -1, "x": 0},
    ),
    "list for an object": text(b"[]", ("body", "model_attributes_type")),
    "malformed JSON": text(b'{"mean_radius": ', ("body", "json_invalid")),
    "no body": text(b"", ("body", "missing")),
    "invalid UTF-8": text(b'{"mean_radius\xff": 1}', ("body", "json_invalid")),
    "nested too deeply": text(b"[" * 100_000, ("body", "json_invalid")),
    "wrong content type": Mistake(
        422, [NOT_JSON], content=json.dumps(RECORD).encode(), headers={"Content-Type": "text/plain"}
    ),
    "no content type": Mistake(422, [NOT_JSON], content=json.dumps(RECORD).encode()),
    "empty batch": batch([], ("records", "too_short")),
    "1001 records": batch([RECORD] * 1001, ("records", "too_long")),
    "1001 wrong records": batch([{}] * 1001, ("records", "too_long")),
    "one bad record of many": batch([RECORD] * 3 + [WITHOUT_AREA], ("records.3.mean_area", "missing")),
    "records missing": Mistake(
        422, [("records", "missing"), ("rows", "extra_forbidden")], "/v1/batch-predict", json={"rows": []}
    ),
    "body over the limit": text(b" " * (LIMIT + 1), status=413),
    "body over the limit, in chunks": Mistake(413, [], content=lambda: iter([b" " * 2**20] * 5), headers=JSON),
    "impossible measurement": Mistake(400, [("row 0: worst_radius", "impossible_value")], json=IMPOSSIBLE),
    "impossible measurement in a batch": batch(
        [RECORD, IMPOSSIBLE], ("row 1: worst_radius", "impossible_value"), status=400
    ),
    "unknown path": Mistake(404, [], "/v1/nothing", "GET"),
    "unknown path with non-ASCII letters": Mistake(404, [], "/größe", "GET"),
    "wrong method": Mistake(405, [], "/v1/predict", "GET"),
    "wrong method on a service path": Mistake(405, [], "/health", "DELETE"),
    "case id that is not a UUID": Mistake(422, [("case_id", "uuid_parsing")], "/v1/cases/12", "GET"),
    "unknown case": Mistake(404, [], UNKNOWN_CASE, "GET"),
    "prediction of an unknown case": Mistake(404, [], f"{UNKNOWN_CASE}/prediction", "GET"),
    "deletion of an unknown case": Mistake(404, [], UNKNOWN_CASE, "DELETE"),
    "correction of an unknown case": Mistake(404, [], UNKNOWN_CASE, "PUT", json={"measurements": RECORD}),
    "case with a misspelt field": Mistake(
        422,
        [("measurement", "extra_forbidden"), ("measurements", "missing")],
        "/v1/cases",
        json={"measurement": RECORD},
    ),
    "case with a bad measurement": Mistake(
        422,
        [("measurements.mean_area", "float_type")],
        "/v1/cases",
        json={"measurements": RECORD | {"mean_area": "large"}},
    ),
    "case with an unknown diagnosis": Mistake(
        422, [("diagnosis", "literal_error")], "/v1/cases", json={"measurements": RECORD, "diagnosis": "unsure"}
    ),
    "limit of zero": Mistake(422, [("limit", "greater_than_equal")], "/v1/cases?limit=0", "GET"),
    "limit above the highest": Mistake(422, [("limit", "less_than_equal")], "/v1/cases?limit=101", "GET"),
    "limit that is not a number": Mistake(422, [("limit", "int_parsing")], "/v1/cases?limit=all", "GET"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_a_problem_document_and_the_same_in_every_runtime(service, reference, mistake):
    answer = mistake.send(service)
    assert answer.status_code == mistake.status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == PROBLEM
    assert problem["status"] == mistake.status
    assert problem["instance"] == httpx.URL(mistake.path).path
    assert sorted((detail["field"], detail["rule"]) for detail in problem["details"]) == sorted(mistake.names)
    assert all(detail["message"] for detail in problem["details"])
    same = mistake.send(reference)
    assert essence(answer) == essence(same)
    assert answer.headers.get("Allow") == same.headers.get("Allow")


def test_too_many_records_says_how_many_are_allowed(service):
    [detail] = MISTAKES["1001 records"].send(service).json()["details"]
    assert "1000" in detail["message"]
    assert "1001" in detail["message"]


def test_many_mistakes_are_counted_and_the_first_hundred_named(service):
    problem = service.post("/v1/batch-predict", json={"records": [{}] * 1000}).json()
    assert problem["detail"].startswith("invalid values in the request: 30000")
    assert [detail["field"] for detail in problem["details"][:2]] == ["records.0.mean_radius", "records.0.mean_texture"]
    assert len(problem["details"]) == 100


def test_the_wrong_method_says_which_is_right(service):
    assert MISTAKES["wrong method"].send(service).headers["Allow"] == "POST"


def test_after_all_this_the_service_still_answers(service):
    assert service.post("/v1/predict", json=RECORD).status_code == 200
