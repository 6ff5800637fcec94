"""Totals of the whole service, whichever replica answers the scrape."""

import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.service import RECORD, concurrently, until
from workshop import corpus
from workshop.storage.metrics import WRITE_EVERY_S

QUESTION = corpus.entries()[3].questions[0]


def total(service, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(service.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def settled(read: Callable[[], float]) -> float:
    """What is read once all replicas have written what earlier tests did: they do so every ``WRITE_EVERY_S``."""
    value, since = read(), time.monotonic()
    while time.monotonic() < since + 3 * WRITE_EVERY_S:
        time.sleep(WRITE_EVERY_S / 4)
        if (now := read()) != value:
            value, since = now, time.monotonic()
    return value


def test_every_replica_reports_what_all_have_counted(service):
    def predictions() -> float:
        return total(service, "prediction_requests_total", endpoint="/v1/predict")

    before = settled(predictions)
    answers = concurrently(lambda _: service.post("/v1/predict", json=RECORD), range(40), at_once=8)
    assert {answer.status_code for answer in answers} == {200}
    assert until(predictions, lambda seen: seen == before + 40) == before + 40
    seen = [predictions() for _ in range(10)]  # any replica may answer
    assert set(seen) == {before + 40}


def test_answers_of_the_cascade_are_counted(service):
    def queries() -> float:
        return total(service, "cascadeflow_queries_total")

    before = settled(queries)
    assert service.post("/v1/query", json={"query": QUESTION}).status_code == 200
    assert until(queries, lambda seen: seen == before + 1) == before + 1


def test_the_model_is_loaded(service):
    assert total(service, "model_loaded") == 1
    assert service.get("/health").json()["agent_initialized"] is True
