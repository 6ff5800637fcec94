"""What Prometheus gets: names, labels, and totals of the whole service."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.leaving import leaving
from tests.service import RECORD, concurrently, socket_url, until
from tests.stand_ins import (
    DRAFT_COST,
    MAIN_COST,
    PROMPT_TOKENS,
    UNSURE,
    StandInClassifier,
    database_url,
    draft,
    main,
)
from workshop.api.app import create_app
from workshop.api.metrics import METHODS, PREDICTIONS
from workshop.contracts.errors import ModelFailedError
from workshop.contracts.services import Services
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.metrics import SqlMetricStore

pytestmark = pytest.mark.slow

Samples = dict[tuple[str, ...], float]

FAMILIES = {
    "model_version_requests": "counter",
    "model_loaded": "gauge",
    "api_uptime_seconds": "gauge",
    "http_requests": "counter",
    "http_request_duration_seconds": "histogram",
    "prediction_requests": "counter",
    "prediction_requests_successful": "unknown",
    "prediction_requests_failed": "unknown",
    "prediction_latency_seconds": "histogram",
}
CASCADE = {"queries": "counter", "query_duration_seconds": "histogram", "query_cost_dollars": "histogram"}


def scrape(client: httpx.Client, path: str = "/metrics") -> Samples:
    """The samples, by name and values of the labels, these in the order of the labels' names."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def requests(samples: Samples) -> dict[tuple[str, str, str], float]:
    """The number of requests, by method, route and status."""
    return {key[1:]: value for key, value in samples.items() if key[0] == "http_requests_total"}


@contextmanager
def classifier_alone(file, classifier=None, **options) -> Iterator[httpx.Client]:
    """A process of a service without language models."""
    url = database_url(file)
    services = Services(classifier or StandInClassifier(), SqlCaseStore(url), metrics=SqlMetricStore(url))
    with (
        run_app(create_app(services, Settings(**options))) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize("path", ["/metrics", "/prometheus-metrics"])
@pytest.mark.parametrize(
    ("options", "prefixes"),
    [({}, ["cascade", "cascadeflow"]), ({"earlier_clients": False}, ["cascade"])],
    ids=["with earlier names", "without"],
)
def test_every_metric_is_there_from_the_start(serve, options, prefixes, path):
    with serve(**options) as service:
        if options and path == "/prometheus-metrics":
            assert service.client.get(path).status_code == 404
            return
        answer = service.client.get(path)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family.type for family in text_string_to_metric_families(answer.text)}
    cascades = {f"{prefix}_{name}": kind for prefix in prefixes for name, kind in CASCADE.items()}
    assert families == FAMILIES | cascades


@pytest.mark.parametrize("path", ["/metrics", "/prometheus-metrics"])
def test_without_language_models_all_others_are_there(file, path):
    with classifier_alone(file) as client:
        families = {family.name: family.type for family in text_string_to_metric_families(client.get(path).text)}
    assert families == FAMILIES


def test_the_documentation_names_every_metric_and_no_other(serve):
    text = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    with serve() as service:
        service.client.post("/v1/predict", json=RECORD)
        service.client.post("/v1/query", json={"query": "Why?"})
        samples = {name for name, *_ in scrape(service.client)}
    names = {name.removesuffix("_bucket") for name in samples if not name.endswith(("_sum", "_count"))}
    table = set(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) \|", text, re.MULTILINE))
    assert table == {name for name in names if not name.startswith("cascadeflow_")}
    queries = "".join(re.findall(r"```promql\n(.*?)```", text, re.DOTALL))
    asked = set(re.findall(r"\b(?:http|prediction|cascade|cascadeflow)_\w+", queries))
    assert asked
    assert asked <= samples


def test_a_scraper_gets_the_format_it_requests(serve):
    with serve() as service:
        service.client.post("/v1/predict", json=RECORD)
        answer = service.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(answer.text)}
    [sample] = families["prediction_requests_successful"].samples
    assert (sample.name, sample.value) == ("prediction_requests_successful", 1.0)


