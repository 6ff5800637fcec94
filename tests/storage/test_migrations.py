"""Migrating tables to the newest revision: in new databases, in old ones, and in those that must not be changed."""

import asyncio
import subprocess
import sys

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.storage.test_usage import NOON, RECORD
from workshop.contracts.errors import StartError
from workshop.integration.preflight import check_database
from workshop.settings import Settings
from workshop.storage import migrations
from workshop.storage.cases import SqlCaseStore
from workshop.storage.database import Base, engine_at
from workshop.storage.usage import SqlUsageStore

pytestmark = pytest.mark.slow

PROCESSES = 4


def start(url: str) -> None:
    """What each start of the service does first."""
    check_database(Settings(database_url=url))


def execute(url: str, *statements) -> None:
    async def execute(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement) if isinstance(statement, str) else statement)

    _with_engine(url, execute)


def tables(url: str) -> set[str]:
    async def tables(engine: AsyncEngine) -> set[str]:
        async with engine.connect() as connection:
            return set(await connection.run_sync(lambda connection: inspect(connection).get_table_names()))

    return _with_engine(url, tables)


def _with_engine(url, use):
    async def run():
        engine = engine_at(url)
        try:
            return await use(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def create_tables_without_migrations(url: str) -> None:
    """Create the tables as the service did when it had no migrations."""
    command.upgrade(configuration(url), "0001")
    execute(url, "DROP TABLE alembic_version")


def configuration(url: str) -> Config:
    """The configuration of Alembic's command line."""
    return Config(toml_file="pyproject.toml", attributes={"url": url})


@pytest.fixture
def alembic(url) -> Config:
    return configuration(url)


def test_migrations_make_the_tables_that_the_code_knows(url, alembic):
    start(url)
    command.check(alembic)


def test_the_revisions_form_one_numbered_sequence(alembic):
    script = ScriptDirectory.from_config(alembic)
    assert script.get_heads() == [migrations.NEWEST]
    assert [each.revision for each in script.walk_revisions()][::-1] == migrations.REVISIONS


def test_every_migration_can_be_undone(url, alembic):
    start(url)
    command.downgrade(alembic, "base")
    assert tables(url) == {"alembic_version"}
    start(url)
    assert tables(url) == {"alembic_version", *Base.metadata.tables}


def test_cases_from_before_they_had_owners_survive_the_way_there_and_back(url, alembic):
    command.upgrade(alembic, "0002")
    case = "('00000000000000000000000000000001', '[1.0]', '2026-01-01 00:00:00')"
    execute(url, f"INSERT INTO cases (id, measurements, created) VALUES {case}")

    async def cases(owner: str | None) -> list[tuple[float, ...]]:
        store = SqlCaseStore(url)
        try:
            return [each.measurements for each in await store.newest(9, owner)]
        finally:
            await store.aclose()

    start(url)
    assert asyncio.run(cases(None)) == [(1.0,)]
    assert asyncio.run(cases("ada")) == []
    command.downgrade(alembic, "0002")
    start(url)
    assert asyncio.run(cases(None)) == [(1.0,)]


def test_a_database_from_before_migrations_is_adopted(url, alembic):
    create_tables_without_migrations(url)
    execute(
        url,
        "INSERT INTO usage (endpoint, principal, model, prompt_tokens, completion_tokens, cost, latency_ms, at)"
        f" VALUES ('/v1/query', 'ada', 'draft', 1, 1, 0.5, 1, '{NOON:%Y-%m-%d %H:%M:%S}')",
    )
    start(url)
    command.check(alembic)

    async def read_and_write() -> float:
        store = SqlUsageStore(url)
        await store.add(RECORD)
        try:
            return (await store.totals()).cost
        finally:
            await store.aclose()

    assert asyncio.run(read_and_write()) == 0.75


def test_a_migrated_database_is_left_alone(url):
    start(url)
    program = (
        "import asyncio, sys; from workshop.storage.cases import SqlCaseStore;"
        "asyncio.run(SqlCaseStore(sys.argv[1]).ready()); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("is_old", [False, True], ids=["migrated", "from before migrations"])
@pytest.mark.parametrize("column", ["latency_ms", "draft_accepted", "prompt_tokens"])
def test_a_table_that_lacks_a_column_prevents_the_start(url, column, is_old):
    (create_tables_without_migrations if is_old else start)(url)
    execute(url, "DROP INDEX usage_totals", f"ALTER TABLE usage DROP COLUMN {column}")
    for _ in range(2):
        with pytest.raises(StartError, match=rf"DATABASE_URL.*\b{column}\b.*restore a backup") as raised:
            start(url)
        assert "\n" not in str(raised.value)


def test_a_missing_table_prevents_the_start(url):
    start(url)
    execute(url, "DROP TABLE cases")
    with pytest.raises(StartError, match="it lacks the table cases; restore a backup"):
        start(url)


def test_a_database_that_a_newer_version_has_migrated_prevents_the_start(url):
    start(url)
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartError, match=f"revision 9999, .* knows {migrations.NEWEST} at most; start a newer version"):
        start(url)


def test_one_of_several_processes_migrates_and_the_others_wait(url):
    command = [sys.executable, "-m", "tests.storage.replicas", url, str(PROCESSES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"] * (PROCESSES - 1) + ["1"]

    async def count() -> int:
        store = SqlCaseStore(url)
        try:
            return len(await store.newest(100, None))
        finally:
            await store.aclose()

    assert asyncio.run(count()) == PROCESSES
