"""The state of prediction jobs in a real database."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from workshop.contracts.errors import NotFoundError, OverloadedError, RateLimitedError, UnavailableError
from workshop.contracts.prediction_jobs import JobFile, JobStatus, Progress
from workshop.storage import prediction_jobs
from workshop.storage.prediction_jobs import SqlJobStore

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HALF = Progress(10, 2, 0.5)
ALL = Progress(20, 3, 1.0)
SIZES = {JobFile.RESULT: 30, JobFile.ERRORS: 5}


def replica(url, max_owner_bytes=2000):
    return aclosing(SqlJobStore(url, 1000, max_owner_bytes))


@pytest.fixture
async def store(url):
    async with replica(url) as store:
        yield store


async def queued(store, owner="ada", n_bytes=100, seconds=60.0):
    return await store.queue(await store.reserve(owner, n_bytes, 60), n_bytes, seconds)


async def test_a_job_is_queued_claimed_and_succeeds(store):
    job = await queued(store)
    assert (job.status, job.attempt, job.progress, job.error) == (JobStatus.QUEUED, 0, Progress(), None)
    assert timedelta(seconds=59) < job.expires - datetime.now(UTC) < timedelta(seconds=61)
    claimed = await store.claim()
    assert claimed == replace(job, status=JobStatus.RUNNING, attempt=1)
    assert await store.report(claimed, HALF)
    assert (await store.get(job.id, "ada")).progress == HALF
    assert await store.succeed(claimed, ALL, SIZES, 3600)
    done = await store.get(job.id, "ada")
    assert (done.status, done.progress, done.sizes) == (JobStatus.SUCCEEDED, ALL, SIZES)
    assert done.expires - datetime.now(UTC) > timedelta(seconds=3590)
    assert await store.claim() is None


async def test_only_the_owner_sees_a_job(store):
    job = await queued(store, "ada" * 1000)
    for owner in ("grace", "ada" * 999, ""):
        with pytest.raises(NotFoundError, match=f"there is no prediction job {job.id}"):
            await store.get(job.id, owner)
        with pytest.raises(NotFoundError):
            await store.expire(job.id, owner)
    with pytest.raises(NotFoundError):
        await store.get(uuid4(), "ada" * 1000)
    assert await store.get(job.id, "ada" * 1000) == job


async def test_an_upload_is_not_a_job_yet(store):
    job_id = await store.reserve("ada", 10, 60)
    with pytest.raises(NotFoundError):
        await store.get(job_id, "ada")
    assert await store.claim() is None


async def test_jobs_are_claimed_in_their_order_and_only_once(store, url):
    jobs = [await queued(store) for _ in range(6)]
    async with replica(url) as other:
        claimed = [await (store, other)[turn % 2].claim() for turn in range(7)]
    assert claimed.pop() is None
    assert [job.id for job in claimed] == [job.id for job in jobs]


async def test_replicas_that_claim_at_once_get_different_jobs(store, url):
    jobs = [await queued(store) for _ in range(5)]
    async with replica(url) as other:
        claimed = []
        while len(claimed) < 5:
            found = await asyncio.gather(*(place.claim() for place in [store, other] * 3))
            claimed += [job.id for job in found if job]
    assert sorted(claimed) == sorted(job.id for job in jobs)


async def test_the_job_of_a_process_that_died_is_claimed_again(store, monkeypatch):
    monkeypatch.setattr(prediction_jobs, "LEASE", timedelta(seconds=-1))
    job = await queued(store)
    first = await store.claim()
    assert await store.report(first, HALF)
    monkeypatch.undo()
    second = await store.claim()
    assert (first.attempt, second.attempt, second.id) == (1, 2, job.id)
    assert second.progress == Progress()
    assert await store.claim() is None


async def test_a_process_that_has_lost_its_job_cannot_change_it(store, monkeypatch):
    monkeypatch.setattr(prediction_jobs, "LEASE", timedelta(seconds=-1))
    job = await queued(store)
    lost = await store.claim()
    monkeypatch.undo()
    await store.claim()
    assert not await store.report(lost, HALF)
    assert not await store.succeed(lost, ALL, SIZES, 60)
    assert not await store.fail(lost, "no")
    await store.release(lost)
    now = await store.get(job.id, "ada")
    assert (now.status, now.attempt, now.progress) == (JobStatus.RUNNING, 2, Progress())


async def test_a_report_renews_the_lease(store, monkeypatch):
    monkeypatch.setattr(prediction_jobs, "LEASE", timedelta(seconds=-1))
    await queued(store)
    job = await store.claim()
    monkeypatch.undo()
    assert await store.report(job, HALF)
    assert await store.claim() is None


async def test_a_released_job_is_claimed_by_the_next(store, url):
    await queued(store)
    job = await store.claim()
    await store.release(job)
    async with replica(url) as other:
        assert (await other.claim()).attempt == 2


@pytest.mark.parametrize("end", ["succeed", "fail"])
async def test_a_job_that_has_ended_is_not_released(store, end):
    await queued(store)
    job = await store.claim()
    await (store.succeed(job, ALL, SIZES, 60) if end == "succeed" else store.fail(job, "no"))
    await store.release(job)
    assert (await store.get(job.id, "ada")).status in (JobStatus.SUCCEEDED, JobStatus.FAILED)


async def test_why_a_job_has_failed_is_stored(store):
    job = await queued(store)
    await store.fail(await store.claim(), "because" * 1000)
    now = await store.get(job.id, "ada")
    assert (now.status, now.error[:14]) == (JobStatus.FAILED, "becausebecause")


async def test_a_deleted_job_does_not_exist_for_its_owner_and_is_removed_once_nobody_runs_it(store):
    job = await queued(store)
    claimed = await store.claim()
    await store.expire(job.id, "ada")
    for use in (store.get(job.id, "ada"), store.expire(job.id, "ada")):
        with pytest.raises(NotFoundError):
            await use
    assert await store.expired() == []
    assert not await store.report(claimed, HALF)
    assert not await store.succeed(claimed, ALL, SIZES, 60)
    await store.release(claimed)
    assert await store.claim() is None
    assert await store.expired() == [job.id]
    await store.remove(job.id)
    assert await store.expired() == []


async def test_jobs_uploads_and_results_expire(store):
    upload = await store.reserve("ada", 10, -1)
    waiting = await queued(store, seconds=-1)
    assert await store.claim() is None
    assert set(await store.expired()) == {upload, waiting.id}
    await queued(store)
    await store.succeed(job := await store.claim(), ALL, SIZES, -1)
    assert set(await store.expired()) == {upload, waiting.id, job.id}
    with pytest.raises(UnavailableError, match="took too long"):
        await store.queue(uuid4(), 1, 60)


async def test_the_job_of_a_process_that_died_after_its_deletion_is_removed(store, monkeypatch):
    monkeypatch.setattr(prediction_jobs, "LEASE", timedelta(seconds=-1))
    job = await queued(store)
    await store.claim()
    await store.expire(job.id, "ada")
    assert await store.expired() == [job.id]


async def test_space_is_limited_and_given_back(store):
    first = await queued(store, n_bytes=600)
    with pytest.raises(OverloadedError, match="delete jobs") as refused:
        await store.reserve("grace", 401, 60)
    assert refused.value.retry_after_s > 0
    await store.remove(await store.reserve("grace", 400, 60))
    claimed = await store.claim()
    assert await store.succeed(claimed, ALL, SIZES, 60)
    await store.remove(await store.reserve("grace", 965, 60))
    await store.remove(first.id)
    await queued(store, n_bytes=1000)
    assert await store.fail(await store.claim(), "no")
    await store.reserve("grace", 1000, 60)


async def test_one_owner_cannot_use_all_space(url):
    async with replica(url, max_owner_bytes=600) as store:
        first = await queued(store, n_bytes=600)
        with pytest.raises(RateLimitedError, match="delete jobs") as refused:
            await store.reserve("ada", 1, 60)
        assert refused.value.retry_after_s > 0
        await store.remove(await store.reserve("grace", 400, 60))
        await store.remove(first.id)
        await store.reserve("ada", 600, 60)


async def test_owners_take_turns(store):
    adas = [await queued(store, "ada") for _ in range(4)]

    async def next_job():
        claimed = await store.claim()
        assert await store.succeed(claimed, ALL, SIZES, 60)
        return claimed.id

    assert [await next_job(), await next_job()] == [adas[0].id, adas[1].id]
    graces = [await queued(store, "grace") for _ in range(3)]
    order = [await next_job() for _ in range(5)]
    assert order == [graces[0].id, graces[1].id, adas[2].id, graces[2].id, adas[3].id]


async def test_replicas_together_reserve_no_more_than_there_is(store, url):
    async with replica(url) as other:
        asked = [place.reserve("ada", 100, 60) for place in [store, other] * 15]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes].count("UUID") == 10
    assert sum(isinstance(outcome, OverloadedError) for outcome in outcomes) == 20


async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path):
    async with replica(f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/jobs.sqlite") as store:
        for use in (store.reserve("ada", 1, 1), store.claim(), store.expired(), store.get(uuid4(), "ada")):
            with pytest.raises(UnavailableError, match="the database does not answer"):
                await use