def test_requests_are_counted_by_method_route_and_status(serve):
    with serve(max_body_bytes=5000) as service:
        client = service.client
        case = client.post("/v1/cases", json={"measurements": RECORD}).headers["Location"]
        for path in (case, case, "/v1/cases/00000000-0000-0000-0000-000000000000"):
            client.get(path)
        client.post("/v1/predict", json={})
        client.post("/v1/predict", content="x" * 5001)
        client.delete("/v1/predict")
        client.get("/v1/cases", headers={"X-Large": "x" * 2**15})
        client.post("/predict", json=RECORD)
        counts = requests(scrape(client))
    assert counts == {
        ("POST", "/v1/cases", "201"): 1,
        ("GET", "/v1/cases/{case_id}", "200"): 2,
        ("GET", "/v1/cases/{case_id}", "404"): 1,
        ("POST", "/v1/predict", "422"): 1,
        ("POST", "/v1/predict", "413"): 1,
        ("DELETE", "/v1/predict", "405"): 1,
        ("GET", "other", "431"): 1,
        ("POST", "/predict", "200"): 1,
    }


def test_a_stream_is_counted_when_it_has_ended(serve):
    big = main(endless=True)
    with serve(draft(UNSURE), big) as service:
        path = "/v1/query/stream?query=Why"
        with leaving(service.client, "GET", path):
            until(lambda: big.generated_tokens, lambda made: made > 3)
            during = requests(scrape(service.client))
        after = until(lambda: requests(scrape(service.client)), lambda seen: ("GET", "/v1/query/stream", "200") in seen)
    assert ("GET", "/v1/query/stream", "200") not in during
    assert after["GET", "/v1/query/stream", "200"] == 1


class Stuck(StandInClassifier):
    """Predicts nothing before it is asked to."""

    def __init__(self) -> None:
        self.entered = threading.Event()

    async def predict(self, rows):
        self.entered.set()
        return await asyncio.Event().wait()


def test_a_client_that_leaves_without_a_response_has_a_status_of_its_own(file):
    classifier = Stuck()
    with classifier_alone(file, classifier) as client:
        with leaving(client, "POST", "/v1/predict", json=RECORD):
            classifier.entered.wait(20)
        counts = until(lambda: requests(scrape(client)), lambda seen: ("POST", "/v1/predict", "499") in seen)
    assert counts["POST", "/v1/predict", "499"] == 1


class Buggy(StandInClassifier):
    async def predict(self, rows):
        raise RuntimeError("a bug")


def test_a_bug_is_a_500(file):
    with classifier_alone(file, Buggy()) as client:
        assert httpx.post(f"{client.base_url}/v1/predict", json=RECORD).status_code == 500  # closes its connection
        assert requests(scrape(client))["POST", "/v1/predict", "500"] == 1


def test_nothing_that_a_caller_sends_makes_a_new_series(serve):
    paths = [
        "/nothing",
        "/v1/nothing",
        "/%00",
        "/v1/cases/1",
        "/v1/cases/2",
        "/style.css",
        "/a/../b",
        "//",
        "/%ff" * 50,
    ]
    with serve() as service:
        for number, path in enumerate(paths):
            for query in ("", f"?api_key={number}", f"?{number}=1"):
                service.client.get(path + query)
        for method in ("BREW", "PROPFIND", "X" * 100):
            service.client.request(method, "/v1/predict")
        text = service.client.get("/metrics").text
        counts = requests(scrape(service.client))
    assert {method for method, _, _ in counts} <= METHODS | {"other"}
    assert {route for _, route, _ in counts} <= {"other", "/metrics", "/v1/predict", "/v1/cases/{case_id}"}
    assert "nothing" not in text
    assert "api_key" not in text


