"""What all stores share: the connection to a SQL database, and the tables in it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aiosqlite
from sqlalchemy import String, delete, event, false, make_url, select
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool

from workshop.contracts.errors import StartError, UnavailableError
from workshop.storage import migrations

MAX_TEXT = 255
MAX_CONNECTIONS = 10
"""Limit for one ``Database`` in one process. Further transactions wait their turn."""
MAX_WAIT_S = 5.0
"""Longest wait for a connection; in SQLite, also for another process that writes."""
MAX_STATEMENT_S = 30.0

SQLITE, POSTGRESQL = "sqlite+aiosqlite", "postgresql+asyncpg"
SUPPORTED = (
    f"the service works with a SQLite file ({SQLITE}:///path/of/a/file) "
    f"or with PostgreSQL ({POSTGRESQL}://user:password@host/name)"
)
SQLITE_SETTINGS = f"""
    PRAGMA busy_timeout = {1000 * MAX_WAIT_S:.0f};
    PRAGMA journal_mode = WAL;     -- readers and a writer do not wait for each other
    PRAGMA synchronous = NORMAL;   -- with WAL, a crash of the machine may lose the newest commits but damages nothing
    PRAGMA foreign_keys = ON;
"""

OUR_ERRORS = IntegrityError, ProgrammingError, DataError, NotSupportedError
"""Errors of statements that are wrong in any state of the database. SQLite reports some as ``OperationalError``."""


class Base(DeclarativeBase):
    """The tables of the service. A change to them needs a migration: see CONTRIBUTING.md."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(MAX_TEXT)}


def engine_at(url: str, max_statement_s: float | None = MAX_STATEMENT_S) -> AsyncEngine:
    """The engine for a database, set up for a service.

    Args:
        url: ``sqlite+aiosqlite:///path/of/a/file`` or ``postgresql+asyncpg://user:password@host/name``.
        max_statement_s: how long PostgreSQL may take for a statement, in seconds; None for no limit.

    Raises:
        StartError: it is not a URL, or names another kind of database.
    """
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):  # the error may contain a part of the password
        raise StartError(f"DATABASE_URL cannot be parsed; {SUPPORTED}") from None
    if parts.drivername == POSTGRESQL:
        return create_async_engine(
            url,
            pool_size=MAX_CONNECTIONS,
            max_overflow=-1,  # ``Database`` counts them
            pool_pre_ping=True,
            hide_parameters=True,  # of statements that fail: they may be personal, or secret
            connect_args={"timeout": MAX_WAIT_S, "command_timeout": max_statement_s},
        )
    in_memory = " in memory" if parts.database in {None, "", ":memory:"} else ""
    if parts.drivername != SQLITE or in_memory:
        raise StartError(f"DATABASE_URL names {parts.drivername}{in_memory}; {SUPPORTED}")
    # A new connection for each transaction, since the file may be replaced. A pooled one would continue with a deleted
    # file, or mix its cached pages with those of a backup that was copied over it.
    engine = create_async_engine(url, poolclass=NullPool, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.run_async(_set_up)

    return engine


async def _set_up(connection: aiosqlite.Connection) -> None:
    """The first connection to a file switches it to WAL. While another one writes, the switch fails at once."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MAX_WAIT_S
    while True:
        try:
            await connection.executescript(SQLITE_SETTINGS)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or loop.time() > deadline:
                raise
        await asyncio.sleep(0.01)


class Database:
    """Transactions on the database at a URL.

    The first one brings the tables up to date. So does the first one after a failure: the database may have changed.

    Args:
        url: see ``engine_at``.
    """

    def __init__(self, url: str) -> None:
        self._engine = engine_at(url)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._preparation: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Commits at the end of the block, rolls back when it raises.

        Others wait for the connection that it holds: await nothing but the database within the block.

        Raises:
            UnavailableError: the database does not answer, or is damaged.
        """
        try:
            await self._prepare()
            async with self._slot(), self._sessions.begin() as session:
                yield session
        except OUR_ERRORS as error:
            if isinstance(error, ProgrammingError):  # PostgreSQL: a table may be missing
                self._preparation = None
            raise
        except (DBAPIError, OSError, migrations.MigrationError) as error:
            self._preparation = None
            raise UnavailableError("the database does not answer") from error

    async def ready(self, rows: type[Base]) -> None:
        """Raises UnavailableError unless rows of this kind can be read and written."""
        async with self.transaction() as session:
            await session.execute(select(rows).limit(1))
            await session.execute(delete(rows).where(false()))  # fails if the database is read-only

    async def aclose(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        async with asyncio.timeout(MAX_WAIT_S):
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    async def _prepare(self) -> None:
        # All waiting transactions share one attempt: an unreachable server costs each of them one timeout, not several
        # in a row.
        if self._preparation is None:
            self._preparation = asyncio.create_task(migrations.bring_up_to_date(self._engine, Base.metadata))
        await asyncio.shield(self._preparation)


def cut(name: str) -> str:
    """A name cut to fit its column: where no keys are set, callers choose their own."""
    return name[:MAX_TEXT]
