"""Prediction jobs."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, Field

from workshop.contracts import prediction_jobs as contract
from workshop.contracts.prediction_jobs import JobStatus


class PredictionJob(BaseModel):
    """The state of a job.

    ``progress`` is the share of the file that has been read. Of the ``rows`` so far, ``rejected`` have no prediction.
    ``attempt`` is above 1 if the job has begun again, since the process that ran it has ended. ``error`` says why the
    job has failed. Until ``expires``, the job and its files can be fetched.
    """

    id: UUID
    status: JobStatus
    progress: Annotated[float, Field(ge=0, le=1)]
    rows: int
    rejected: int
    attempt: int
    error: str | None
    created: datetime
    expires: datetime

    @classmethod
    def of(cls, job: contract.PredictionJob) -> Self:
        """From the contract's type."""
        return cls(
            id=job.id,
            status=job.status,
            progress=job.progress.share,
            rows=job.progress.rows,
            rejected=job.progress.rejected,
            attempt=job.attempt,
            error=job.error,
            created=job.created,
            expires=job.expires,
        )
