from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "service.sqlite"


@pytest.fixture
def sqlite(file) -> str:
    """The URL of a SQLite file that is not there yet."""
    return f"sqlite+aiosqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request) -> str:
    """The URL of a database that holds nothing, of each kind that is supported."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite")
    return request.getfixturevalue("postgresql").empty_database()
