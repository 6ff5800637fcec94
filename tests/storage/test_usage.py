"""Records of usage in a real database."""

import asyncio
import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.sqlite import locked
from workshop.contracts.errors import OverloadedError, UnavailableError
from workshop.contracts.usage import UsageRecord, UsageTotals
from workshop.storage import usage, write_behind
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import SqlUsageStore
from workshop.storage.write_behind import MAX_BATCH

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
RECORD = UsageRecord(
    endpoint="/v1/query",
    principal="ada",
    model="draft",
    prompt_tokens=7,
    completion_tokens=3,
    cost=0.25,
    latency_ms=40.0,
    cascaded=False,
    draft_accepted=True,
    at=NOON,
)
CASCADED = replace(RECORD, model="main", cost=0.5, latency_ms=400.0, cascaded=True, draft_accepted=False)
DIRECT = replace(CASCADED, cascaded=False)
CHAT = replace(DIRECT, endpoint="/v1/chat/completions", cascaded=None, draft_accepted=None)


@pytest.fixture
async def store(url):
    async with replica(url) as store:
        yield store


def replica(url):
    return aclosing(SqlUsageStore(url))


async def test_a_new_store_is_all_zeros(store):
    assert await store.totals() == UsageTotals(0, 0.0, {}, 0, 0)
    assert await store.spent("ada", NOON) == 0.0


async def test_records_add_up(store):
    await store.add(RECORD, RECORD, CASCADED)
    await store.add(DIRECT)
    totals = await store.totals()
    assert (totals.answers, totals.cost) == (4, 1.5)
    assert totals.answers_by_model == {"draft": 2, "main": 2}


async def test_drafts_and_accepted_drafts_are_counted(store):
    await store.add(RECORD, RECORD, CASCADED, DIRECT, CHAT)
    totals = await store.totals()
    assert (totals.drafts, totals.drafts_accepted) == (3, 2)


async def test_spending_is_counted_per_principal_since_a_given_time(store):
    await store.add(
        RECORD, CASCADED, replace(RECORD, principal="grace"), replace(RECORD, at=NOON - timedelta(seconds=1))
    )
    assert await store.spent("ada", NOON) == 0.75
    assert await store.spent("grace", NOON) == 0.25
    assert await store.spent("alan", NOON) == 0.0


async def test_times_are_compared_across_time_zones(store):
    zone = timezone(timedelta(hours=9))
    await store.add(replace(RECORD, at=NOON.astimezone(zone)))
    assert await store.spent("ada", NOON) == 0.25
    assert await store.spent("ada", NOON.astimezone(zone)) == 0.25
    assert await store.spent("ada", (NOON + timedelta(seconds=1)).astimezone(zone)) == 0.0


async def test_a_very_long_name_is_charged_like_any_other(store):
    name = "x" * 10_000
    await store.add(replace(RECORD, principal=name))
    assert await store.spent(name, NOON) == 0.25


BAD = {
    "no model": {"model": None},
    "more tokens than a column holds": {"prompt_tokens": 2**70},
    "half a character": {"endpoint": "\ud800"},
}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
async def test_records_that_cannot_be_written_are_logged_all_or_none_and_affect_no_others(store, values, caplog):
    before, after = ([store.add(RECORD) for _ in range(20)] for _ in range(2))
    await asyncio.gather(*before, store.add(RECORD, replace(RECORD, principal="grace", **values)), *after)
    assert (await store.totals()).answers == 40
    assert await store.spent("grace", NOON) == 0.0
    assert caplog.text.count("lost: ") == 2
    [lost] = [json.loads(line.partition("lost: ")[2]) for line in caplog.messages if '"grace"' in line]
    assert lost["cost"] == RECORD.cost


async def test_records_survive_the_store_that_took_them(url):
    async with replica(url) as store:
        await store.add(RECORD)
    async with replica(url) as later:
        assert (await later.totals()).answers == 1


async def test_many_replicas_at_once_lose_nothing(store, url):
    async with replica(url) as other:
        await asyncio.gather(*(place.add(RECORD) for place in [store, other] * 20))
        assert await other.spent("ada", NOON) == 10.0


