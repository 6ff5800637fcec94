"""Questions to the cascade: one answer, a stream or a batch."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.sse import EventSourceResponse, ServerSentEvent, format_sse_event
from pydantic import ValidationError

from workshop.api.budget import Account, AccountDep
from workshop.api.dependencies import require_json
from workshop.api.errors import log_failure, problem_document
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
)
from workshop.api.streams import last_item, open_stream
from workshop.contracts.cascade import Answer, CascadeEvent, Switch, TextPiece

router = APIRouter(tags=["cascade"], route_class=JsonRoute)


@router.post("/query", summary="Ask a question", dependencies=[Depends(require_json)])
async def ask(body: QueryBody, account: AccountDep) -> QueryAnswer:
    """The draft model answers if it is sure enough, otherwise the main model."""
    return await _answer(account, body)


@router.get("/query", summary="Ask a question in a URL")
async def ask_by_get(
    parameters: Annotated[QueryParameters, Query()], account: AccountDep, response: Response
) -> QueryAnswer:
    """The same, with the question in the URL. Each call is answered and charged again."""
    response.headers["Cache-Control"] = "no-store"
    return await _answer(account, parameters)


async def open_answer(
    parameters: Annotated[QueryParameters, Query()],
    account: AccountDep,
    response: Response,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[AsyncIterator[CascadeEvent] | None]:
    """The events of an answer, once the first has arrived. An error before that is an ordinary error response.

    None for a reader who reconnects: see ``stream_answer``.
    """
    if last_event_id:
        response.status_code = status.HTTP_204_NO_CONTENT
        yield None
        return
    async with open_stream(account.ask(parameters.to_query())) as events:
        yield events


@router.get(
    "/query/stream",
    summary="Ask a question and stream the answer as events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The reader has reconnected (`Last-Event-ID`): there are no more events"}},
)
async def stream_answer(
    request: Request, events: Annotated[AsyncIterator[CascadeEvent] | None, Depends(open_answer)]
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: several `chunk` events, possibly a `switch`, then `complete` or `error`.

    An answer cannot be resumed, because it is not stored. A browser whose connection breaks, or that does not close it
    after `complete`, reconnects with `Last-Event-ID`. A second answer would differ and be charged again, so the service
    responds with 204, and the `EventSource` stops reconnecting. An answer without `complete` is incomplete.
    """
    if events is None:
        return
    request.state.error_chunk = lambda error: format_sse_event(
        event="error", data_str=problem_document(request, error).model_dump_json()
    )
    number = 0
    try:
        async for event in events:
            number += 1
            yield _sse(event, number)
    except Exception as error:  # the status has already been sent
        log_failure(request, error)
        yield ServerSentEvent(id=str(number + 1), event="error", data=problem_document(request, error))


@router.post("/batch", summary="Ask several questions", dependencies=[Depends(require_json)])
async def ask_many(batch: QueryBatch, account: AccountDep, request: Request) -> QueryBatchAnswer:
    """Up to 32 questions, answered concurrently. An invalid or failing question does not affect the others."""

    async def answer_or_error(question: QueryBody | ValidationError) -> BatchItem:
        try:
            if isinstance(question, ValidationError):
                raise RequestValidationError(
                    [item | {"loc": ("body", *item["loc"])} for item in question.errors(include_url=False)]
                )
            return BatchItem(answer=await _answer(account, question))
        except Exception as error:
            log_failure(request, error)
            return BatchItem(error=problem_document(request, error))

    return QueryBatchAnswer.of(await asyncio.gather(*map(answer_or_error, batch.queries)))


async def _answer(account: Account, question: QueryParameters) -> QueryAnswer:
    return QueryAnswer.model_validate(await last_item(account.ask(question.to_query())))


def _sse(event: CascadeEvent, number: int) -> ServerSentEvent:
    match event:
        case TextPiece():
            return ServerSentEvent(id=str(number), event="chunk", data=AnswerChunk.model_validate(event))
        case Switch():
            return ServerSentEvent(id=str(number), event="switch", data=ModelSwitch.model_validate(event))
        case Answer():
            return ServerSentEvent(id=str(number), event="complete", data=QueryAnswer.model_validate(event))
