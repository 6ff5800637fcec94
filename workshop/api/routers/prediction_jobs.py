"""Prediction jobs: a CSV file is uploaded, classified in the background, and the result is fetched.

Why the upload's response is not the result: most clients do not read a response before they have sent their request, so
both sides would wait for each other as soon as the buffers between them are full. And Serve's proxy buffers both
directions in memory, however slowly they are read.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, BackgroundTasks, Depends, Header, HTTPException, Path, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent, format_sse_event
from starlette.datastructures import UploadFile

from workshop.api.dependencies import PredictionJobsDep, PrincipalDep, SettingsDep
from workshop.api.errors import error_responses, log_failure, problem_document
from workshop.api.middleware.body_limit import BodyLimit, declared_length
from workshop.api.revalidation import has_content
from workshop.api.schemas.prediction_jobs import PredictionJob
from workshop.api.streams import open_stream
from workshop.contracts import prediction_jobs as contract
from workshop.contracts.prediction_jobs import JobFile, JobStatus

LOOK_EVERY_S = 0.5
"""How often a job's progress is read for its events."""
PIECE = 2**18
LAST_EVENT = "end"
"""The id of the event that ends a stream."""
CSV, FORM = "text/csv", "multipart/form-data"
_CSV_TEXT = f"{CSV}; charset=utf-8"
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)

router = APIRouter(prefix="/prediction-jobs", tags=["prediction jobs"])

# ------------------------------------------------------------------------------------------------------ the upload


async def allow_file(request: Request, settings: SettingsDep) -> None:
    """Replace the limits on the body by those for files, and require a CSV file. The body has not been read yet."""
    request.state.body_limit = BodyLimit(settings.max_file_bytes, settings.file_timeout_s)
    if _media_type(request) not in (CSV, FORM):
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, f"send the file as {CSV} or {FORM}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def content_of(request: Request) -> AsyncGenerator[bytes, None]:
    """The file in a request, in pieces: its body, or the only file of its form.

    Starlette writes a form's file to a temporary file, which is removed when the stream is closed. A parameter of the
    type ``UploadFile`` would get the same, but FastAPI would read the body before it checks the caller's key.
    """
    if _media_type(request) == CSV:
        async for piece in request.stream():
            yield piece
        return
    async with request.form(max_files=1, max_fields=0) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestValidationError(
                [{"loc": ("body", "file"), "type": "missing", "msg": "Field required: a file"}]
            )
        while piece := await file.read(PIECE):
            yield piece


_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            CSV: {"schema": {"type": "string"}},
            FORM: {"schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}},
        },
    }
}
"""The body in OpenAPI. FastAPI does not know of it, since the endpoint reads it."""


@router.post(
    "",
    summary="Classify the rows of a CSV file",
    status_code=status.HTTP_202_ACCEPTED,
    dependencies=[Depends(allow_file)],
    openapi_extra=UPLOAD,
)
async def create_prediction_job(
    request: Request, response: Response, jobs: PredictionJobsDep, principal: PrincipalDep, settings: SettingsDep
) -> PredictionJob:
    """Upload a file as the body (`text/csv`) or in a form. The `Location` header is the path of its job.

    UTF-8, with commas between the cells. The first line names the columns: the 30 features as in `/v1/predict`, in any
    order, with spaces or underscores; and any others, which the result has too.
    """
    length = declared_length(request.headers)
    async with aclosing(content_of(request)) as content:
        job = await jobs.create(principal.id, content, min(length or settings.max_file_bytes, settings.max_file_bytes))
    response.headers["Location"] = request.url_for("get_prediction_job", job_id=str(job.id)).path
    return PredictionJob.of(job)


# --------------------------------------------------------------------------------------------------------- the job


async def get_job(job_id: UUID, jobs: PredictionJobsDep, principal: PrincipalDep) -> contract.PredictionJob:
    """The caller's job. Raises NotFoundError, for another caller's too."""
    return await jobs.get(job_id, principal.id)


JobDep = Annotated[contract.PredictionJob, Depends(get_job)]


@router.get("/{job_id}", summary="Get a prediction job")
async def get_prediction_job(job: JobDep) -> PredictionJob:
    """Its status and progress."""
    return PredictionJob.of(job)


@router.delete("/{job_id}", summary="Erase a prediction job", status_code=status.HTTP_204_NO_CONTENT)
async def delete_prediction_job(
    job_id: UUID, jobs: PredictionJobsDep, principal: PrincipalDep, background: BackgroundTasks
) -> None:
    """End a job and erase its files. It no longer exists for its owner when the response is sent."""
    await jobs.delete(job_id, principal.id)
    # A background task is lost if the process ends before it has run. This one may be: files of erased jobs are also
    # removed regularly. A job itself must not be lost, so it is not a background task.
    background.add_task(jobs.remove_expired)


