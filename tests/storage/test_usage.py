"""Records of usage in a real database."""

import asyncio
import math
import sqlite3
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from workshop.contracts.errors import UnavailableError
from workshop.contracts.usage import UsageRecord, UsageTotals
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import LATENCY_LIMITS_MS, SqlUsageStore

pytestmark = pytest.mark.anyio

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


@asynccontextmanager
async def replica(url):
    store = SqlUsageStore(url)
    try:
        yield store
    finally:
        await store.aclose()


async def test_a_new_store_is_all_zeros(store):
    assert await store.totals() == UsageTotals(0, 0.0, {}, 0, 0, dict.fromkeys((*LATENCY_LIMITS_MS, math.inf), 0), 0.0)
    assert await store.spent("ada", NOON) == 0.0


async def test_records_add_up(store):
    await store.add(RECORD, RECORD, CASCADED)
    await store.add(DIRECT)
    totals = await store.totals()
    assert (totals.answers, totals.cost, totals.latency_sum_ms) == (4, 1.5, 880.0)
    assert totals.answers_by_model == {"draft": 2, "main": 2}


async def test_a_draft_is_counted_where_one_was_made_and_accepted_where_it_is_the_answer(store):
    await store.add(RECORD, RECORD, CASCADED, DIRECT, CHAT)
    totals = await store.totals()
    assert (totals.drafts, totals.drafts_accepted) == (3, 2)


async def test_latencies_are_counted_up_to_each_limit(store):
    await store.add(*(replace(RECORD, latency_ms=latency) for latency in (1, 10, 10.5, 10**9)))
    counts = (await store.totals()).latency_counts
    assert [counts[limit] for limit in (5, 10, 25, 60_000, math.inf)] == [1, 2, 3, 3, 4]
    assert list(counts) == sorted(counts)


async def test_the_totals_of_cascades_leave_other_answers_out(store):
    await store.add(RECORD, CASCADED, DIRECT, CHAT)
    assert (await store.totals()).answers == 4
    cascades = await store.totals(cascades_only=True)
    assert (cascades.answers, cascades.cost) == (3, 1.25)


async def test_spending_is_of_one_principal_and_from_a_moment_on(store):
    await store.add(
        RECORD, CASCADED, replace(RECORD, principal="grace"), replace(RECORD, at=NOON - timedelta(seconds=1))
    )
    assert await store.spent("ada", NOON) == 0.75
    assert await store.spent("grace", NOON) == 0.25
    assert await store.spent("alan", NOON) == 0.0


async def test_moments_in_other_time_zones_are_the_same_moments(store):
    zone = timezone(timedelta(hours=9))
    await store.add(replace(RECORD, at=NOON.astimezone(zone)))
    assert await store.spent("ada", NOON) == 0.25
    assert await store.spent("ada", NOON.astimezone(zone)) == 0.25
    assert await store.spent("ada", (NOON + timedelta(seconds=1)).astimezone(zone)) == 0.0


async def test_a_very_long_name_is_charged_like_any_other(store):
    name = "x" * 10_000
    await store.add(replace(RECORD, principal=name))
    assert await store.spent(name, NOON) == 0.25


async def test_records_are_kept_all_or_none(store):
    with suppress(Exception):
        await store.add(RECORD, replace(RECORD, model=None))
    assert (await store.totals()).answers == 0


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
    await cases.add((1.0,), None)
    await cases.aclose()
    await store.add(RECORD)
    assert (await store.totals()).answers == 1


@asynccontextmanager
async def locked(file):
    """Another process writes to the database: who else wants to, waits."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_cancelled_caller_leaves_at_once_and_its_record_is_kept(store, file):
    await store.add(RECORD)
    async with locked(file):
        adding = asyncio.create_task(store.add(RECORD))
        await asyncio.sleep(0)  # it has begun
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert await store.spent("ada", NOON) == 0.25
    await store.aclose()  # waits for what is on its way
    assert await store.spent("ada", NOON) == 0.5


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path):
    async with replica(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/usage.sqlite") as store:
        for use in (store.add(RECORD), store.totals(), store.spent("ada", NOON)):
            with pytest.raises(UnavailableError, match="the database does not answer"):
                await use


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
        await store.totals(cascades_only=True)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    with closing(sqlite3.connect(file)) as connection:
        plans = [connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall() for query, values in queries]
    assert len(plans) == 3
    assert all("USING COVERING INDEX" in step[-1] for plan in plans for step in plan)
