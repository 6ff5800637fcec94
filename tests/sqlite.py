"""What else may happen to a SQLite file."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path


@asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Another process writes to the database: other writers wait."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()
