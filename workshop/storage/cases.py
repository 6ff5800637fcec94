"""Cases in a SQL database."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import JSON, ColumnElement, DateTime, Index, delete, select, true, update
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.selectable import TypedReturnsRows

from workshop.contracts.cases import Case
from workshop.contracts.errors import NotFoundError
from workshop.storage.database import Base, Database, cut


class CaseRow(Base):
    """One case. ``created`` orders the newest first."""

    __tablename__ = "cases"
    __table_args__ = (Index("cases_of_owner", "owner", "created"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    measurements: Mapped[list[float]] = mapped_column(JSON)
    diagnosis: Mapped[str | None]
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC), index=True)

    def to_case(self) -> Case:
        return Case(self.id, self.owner, tuple(self.measurements), self.diagnosis)


class SqlCaseStore:
    """``CaseStore`` in the database at a URL.

    Args:
        url: see ``engine_at``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    async def add(self, owner: str, measurements: tuple[float, ...], diagnosis: str | None) -> Case:
        """See ``CaseStore.add``."""
        row = CaseRow(id=uuid4(), owner=cut(owner), measurements=list(measurements), diagnosis=diagnosis)
        async with self._database.transaction() as session:
            session.add(row)
        return row.to_case()

    async def get(self, case_id: UUID, owner: str | None) -> Case:
        """See ``CaseStore.get``."""
        return await self._one(select(CaseRow).where(CaseRow.id == case_id, _is_of(owner)), case_id)

    async def newest(self, limit: int, owner: str | None) -> list[Case]:
        """See ``CaseStore.newest``."""
        newest = select(CaseRow).where(_is_of(owner)).order_by(CaseRow.created.desc()).limit(limit)
        async with self._database.transaction() as session:
            return [row.to_case() for row in await session.scalars(newest)]

    async def replace(
        self, case_id: UUID, owner: str | None, measurements: tuple[float, ...], diagnosis: str | None
    ) -> Case:
        """See ``CaseStore.replace``."""
        content = {"measurements": list(measurements), "diagnosis": diagnosis}
        change = update(CaseRow).where(CaseRow.id == case_id, _is_of(owner)).values(content)
        return await self._one(change.returning(CaseRow), case_id)

    async def delete(self, case_id: UUID, owner: str | None) -> None:
        """See ``CaseStore.delete``."""
        await self._one(delete(CaseRow).where(CaseRow.id == case_id, _is_of(owner)).returning(CaseRow), case_id)

    async def ready(self) -> None:
        """See ``CaseStore.ready``."""
        await self._database.ready(CaseRow)

    async def aclose(self) -> None:
        """See ``CaseStore.aclose``."""
        await self._database.aclose()

    async def _one(self, statement: TypedReturnsRows[CaseRow], case_id: UUID) -> Case:
        """The case that a statement returns. Raises NotFoundError if it returns none."""
        async with self._database.transaction() as session:
            row = (await session.scalars(statement)).first()
        if row is None:
            raise NotFoundError(f"there is no case {case_id}")
        return row.to_case()


def _is_of(owner: str | None) -> ColumnElement[bool]:
    return true() if owner is None else CaseRow.owner == cut(owner)
