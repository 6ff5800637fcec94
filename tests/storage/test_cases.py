"""Cases in a real database."""

import asyncio
from contextlib import aclosing
from uuid import uuid4

import pytest

from tests.service import ROWS
from workshop.contracts.cases import Case
from workshop.contracts.errors import NotFoundError, UnavailableError
from workshop.storage import database
from workshop.storage.cases import SqlCaseStore

pytestmark = pytest.mark.anyio

ADA, EVE = "ada", "eve"
MEASUREMENTS = tuple(ROWS[0].tolist())
OTHERS = tuple(ROWS[1].tolist())


@pytest.fixture
async def store(url):
    async with replica(url) as store:
        yield store


def replica(url):
    return aclosing(SqlCaseStore(url))


async def test_a_case_is_kept_exactly(store):
    added = await store.add(ADA, MEASUREMENTS, "benign")
    assert await store.get(added.id, ADA) == added == Case(added.id, ADA, MEASUREMENTS, "benign")


async def test_every_row_of_the_data_comes_back_bit_for_bit(store, monkeypatch):
    monkeypatch.setattr(database, "MAX_WAIT_S", 300.0)  # on a busy machine the last ones wait a long time
    added = await asyncio.gather(*(store.add(ADA, tuple(row.tolist()), None) for row in ROWS))
    assert [(await store.get(case.id, ADA)).measurements for case in added] == [tuple(row) for row in ROWS.tolist()]


async def test_a_case_survives_the_store_that_took_it(store, url):
    added = await store.add(ADA, MEASUREMENTS, None)
    await store.aclose()
    async with replica(url) as later:
        assert await later.get(added.id, ADA) == added


async def test_stores_see_each_others_cases(store, url):
    async with replica(url) as other:
        added = await store.add(ADA, MEASUREMENTS, None)
        await other.replace(added.id, ADA, OTHERS, "malignant")
        assert await store.get(added.id, ADA) == Case(added.id, ADA, OTHERS, "malignant")
        await store.delete(added.id, ADA)
        assert await other.newest(10, ADA) == []


async def test_the_newest_come_first_and_no_more_than_asked_for(store):
    added = [await store.add(ADA, MEASUREMENTS, None) for _ in range(5)]
    assert await store.newest(3, ADA) == added[:1:-1]


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.get(uuid4(), ADA),
        lambda store: store.delete(uuid4(), ADA),
        lambda store: store.replace(uuid4(), ADA, MEASUREMENTS, None),
    ],
    ids=["get", "delete", "replace"],
)
async def test_an_unknown_case_is_not_found(store, use):
    kept = await store.add(ADA, MEASUREMENTS, None)
    with pytest.raises(NotFoundError, match="there is no case"):
        await use(store)
    assert await store.newest(10, ADA) == [kept]


@pytest.mark.parametrize(
    "use",
    [
        lambda store, case: store.get(case.id, EVE),
        lambda store, case: store.delete(case.id, EVE),
        lambda store, case: store.replace(case.id, EVE, OTHERS, "benign"),
    ],
    ids=["get", "delete", "replace"],
)
async def test_the_case_of_another_owner_does_not_exist(store, use):
    kept = await store.add(ADA, MEASUREMENTS, None)
    with pytest.raises(NotFoundError, match="there is no case"):
        await use(store, kept)
    assert await store.newest(10, EVE) == []
    assert await store.newest(10, ADA) == await store.newest(10, None) == [kept]


async def test_without_an_owner_all_cases_exist(store):
    added = await store.add(ADA, MEASUREMENTS, None)
    replaced = await store.replace(added.id, None, OTHERS, "benign")
    assert replaced == await store.get(added.id, None) == Case(added.id, ADA, OTHERS, "benign")
    await store.delete(added.id, None)
    assert await store.newest(10, None) == []


async def test_a_long_name_owns_cases_too(store):
    added = await store.add("a" * 8000, MEASUREMENTS, None)
    assert await store.newest(10, "a" * 8000) == [added]


async def test_many_writers_at_once_lose_nothing(store, url, monkeypatch):
    monkeypatch.setattr(database, "MAX_WAIT_S", 300.0)  # on a busy machine the last ones wait a long time
    async with replica(url) as other:
        added = await asyncio.gather(*(place.add(ADA, MEASUREMENTS, None) for place in [store, other] * 40))
    assert {case.id for case in await store.newest(100, ADA)} == {case.id for case in added}


async def test_a_store_is_ready_when_its_cases_can_be_read(store):
    await store.ready()
    await store.add(ADA, MEASUREMENTS, None)
    await store.ready()


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path):
    async with replica(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/cases.sqlite") as store:
        for use in (store.add(ADA, MEASUREMENTS, None), store.ready()):
            with pytest.raises(UnavailableError, match="the database does not answer"):
                await use
