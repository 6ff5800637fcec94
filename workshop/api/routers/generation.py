"""A single language model, without OpenAI's protocol: an answer to a text, and a conversation as JSON lines."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from workshop.api.budget import AccountDep
from workshop.api.dependencies import LanguageDep, require_json
from workshop.api.errors import log_failure, problem_document
from workshop.api.routes import JsonRoute
from workshop.api.schemas.generation import AnswerLine, Conversation, Generated, Question
from workshop.api.streams import open_stream
from workshop.contracts.generator import Chunk, collect

router = APIRouter(tags=["generation"], route_class=JsonRoute)


@router.post("/generate", summary="Answer a text", dependencies=[Depends(require_json)])
async def generate(question: Question, account: AccountDep, language: LanguageDep) -> Generated:
    """One model answers a single text, without a conversation."""
    model = question.model or language.default_model
    return Generated.of(await collect(account.chat(model, question.to_prompt())), model)


async def open_conversation(
    conversation: Conversation, account: AccountDep, language: LanguageDep, response: Response
) -> AsyncIterator[AsyncIterator[Chunk]]:
    """The answer, once its first piece has arrived. An error before that is an ordinary error response."""
    response.headers["X-Accel-Buffering"] = "no"  # FastAPI sets this header for events only
    model = conversation.model or language.default_model
    async with open_stream(account.chat(model, conversation.to_prompt())) as chunks:
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
    """Each line is the next piece of the answer. The answer is complete if the last line has a `finish_reason`."""
    request.state.error_chunk = lambda error: f"{_error_line(request, error).model_dump_json()}\n".encode()
    try:
        async for chunk in chunks:
            yield AnswerLine.of(chunk)
    except Exception as error:  # the status has already been sent
        log_failure(request, error)
        yield _error_line(request, error)


def _error_line(request: Request, error: Exception) -> AnswerLine:
    return AnswerLine(error=problem_document(request, error))