def test_durations_fall_into_buckets_from_a_millisecond_to_a_minute(serve):
    with serve() as service:
        service.client.get("/ping")
        samples = scrape(service.client)
    buckets = [key[1] for key in samples if key[0] == "http_request_duration_seconds_bucket" and key[3] == "/ping"]
    assert [buckets[0], buckets[9], *buckets[-2:]] == ["0.001", "1.0", "60.0", "+Inf"]
    counts = [samples["http_request_duration_seconds_bucket", bucket, "GET", "/ping", "200"] for bucket in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == samples["http_request_duration_seconds_count", "GET", "/ping", "200"] == 1
    assert 0 < samples["http_request_duration_seconds_sum", "GET", "/ping", "200"] < 30


def test_predictions_have_the_names_of_the_earlier_service(serve):
    with serve() as service:
        client = service.client
        for _ in range(3):
            client.post("/v1/predict", json=RECORD)
        client.post("/v1/predict", json={})
        client.post("/v1/batch-predict", json={"records": [RECORD] * 2})
        client.post("/predict", json=RECORD)
        client.get("/v1/model/metadata")
        samples = scrape(client)
    assert samples["prediction_requests_total", "/v1/predict"] == 4
    assert samples["prediction_requests_total", "/v1/batch-predict"] == 1
    assert samples["prediction_requests_total", "/predict"] == 1
    assert samples["prediction_requests_successful",] == samples["prediction_latency_seconds_count",] == 5
    assert samples["prediction_requests_failed",] == 1
    assert samples["model_loaded",] == 1
    assert samples["api_uptime_seconds",] > 0


def test_the_routes_of_predictions_exist(serve):
    with serve() as service:
        assert service.client.get("/openapi.json").json()["paths"].keys() >= PREDICTIONS


class Missing(StandInClassifier):
    is_missing = False

    async def card(self):
        if self.is_missing:
            raise ModelFailedError("the model failed")
        return await super().card()


def test_a_classifier_that_does_not_answer_is_not_loaded(file):
    classifier = Missing()
    with classifier_alone(file, classifier) as client:
        classifier.is_missing = True
        assert scrape(client)["model_loaded",] == 0


@pytest.mark.parametrize("prefix", ["cascade", "cascadeflow"])
def test_answers_of_the_cascade_are_counted_with_time_and_cost(serve, prefix):
    with serve() as service:
        for force_direct in (False, False, True):
            service.client.post("/v1/query", json={"query": "Why?", "force_direct": force_direct})
        service.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Why?"}]})
        service.client.post("/v1/query", json={"query": ""})
        samples = scrape(service.client)
    assert samples[f"{prefix}_queries_total", "draft"] == 2
    assert samples[f"{prefix}_queries_total", "main"] == 1
    costs = [(PROMPT_TOKENS + 2) * DRAFT_COST / 1000] * 2 + [(PROMPT_TOKENS + 4) * MAIN_COST / 1000]
    assert samples[f"{prefix}_query_cost_dollars_sum",] == pytest.approx(sum(costs))
    at_most = [samples[f"{prefix}_query_cost_dollars_bucket", limit] for limit in ("0.01", "0.1", "1.0", "+Inf")]
    assert at_most == [0, 2, 3, 3]
    assert samples[f"{prefix}_query_duration_seconds_count",] == 3
    assert 0 < samples[f"{prefix}_query_duration_seconds_sum",] < 30


def test_every_process_reports_the_whole_service_and_a_restart_goes_on_counting(file):
    with classifier_alone(file) as one, classifier_alone(file) as another:
        for client in (one, another, another):
            client.post("/v1/predict", json=RECORD)
        for client in (one, another):
            counts = until(lambda client=client: scrape(client)["prediction_requests_successful",], lambda n: n == 3)
            assert counts == 3
    with classifier_alone(file) as restarted:
        assert scrape(restarted)["prediction_requests_successful",] == 3
        restarted.post("/v1/predict", json=RECORD)
        assert scrape(restarted)["prediction_requests_successful",] == 4


def test_totals_only_grow_however_many_count_and_scrape(file):
    with classifier_alone(file) as one, classifier_alone(file) as another:

        def predict_or_scrape(number: int) -> None:
            client = (one, another)[number % 2]
            assert client.post("/v1/predict", json=RECORD).status_code == 200
            if number % 5 == 0:
                assert scrape(client)["prediction_requests_successful",] >= 1

        concurrently(predict_or_scrape, range(200), at_once=8)
        seen = [scrape((one, another)[number % 2])["prediction_requests_successful",] for number in range(10)]
        assert seen == sorted(seen)
        assert until(lambda: scrape(one)["prediction_requests_successful",], lambda n: n == 200) == 200


def test_websockets_are_not_requests(serve):
    with serve() as service:
        with connect(socket_url(service.client)):
            pass
        counts = requests(scrape(service.client))
    assert counts == {}


def test_with_keys_a_scrape_requires_one(serve):
    with serve(api_keys={"key-of-ada": "ada"}) as service:
        assert service.client.get("/metrics").status_code == 401
        answer = service.client.get("/metrics", headers={"Authorization": "Bearer key-of-ada"})
        assert answer.status_code == 200
    assert "key-of-ada" not in answer.text
    assert "ada" not in answer.text
