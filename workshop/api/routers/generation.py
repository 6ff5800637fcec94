"""A single language model, without OpenAI's protocol: an answer to a text, and a conversation as a stream."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event

from workshop.api.budget import AccountDep
from workshop.api.dependencies import LanguageDep, require_json
from workshop.api.errors import log_failure, problem_document
from workshop.api.routes import JsonRoute
from workshop.api.schemas.generation import AnswerLine, Conversation, Generated, Question
from workshop.api.streams import UNBUFFERED, open_stream
from workshop.contracts.generator import Chunk, collect

router = APIRouter(tags=["generation"], route_class=JsonRoute)

JSON_LINES = "application/jsonl"

_PIECE = AnswerLine.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
del _PIECE["$defs"]  # components, because other operations use them
_EVENT_DATA = {"type": "string", "contentMediaType": "application/json", "contentSchema": _PIECE}
_FORMATS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "itemSchema": {"type": "object", "required": ["data"], "properties": {"data": _EVENT_DATA}}
            },
            JSON_LINES: {"itemSchema": _PIECE},
        }
    }
}


@router.post("/generate", summary="Answer a text", dependencies=[Depends(require_json)])
async def generate(question: Question, account: AccountDep, language: LanguageDep) -> Generated:
    """One model answers a single text, without a conversation."""
    model = question.model or language.default_model
    return Generated.of(await collect(account.chat(model, question.to_prompt())), model)


async def open_conversation(
    conversation: Conversation, account: AccountDep, language: LanguageDep
) -> AsyncIterator[AsyncIterator[Chunk]]:
    """The answer, once its first piece has arrived. An error before that is an ordinary error response."""
    model = conversation.model or language.default_model
    async with open_stream(account.chat(model, conversation.to_prompt())) as chunks:
        yield chunks


@router.post(
    "/chat/stream",
    summary="Continue a conversation as events or JSON lines",
    dependencies=[Depends(require_json)],
    response_class=StreamingResponse,
    responses=_FORMATS,
)
async def stream_conversation(
    request: Request,
    chunks: Annotated[AsyncIterator[Chunk], Depends(open_conversation)],
    accept: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """The next piece of the answer in each event, or in each line for a client that accepts JSON lines.

    The answer is complete if the last piece has a `finish_reason`.
    """
    if any(kind in accept.lower() for kind in (JSON_LINES, "application/x-ndjson")):
        return StreamingResponse(_pieces(request, chunks, _line), media_type=JSON_LINES, headers=UNBUFFERED)
    return EventSourceResponse(_pieces(request, chunks, _event), headers=UNBUFFERED)


async def _pieces(
    request: Request, chunks: AsyncIterator[Chunk], encode: Callable[[AnswerLine], bytes]
) -> AsyncIterator[bytes]:
    def failure(error: Exception) -> bytes:
        return encode(AnswerLine(error=problem_document(request, error)))

    request.state.error_chunk = failure
    try:
        async for chunk in chunks:
            yield encode(AnswerLine.of(chunk))
    except Exception as error:  # the status has already been sent
        log_failure(request, error)
        yield failure(error)


def _line(piece: AnswerLine) -> bytes:
    return f"{piece.model_dump_json(exclude_none=True)}\n".encode()


def _event(piece: AnswerLine) -> bytes:
    return format_sse_event(data_str=piece.model_dump_json(exclude_none=True))