async def open_events(
    job: JobDep,
    jobs: PredictionJobsDep,
    principal: PrincipalDep,
    response: Response,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[contract.PredictionJob] | None:
    """The states of a job, up to the last; None for a reader who has had it already."""
    if last_event_id == LAST_EVENT:
        response.status_code = status.HTTP_204_NO_CONTENT
        return None
    return _states(job, jobs, principal.id)


async def _states(
    job: contract.PredictionJob, jobs: contract.PredictionJobs, owner: str
) -> AsyncIterator[contract.PredictionJob]:
    yield job
    while job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        await asyncio.sleep(LOOK_EVERY_S)
        before, job = job, await jobs.get(job.id, owner)
        if job != before:
            yield job


@router.get(
    "/{job_id}/events",
    summary="Follow a prediction job",
    response_class=EventSourceResponse,
    responses={204: {"description": "The reader has reconnected (`Last-Event-ID`) after the last event"}},
)
async def follow_prediction_job(
    request: Request, states: Annotated[AsyncIterator[contract.PredictionJob] | None, Depends(open_events)]
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events, each with the state of the job: several `progress`, then `succeeded` or `failed`.

    An `error` means that the stream has broken, and says nothing of the job. A reader who reconnects goes on with the
    present state; after the last event, the response is a 204, at which an `EventSource` stops reconnecting.
    """
    if states is None:
        return
    request.state.error_chunk = lambda error: format_sse_event(
        event="error", data_str=problem_document(request, error).model_dump_json()
    )
    try:
        async for job in states:
            is_over = job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED)
            yield ServerSentEvent(
                id=LAST_EVENT if is_over else str(job.progress.rows),
                event=job.status if is_over else "progress",
                data=PredictionJob.of(job),
            )
    except Exception as error:  # the status has already been sent
        log_failure(request, error)
        yield ServerSentEvent(event="error", data=problem_document(request, error))


# ------------------------------------------------------------------------------------------------------- the files


async def open_file(
    request: Request,
    job: JobDep,
    file: Annotated[
        JobFile, Path(description="`result`: the predictions; `errors`: what is wrong with the other rows.")
    ],
    jobs: PredictionJobsDep,
    if_none_match: Annotated[str | None, Header(description="The `ETag` of a file that the client has.")] = None,
    if_range: Annotated[str | None, Header(description="The `ETag` of a file of which the client has a part.")] = None,
    asked: Annotated[str | None, Header(alias="Range", description="Such as `bytes=1000-`: what it lacks.")] = None,
) -> AsyncIterator[Response]:
    """A response with a file, or with the part of it that the client asks for.

    Sources: RFC 9110, sections 13 and 14. Several ranges at once are ignored, which it allows.
    """
    if job.status is JobStatus.FAILED:
        raise HTTPException(status.HTTP_409_CONFLICT, f"the job has failed: {job.error}")
    if job.status is not JobStatus.SUCCEEDED:
        raise HTTPException(status.HTTP_409_CONFLICT, "the job has not ended yet", {"Retry-After": "1"})
    size = job.sizes[file]
    etag = f'"{job.id}"'  # the files of a job never change
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{job.id}-{file}.csv"',
    }
    if if_none_match is not None and has_content(etag, if_none_match):
        yield Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        return
    if request.method == "HEAD":
        yield Response(headers=headers | {"Content-Length": str(size)}, media_type=_CSV_TEXT)
        return
    part = _part(asked, size) if asked is not None and if_range in (None, etag) else None
    start, stop = part or (0, size)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    async with open_stream(jobs.read(job, file, start, stop)) as pieces:
        code = status.HTTP_206_PARTIAL_CONTENT if part else status.HTTP_200_OK
        yield StreamingResponse(pieces, code, headers, media_type=_CSV_TEXT)


def _part(asked: str, size: int) -> tuple[int, int] | None:
    """The first byte that a client asks for, and the one after the last; None for all of them.

    Raises:
        HTTPException: 416, the file is shorter.
    """
    found = _RANGE.fullmatch(asked)
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
        unsatisfied = {"Content-Range": f"bytes */{size}"}
        raise HTTPException(status.HTTP_416_RANGE_NOT_SATISFIABLE, f"the file has {size} bytes", unsatisfied)
    return (start, stop) if start < stop else None


_CONTENT = {"content": {CSV: {"schema": {"type": "string"}}}}


@router.head("/{job_id}/{file}", include_in_schema=False)
@router.get(
    "/{job_id}/{file}",
    summary="Fetch a file of a prediction job",
    response_class=StreamingResponse,
    responses={
        200: _CONTENT,
        206: {"description": "The part that `Range` asks for", **_CONTENT},
        304: {"description": "The client has this file: see `If-None-Match`"},
        **error_responses(409, 416),
    },
)
async def get_prediction_job_file(response: Annotated[Response, Depends(open_file)]) -> Response:
    """A CSV file, as often as it is wanted, whole or in part. `HEAD` is answered too.

    `result` has the rows with a prediction, with the columns `prediction`, `label`, `confidence` and `model_version` on
    top. All other cells are as they were sent: should a spreadsheet take some for formulas, import them as text.
    `errors` has `line`, `column` and `error`, for at most 10 000 mistakes.
    """
    return response
