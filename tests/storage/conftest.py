from pathlib import Path

import pytest

from workshop.storage import database


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "service.sqlite"


@pytest.fixture
def sqlite(file) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request) -> str:
    """The URL of an empty database, of each supported kind."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite")
    return request.getfixturevalue("postgresql").empty_database()


@pytest.fixture
def impatient(monkeypatch):
    """SQLite's driver does not wait for another process that writes."""
    settings = database.SQLITE_SETTINGS.replace("busy_timeout = 5000", "busy_timeout = 10")
    assert settings != database.SQLITE_SETTINGS
    monkeypatch.setattr(database, "SQLITE_SETTINGS", settings)
