"""Cases: created, read, corrected, predicted and erased, in every runtime."""

from uuid import UUID

import httpx
import numpy as np
import pytest

from tests.service import IMPOSSIBLE, RECORD, RECORDS, concurrently, probabilities


def create(client, record=RECORD, **more) -> httpx.Response:
    return client.post("/v1/cases", json={"measurements": record, **more})


@pytest.fixture
def case(service) -> str:
    """The path of a new case."""
    return create(service).headers["Location"]


def test_a_new_case_is_answered_with_its_location(service):
    answer = create(service, diagnosis="malignant")
    assert answer.status_code == 201
    body = answer.json()
    assert body == {"id": body["id"], "measurements": RECORD, "diagnosis": "malignant"}
    assert answer.headers["Location"] == f"/v1/cases/{UUID(body['id'])}"
    assert service.get(answer.headers["Location"]).json() == body


def test_a_case_without_a_diagnosis_is_open(service, case):
    assert service.get(case).json()["diagnosis"] is None


def test_a_case_can_be_corrected(service, case):
    content = {"measurements": RECORDS[1], "diagnosis": "benign"}
    answer = service.put(case, json=content)
    assert answer.status_code == 200
    assert service.get(case).json() == answer.json() == content | {"id": case.rpartition("/")[2]}


def test_a_case_can_be_erased_once(service, case):
    erased = service.delete(case)
    assert (erased.status_code, erased.content) == (204, b"")
    assert [service.request(method, case).status_code for method in ("GET", "DELETE")] == [404, 404]


def test_the_newest_cases_come_first(service):
    created = [create(service, record).json() for record in RECORDS[:4]]
    assert service.get("/v1/cases", params={"limit": 3}).json() == created[:0:-1]


def test_the_list_has_twenty_cases_unless_told_otherwise(service):
    for _ in range(21):
        create(service)
    assert len(service.get("/v1/cases").json()) == 20
    assert len(service.get("/v1/cases?limit=21").json()) == 21


def test_another_client_finds_a_case_whichever_replica_answers(service, case):
    for _ in range(10):
        with httpx.Client(base_url=service.base_url) as another:
            assert another.get(case).status_code == 200


def test_a_case_is_stored_before_the_answer_is_sent(service):
    """The transaction ends before the response is sent."""

    def create_and_read(record):
        return service.get(create(service, record).headers["Location"]).json()["measurements"]

    assert concurrently(create_and_read, RECORDS[:50], at_once=8) == RECORDS[:50]


def test_a_stored_case_is_predicted_like_its_measurements(service, case):
    direct = service.post("/v1/predict", json=RECORD)
    np.testing.assert_allclose(
        probabilities(service.get(f"{case}/prediction")), probabilities(direct), rtol=0, atol=1e-12
    )


def test_an_impossible_case_is_refused_at_its_prediction(service):
    answer = service.get(create(service, IMPOSSIBLE).headers["Location"] + "/prediction")
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidInputError")
