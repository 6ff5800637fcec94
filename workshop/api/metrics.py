"""The service's metrics: what is counted, and how Prometheus gets it."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from typing import TypeAlias

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from workshop.contracts.metrics import MetricStore, Series
from workshop.contracts.registry import VERSION_REQUESTS

OTHER = "other"
"""The route of a request to no route, or to a file. Methods that HTTP does not define have this name too."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

PREDICTIONS = frozenset(
    {
        "/v1/predict",
        "/v1/batch-predict",
        "/v1/cases/{case_id}/prediction",
        "/invocations",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
        "/predict",
        "/batch-predict",
    }
)
"""The routes that predict with the classifier."""

CASCADE, EARLIER_CASCADE = "cascade", "cascadeflow"
"""What the names of the cascade's metrics begin with, now and in the earlier service."""

LabelValues: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Observed values.

    Attributes:
        counts: how many of them lie between one limit and the next; the last limit is infinity.
        sum: all of them added up.
    """

    counts: Sequence[float]
    sum: float

    def __add__(self, other: "Distribution") -> "Distribution":
        counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        return Distribution(counts, self.sum + other.sum)

    @property
    def count(self) -> float:
        """The number of values."""
        return sum(self.counts)


class Histogram:
    """A metric that counts values by their size.

    Prometheus' own class counts in the memory of one process. This one counts in a ``MetricStore``, for all of them.

    Args:
        name: of the metric.
        limits: upper limits of the buckets; one without a limit follows.
        labels: names of the labels.
    """

    def __init__(self, name: str, limits: Sequence[float], *labels: str) -> None:
        self._name = name
        self._limits = limits
        self._buckets = [*map(floatToGoString, limits), "+Inf"]
        self._labels = labels

    def observe(self, store: MetricStore, value: float, *labels: str) -> None:
        """Count a value, with a value for each label."""
        named = dict(zip(self._labels, labels, strict=True))
        bucket = self._buckets[bisect_left(self._limits, value)]
        store.add(Series.of(f"{self._name}_bucket", **named, le=bucket))
        store.add(Series.of(f"{self._name}_sum", **named), value)

    def read(self, totals: Mapping[Series, float]) -> dict[LabelValues, Distribution]:
        """What all processes have observed, by the values of the labels."""
        found = {}
        for series, total in totals.items():
            if series.name == f"{self._name}_sum":
                named = dict(series.labels)
                counts = [totals.get(Series.of(f"{self._name}_bucket", **named, le=le), 0.0) for le in self._buckets]
                found[tuple(named[label] for label in self._labels)] = Distribution(counts, total)
        return found

    def together(self, found: Iterable[Distribution]) -> Distribution:
        """All values of several distributions."""
        return sum(found, start=Distribution([0.0] * len(self._buckets), 0.0))

    def add_to(self, family: HistogramMetricFamily, distribution: Distribution, *labels: str) -> None:
        """Add a distribution to what Prometheus gets."""
        buckets = zip(self._buckets, accumulate(distribution.counts), strict=True)
        family.add_metric(labels, list(buckets), distribution.sum)


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DOLLARS = (0.000_001, 0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0)

REQUESTS = Histogram("http_request_duration_seconds", SECONDS, "method", "route", "status")
ANSWERS = Histogram("cascade_query_duration_seconds", SECONDS, "model")
COSTS = Histogram("cascade_query_cost_dollars", DOLLARS)


def count_request(store: MetricStore, method: str, route: str, status: int, seconds: float) -> None:
    """Count an HTTP request that has ended.

    Args:
        store: where it is counted.
        method, status: of the request and its response.
        route: the template of its path. The path itself would make a new series for each one.
        seconds: from its arrival to the end of the response.
    """
    REQUESTS.observe(store, seconds, method if method in METHODS else OTHER, route, str(status))


def count_answer(store: MetricStore, model: str, cost: float, seconds: float) -> None:
    """Count an answer of the cascade: the model that gave it, what it cost in dollars, and how long it took."""
    ANSWERS.observe(store, seconds, model)
    COSTS.observe(store, cost)


class MetricsCollector(Collector):
    """Exports what has been counted.

    Args:
        totals: of the whole service, from its ``MetricStore``.
        model_loaded: whether the classifier answers.
        uptime_s: of this process.
        cascades: the names of the cascade's metrics begin with these: see ``CASCADE``.
    """

    def __init__(
        self, totals: Mapping[Series, float], *, model_loaded: bool, uptime_s: float, cascades: Collection[str]
    ) -> None:
        self._totals = totals
        self._model_loaded = model_loaded
        self._uptime_s = uptime_s
        self._cascades = cascades

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        yield GaugeMetricFamily("model_loaded", "Whether the classifier answers: 1 or 0.", float(self._model_loaded))
        yield GaugeMetricFamily("api_uptime_seconds", "Uptime of the process that answers.", self._uptime_s)
        yield _versions(self._totals)
        requests = REQUESTS.read(self._totals)
        yield from _requests(requests)
        yield from _predictions(requests)
        answers, costs = ANSWERS.read(self._totals), COSTS.read(self._totals)
        for prefix in self._cascades:
            yield from _cascade(prefix, answers, costs)


def _versions(totals: Mapping[Series, float]) -> Metric:
    labels = ["version", "outcome"]
    requests = CounterMetricFamily(
        VERSION_REQUESTS, "Requests to each version of a registered classifier.", labels=labels
    )
    for series, total in totals.items():
        if series.name == VERSION_REQUESTS:
            named = dict(series.labels)
            requests.add_metric([named[label] for label in labels], total)
    return requests


def _requests(found: Mapping[LabelValues, Distribution]) -> Iterator[Metric]:
    labels = ["method", "route", "status"]
    requests = CounterMetricFamily("http_requests", "HTTP requests that have ended.", labels=labels)
    durations = HistogramMetricFamily(
        "http_request_duration_seconds", "Time from a request to the end of its response.", labels=labels
    )
    for values, distribution in found.items():
        requests.add_metric(values, distribution.count)
        REQUESTS.add_to(durations, distribution, *values)
    yield requests
    yield durations


def _predictions(found: Mapping[LabelValues, Distribution]) -> Iterator[Metric]:
    """Names that earlier dashboards use. They are a part of what is known of all requests."""
    by_route: dict[str, float] = defaultdict(float)
    successful: list[Distribution] = []
    failed: list[Distribution] = []
    for (_, route, status), distribution in found.items():
        if route in PREDICTIONS:
            by_route[route] += distribution.count
            (successful if int(status) < HTTPStatus.BAD_REQUEST else failed).append(distribution)
    requests = CounterMetricFamily("prediction_requests", "Requests for predictions.", labels=["endpoint"])
    for route, count in by_route.items():
        requests.add_metric([route], count)
    yield requests
    # Not declared as counters: the names of these would end in "_total".
    for name, distributions in {"successful": successful, "failed": failed}.items():
        count = REQUESTS.together(distributions).count
        yield UnknownMetricFamily(f"prediction_requests_{name}", f"Requests for predictions, {name} ones.", count)
    latencies = HistogramMetricFamily("prediction_latency_seconds", "Duration of successful requests for predictions.")
    REQUESTS.add_to(latencies, REQUESTS.together(successful))
    yield latencies


def _cascade(
    prefix: str, answers: Mapping[LabelValues, Distribution], costs: Mapping[LabelValues, Distribution]
) -> Iterator[Metric]:
    queries = CounterMetricFamily(f"{prefix}_queries", "Queries, by the model that answered.", labels=["model"])
    for values, distribution in answers.items():
        queries.add_metric(values, distribution.count)
    yield queries
    durations = HistogramMetricFamily(
        f"{prefix}_query_duration_seconds", "Time from the query to the end of its answer."
    )
    ANSWERS.add_to(durations, ANSWERS.together(answers.values()))
    yield durations
    dollars = HistogramMetricFamily(
        f"{prefix}_query_cost_dollars", "Cost of a query, over all models that worked on it."
    )
    COSTS.add_to(dollars, COSTS.together(costs.values()))
    yield dollars
