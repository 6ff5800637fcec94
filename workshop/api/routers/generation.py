"""One language model, without OpenAI's protocol: a text for a text, and a conversation as JSON lines."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from workshop.api.budget import AccountDep
from workshop.api.dependencies import require_json
from workshop.api.errors import log_failure, problem_of
from workshop.api.routes import JsonRoute
from workshop.api.schemas.generation import AnswerLine, Conversation, Generated, Question
from workshop.api.streams import started
from workshop.contracts.generator import Chunk, collect

router = APIRouter(tags=["generation"], route_class=JsonRoute)


@router.post("/generate", summary="Answer a text", dependencies=[Depends(require_json)])
async def generate(question: Question, account: AccountDep) -> Generated:
    """One model answers a single text, without a conversation."""
    completion = await collect(account.chat(question.model, question.to_prompt()))
    return Generated.of(completion, question.model)


async def open_conversation(
    conversation: Conversation, account: AccountDep, response: Response
) -> AsyncIterator[AsyncIterator[Chunk]]:
    """An answer of which the first piece is there: what fails before it is an ordinary error response."""
    response.headers["X-Accel-Buffering"] = "no"  # FastAPI says so of events only
    async with started(account.chat(conversation.model, conversation.to_prompt())) as chunks:
        yield chunks


@router.post(
    "/chat/stream",
    summary="Continue a conversation as JSON lines",
    dependencies=[Depends(require_json)],
    response_model_exclude_none=True,
)
async def stream_conversation(
    request: Request, chunks: Annotated[AsyncIterator[Chunk], Depends(open_conversation)]
) -> AsyncIterator[AnswerLine]:
    """Each line is the next piece of the answer. Unless the last one has a `finish_reason`, the answer is not whole."""
    request.state.error_chunk = lambda error: f"{_error_line(request, error).model_dump_json()}\n".encode()
    try:
        async for chunk in chunks:
            yield AnswerLine.of(chunk)
    except Exception as error:  # the status is sent long since
        log_failure(request, error)
        yield _error_line(request, error)


def _error_line(request: Request, error: Exception) -> AnswerLine:
    return AnswerLine(error=problem_of(request, error))
