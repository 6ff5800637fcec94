"""Run by Alembic for each of its commands: how it reaches the database, and the tables that our code knows."""

import asyncio
from importlib import import_module
from pkgutil import iter_modules

from alembic import context
from sqlalchemy import Connection

from workshop import storage
from workshop.settings import Settings
from workshop.storage.database import SQLITE, Base, engine_at

for module in iter_modules(storage.__path__, f"{storage.__name__}."):
    import_module(module.name)  # each adds its tables to Base.metadata


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_alone() -> None:
    """In one transaction, all or nothing, while every other process that wants to migrate waits."""
    engine = engine_at(context.config.attributes.get("url") or Settings().database_url, max_statement_s=None)
    if engine.url.drivername == SQLITE:
        lock = [
            "PRAGMA busy_timeout = 600000",
            "PRAGMA foreign_keys = OFF",  # or rows are lost where a table is recreated
            "BEGIN IMMEDIATE",
        ]
    else:
        lock = ["SELECT pg_advisory_xact_lock(hashtext('workshop.storage.migrations'))"]
    try:
        async with engine.begin() as connection:
            for statement in lock:
                await connection.exec_driver_sql(statement)
            await connection.run_sync(run)
    finally:
        await engine.dispose()


asyncio.run(run_alone())
