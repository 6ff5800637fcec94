"""Every runtime predicts exactly what scikit-learn does, one row or many, alone or mixed with others."""

from itertools import pairwise

import numpy as np
import pytest
import skops.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service import IMPOSSIBLE, RECORD, RECORDS, ROWS, concurrently, essence, probabilities

CLASSES = np.array(["malignant", "benign"])


def predict(service, record):
    return service.post("/v1/predict", json=record)


def predict_batch(service, records):
    return service.post("/v1/batch-predict", json={"records": records})


@pytest.fixture(scope="session")
def expected(artifact):
    """What scikit-learn says, shape (569, 2)."""
    return skops.io.load(artifact / "model.skops").predict_proba(ROWS)


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_all_rows_one_by_one_from_many_callers_at_once(service, expected):
    answers = concurrently(lambda record: predict(service, record), RECORDS)
    assert_equal(np.concatenate([probabilities(answer) for answer in answers]), expected)
    assert [answer.json()["label"] for answer in answers] == CLASSES[expected.argmax(axis=1)].tolist()


def test_all_rows_in_one_batch(service, expected):
    answer = predict_batch(service, RECORDS)
    assert_equal(probabilities(answer), expected)
    body = answer.json()
    assert body["count"] == len(body["predictions"]) == 569
    assert [label["label"] for label in body["predictions"]] == CLASSES[expected.argmax(axis=1)].tolist()


def test_a_thousand_records_are_allowed(service, expected):
    assert_equal(probabilities(predict_batch(service, (RECORDS * 2)[:1000])), np.tile(expected, (2, 1))[:1000])


def test_one_row_alone(service, reference, expected):
    answer = predict(service, RECORD)
    assert_equal(probabilities(answer), expected[:1])
    body = answer.json()
    assert body["prediction"] == 0
    assert body["confidence"] == max(body["probabilities"].values())
    assert list(body["probabilities"]) == CLASSES.tolist()
    assert list(body) == list(predict(reference, RECORD).json())
    assert body["model_version"] == service.get("/v1/model/metadata").json()["version"]


def test_whole_numbers_are_numbers_too(service):
    whole = RECORD | {"mean_radius": 17, "mean_area": 1001}
    assert_equal(
        probabilities(predict(service, whole)), probabilities(predict(service, RECORD | {"mean_radius": 17.0}))
    )


@given(splits=st.lists(st.integers(0, 569), max_size=12))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_into_concurrent_requests_gives_the_same_answers(service, expected, splits):
    edges = sorted({0, 569, *splits})
    parts = [RECORDS[start:end] for start, end in pairwise(edges)]
    answers = concurrently(lambda records: predict_batch(service, records), parts)
    assert_equal(np.concatenate([probabilities(answer) for answer in answers]), expected)


def test_among_concurrent_requests_only_the_impossible_one_fails(service, reference, expected):
    bad = range(5, 60, 11)
    answers = concurrently(lambda i: predict(service, IMPOSSIBLE if i in bad else RECORDS[i]), range(60))
    for i, answer in enumerate(answers):
        if i in bad:
            assert answer.status_code == 400
            assert essence(answer) == essence(predict(reference, IMPOSSIBLE))
        else:
            assert_equal(probabilities(answer), expected[i : i + 1])


def test_in_a_mixed_batch_the_error_names_the_row_of_the_callers_own_batch(service):
    answers = concurrently(
        lambda bad: predict_batch(service, [*RECORDS[:bad], IMPOSSIBLE, *RECORDS[bad:20]]), range(12)
    )
    for bad, answer in enumerate(answers):
        [detail] = answer.json()["details"]
        assert (answer.status_code, detail["field"]) == (400, f"row {bad}: worst_radius")


ABSURD = RECORD | {"worst_area": 1e308}


def test_an_absurd_number_is_refused_by_name_and_harms_nobody_else(service, expected):
    bad = range(3, 40, 7)
    answers = concurrently(lambda i: predict(service, ABSURD if i in bad else RECORDS[i]), range(40))
    for i, answer in enumerate(answers):
        if i in bad:
            assert answer.status_code == 422
            assert [detail["field"] for detail in answer.json()["details"]] == ["worst_area"]
        else:
            assert_equal(probabilities(answer), expected[i : i + 1])


def test_an_absurd_number_is_not_kept(service):
    kept = service.post("/v1/cases", json={"measurements": RECORD}).headers["Location"]
    for method, path in (("POST", "/v1/cases"), ("PUT", kept)):
        answer = service.request(method, path, json={"measurements": ABSURD})
        assert answer.status_code == 422
        assert [detail["field"] for detail in answer.json()["details"]] == ["measurements.worst_area"]
    assert service.get(kept).json()["measurements"] == RECORD
