"""Users and their sessions in a SQL database."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import DateTime, ForeignKey, delete, select, update
from sqlalchemy.orm import Mapped, joinedload, mapped_column, relationship

from workshop.contracts.errors import NotFoundError
from workshop.contracts.principals import Role
from workshop.contracts.users import Session, User
from workshop.storage.database import Base, Database


class UserRow(Base):
    """One user: see ``User``."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    password_hash: Mapped[str]

    def to_user(self) -> User:
        return User(self.name, Role(self.role), self.password_hash)


class SessionRow(Base):
    """One session: see ``Session``. ``refresh_id`` is of the only token that may renew it."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("users.name", ondelete="CASCADE"), index=True)
    refresh_id: Mapped[UUID]
    expires: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    user_row: Mapped[UserRow] = relationship()

    def to_session(self) -> Session:
        return Session(self.id, self.user_row.to_user(), self.expires.replace(tzinfo=UTC))  # SQLite drops the zone


class SqlUserStore:
    """``UserStore`` in the database at a URL.

    Args:
        url: see ``engine_at``.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    async def put(self, user: User) -> None:
        """See ``UserStore.put``."""
        async with self._database.transaction() as session:
            await session.merge(UserRow(name=user.name, role=user.role, password_hash=user.password_hash))
            await session.flush()  # locks the user: nobody opens a session now that the next statement misses
            await session.execute(delete(SessionRow).where(SessionRow.user == user.name))

    async def get(self, name: str) -> User | None:
        """See ``UserStore.get``."""
        async with self._database.transaction() as session:
            row = await session.get(UserRow, name)
        return row.to_user() if row else None

    async def all(self) -> list[User]:
        """See ``UserStore.all``."""
        async with self._database.transaction() as session:
            return [row.to_user() for row in await session.scalars(select(UserRow).order_by(UserRow.name))]

    async def delete(self, name: str) -> None:
        """See ``UserStore.delete``."""
        async with self._database.transaction() as session:
            deleted = await session.scalar(delete(UserRow).where(UserRow.name == name).returning(UserRow.name))
        if deleted is None:
            raise NotFoundError(f"there is no user {name}")

    async def open_session(self, user: User, refresh_id: UUID, expires: datetime) -> Session:
        """See ``UserStore.open_session``."""
        async with self._database.transaction() as session:
            await session.execute(delete(SessionRow).where(SessionRow.expires < datetime.now(UTC)))
            found = await session.get(UserRow, user.name, with_for_update=True)
            if found is None or found.to_user() != user:
                raise NotFoundError(f"there is no such user {user.name}")
            row = SessionRow(id=uuid4(), user=user.name, refresh_id=refresh_id, expires=expires.astimezone(UTC))
            session.add(row)
        return Session(row.id, user, expires)

    async def session(self, session_id: UUID) -> Session | None:
        """See ``UserStore.session``."""
        found = select(SessionRow).where(SessionRow.id == session_id, SessionRow.expires > datetime.now(UTC))
        async with self._database.transaction() as session:
            row = await session.scalar(found.options(joinedload(SessionRow.user_row)))
        return row.to_session() if row else None

    async def renew_session(self, session_id: UUID, refresh_id: UUID, next_refresh_id: UUID) -> Session | None:
        """See ``UserStore.renew_session``."""
        is_current = SessionRow.id == session_id, SessionRow.refresh_id == refresh_id
        async with self._database.transaction() as session:
            change = update(SessionRow).where(*is_current).values(refresh_id=next_refresh_id)
            if await session.scalar(change.returning(SessionRow.id)) is None:
                await session.execute(delete(SessionRow).where(SessionRow.id == session_id))
        return await self.session(session_id)

    async def end_session(self, session_id: UUID) -> None:
        """See ``UserStore.end_session``."""
        async with self._database.transaction() as session:
            await session.execute(delete(SessionRow).where(SessionRow.id == session_id))

    async def aclose(self) -> None:
        """See ``UserStore.aclose``."""
        await self._database.aclose()
