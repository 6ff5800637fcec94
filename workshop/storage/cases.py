"""Cases in a SQL database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import JSON, DateTime, delete, select
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

from workshop.contracts.cases import Case
from workshop.contracts.errors import NotFoundError, UnavailableError


class Base(DeclarativeBase):
    """The tables of the service."""


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
        url: an async SQLAlchemy URL, such as ``sqlite+aiosqlite:///cases.sqlite``.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._has_tables = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlCases]:
        """See ``CaseStore.transaction``."""
        try:
            async with self._sessions.begin() as session:
                if not self._has_tables:
                    await self._create_tables(session)
                yield SqlCases(session)
        except (OperationalError, InterfaceError, TimeoutError, OSError) as error:  # drivers differ in what they raise
            raise UnavailableError("the database does not answer") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def _create_tables(self, session: AsyncSession) -> None:
        # IF NOT EXISTS, because every replica does this.
        for table in Base.metadata.sorted_tables:
            await session.execute(CreateTable(table, if_not_exists=True))
        self._has_tables = True
