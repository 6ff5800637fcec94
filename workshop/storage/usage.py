"""Records of usage in a SQL database."""

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Index, case, func, or_, select
from sqlalchemy.orm import Mapped, mapped_column

from workshop.contracts.usage import UsageRecord, UsageTotals
from workshop.storage.database import MAX_TEXT, Base, Database

LATENCY_LIMITS_MS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0)
"""The limits of ``UsageTotals.latency_counts``, but for infinity."""


class UsageRow(Base):
    """One answer: see ``UsageRecord``. Each index holds all that its query reads, so that no row is looked up."""

    __tablename__ = "usage"
    __table_args__ = (
        Index("usage_spent", "principal", "at", "cost"),
        Index("usage_totals", "model", "cascaded", "draft_accepted", "cost", "latency_ms"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    endpoint: Mapped[str]
    principal: Mapped[str]
    model: Mapped[str]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cost: Mapped[float]
    latency_ms: Mapped[float]
    cascaded: Mapped[bool | None]
    draft_accepted: Mapped[bool | None]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))

    @classmethod
    def of(cls, record: UsageRecord) -> "UsageRow":
        """From the contract's value."""
        return cls(
            endpoint=record.endpoint,
            principal=_cut(record.principal),
            model=_cut(record.model),
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cost=record.cost,
            latency_ms=record.latency_ms,
            cascaded=record.cascaded,
            draft_accepted=record.draft_accepted,
            at=record.at.astimezone(UTC),  # SQLite drops the zone
        )


class SqlUsageStore:
    """``UsageStore`` in the database at a URL.

    Args:
        url: see ``engine_at``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._writing: set[asyncio.Task[None]] = set()

    async def add(self, *records: UsageRecord) -> None:
        """See ``UsageStore.add``."""
        # A task of its own: a request is cancelled when its client leaves or its server stops, its record is not.
        writing = asyncio.create_task(self._write([UsageRow.of(record) for record in records]))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)

    async def totals(self, *, cascades_only: bool = False) -> UsageTotals:
        """See ``UsageStore.totals``."""
        sums: list[ColumnElement[Any]] = [
            func.count(),
            func.sum(UsageRow.cost),
            _count_where(or_(UsageRow.cascaded.is_(True), UsageRow.draft_accepted.is_(True))),
            _count_where(UsageRow.draft_accepted.is_(True)),
            func.sum(UsageRow.latency_ms),
            *(_count_where(UsageRow.latency_ms <= limit) for limit in LATENCY_LIMITS_MS),
        ]
        query = select(*sums, UsageRow.model).group_by(UsageRow.model)
        if cascades_only:
            query = query.where(UsageRow.cascaded.is_not(None))
        async with self._database.transaction() as session:
            by_model = {row.model: row[:-1] for row in await session.execute(query)}
        # One statement, added up here: the parts of the answer belong to the same moment.
        nothing = [0] * len(sums)
        answers, cost, drafts, accepted, latency, *counts = map(sum, zip(nothing, *by_model.values(), strict=True))
        return UsageTotals(
            answers=answers,
            cost=float(cost),
            answers_by_model={model: answers for model, (answers, *_) in by_model.items()},
            drafts=drafts,
            drafts_accepted=accepted,
            latency_counts=dict(zip((*LATENCY_LIMITS_MS, math.inf), (*counts, answers), strict=True)),
            latency_sum_ms=float(latency),
        )

    async def spent(self, principal: str, since: datetime) -> float:
        """See ``UsageStore.spent``."""
        query = select(func.sum(UsageRow.cost)).where(
            UsageRow.principal == _cut(principal), UsageRow.at >= since.astimezone(UTC)
        )
        async with self._database.transaction() as session:
            return await session.scalar(query) or 0.0

    async def ready(self) -> None:
        """See ``UsageStore.ready``."""
        await self._database.ready(UsageRow)

    async def aclose(self) -> None:
        """See ``UsageStore.aclose``."""
        if self._writing:
            await asyncio.wait(self._writing)
        await self._database.aclose()

    async def _write(self, rows: list[UsageRow]) -> None:
        async with self._database.transaction() as session:
            session.add_all(rows)


def _cut(name: str) -> str:
    """A name that fits its column: callers choose their own, where no keys are set."""
    return name[:MAX_TEXT]


def _count_where(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1)))
