"""Questions to the cascade: one, a stream, a batch, and what all of them cost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Query, Request, Response, status
from fastapi.sse import EventSourceResponse, ServerSentEvent, format_sse_event

from workshop.api.budget import Account, AccountDep
from workshop.api.dependencies import CascadeDep, ClockDep, UsageDep, require_json
from workshop.api.errors import log_failure, problem_of
from workshop.api.routes import JsonRoute
from workshop.api.schemas.queries import (
    AnswerChunk,
    BatchItem,
    ModelSwitch,
    QueryAnswer,
    QueryBatch,
    QueryBatchAnswer,
    QueryBody,
    QueryParameters,
    Stats,
)
from workshop.api.streams import started
from workshop.contracts.cascade import Answer, CascadeEvent, Switch, TextPiece
from workshop.contracts.usage import UsageRecord

router = APIRouter(tags=["cascade"], route_class=JsonRoute)


@router.post("/query", summary="Ask a question", dependencies=[Depends(require_json)])
async def ask(body: QueryBody, cascade: CascadeDep, account: AccountDep, background: BackgroundTasks) -> QueryAnswer:
    """The draft model answers if it is sure enough, otherwise the main model."""
    answer = await cascade.answer(body.to_query())
    background.add_task(account.charge, _record(account, answer))
    return QueryAnswer.model_validate(answer)


@router.get("/query", summary="Ask a question in a URL")
async def ask_by_get(
    parameters: Annotated[QueryParameters, Query()],
    cascade: CascadeDep,
    account: AccountDep,
    background: BackgroundTasks,
    response: Response,
) -> QueryAnswer:
    """The same with the question in the URL. Each call is answered and charged anew."""
    response.headers["Cache-Control"] = "no-store"
    answer = await cascade.answer(parameters.to_query())
    background.add_task(account.charge, _record(account, answer))
    return QueryAnswer.model_validate(answer)


async def open_answer(
    parameters: Annotated[QueryParameters, Query()],
    cascade: CascadeDep,
    account: AccountDep,
    response: Response,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[AsyncIterator[CascadeEvent] | None]:
    """The events of an answer of which the first is there: what fails before it is an ordinary error response.

    When the reader has gone, for whatever reason, the models stop, and what they made is charged. A reader who comes
    back gets none: see ``stream_answer``.
    """
    if last_event_id:
        response.status_code = status.HTTP_204_NO_CONTENT
        yield None
        return
    so_far: Answer | None = None
    try:
        async with started(cascade.stream(parameters.to_query())) as stream:

            async def events() -> AsyncIterator[CascadeEvent]:
                nonlocal so_far
                try:
                    async for event in stream:
                        so_far = _so_far(event)
                        yield event
                except Exception:
                    so_far = None  # what fails costs nothing
                    raise

            yield events()
    finally:
        if so_far is not None:
            await account.charge(_record(account, so_far))


@router.get(
    "/query/stream",
    summary="Ask a question, and read the answer as events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The reader comes back (`Last-Event-ID`): there is nothing more to read"}},
)
async def stream_answer(
    request: Request, events: Annotated[AsyncIterator[CascadeEvent] | None, Depends(open_answer)]
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `chunk` by `chunk`, perhaps a `switch`, and `complete` or `error`.

    An answer cannot be resumed: nobody keeps it. A browser whose connection breaks, or that does not close it after
    `complete`, comes back with the `Last-Event-ID`; a second answer would differ and be charged again. So the
    service says 204, on which an `EventSource` closes for good. An answer without `complete` is not whole.
    """
    if events is None:
        return
    request.state.error_chunk = lambda error: format_sse_event(
        event="error", data_str=problem_of(request, error).model_dump_json()
    )
    number = 0
    try:
        async for event in events:
            number += 1
            yield _sse(event, number)
    except Exception as error:  # the status is sent long since
        log_failure(request, error)
        yield ServerSentEvent(id=str(number + 1), event="error", data=problem_of(request, error))


@router.post("/batch", summary="Ask several questions", dependencies=[Depends(require_json)])
async def ask_many(
    batch: QueryBatch, cascade: CascadeDep, account: AccountDep, background: BackgroundTasks, request: Request
) -> QueryBatchAnswer:
    """Up to 32 at the same time. A question that cannot be answered does not harm the others."""
    records: list[UsageRecord] = []

    async def answer_or_error(body: QueryBody) -> BatchItem:
        try:
            answer = await cascade.answer(body.to_query())
        except Exception as error:
            log_failure(request, error)
            return BatchItem(error=problem_of(request, error))
        records.append(_record(account, answer))
        return BatchItem(answer=QueryAnswer.model_validate(answer))

    results = await asyncio.gather(*map(answer_or_error, batch.queries))
    background.add_task(account.charge, *records)
    return QueryBatchAnswer.of(results)


@router.get("/stats", summary="Count the answers and their cost")
async def stats(usage: UsageDep, clock: ClockDep) -> Stats:
    """How many answers, by which models, at what price: of the whole service, across restarts."""
    return Stats.of(await usage.totals(), clock.uptime_s)


def _so_far(event: CascadeEvent) -> Answer:
    return event if isinstance(event, Answer) else event.so_far


def _record(account: Account, answer: Answer) -> UsageRecord:
    return account.record(
        answer.model_used,
        answer.usage,
        cost=answer.cost,
        latency_ms=answer.latency_ms,
        cascaded=answer.cascaded,
        draft_accepted=answer.draft_accepted,
    )


def _sse(event: CascadeEvent, number: int) -> ServerSentEvent:
    match event:
        case TextPiece():
            return ServerSentEvent(id=str(number), event="chunk", data=AnswerChunk.model_validate(event))
        case Switch():
            return ServerSentEvent(id=str(number), event="switch", data=ModelSwitch.model_validate(event))
        case Answer():
            return ServerSentEvent(id=str(number), event="complete", data=QueryAnswer.model_validate(event))
