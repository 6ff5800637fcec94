"""Metrics in a SQL database."""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from typing import TypeAlias

from sqlalchemy import Text, select, text
from sqlalchemy.orm import Mapped, mapped_column

from workshop.contracts.metrics import Series
from workshop.storage.database import Base, Database
from workshop.storage.write_behind import WriteBehind

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0
"""How long increments are collected in memory: in this time, a process writes one transaction at most."""
READ_OWN_LIMIT_S = 1.0
"""How long ``totals`` waits for this process's own increments to be written."""

Increments: TypeAlias = Mapping[Series, float]

_ADD = text(
    "INSERT INTO metrics (name, labels, value) VALUES (:name, :labels, :value) "
    "ON CONFLICT (name, labels) DO UPDATE SET value = metrics.value + excluded.value"
)


class MetricRow(Base):
    """One sum. All processes add to the same rows, so that there are as many as there are different labels."""

    __tablename__ = "metrics"

    name: Mapped[str] = mapped_column(primary_key=True)
    labels: Mapped[str] = mapped_column(Text, primary_key=True)
    """As JSON."""
    value: Mapped[float]


class SqlMetricStore:
    """``MetricStore`` in the database at a URL.

    Args:
        url: see ``engine_at``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._entries = WriteBehind[Increments](self._write, _log_lost)
        self._counted: defaultdict[Series, float] = defaultdict(float)
        self._timer: asyncio.TimerHandle | None = None
        self._written: asyncio.Future[None] | None = None

    def add(self, series: Series, amount: float = 1.0) -> None:
        """See ``MetricStore.add``."""
        self._counted[series] += amount
        if self._timer is None:
            self._start_timer()

    async def totals(self) -> dict[Series, float]:
        """See ``MetricStore.totals``."""
        with suppress(TimeoutError):  # if the database is down, the query below says so
            async with asyncio.timeout(READ_OWN_LIMIT_S):
                for _ in range(2):  # an earlier write may be under way
                    if (written := self._start_write()) is not None:
                        await asyncio.shield(written)
        async with self._database.transaction() as session:
            rows = await session.execute(select(MetricRow.name, MetricRow.labels, MetricRow.value))
            return {Series.of(row.name, **json.loads(row.labels)): row.value for row in rows}

    async def aclose(self) -> None:
        """See ``MetricStore.aclose``."""
        if self._timer is not None:
            self._timer.cancel()
        if self._counted:
            self._entries.add(self._counted)
        await self._entries.aclose()
        await self._database.aclose()

    def _start_timer(self) -> None:
        # An empty context: the write does not belong to the request that was counted first.
        self._timer = asyncio.get_running_loop().call_later(WRITE_EVERY_S, self._on_timer, context=Context())

    def _on_timer(self) -> None:
        self._timer = None
        self._start_write()
        if self._counted:
            self._start_timer()

    def _start_write(self) -> asyncio.Future[None] | None:
        """Start to write what has been counted, unless an earlier part still waits for the database."""
        if self._counted and (self._written is None or self._written.done()):
            self._written = self._entries.add(self._counted)
            self._counted = defaultdict(float)
        return self._written

    async def _write(self, entries: Sequence[Increments]) -> None:
        increments = [
            {"name": series.name, "labels": json.dumps(dict(series.labels)), "value": amount}
            for entry in entries
            for series, amount in entry.items()
        ]
        # Every process locks rows in this order: with different ones, two could wait for each other forever.
        rows = sorted(increments, key=lambda row: (row["name"], row["labels"]))
        async with self._database.transaction() as session:
            await session.execute(_ADD, rows)


def _log_lost(increments: Increments) -> None:
    logger.error("lost: counts of %d metrics", len(increments))
