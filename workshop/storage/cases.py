"""Cases in a SQL database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import JSON, DateTime, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from workshop.contracts.cases import Case
from workshop.contracts.errors import NotFoundError
from workshop.storage.database import Base, Database


class CaseRow(Base):
    """One case. ``created`` orders the newest first."""

    __tablename__ = "cases"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    measurements: Mapped[list[float]] = mapped_column(JSON)
    diagnosis: Mapped[str | None]
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC), index=True)

    def to_case(self) -> Case:
        return Case(self.id, tuple(self.measurements), self.diagnosis)


def _no_such(case_id: UUID) -> NotFoundError:
    return NotFoundError(f"there is no case {case_id}")


class SqlCases:
    """``Cases`` within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, measurements: tuple[float, ...], diagnosis: str | None) -> Case:
        row = CaseRow(id=uuid4(), measurements=list(measurements), diagnosis=diagnosis)
        self._session.add(row)
        return row.to_case()

    async def get(self, case_id: UUID) -> Case:
        return (await self._row(case_id)).to_case()

    async def newest(self, limit: int) -> list[Case]:
        rows = await self._session.scalars(select(CaseRow).order_by(CaseRow.created.desc()).limit(limit))
        return [row.to_case() for row in rows]

    async def replace(self, case: Case) -> None:
        row = await self._row(case.id)
        row.measurements, row.diagnosis = list(case.measurements), case.diagnosis

    async def delete(self, case_id: UUID) -> None:
        found = await self._session.scalars(delete(CaseRow).where(CaseRow.id == case_id).returning(CaseRow.id))
        if found.first() is None:
            raise _no_such(case_id)

    async def _row(self, case_id: UUID) -> CaseRow:
        row = await self._session.get(CaseRow, case_id)
        if row is None:
            raise _no_such(case_id)
        return row


class SqlCaseStore:
    """``CaseStore`` in the database at a URL.

    Args:
        url: see ``Database``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlCases]:
        """See ``CaseStore.transaction``."""
        async with self._database.transaction() as session:
            yield SqlCases(session)

    async def aclose(self) -> None:
        """See ``CaseStore.aclose``."""
        await self._database.aclose()
