"""Chat completions, models and embeddings in OpenAI's protocol, including its error format."""

import base64
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event

from workshop.api.budget import AccountDep
from workshop.api.dependencies import LanguageDep, require_json
from workshop.api.errors import Explanation, error_responses, explain, log_failure
from workshop.api.revalidation import NOT_MODIFIED
from workshop.api.routes import ProtocolRoute
from workshop.api.schemas.openai import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
    ErrorAnswer,
    ErrorDetail,
    ModelEntry,
    ModelList,
)
from workshop.api.streams import UNBUFFERED, open_stream
from workshop.contracts.errors import NotFoundError
from workshop.contracts.generator import Chunk, collect
from workshop.contracts.services import cards

_CODES = {"PromptTooLongError": "context_length_exceeded", "NotFoundError": "model_not_found"}


class OpenAIRoute(ProtocolRoute):
    """A route that reports errors in OpenAI's format, so that its clients raise the right exception and message."""

    def error_response(self, request: Request, explanation: Explanation) -> JSONResponse:
        """The response to an error."""
        return JSONResponse(openai_error(explanation), explanation.status, dict(explanation.headers or {}))


def openai_error(explanation: Explanation) -> dict[str, Any]:
    """The body of an error response."""
    is_ours = explanation.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    detail = ErrorDetail(
        message=explanation.text,
        type="server_error" if is_ours else "invalid_request_error",
        param=explanation.details[0].field if explanation.details else None,
        code=_CODES.get(explanation.error, explanation.error),
    )
    return ErrorAnswer(error=detail).model_dump()


router = APIRouter(
    tags=["openai"],
    route_class=OpenAIRoute,
    responses=error_responses(
        400, 401, 402, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504, answer={"model": ErrorAnswer}
    ),
)


async def choose_model(body: ChatRequest, language: LanguageDep) -> str:
    """The model that should answer."""
    return body.model or language.default_model


ModelDep = Annotated[str, Depends(choose_model)]


async def open_chat(
    body: ChatRequest, model: ModelDep, account: AccountDep
) -> AsyncIterator[AsyncIterator[Chunk] | None]:
    """The answer's chunks for a streaming request, else None."""
    if not body.stream:
        yield None
        return
    async with open_stream(account.chat(model, body.to_prompt())) as chunks:
        yield chunks


@router.post(
    "/chat/completions",
    summary="Continue a conversation",
    dependencies=[Depends(require_json)],
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def create_chat_completion(
    body: ChatRequest,
    model: ModelDep,
    chunks: Annotated[AsyncIterator[Chunk] | None, Depends(open_chat)],
    account: AccountDep,
    request: Request,
) -> ChatCompletion | StreamingResponse:
    """The answer as one JSON object or, with `stream`, as server-sent events that end with `[DONE]`."""
    if chunks is not None:
        request.state.error_chunk = _error_event
        return EventSourceResponse(_chat_events(chunks, model, body, request), headers=UNBUFFERED)
    completion = await collect(account.chat(model, body.to_prompt()))
    return ChatCompletion.of(completion, model, logprobs=bool(body.logprobs))


async def _chat_events(
    chunks: AsyncIterator[Chunk], model: str, body: ChatRequest, request: Request
) -> AsyncIterator[bytes]:
    answer = ChatChunk(model=model)
    try:
        yield _event(answer.opening())
        async for chunk in chunks:
            yield _event(answer.text(chunk, logprobs=bool(body.logprobs)))
            if chunk.finish_reason and body.stream_options and body.stream_options.include_usage:
                yield _event(answer.closing(chunk.usage))
    except Exception as error:
        # The status has already been sent. OpenAI's clients raise an exception for an error event.
        log_failure(request, error)
        yield _error_event(error)
        return
    yield format_sse_event(data_str="[DONE]")


def _error_event(error: Exception) -> bytes:
    return format_sse_event(data_str=json.dumps(openai_error(explain(error))))


def _event(chunk: ChatChunk) -> bytes:
    return format_sse_event(data_str=chunk.model_dump_json(exclude_none=True))


@router.get("/models", summary="List the models", responses=NOT_MODIFIED)
async def list_models(language: LanguageDep) -> ModelList:
    """All available models, including the embedding. A model that does not answer now has no context length."""
    found = await cards(language.generators)
    lengths = {name: found[name].context_length if name in found else None for name in language.generators}
    entries = [ModelEntry(id=name, context_length=length) for name, length in lengths.items()]
    return ModelList(data=[*entries, ModelEntry(id=language.embedding)])


@router.get("/models/{model:path}", summary="Describe a model", responses=NOT_MODIFIED)
async def retrieve_model(model: str, language: LanguageDep) -> ModelEntry:
    """The model's name and context length."""
    for entry in (await list_models(language)).data:
        if entry.id == model:
            return entry
    raise NotFoundError(f"there is no model {model}")


@router.post("/embeddings", summary="Embed texts", dependencies=[Depends(require_json)])
async def create_embeddings(body: EmbeddingRequest, language: LanguageDep) -> EmbeddingList:
    """Up to 256 texts as vectors of length 1."""
    if body.model != language.embedding:
        raise NotFoundError(f"there is no embedding {body.model}; available: {language.embedding}")
    vectors = (await language.retriever.embed(body.texts)).astype("<f4")
    n_words = sum(len(text.split()) for text in body.texts)
    return EmbeddingList(
        data=[Embedding(index=i, embedding=_encode(row, body.encoding_format)) for i, row in enumerate(vectors)],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=n_words, total_tokens=n_words),
    )


def _encode(vector: np.ndarray[Any, np.dtype[np.float32]], encoding: str) -> list[float] | str:
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()
