"""Prediction jobs: their state in the database, their files in a folder or bucket that all replicas reach.

A job is not tied to the process that has accepted it. Each process runs one job at a time, of those that wait, and
reports its progress to the database. If it stops reporting, another process begins the job again.
"""

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from typing import Any
from uuid import UUID

from anyio.to_thread import run_sync
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.dirfs import DirFileSystem

from workshop.contracts.classifier import Classifier, Scores
from workshop.contracts.errors import (
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServiceError,
    StartError,
    UnavailableError,
)
from workshop.contracts.prediction_jobs import JobFile, PredictionJob, Progress
from workshop.contracts.principals import CALLER
from workshop.models.tumour_csv import Batch, PredictionCsvWriter, TumourCsvReader, Utf8Check
from workshop.settings import Settings
from workshop.storage.prediction_jobs import SqlJobStore

logger = logging.getLogger(__name__)

BATCH_ROWS = 512
"""Rows that a job predicts at a time: half of what the micro-batcher puts into a call, so that others find room."""
REPORT_EVERY_S = 0.5
CLOSE_LIMIT_S = 2.0
"""How long a stop may wait for the database."""
LOOK_EVERY_S = 5.0
"""How often a process without a job looks for one that another process has left."""
MAX_ATTEMPTS = 5
"""A file that has ended so many processes would end the next one too."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""How long a job waits when the classifier is overloaded or does not answer."""
PIECE = 2**18
"""Bytes that are read from a file at a time."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def open_prediction_jobs(settings: Settings, classifier: Classifier) -> "StoredPredictionJobs":
    """The jobs of the service. Raises StartError: see ``folder_at``."""
    return StoredPredictionJobs(
        SqlJobStore(settings.database_url, settings.max_stored_bytes, settings.max_stored_bytes_per_principal),
        folder_at(settings.files_url),
        classifier,
        upload_s=settings.file_timeout_s,
        ttl_s=settings.result_ttl_s,
    )


def folder_at(url: str) -> AbstractFileSystem:
    """A file system whose paths are relative to a URL, which is not opened yet.

    Raises:
        StartError: it names a kind of storage that is unknown or not installed.
    """
    try:
        files, folder = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise StartError.because("setting files_url", error) from error
    return DirFileSystem(folder, files)


class StoredPredictionJobs:
    """``PredictionJobs`` with a database and a file system.

    Args:
        store: the state of the jobs.
        files: has a folder for each job, named by its id.
        classifier: predicts the rows.
        upload_s: how long a file may take to arrive, in seconds.
        ttl_s: how long a job is kept after its upload, and again after its end.
    """

    def __init__(
        self, store: SqlJobStore, files: AbstractFileSystem, classifier: Classifier, *, upload_s: float, ttl_s: float
    ) -> None:
        self._store = store
        self._files = files
        self._classifier = classifier
        self._upload_s = upload_s
        self._ttl_s = ttl_s
        self._wakes = asyncio.Event()
        self._is_closing = False
        self._worker: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """See ``PredictionJobs.start``."""
        self._worker = asyncio.create_task(self._work())

    async def create(self, owner: str, content: AsyncIterator[bytes], max_bytes: int) -> PredictionJob:
        """See ``PredictionJobs.create``."""
        job_id = await self._store.reserve(owner, _space_for(max_bytes), self._upload_s + 60)
        try:
            size = await self._save(job_id, content)
            async with opened(self._files, _upload(job_id)) as file:
                await run_sync(TumourCsvReader, _text(file))  # raises if the file cannot be used
            job = await self._store.queue(job_id, _space_for(size), self._ttl_s)
        except BaseException:
            # In a task, since a request may be cancelled twice: Serve cancels one that has just failed, too.
            removal = asyncio.create_task(self._remove(job_id))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            with suppress(UnavailableError):
                await asyncio.shield(removal)
            raise
        self._wakes.set()
        return job

    async def get(self, job_id: UUID, owner: str) -> PredictionJob:
        """See ``PredictionJobs.get``."""
        return await self._store.get(job_id, owner)

    async def read(self, job: PredictionJob, file: JobFile, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See ``PredictionJobs.read``."""
        async with opened(self._files, _output(job, file)) as content:
            await run_sync(content.seek, start)
            while piece := await run_sync(content.read, min(PIECE, stop - start)):
                start += len(piece)
                yield piece

    async def delete(self, job_id: UUID, owner: str) -> None:
        """See ``PredictionJobs.delete``."""
        await self._store.expire(job_id, owner)

    async def remove_expired(self) -> None:
        """See ``PredictionJobs.remove_expired``."""
        for job_id in await self._store.expired():
            try:
                await self._remove(job_id)
            except UnavailableError as error:  # the others may be removed all the same
                logger.warning("prediction job %s cannot be removed yet: %s", job_id, error, exc_info=error)

    async def aclose(self) -> None:
        """See ``PredictionJobs.aclose``."""
        self._is_closing = True
        self._wakes.set()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=CLOSE_LIMIT_S)
            self._worker.cancel()
            await asyncio.wait([self._worker])
        if self._removals:
            await asyncio.wait(self._removals, timeout=CLOSE_LIMIT_S)
        await self._store.aclose()

    async def _save(self, job_id: UUID, content: AsyncIterator[bytes]) -> int:
        """Store a file piece by piece. Returns its length in bytes."""
        check, size = Utf8Check(), 0
        async with opened(self._files, _upload(job_id), "wb") as file:
            async for piece in content:
                check.feed(piece)
                size += len(piece)
                await run_sync(file.write, piece)
        check.feed(b"", final=True)
        return size

    async def _remove(self, job_id: UUID) -> None:
        """Remove a job, its files first: if this is interrupted, the next ``remove_expired`` finds what is left."""
        await self._remove_files(job_id)
        await self._store.remove(job_id)

    async def _remove_files(self, job_id: UUID) -> None:
        with storage_errors(), suppress(FileNotFoundError):
            await run_sync(partial(self._files.rm, str(job_id), recursive=True))

    async def _work(self) -> None:
        """Run jobs, one after the other."""
        while not self._is_closing:
            self._wakes.clear()
            try:
                if job := await self._store.claim():
                    self._wakes.set()  # there may be another
                    await self._run(job)
                await self.remove_expired()
            except UnavailableError as error:
                logger.warning("prediction jobs have to wait: %s", error, exc_info=error)
            except Exception:
                logger.exception("a prediction job has to be run again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wakes.wait()

    async def _run(self, job: PredictionJob) -> None:
        """Run a claimed job until it ends or no longer belongs to this process."""
        if job.attempt > MAX_ATTEMPTS:
            await self._fail(job, f"{MAX_ATTEMPTS} attempts to read this file have not come to an end")
            return
        if job.attempt > 1:
            logger.warning("prediction job %s begins again: attempt %d", job.id, job.attempt)
        scoring = Scoring(self._files, self._classifier, job)
        task = asyncio.create_task(scoring.run())
        try:
            while not task.done():
                await asyncio.wait([task], timeout=REPORT_EVERY_S)
                if self._is_closing:
                    return
                with suppress(UnavailableError):  # the lease may last longer than this
                    if not await self._store.report(job, scoring.progress):
                        return
            try:
                sizes = task.result()
            except Exception as error:
                logger.error("prediction job %s has failed: %s", job.id, error, exc_info=error)
                is_known = isinstance(error, ServiceError)
                await self._fail(job, str(error) if is_known else "something went wrong in the service")
            else:
                if await self._store.succeed(job, scoring.progress, sizes, self._ttl_s):
                    with storage_errors():
                        await run_sync(self._files.rm_file, _upload(job.id))
        finally:
            task.cancel()
            await asyncio.wait([task])
            with suppress(UnavailableError):  # then the lease expires
                await self._store.release(job)

    async def _fail(self, job: PredictionJob, error: str) -> None:
        if await self._store.fail(job, error):
            await self._remove_files(job.id)


class Scoring:
    """Predicts the rows of a job's file.

    Args:
        files: see ``StoredPredictionJobs``.
        classifier: predicts the rows.
        job: a claimed job.
    """

    def __init__(self, files: AbstractFileSystem, classifier: Classifier, job: PredictionJob) -> None:
        self.progress = Progress()
        self._files = files
        self._classifier = classifier
        self._job = job

    async def run(self) -> Mapping[JobFile, int]:
        """Read the file, and write the job's files. Returns their lengths in bytes. Raises ServiceError."""
        CALLER.set(self._job.owner)
        paths = {file: _output(self._job, file) for file in JobFile}
        upload = _upload(self._job.id)
        with storage_errors():
            size = await run_sync(self._files.size, upload)
        async with (
            opened(self._files, upload) as source,
            opened(self._files, paths[JobFile.RESULT], "w") as result,
            opened(self._files, paths[JobFile.ERRORS], "w") as errors,
        ):
            reader = await run_sync(TumourCsvReader, _text(source))
            writer = PredictionCsvWriter(result, errors, reader.columns)
            while batch := await run_sync(reader.read, BATCH_ROWS):
                scores = await self._predict(batch, reader)
                await run_sync(writer.write, batch, scores)
                self.progress = Progress(
                    self.progress.rows + batch.count, self.progress.rejected + batch.rejected, source.tell() / size
                )
        self.progress = replace(self.progress, share=1.0)
        with storage_errors():
            return {file: await run_sync(self._files.size, path) for file, path in paths.items()}

    async def _predict(self, batch: Batch, reader: TumourCsvReader) -> Scores | None:
        """The scores of the good rows, or None if there are none. The classifier may find more bad ones."""
        pauses = iter(PAUSES_S)
        while len(batch.values):
            try:
                return await self._classifier.predict(batch.values)
            except InvalidInputError as error:
                batch.reject(error.row, reader.column_of(error.field), error.message)
            except (UnavailableError, DeadlineExceededError):
                if (pause_s := next(pauses, None)) is None:
                    raise
                await asyncio.sleep(pause_s)
        return None


@asynccontextmanager
async def opened(files: AbstractFileSystem, path: str, mode: str = "rb") -> AsyncIterator[Any]:
    """A file, opened and closed in a thread. Its folder is made if it is to be written.

    Raises:
        OverloadedError, UnavailableError: for an OSError in the block.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with storage_errors():
        if "w" in mode:
            await run_sync(partial(files.makedirs, path.rpartition("/")[0], exist_ok=True))
        file = await run_sync(partial(files.open, path, mode, **text))
        try:
            yield file
        finally:
            await run_sync(file.close)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a file system raises into what the contract promises."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OverloadedError("there is no space left for files", 60.0) from error
        raise UnavailableError("the files cannot be reached") from error


def _text(file: Any) -> TextIOWrapper:
    return TextIOWrapper(file, "utf-8-sig", newline="")


def _space_for(n_bytes: int) -> int:
    """The space that an upload, its result and its list of mistakes take at most."""
    return 4 * n_bytes + 2**20


def _upload(job_id: UUID) -> str:
    return f"{job_id}/upload.csv"


def _output(job: PredictionJob, file: JobFile) -> str:
    """The path of a file that a job leaves. No two attempts write the same one."""
    return f"{job.id}/{job.attempt}/{file}.csv"
