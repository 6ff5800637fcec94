"""Totals of the whole service, whichever replica answers the scrape."""

from prometheus_client.parser import text_string_to_metric_families

from tests.service import RECORD, concurrently, until
from workshop import corpus

QUESTION = corpus.entries()[3].questions[0]


def total(service, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(service.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_every_replica_reports_what_all_have_counted(service):
    def predictions() -> float:
        return total(service, "prediction_requests_total", endpoint="/v1/predict")

    before = predictions()
    answers = concurrently(lambda _: service.post("/v1/predict", json=RECORD), range(40), at_once=8)
    assert {answer.status_code for answer in answers} == {200}
    assert until(predictions, lambda seen: seen == before + 40) == before + 40
    seen = [predictions() for _ in range(10)]  # any replica may answer
    assert set(seen) == {before + 40}


def test_answers_of_the_cascade_are_counted(service):
    def queries() -> float:
        return total(service, "cascadeflow_queries_total")

    before = queries()
    assert service.post("/v1/query", json={"query": QUESTION}).status_code == 200
    assert until(queries, lambda seen: seen == before + 1) == before + 1


def test_the_model_is_loaded(service):
    assert total(service, "model_loaded") == 1
    assert service.get("/health").json()["agent_initialized"] is True
