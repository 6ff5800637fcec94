"""Brings the tables of a database to the newest revision. CONTRIBUTING.md says how to add one.

Alembic does the work. A process that finds the database up to date, as every replica but the first does, never imports
Alembic: that would take longer than everything else here.
"""

import asyncio
import logging
import threading
from pathlib import Path

from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
REVISIONS = sorted(file.name.partition("_")[0] for file in (HERE / "versions").glob("[0-9]*.py"))
NEWEST = REVISIONS[-1]


_alembic = threading.Lock()
"""Alembic keeps its state in a module: one command at a time."""


class MigrationError(Exception):
    """The tables of a database are not those of this version of the service. The message is one line with a remedy."""


async def bring_up_to_date(engine: AsyncEngine, tables: MetaData) -> None:
    """Migrate if needed. Several processes may do this at once: one of them migrates, the others wait.

    Args:
        engine: of the database.
        tables: what must be there afterwards.

    Raises:
        MigrationError: a newer version of the service has migrated the database, or a table was changed by hand.
    """
    async with engine.connect() as connection:
        revision = await connection.run_sync(_revision)
    if revision not in {None, *REVISIONS}:
        raise MigrationError(
            f"it is at revision {revision}, and this version of the service knows {NEWEST} at most; "
            "start a newer version, or restore a backup"
        )
    if revision != NEWEST:
        logger.info("migrating the database from revision %s to %s", revision, NEWEST)
        try:
            await asyncio.to_thread(_migrate, engine.url.render_as_string(hide_password=False))
        except DBAPIError as error:
            raise MigrationError(
                f"the migration to revision {NEWEST} failed ({error.orig}); "
                "if tables were changed by hand, restore a backup"
            ) from error
    async with engine.connect() as connection:
        missing = await connection.run_sync(_missing, tables)
    if missing:
        raise MigrationError(f"it lacks {', '.join(missing)}; restore a backup, or name another database")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _missing(connection: Connection, tables: MetaData) -> list[str]:
    """Tables and columns that the database lacks."""
    existing = inspect(connection)
    missing = []
    for table in tables.sorted_tables:
        if not existing.has_table(table.name):
            missing.append(f"the table {table.name}")
            continue
        names = {column["name"] for column in existing.get_columns(table.name)}
        missing += [f"the column {table.name}.{column.name}" for column in table.columns if column.name not in names]
    return missing


def _migrate(url: str) -> None:
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"url": url})
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _alembic:
        command.upgrade(config, "head")
