"""Metrics: sums of what all processes of a service have counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Series:
    """The name of a sum.

    Attributes:
        name: of the metric.
        labels: their names and values, in the order of the names.
    """

    name: str
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    @lru_cache(maxsize=10_000)  # few differ, and each request needs two
    def of(cls, name: str, **labels: str) -> "Series":
        """The series with these labels."""
        return cls(name, tuple(sorted(labels.items())))


class MetricStore(Protocol):
    """Sums of counters. All processes of a service share one store, which keeps the sums through restarts."""

    def add(self, series: Series, amount: float = 1.0) -> None:
        """Add to a sum.

        Returns at once. The store has the amount after a second or so, at the latest when it is closed. A process that
        is killed loses what it has counted since then.
        """
        ...

    async def totals(self) -> Mapping[Series, float]:
        """All sums, which only grow. If the store is quick, they include all that this process has counted.

        Raises:
            UnavailableError: the store does not answer.
        """
        ...

    async def aclose(self) -> None:
        """Store what has been counted, within a time limit, and release the store's resources."""
        ...


class ProcessMetrics:
    """A ``MetricStore`` in the memory of one process, which forgets the sums when it ends."""

    def __init__(self) -> None:
        self._sums: dict[Series, float] = {}

    def add(self, series: Series, amount: float = 1.0) -> None:
        """See ``MetricStore.add``."""
        self._sums[series] = self._sums.get(series, 0.0) + amount

    async def totals(self) -> Mapping[Series, float]:
        """See ``MetricStore.totals``."""
        return dict(self._sums)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""
