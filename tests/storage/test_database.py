"""Which databases the service works with, how it connects to them, and whose fault an error is."""

import asyncio
import gc
import sqlite3
from contextlib import asynccontextmanager, closing, suppress
from uuid import uuid4

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from tests.storage.test_migrations import start
from workshop.contracts.errors import StartError, UnavailableError
from workshop.storage import database
from workshop.storage.cases import CaseRow
from workshop.storage.database import MAX_CONNECTIONS, SUPPORTED, Database

UNUSABLE = {
    "nonsense": f"cannot be parsed; {SUPPORTED}",
    "postgresql+asyncpg://ada:secret@127.0.0.1:port/name": f"cannot be parsed; {SUPPORTED}",
    "mysql+asyncmy://ada:secret@host/name": f"names mysql+asyncmy; {SUPPORTED}",
    "postgresql://ada:secret@host/name": f"names postgresql; {SUPPORTED}",
    "sqlite:///service.sqlite": f"names sqlite; {SUPPORTED}",
    "sqlite+aiosqlite://": f"names sqlite+aiosqlite in memory; {SUPPORTED}",
    "postgresql+asyncpg://ada:secret@127.0.0.1:1/name": "Connect call failed",
    "postgresql+asyncpg://ada:secret@127.0.0.1/name?colour=red": "'colour'",
    "sqlite+aiosqlite:////no/such/folder/service.sqlite": "names: unable to open database file",
}


@pytest.mark.parametrize("url", UNUSABLE)
def test_a_url_that_cannot_be_used_prevents_the_start(url):
    with pytest.raises(StartError) as raised:
        start(url)
    [line] = str(raised.value).splitlines()
    assert UNUSABLE[url] in line
    assert "DATABASE_URL" in line
    assert "secret" not in line


def test_an_unknown_database_or_user_prevents_the_start(postgresql):
    with pytest.raises(StartError, match='DATABASE_URL names: database "nothing" does not exist'):
        start(postgresql.url("nothing"))
    with pytest.raises(StartError, match='DATABASE_URL names: role "ada" does not exist'):
        start(postgresql.url("postgres").replace("postgres@", "ada:secret@"))


@pytest.fixture
async def connected(url):
    database = Database(url)
    yield database
    await database.aclose()


def case() -> CaseRow:
    return CaseRow(id=uuid4(), owner="ada", measurements=[1.0])


async def count(connected: Database) -> int:
    async with connected.transaction() as session:
        return await session.scalar(select(func.count()).select_from(CaseRow))


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_every_connection_to_sqlite_is_set_up(connected):
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    for _ in range(2):
        async with connected.transaction() as session:
            assert [await session.scalar(text(f"PRAGMA {name}")) for name in names] == ["wal", 1, 1, 5000]


@pytest.mark.anyio
async def test_the_first_connection_waits_for_another_one_that_writes(tmp_path):
    """For instance, for one from a process that starts at the same time: the file is not in WAL mode yet."""
    file = tmp_path / "service.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        connected = Database(f"sqlite+aiosqlite:///{file}")
        counting = asyncio.create_task(count(connected))
        await asyncio.wait([counting], timeout=0.2)
        assert not counting.done()
    assert await counting == 0
    await connected.aclose()


@pytest.mark.anyio
async def test_a_transaction_that_raises_leaves_no_trace(connected):
    with suppress(ZeroDivisionError):
        async with connected.transaction() as session:
            session.add(case())
            await session.flush()
            1 / 0  # noqa: B018
    assert await count(connected) == 0


@pytest.mark.anyio
async def test_a_wrong_statement_is_our_error(connected, url):
    same = uuid4()
    with pytest.raises(IntegrityError):
        async with connected.transaction() as session:
            session.add_all([CaseRow(id=same, owner="ada", measurements=[]) for _ in range(2)])
    # In SQLite, a table that was dropped and one that never existed give the same error.
    expected = ProgrammingError if "postgresql" in url else UnavailableError
    with pytest.raises(expected):
        async with connected.transaction() as session:
            await session.execute(text("SELECT * FROM nowhere"))
    assert await count(connected) == 0


@asynccontextmanager
async def counted(connected: Database):
    """The number of its open connections, and the highest so far."""
    seen = {"open": 0, "most": 0}

    def opened(*_):
        seen["open"] += 1
        seen["most"] = max(seen.values())

    def closed(*_):
        seen["open"] -= 1

    listeners = [("connect", opened), ("close", closed)]
    for name, listener in listeners:
        event.listen(connected._engine.sync_engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in listeners:
            event.remove(connected._engine.sync_engine, name, listener)


@pytest.mark.anyio
async def test_a_burst_shares_the_connections(connected, monkeypatch):
    monkeypatch.setattr(database, "MAX_WAIT_S", 300.0)  # on a busy machine the last ones wait a long time
    await count(connected)
    async with counted(connected) as seen:
        assert await asyncio.gather(*(count(connected) for _ in range(300))) == [0] * 300
    assert 0 < seen["most"] <= MAX_CONNECTIONS


@pytest.mark.anyio
async def test_a_transaction_that_waits_too_long_for_a_connection_fails(connected, monkeypatch):
    release = asyncio.Event()
    inside = []

    async def hold() -> None:
        async with connected.transaction():
            inside.append(True)
            await release.wait()

    await count(connected)
    holding = [asyncio.create_task(hold()) for _ in range(MAX_CONNECTIONS)]
    while len(inside) < MAX_CONNECTIONS:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(database, "MAX_WAIT_S", 0.01)
    with pytest.raises(UnavailableError):
        await count(connected)
    release.set()
    await asyncio.gather(*holding)
    monkeypatch.undo()
    assert await count(connected) == 0


@pytest.fixture
async def cancelled_connecting():
    """For each cancelled attempt to connect, asyncpg reports an exception to the event loop. That is not an error."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()

    def handle(loop, context):
        if str(context.get("exception")) != "unexpected connection_lost() call":
            handler(loop, context)

    loop.set_exception_handler(handle)
    yield
    await asyncio.sleep(0)
    gc.collect()  # a future reports an unretrieved exception only when it is garbage-collected
    loop.set_exception_handler(handler)


@pytest.mark.anyio
@pytest.mark.usefixtures("cancelled_connecting")
async def test_a_cancelled_transaction_releases_its_connection(connected):
    for moment in range(12):  # so that they are cancelled at different stages
        tasks = [asyncio.create_task(count(connected)) for _ in range(2 * MAX_CONNECTIONS)]
        await asyncio.sleep(0.001 * moment)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.gather(*(count(connected) for _ in range(2 * MAX_CONNECTIONS))) == [0] * 2 * MAX_CONNECTIONS
