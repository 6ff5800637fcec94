"""What all stores share: the connection to a SQL database, and the tables in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from sqlalchemy import String
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import CreateIndex, CreateTable

from workshop.contracts.errors import UnavailableError

MAX_TEXT = 255


class Base(DeclarativeBase):
    """The tables of the service."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(MAX_TEXT)}  # MariaDB wants to know a length


class Database:
    """Transactions on the database at a URL, with the tables in place.

    Args:
        url: an async SQLAlchemy URL, such as ``sqlite+aiosqlite:///service.sqlite``.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._has_tables = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Commits at the end of the block, rolls back when it raises.

        Raises:
            UnavailableError: the database does not answer.
        """
        try:
            async with self._sessions.begin() as session:
                if not self._has_tables:
                    await self._create_tables(session)
                yield session
        except (OperationalError, InterfaceError, TimeoutError, OSError) as error:  # drivers differ in what they raise
            raise UnavailableError("the database does not answer") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def _create_tables(self, session: AsyncSession) -> None:
        # IF NOT EXISTS, because every replica does this.
        for table in Base.metadata.sorted_tables:
            await session.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                await session.execute(CreateIndex(index, if_not_exists=True))
        self._has_tables = True
