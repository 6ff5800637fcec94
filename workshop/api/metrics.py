"""Prometheus metrics of the service."""

import math
from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from workshop.contracts.usage import UsageTotals


class CascadeCollector(Collector):
    """Exports the totals of the cascade's answers from the usage store.

    Counters in the memory of a process are lost when it restarts, and each replica would count only its own requests.
    The store has the totals of all replicas.

    Args:
        totals: the totals of answers from the cascade.
    """

    def __init__(self, totals: UsageTotals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        totals = self._totals
        queries = CounterMetricFamily("cascade_queries", "Queries, by the model that answered.", labels=["model"])
        for model, answers in totals.answers_by_model.items():
            queries.add_metric([model], answers)
        yield queries
        yield HistogramMetricFamily(
            "cascade_query_duration_seconds",
            "Time from the query to the end of its answer.",
            buckets=[(_seconds(limit), count) for limit, count in totals.latency_counts.items()],
            sum_value=totals.latency_sum_ms / 1000,
        )
        yield SummaryMetricFamily(
            "cascade_query_cost_dollars",
            "Cost of a query, over all models that worked on it.",
            count_value=totals.answers,
            sum_value=totals.cost,
        )


def _seconds(limit_ms: float) -> str:
    return "+Inf" if math.isinf(limit_ms) else str(limit_ms / 1000)
