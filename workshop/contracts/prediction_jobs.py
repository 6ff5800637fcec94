"""Prediction jobs: CSV files of any length, classified row by row in the background."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID


class JobStatus(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class JobFile(StrEnum):
    """What a job that has succeeded leaves, as CSV."""

    RESULT = "result"
    """The rows that have a prediction, with it."""
    ERRORS = "errors"
    """What is wrong with the others, by line number."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        rows: rows read so far.
        rejected: how many of them have no prediction.
        share: how much of the file has been read, from 0 to 1.
    """

    rows: int = 0
    rejected: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """One job.

    Attributes:
        id: chosen by the store.
        owner: id of the principal that has sent the file.
        attempt: how often a process has begun it. A process that dies leaves it to another.
        status: its state.
        progress: how far it is.
        error: why it has failed.
        created: time of the upload, with its time zone, as the next.
        expires: when the job and its files are removed.
        sizes: bytes of each file that it has left.
    """

    id: UUID
    owner: str
    attempt: int
    status: JobStatus
    progress: Progress
    error: str | None
    created: datetime
    expires: datetime
    sizes: Mapping[JobFile, int]


class PredictionJobs(Protocol):
    """The jobs of a service, shared by all its replicas.

    A caller sees only its own jobs, and these only until they expire: any other is a NotFoundError. All methods but
    ``start`` raise UnavailableError.
    """

    def start(self) -> None:
        """Begin to run jobs in this process, whichever process has accepted them."""
        ...

    async def create(self, owner: str, content: AsyncIterator[bytes], max_bytes: int) -> PredictionJob:
        """Store a file and queue a job for it. If this fails or is cancelled, nothing is left of the file.

        Args:
            owner: id of the principal.
            content: the file, in pieces.
            max_bytes: how long it is at most.

        Raises:
            InvalidFileError: no row of the file could be read.
            RateLimitedError: the owner's files use up the space for them.
            OverloadedError: there is no space for it.
        """
        ...

    async def get(self, job_id: UUID, owner: str) -> PredictionJob: ...

    def read(self, job: PredictionJob, file: JobFile, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Bytes ``start`` to ``stop`` of a file that the job has left, in pieces."""
        ...

    async def delete(self, job_id: UUID, owner: str) -> None:
        """End a job. Its files remain until the next ``remove_expired``."""
        ...

    async def remove_expired(self) -> None:
        """Remove expired and deleted jobs with their files. Also happens regularly without this call."""
        ...

    async def aclose(self) -> None:
        """Leave the job that runs here to another process, and release all resources."""
        ...
