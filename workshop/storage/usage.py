"""Records of usage in a SQL database."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, DateTime, Index, Select, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Mapped, mapped_column

from workshop.contracts.errors import UnavailableError
from workshop.contracts.usage import Reservation, UsageRecord, UsageTotals
from workshop.storage.database import Base, Database, cut
from workshop.storage.write_behind import WriteBehind

logger = logging.getLogger(__name__)

RESERVED_FOR = timedelta(seconds=60)
"""A reservation is renewed while its process lives: that of a process that was killed expires after this time."""
RENEW_EVERY_S = 20.0

ROUNDING = 1e-9
"""A budget with no more than this share left is used up: sums of floating-point numbers are not exact."""


class UsageRow(Base):
    """One answer: see ``UsageRecord``. Each index covers its query, so that no row is looked up."""

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

    @staticmethod
    def values(record: UsageRecord) -> dict[str, Any]:
        """The values of a record, by column."""
        return asdict(record) | {
            "principal": cut(record.principal),
            "model": cut(record.model),
            "at": record.at.astimezone(UTC),  # SQLite drops the zone
        }


class ReservationRow(Base):
    """A part of a budget that is set aside for an answer under way."""

    __tablename__ = "usage_reservations"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    principal: Mapped[str] = mapped_column(index=True)
    cost: Mapped[float]
    expires: Mapped[datetime] = mapped_column(DateTime(timezone=True))


Entry = tuple[Sequence[UsageRecord], Reservation | None]
"""Records, and the reservation that they settle."""


class SqlUsageStore:
    """``UsageStore`` in the database at a URL.

    This process writes with one transaction after another: SQLite has one writer at a time, and more of them would only
    wait for each other.

    Args:
        url: see ``engine_at``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._entries = WriteBehind[Entry](self._write, _log_lost)
        self._write_lock = asyncio.Lock()
        self._reserving: set[asyncio.Task[Reservation | None]] = set()
        self._reserved: set[UUID] = set()
        self._renewing: asyncio.Task[None] | None = None

    def check_capacity(self) -> None:
        """See ``UsageStore.check_capacity``."""
        self._entries.check_capacity()

    def add(self, *records: UsageRecord, settles: Reservation | None = None) -> Awaitable[None]:
        """See ``UsageStore.add``."""
        if settles is not None:
            self._reserved.discard(settles.id)
        return self._entries.add((records, settles))

    async def totals(self) -> UsageTotals:
        """See ``UsageStore.totals``."""
        sums: list[ColumnElement[Any]] = [
            func.count(),
            func.sum(UsageRow.cost),
            _count_where(or_(UsageRow.cascaded.is_(True), UsageRow.draft_accepted.is_(True))),
            _count_where(UsageRow.draft_accepted.is_(True)),
        ]
        query = select(*sums, UsageRow.model).group_by(UsageRow.model)
        async with self._database.transaction() as session:
            by_model = {row.model: row[:-1] for row in await session.execute(query)}
        # One statement, summed up here, so that all parts of the answer are of the same moment.
        nothing = [0] * len(sums)
        answers, cost, drafts, accepted = map(sum, zip(nothing, *by_model.values(), strict=True))
        return UsageTotals(
            answers=answers,
            cost=float(cost),
            answers_by_model={model: answers for model, (answers, *_) in by_model.items()},
            drafts=drafts,
            drafts_accepted=accepted,
        )

    async def spent(self, principal: str, since: datetime) -> float:
        """See ``UsageStore.spent``."""
        async with self._database.transaction() as session:
            return await session.scalar(_spent(cut(principal), since.astimezone(UTC))) or 0.0

    async def reserve(self, principal: str, cost: float, budget: float, since: datetime) -> Reservation | None:
        """See ``UsageStore.reserve``."""
        # A separate task: a request is cancelled when its client leaves, and the transaction should not be.
        reserving = asyncio.create_task(self._reserve(cut(principal), cost, budget, since.astimezone(UTC)))
        self._reserving.add(reserving)
        reserving.add_done_callback(self._reserving.discard)
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            reserving.add_done_callback(self._give_back)
            raise

    async def ready(self) -> None:
        """See ``UsageStore.ready``."""
        await self._database.ready(UsageRow)

    async def aclose(self) -> None:
        """See ``UsageStore.aclose``."""
        if self._reserving:
            await asyncio.wait(self._reserving)
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        await self._entries.aclose()
        await self._database.aclose()

    async def _write(self, entries: Sequence[Entry]) -> None:
        rows = [UsageRow.values(record) for records, _ in entries for record in records]
        settled = [settles.id for _, settles in entries if settles is not None]
        try:
            async with self._write_lock, self._database.transaction() as session:
                if rows:
                    await session.execute(insert(UsageRow), rows)
                if settled:
                    await session.execute(delete(ReservationRow).where(ReservationRow.id.in_(settled)))
        except UnavailableError as error:
            if _is_bad_value(error.__cause__):
                raise ValueError("the database does not accept a value") from error
            raise
        except ProgrammingError as error:  # a table is missing
            raise UnavailableError("the database does not answer") from error

    async def _reserve(self, principal: str, cost: float, budget: float, since: datetime) -> Reservation | None:
        theirs = ReservationRow.principal == principal
        async with self._write_lock, self._database.transaction() as session:
            # From here to the end of the transaction, nobody else reserves for the principal. PostgreSQL has a lock for
            # this. SQLite has one writer at a time: this transaction, from its first write on.
            if session.get_bind().dialect.name == "postgresql":
                await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(principal, 0))))
            await session.execute(delete(ReservationRow).where(theirs, ReservationRow.expires <= datetime.now(UTC)))
            spent = await session.scalar(_spent(principal, since)) or 0.0
            reserved = await session.scalar(select(func.sum(ReservationRow.cost)).where(theirs)) or 0.0
            left = budget - spent - reserved
            if left <= ROUNDING * budget:
                return None
            row = ReservationRow(id=uuid4(), principal=principal, cost=min(cost, left), expires=_expiry())
            session.add(row)
        self._reserved.add(row.id)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())
        return Reservation(row.id)

    def _give_back(self, reserving: asyncio.Task[Reservation | None]) -> None:
        if not reserving.cancelled() and reserving.exception() is None and (reservation := reserving.result()):
            self.add(settles=reservation)

    async def _renew(self) -> None:
        while self._reserved:
            await asyncio.sleep(RENEW_EVERY_S)
            with suppress(UnavailableError):  # while the database is unreachable, nobody else can reserve either
                async with self._write_lock, self._database.transaction() as session:
                    mine = ReservationRow.id.in_(self._reserved)
                    await session.execute(update(ReservationRow).where(mine).values(expires=_expiry()))


def _is_bad_value(error: BaseException | None) -> bool:
    """Whether the database would never accept a value. With asyncpg, the classes of SQLAlchemy's errors do not say."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    sent_nothing = isinstance(error.orig.__cause__, ValueError)
    return sent_nothing or str(getattr(error.orig, "pgcode", "")).startswith("22")  # SQL's class of data exceptions


def _spent(principal: str, since: datetime) -> Select[float]:
    return select(func.sum(UsageRow.cost)).where(UsageRow.principal == principal, UsageRow.at >= since)


def _expiry() -> datetime:
    return datetime.now(UTC) + RESERVED_FOR


def _log_lost(entry: Entry) -> None:
    """Log the records, so that somebody can find them and enter them by hand."""
    records, _ = entry
    for record in records:
        logger.error("lost: %s", json.dumps(asdict(record), default=str))


def _count_where(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1)))
