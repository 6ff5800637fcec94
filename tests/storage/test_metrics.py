"""Metrics in a real database: what several processes have counted, added up."""

import asyncio
import random
from contextlib import aclosing

import pytest

from tests.sqlite import locked
from workshop.contracts.errors import UnavailableError
from workshop.contracts.metrics import Series
from workshop.storage import metrics, write_behind
from workshop.storage.metrics import SqlMetricStore

pytestmark = pytest.mark.anyio

ASKED = Series.of("asked", model="main", route="/v1/query")
SECONDS = Series.of("seconds")


def process(url):
    """What one process of the service does with its store."""
    return aclosing(SqlMetricStore(url))


@pytest.fixture
async def store(url):
    async with process(url) as store:
        yield store


async def until(store, totals) -> None:
    async with asyncio.timeout(20):
        while await store.totals() != totals:
            await asyncio.sleep(0.01)


def test_labels_identify_a_series_in_any_order():
    assert Series.of("x", a="1", b="2") == Series.of("x", b="2", a="1") != Series.of("x", a="2", b="1")


async def test_a_new_store_has_no_sums(store):
    assert await store.totals() == {}


async def test_a_process_finds_at_once_what_it_has_counted(store):
    store.add(ASKED)
    store.add(ASKED, 2)
    store.add(SECONDS, 0.25)
    assert await store.totals() == {ASKED: 3.0, SECONDS: 0.25}
    store.add(SECONDS, 0.5)
    assert await store.totals() == {ASKED: 3.0, SECONDS: 0.75}


async def test_other_processes_find_it_soon(store, url):
    async with process(url) as another:
        store.add(ASKED)
        another.add(ASKED)
        await until(another, {ASKED: 2.0})
        await until(store, {ASKED: 2.0})


async def test_what_was_counted_last_is_stored_at_a_stop_and_the_sums_go_on_after_it(url):
    for started in (1, 2, 3):
        async with process(url) as store:
            store.add(ASKED)
        async with process(url) as another:
            assert await another.totals() == {ASKED: started}


@pytest.mark.parametrize("value", ['"', "\\", "\n", "é", "'; DROP TABLE metrics; --", "x" * 5000, ""])
async def test_any_text_is_a_label(store, value):
    series = Series.of("asked", model=value)
    store.add(series)
    assert await store.totals() == {series: 1.0}


async def test_many_processes_that_count_the_same_lose_nothing_and_never_wait_for_each_other_forever(url, monkeypatch):
    monkeypatch.setattr(metrics, "WRITE_EVERY_S", 0.001)
    monkeypatch.setattr(write_behind, "DRAIN_LIMIT_S", 60)
    names = [Series.of("asked", model=str(number)) for number in range(50)]

    async def count(seed: int) -> None:
        async with process(url) as store:
            for _ in range(20):
                for name in random.Random(seed).sample(names, len(names)):
                    store.add(name)
                await asyncio.sleep(0.001)

    await asyncio.gather(*map(count, range(6)))
    async with process(url) as store:
        assert await store.totals() == dict.fromkeys(names, 120.0)


async def test_one_transaction_writes_what_was_counted_in_a_while(store, monkeypatch):
    written = []
    write = store._entries._write
    monkeypatch.setattr(store._entries, "_write", lambda entries: written.append(entries) or write(entries))
    for _ in range(1000):
        store.add(ASKED)
        store.add(SECONDS, 0.5)
        await asyncio.sleep(0)
    await until(store, {ASKED: 1000.0, SECONDS: 500.0})
    assert len(written) <= 3


async def test_a_reader_that_leaves_loses_nothing(store):
    for _ in range(20):
        store.add(ASKED)
        reading = asyncio.create_task(store.totals())
        await asyncio.sleep(0.001)
        reading.cancel()
    await until(store, {ASKED: 20.0})


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_counting_goes_on_while_the_database_is_missing(store, file, monkeypatch, caplog):
    monkeypatch.setattr(metrics, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(metrics, "READ_OWN_LIMIT_S", 0.1)
    file.mkdir()
    store.add(ASKED)
    while "cannot write now" not in caplog.text:
        await asyncio.sleep(0.01)
    for _ in range(100):
        store.add(ASKED)
        await asyncio.sleep(0.001)
    with pytest.raises(UnavailableError):
        await store.totals()
    assert len(store._entries._waiting) == 1  # the rest is added up
    file.rmdir()
    await until(store, {ASKED: 101.0})


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_stop_does_not_wait_long_for_a_database(store, file, monkeypatch, caplog):
    monkeypatch.setattr(write_behind, "DRAIN_LIMIT_S", 0.1)
    store.add(ASKED)
    await store.totals()
    store.add(ASKED)
    async with locked(file):
        await store.aclose()
    assert "lost: counts of 1 metrics" in caplog.text
