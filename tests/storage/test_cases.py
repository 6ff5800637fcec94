"""Cases in a real SQLite file."""

import asyncio
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import pytest

from tests.service import ROWS
from workshop.contracts.cases import Case
from workshop.contracts.errors import NotFoundError, UnavailableError
from workshop.storage.cases import SqlCaseStore

pytestmark = pytest.mark.anyio

MEASUREMENTS = tuple(ROWS[0].tolist())
OTHERS = tuple(ROWS[1].tolist())


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/cases.sqlite"


@pytest.fixture
async def store(url):
    store = SqlCaseStore(url)
    yield store
    await store.aclose()


@asynccontextmanager
async def another_replica(url):
    store = SqlCaseStore(url)
    try:
        yield store
    finally:
        await store.aclose()


async def add(store, diagnosis=None) -> Case:
    async with store.transaction() as cases:
        return await cases.add(MEASUREMENTS, diagnosis)


async def test_a_case_is_kept_exactly(store):
    added = await add(store, "benign")
    async with store.transaction() as cases:
        assert await cases.get(added.id) == added == Case(added.id, MEASUREMENTS, "benign")


async def test_every_row_of_the_data_comes_back_bit_for_bit(store):
    async with store.transaction() as cases:
        added = [await cases.add(tuple(row.tolist()), None) for row in ROWS]
    async with store.transaction() as cases:
        assert [(await cases.get(case.id)).measurements for case in added] == [tuple(row) for row in ROWS.tolist()]


async def test_a_case_survives_the_store_that_took_it(store, url):
    added = await add(store)
    await store.aclose()
    async with another_replica(url) as later, later.transaction() as cases:
        assert await cases.get(added.id) == added


async def test_stores_see_each_others_cases(store, url):
    async with another_replica(url) as other:
        added = await add(store)
        async with other.transaction() as cases:
            await cases.replace(Case(added.id, OTHERS, "malignant"))
        async with store.transaction() as cases:
            assert await cases.get(added.id) == Case(added.id, OTHERS, "malignant")


async def test_a_transaction_that_raises_leaves_no_trace(store):
    kept = await add(store)
    with suppress(ZeroDivisionError):
        async with store.transaction() as cases:
            lost = await cases.add(MEASUREMENTS, None)
            await cases.delete(kept.id)
            1 / 0  # noqa: B018
    async with store.transaction() as cases:
        assert await cases.newest(10) == [kept]
        with pytest.raises(NotFoundError):
            await cases.get(lost.id)


async def test_a_case_can_be_used_in_the_transaction_that_adds_it(store):
    async with store.transaction() as cases:
        added = await cases.add(MEASUREMENTS, None)
        await cases.replace(Case(added.id, OTHERS, "benign"))
        assert await cases.get(added.id) == Case(added.id, OTHERS, "benign")
        await cases.delete(added.id)
    async with store.transaction() as cases:
        assert await cases.newest(10) == []


async def test_the_newest_come_first_and_no_more_than_asked_for(store):
    added = [await add(store) for _ in range(5)]
    async with store.transaction() as cases:
        assert await cases.newest(3) == added[:1:-1]


@pytest.mark.parametrize(
    "use",
    [
        lambda cases: cases.get(uuid4()),
        lambda cases: cases.delete(uuid4()),
        lambda cases: cases.replace(Case(uuid4(), MEASUREMENTS)),
    ],
    ids=["get", "delete", "replace"],
)
async def test_an_unknown_case_is_not_found(store, use):
    with pytest.raises(NotFoundError, match="there is no case"):
        async with store.transaction() as cases:
            await use(cases)


async def test_many_writers_at_once_lose_nothing(store, url):
    async with another_replica(url) as other:
        added = await asyncio.gather(*(add(place) for place in [store, other] * 20))
    async with store.transaction() as cases:
        assert {case.id for case in await cases.newest(100)} == {case.id for case in added}


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path):
    async with another_replica(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/cases.sqlite") as store:
        with pytest.raises(UnavailableError, match="the database does not answer"):
            await add(store)
