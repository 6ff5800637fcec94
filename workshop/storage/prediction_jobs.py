"""The state of prediction jobs in a SQL database. Their files are elsewhere: see ``integration/prediction_jobs.py``."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ColumnElement, DateTime, Text, and_, delete, func, or_, select, update
from sqlalchemy.orm import Mapped, mapped_column

from workshop.contracts.errors import NotFoundError, OverloadedError, RateLimitedError, UnavailableError
from workshop.contracts.prediction_jobs import JobFile, JobStatus, PredictionJob, Progress
from workshop.storage.database import MAX_TEXT, Base, Database

UPLOADING = "uploading"
"""The status of a job whose file is not complete yet. Nobody sees it."""
LEASE = timedelta(seconds=30)
"""How long a job belongs to the process that runs it, from its last report on."""


class PredictionJobRow(Base):
    """One job: see ``PredictionJob``.

    ``stored_bytes`` is the space that its files may take, or take once they are complete. Until ``leased_until``, a
    process runs the job.
    """

    __tablename__ = "prediction_jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int]
    status: Mapped[str]
    rows: Mapped[int] = mapped_column(BigInteger)
    rejected: Mapped[int] = mapped_column(BigInteger)
    share: Mapped[float]
    error: Mapped[str | None]
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    expires: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    leased_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    result_bytes: Mapped[int] = mapped_column(BigInteger)
    errors_bytes: Mapped[int] = mapped_column(BigInteger)

    def to_job(self) -> PredictionJob:
        return PredictionJob(
            id=self.id,
            owner=self.owner,
            attempt=self.attempt,
            status=JobStatus(self.status),
            progress=Progress(self.rows, self.rejected, self.share),
            error=self.error,
            created=self.created.replace(tzinfo=UTC),  # SQLite drops the zone
            expires=self.expires.replace(tzinfo=UTC),
            sizes={JobFile.RESULT: self.result_bytes, JobFile.ERRORS: self.errors_bytes},
        )


class SqlJobStore:
    """The jobs of all replicas, in the database at a URL. All methods raise UnavailableError.

    Args:
        url: see ``engine_at``.
        max_stored_bytes: the space for the files of all jobs together.
        max_owner_bytes: the space for those of one owner.
    """

    def __init__(self, url: str, max_stored_bytes: int, max_owner_bytes: int) -> None:
        self._database = Database(url)
        self._max_stored_bytes = max_stored_bytes
        self._max_owner_bytes = max_owner_bytes

    async def reserve(self, owner: str, n_bytes: int, seconds: float) -> UUID:
        """Reserve space for the files of a new job, for as long as its file may take to arrive.

        Raises:
            RateLimitedError: there is too little space for this owner.
            OverloadedError: there is too little space.
        """
        now = datetime.now(UTC)
        row = PredictionJobRow(
            id=uuid4(),
            owner=owner,
            attempt=0,
            status=UPLOADING,
            rows=0,
            rejected=0,
            share=0.0,
            created=now,
            expires=now + timedelta(seconds=seconds),
            stored_bytes=n_bytes,
            result_bytes=0,
            errors_bytes=0,
        )
        async with self._database.transaction() as session:
            # One at a time: PostgreSQL has a lock for this. SQLite has one writer at a time, from its first write on.
            if session.get_bind().dialect.name == "postgresql":
                await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(PredictionJobRow.__tablename__))))
            session.add(row)
            await session.flush()
            used = select(func.sum(PredictionJobRow.stored_bytes))
            if (await session.scalar(used.where(PredictionJobRow.owner == owner)) or 0) > self._max_owner_bytes:
                raise RateLimitedError("your files use up the space for them; delete jobs, or try again later", 60.0)
            if (await session.scalar(used) or 0) > self._max_stored_bytes:
                raise OverloadedError("the space for files is used up; delete jobs, or try again later", 60.0)
        return row.id

    async def queue(self, job_id: UUID, n_bytes: int, seconds: float) -> PredictionJob:
        """Offer a job whose file is complete to all processes, and keep it for some time.

        Args:
            job_id: from ``reserve``.
            n_bytes: the space that its files may take, now that the length of the file is known.
            seconds: how long it is kept.
        """
        values = {"status": JobStatus.QUEUED, "stored_bytes": n_bytes, "expires": _in(seconds)}
        job = await self._change(PredictionJobRow.id == job_id, values)
        if job is None:
            raise UnavailableError("the file took too long to arrive")
        return job

    async def get(self, job_id: UUID, owner: str) -> PredictionJob:
        """See ``PredictionJobs.get``."""
        async with self._database.transaction() as session:
            row = await session.scalar(select(PredictionJobRow).where(*_visible(job_id, owner)))
        if row is None:
            raise _not_found(job_id)
        return row.to_job()

    async def expire(self, job_id: UUID, owner: str) -> None:
        """Make a job invisible to its owner, as if its time were up. Raises NotFoundError."""
        if await self._change(and_(*_visible(job_id, owner)), {"expires": datetime.now(UTC)}) is None:
            raise _not_found(job_id)

    async def claim(self) -> PredictionJob | None:
        """A job that waits, or whose process has died. It belongs to the caller for the time of a lease.

        Owners take turns: nobody waits for all jobs of another. Its progress starts from the beginning.
        """
        now = datetime.now(UTC)
        is_abandoned = and_(PredictionJobRow.status == JobStatus.RUNNING, PredictionJobRow.leased_until <= now)
        number = func.row_number().over(partition_by=PredictionJobRow.owner, order_by=PredictionJobRow.created)
        numbered = select(PredictionJobRow.id, number.label("number")).subquery()  # with those that have ended
        first = (
            select(PredictionJobRow)
            .join(numbered, numbered.c.id == PredictionJobRow.id)
            .where(PredictionJobRow.expires > now, or_(PredictionJobRow.status == JobStatus.QUEUED, is_abandoned))
            .order_by(numbered.c.number, PredictionJobRow.created)
            .limit(1)
        )
        async with self._database.transaction() as session:
            row = await session.scalar(first)
        if row is None:
            return None
        values = _columns(Progress()) | {
            "status": JobStatus.RUNNING,
            "attempt": row.attempt + 1,
            "leased_until": now + LEASE,
        }
        return await self._change(_is_attempt(row.id, row.attempt), values)  # None: another process was faster

    async def report(self, job: PredictionJob, progress: Progress) -> bool:
        """Store the progress of a claimed job, and renew the lease.

        Returns:
            Whether the job still belongs to the caller. Otherwise it has been deleted, or taken over.
        """
        values = _columns(progress) | {"leased_until": datetime.now(UTC) + LEASE}
        return await self._change(_still_belongs(job), values) is not None

    async def succeed(
        self, job: PredictionJob, progress: Progress, sizes: Mapping[JobFile, int], seconds: float
    ) -> bool:
        """End a claimed job whose files are complete, and keep it for some time. Returns what ``report`` does."""
        values = _columns(progress) | {
            "status": JobStatus.SUCCEEDED,
            "leased_until": None,
            "expires": _in(seconds),
            "stored_bytes": sum(sizes.values()),
            "result_bytes": sizes[JobFile.RESULT],
            "errors_bytes": sizes[JobFile.ERRORS],
        }
        return await self._change(_still_belongs(job), values) is not None

    async def fail(self, job: PredictionJob, error: str) -> bool:
        """End a claimed job that cannot succeed, and give back its space. Returns what ``report`` does."""
        values = {"status": JobStatus.FAILED, "error": error[:MAX_TEXT], "leased_until": None, "stored_bytes": 0}
        return await self._change(_still_belongs(job), values) is not None

    async def release(self, job: PredictionJob) -> None:
        """Leave a claimed job that has not ended to another process."""
        values = {"status": JobStatus.QUEUED, "leased_until": None}
        is_running = PredictionJobRow.status == JobStatus.RUNNING
        await self._change(and_(_is_attempt(job.id, job.attempt), is_running), values)

    async def expired(self) -> list[UUID]:
        """Jobs whose time is up, and that no process runs."""
        now = datetime.now(UTC)
        is_free = or_(PredictionJobRow.leased_until.is_(None), PredictionJobRow.leased_until <= now)
        async with self._database.transaction() as session:
            return list(
                await session.scalars(select(PredictionJobRow.id).where(PredictionJobRow.expires <= now, is_free))
            )

    async def remove(self, job_id: UUID) -> None:
        """Remove a job. Its files must have been removed."""
        async with self._database.transaction() as session:
            await session.execute(delete(PredictionJobRow).where(PredictionJobRow.id == job_id))

    async def aclose(self) -> None:
        """Release the store's resources."""
        await self._database.aclose()

    async def _change(self, which: ColumnElement[bool], values: Mapping[str, Any]) -> PredictionJob | None:
        """Change the one row for which the condition holds. None if there is no such row."""
        change = update(PredictionJobRow).where(which).values(values).returning(PredictionJobRow)
        async with self._database.transaction() as session:
            row = await session.scalar(change)
        return None if row is None else row.to_job()


def _visible(job_id: UUID, owner: str) -> list[ColumnElement[bool]]:
    return [
        PredictionJobRow.id == job_id,
        PredictionJobRow.owner == owner,
        PredictionJobRow.status != UPLOADING,
        PredictionJobRow.expires > datetime.now(UTC),
    ]


def _is_attempt(job_id: UUID, attempt: int) -> ColumnElement[bool]:
    """Each claim has a number of its own, so that a process which has lost a job cannot change it any more."""
    return and_(PredictionJobRow.id == job_id, PredictionJobRow.attempt == attempt)


def _still_belongs(job: PredictionJob) -> ColumnElement[bool]:
    """To the process that has claimed it, and it has not been deleted."""
    return and_(_is_attempt(job.id, job.attempt), PredictionJobRow.expires > datetime.now(UTC))


def _columns(progress: Progress) -> dict[str, Any]:
    return {"rows": progress.rows, "rejected": progress.rejected, "share": progress.share}


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _not_found(job_id: UUID) -> NotFoundError:
    return NotFoundError(f"there is no prediction job {job_id}")