async def test_cases_and_usage_share_a_database(store, url):
    cases = SqlCaseStore(url)
    await cases.add("ada", (1.0,), None)
    await cases.aclose()
    await store.add(RECORD)
    assert (await store.totals()).answers == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_cancelled_caller_leaves_at_once_and_its_record_is_kept(store, file):
    await store.add(RECORD)

    async def add() -> None:
        await store.add(RECORD)

    async with locked(file):
        adding = asyncio.create_task(add())
        await asyncio.sleep(0)  # it has begun
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert await store.spent("ada", NOON) == 0.25
    await store.aclose()  # waits for pending records
    assert await store.spent("ada", NOON) == 0.5


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path):
    async with replica(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/usage.sqlite") as store:
        for use in (store.totals(), store.spent("ada", NOON), store.reserve("ada", 1.0, 1.0, NOON)):
            with pytest.raises(UnavailableError, match="the database does not answer"):
                await use


# The writer


@contextmanager
def transactions() -> Iterator[list[object]]:
    """A list that grows with each commit."""
    commits: list[object] = []
    note = commits.append  # the same object is needed to remove the listener
    event.listen(Engine, "commit", note)
    try:
        yield commits
    finally:
        event.remove(Engine, "commit", note)


async def test_many_records_at_once_are_written_in_few_transactions(store):
    with transactions() as commits:
        await asyncio.gather(*(store.add(RECORD) for _ in range(5000)))
    assert (await store.totals()).answers == 5000
    assert len(commits) <= 2 * 5000 / MAX_BATCH


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_adding_does_not_wait_for_the_database(store, file):
    await store.add(RECORD)
    async with locked(file):
        written = [store.add(RECORD) for _ in range(3)]
        assert (await store.totals()).answers == 1
    await asyncio.gather(*written)
    assert (await store.totals()).answers == 4


@pytest.mark.usefixtures("impatient")
async def test_records_wait_for_a_database_that_is_locked_for_longer_than_a_driver_waits(sqlite, file, caplog):
    async with replica(sqlite) as store:
        await store.add(RECORD)
        async with locked(file):
            written = [store.add(RECORD) for _ in range(20)]
            while "cannot write now" not in caplog.text:
                await asyncio.sleep(0.01)
            written += [store.add(RECORD) for _ in range(20)]
        await asyncio.gather(*written)
        assert (await store.totals()).answers == 41


async def test_records_wait_for_a_database_that_is_missing(tmp_path, caplog):
    folder = tmp_path / "mounted later"
    async with replica(f"sqlite+aiosqlite:///{folder}/usage.sqlite") as store:
        written = store.add(RECORD)
        while "cannot write now" not in caplog.text:
            await asyncio.sleep(0.01)
        folder.mkdir()
        await written
        assert (await store.totals()).answers == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_when_too_many_records_wait_no_more_work_is_accepted(store, file, monkeypatch):
    monkeypatch.setattr(write_behind, "MAX_WAITING", 10)
    await store.add(RECORD)
    async with locked(file):
        written = []
        for _ in range(10):
            store.check_capacity()
            written.append(store.add(RECORD))
        with pytest.raises(OverloadedError) as refused:
            store.check_capacity()
        assert refused.value.retry_after_s > 0
        written.append(store.add(RECORD))  # work that was already in progress is still recorded
    await asyncio.gather(*written)
    store.check_capacity()
    assert (await store.totals()).answers == 12


@pytest.mark.usefixtures("impatient")
async def test_records_that_cannot_be_written_before_the_end_are_logged(sqlite, file, monkeypatch, caplog):
    monkeypatch.setattr(write_behind, "DRAIN_LIMIT_S", 0.1)
    store = SqlUsageStore(sqlite)
    await store.add(RECORD)
    async with locked(file):
        store.add(replace(RECORD, principal="grace"), replace(RECORD, principal="alan"))
        await store.aclose()
    lost = [json.loads(line.removeprefix("lost: ")) for line in caplog.messages if line.startswith("lost: ")]
    assert [record["principal"] for record in lost] == ["grace", "alan"]
    assert lost[0].keys() == asdict(RECORD).keys()


WRITE = """
import asyncio, sys
from datetime import UTC, datetime
from workshop.contracts.usage import UsageRecord
from workshop.storage.usage import SqlUsageStore

async def main():
    store = SqlUsageStore(sys.argv[1])
    record = UsageRecord("/v1/query", "ada", "draft", 7, 3, 0.25, 40.0, None, None, datetime.now(UTC))
    for _ in range(20):
        written = [store.add(record) for _ in range(50)]
        await written[-1]
    await store.aclose()

asyncio.run(main())
"""


async def test_processes_that_share_a_file_lose_nothing(store, url):
    writing = [await asyncio.create_subprocess_exec(sys.executable, "-c", WRITE, url) for _ in range(2)]
    assert [await process.wait() for process in writing] == [0, 0]
    assert (await store.totals()).answers == 2000


# Reservations


async def test_a_budget_is_reserved_until_none_is_left(store):
    reserved = [await store.reserve("ada", 0.4, 1.0, NOON) for _ in range(4)]
    assert [bool(reservation) for reservation in reserved] == [True, True, True, False]  # the third takes what is left
    assert await store.reserve("grace", 0.4, 1.0, NOON)


async def test_a_spent_budget_cannot_be_reserved(store):
    await store.add(*[replace(RECORD, cost=0.1)] * 10)  # 0.1 * 10 is a hair less than 1
    assert await store.reserve("ada", 0.4, 1.0, NOON) is None
    assert await store.reserve("ada", 0.4, 1.0, NOON + timedelta(seconds=1))


async def test_a_settled_reservation_leaves_what_was_used(store):
    reservation = await store.reserve("ada", 1.0, 1.0, NOON)
    await store.add(RECORD, settles=reservation)
    assert await store.reserve("ada", 1.0, 1.0, NOON)
    assert await store.reserve("ada", 1.0, 1.0, NOON) is None
    assert await store.spent("ada", NOON) == RECORD.cost


async def test_an_answer_that_costs_nothing_only_gives_its_reservation_back(store):
    await store.add(settles=await store.reserve("ada", 1.0, 1.0, NOON))
    assert await store.reserve("ada", 1.0, 1.0, NOON)
    assert (await store.totals()).answers == 0


async def test_replicas_together_reserve_no_more_than_there_is(store, url):
    async with replica(url) as other:
        asked = [place.reserve("ada", 0.1, 1.0, NOON) for place in [store, other] * 15]
        assert sum(bool(reservation) for reservation in await asyncio.gather(*asked)) == 10


async def test_the_reservation_of_a_process_that_died_expires(store, url, monkeypatch):
    monkeypatch.setattr(usage, "RESERVED_FOR", timedelta(seconds=-1))
    await SqlUsageStore(url).reserve("ada", 1.0, 1.0, NOON)
    assert await store.reserve("ada", 1.0, 1.0, NOON)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_the_reservation_of_a_live_process_is_renewed(store, url, monkeypatch, file):
    monkeypatch.setattr(usage, "RENEW_EVERY_S", 0.01)
    reservation = await store.reserve("ada", 1.0, 1.0, NOON)

    def expiry() -> str:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute("SELECT expires FROM usage_reservations").fetchone()[0]

    first = expiry()
    while expiry() == first:
        await asyncio.sleep(0.01)
    await store.add(settles=reservation)


async def test_a_reservation_that_is_cancelled_leaves_nothing_reserved(store):
    for steps in range(12):
        reserving = asyncio.create_task(store.reserve("ada", 1.0, 1.0, NOON))
        for _ in range(steps):
            await asyncio.sleep(0.001)
        reserving.cancel()
        with suppress(asyncio.CancelledError):
            await store.add(settles=await reserving)
    while not (reservation := await store.reserve("ada", 1.0, 1.0, NOON)):
        await asyncio.sleep(0.001)
    await store.add(settles=reservation)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_no_query_reads_the_table_itself(store, file):
    """Each is answered from an index: the table may grow large."""
    queries = []
    await store.add(RECORD)

    def note(_connection, _cursor, statement, parameters, *_):
        queries.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        await store.spent("ada", NOON)
        await store.totals()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    with closing(sqlite3.connect(file)) as connection:
        plans = [connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall() for query, values in queries]
    assert len(plans) == 2
    assert all("USING COVERING INDEX" in step[-1] for plan in plans for step in plan)
