"""The unversioned routes of the earlier services, whose clients go on working unchanged.

They call what `/v1` calls, and translate. Nothing else in the service knows of them: without
``Settings.earlier_clients``, they do not exist.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Body, Depends, HTTPException, Query, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent, format_sse_event
from starlette import types
from starlette.datastructures import MutableHeaders

from workshop.api.budget import Account, AccountDep
from workshop.api.clock import now
from workshop.api.dependencies import (
    ClassifierDep,
    ClockDep,
    LanguageDep,
    ModelCardDep,
    UsageDep,
    limit_rate,
    requires,
)
from workshop.api.errors import log_failure, problem_document
from workshop.api.revalidation import NOT_MODIFIED
from workshop.api.routers.metrics import FORMATS, metrics
from workshop.api.routes import JsonRoute
from workshop.api.schemas.earlier import (
    EarlierBatchPrediction,
    EarlierChatAnswer,
    EarlierConversation,
    EarlierEvent,
    EarlierMetadata,
    EarlierPrediction,
    EarlierQuery,
    EarlierRagReply,
    EarlierStats,
    MaxTokens,
    NumberedBatch,
    NumberedMeasurements,
    Prompts,
    Response,
    Responses,
    ShortAnswer,
    Words,
    WordsInUrl,
)
from workshop.api.schemas.queries import MAX_WORDS, QueryAnswer
from workshop.api.schemas.rag import MAX_SOURCES
from workshop.api.schemas.tumours import to_rows
from workshop.api.streams import last_item, open_stream
from workshop.contracts import cascade
from workshop.contracts.cascade import Answer, CascadeEvent, Switch, TextPiece
from workshop.contracts.generator import Message as ChatMessage
from workshop.contracts.generator import Prompt, collect
from workshop.contracts.principals import Scope
from workshop.contracts.rag import RagAnswer

DEPRECATED_SINCE = datetime(2026, 1, 1, tzinfo=UTC)
SUNSET = datetime(2028, 1, 1, tzinfo=UTC)
"""When these routes may be removed."""

SUCCESSORS = {
    "/predict": "/v1/predict",
    "/batch-predict": "/v1/batch-predict",
    "/model/metadata": "/v1/model/metadata",
    "/model/features": "/v1/model/features",
    "/prometheus-metrics": "/metrics",
    "/query": "/v1/query",
    "/api/query": "/v1/query",
    "/api/query/stream": "/v1/query/stream",
    "/api/stats": "/v1/stats",
    "/chat": "/v1/chat/completions",
    "/batch": "/v1/batch",
    "/generate": "/v1/generate",
    "/rag/query": "/v1/rag/query",
}
"""The route that has replaced each one."""


class EarlierRoute(JsonRoute):
    """A deprecated route. Its responses, errors included, say so and name the successor. A 405 is not one of them.

    Sources: RFC 9745 (``Deprecation``), RFC 8594 (``Sunset``), RFC 8288 and 5829 (``Link``).
    """

    async def handle(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Starlette's, with headers added."""

        async def send_with_notice(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Deprecation"] = f"@{DEPRECATED_SINCE.timestamp():.0f}"
                headers["Sunset"] = format_datetime(SUNSET, usegmt=True)
                successor = f"{scope.get('root_path', '')}{SUCCESSORS[self.path]}"
                headers.append("Link", f'<{successor}>; rel="successor-version"')
            await send(message)

        await super().handle(scope, receive, send_with_notice)


def _router(scope: Scope) -> APIRouter:
    return APIRouter(
        tags=["earlier"],
        route_class=EarlierRoute,
        deprecated=True,
        dependencies=[Depends(limit_rate), requires(scope)],
    )


router = _router(Scope.PREDICT)
metrics_router = _router(Scope.USAGE_READ)
language_router = _router(Scope.GENERATE)
"""The routes that need language models."""
usage_router = _router(Scope.USAGE_READ)
"""The routes that need their records."""

# ------------------------------------------------------------------------------------------ the tumour classifier


@router.post("/predict", summary="Classify one tumour, for earlier clients")
async def predict_earlier(measurements: NumberedMeasurements, classifier: ClassifierDep) -> EarlierPrediction:
    """The 30 measurements by name, or as `feature_1` to `feature_30`."""
    [prediction] = EarlierPrediction.all_of(await classifier.predict(to_rows([measurements])))
    return prediction


@router.post("/batch-predict", summary="Classify several tumours, for earlier clients")
async def batch_predict_earlier(batch: NumberedBatch, classifier: ClassifierDep) -> EarlierBatchPrediction:
    """1 to 1000 tumours."""
    predictions = EarlierPrediction.all_of(await classifier.predict(to_rows(batch.records)))
    return EarlierBatchPrediction(predictions=predictions, total=len(predictions), timestamp=now())


@router.get("/model/metadata", summary="Describe the classifier to earlier clients", responses=NOT_MODIFIED)
async def metadata_earlier(card: ModelCardDep) -> EarlierMetadata:
    """Name, version, quality and classes."""
    return EarlierMetadata.of(card)


@router.get("/model/features", summary="List the names of the features", responses=NOT_MODIFIED)
async def features_earlier(card: ModelCardDep) -> list[str]:
    """In the order of the model's columns."""
    return [feature.name for feature in card.features]


metrics_router.get(
    "/prometheus-metrics",
    name="prometheus_metrics",
    summary="Export metrics at the earlier path",
    response_class=PlainTextResponse,
    responses=FORMATS,
)(metrics)

# ---------------------------------------------------------------------------------------------------- the cascade


@language_router.post("/query", summary="Ask a question in a URL, with a short answer")
async def query_earlier(
    text: Annotated[WordsInUrl, Query()], account: AccountDep, max_tokens: Annotated[MaxTokens, Query()] = 100
) -> ShortAnswer:
    """The cascade's answer."""
    answer = await _ask(account, cascade.Query(text, max_tokens))
    return ShortAnswer(content=answer.content, model=answer.model_used, cost=answer.cost)


@language_router.post("/api/query", summary="Ask a question, for earlier clients")
async def api_query(query: EarlierQuery, account: AccountDep) -> QueryAnswer:
    """The cascade's answer."""
    return QueryAnswer.model_validate(await _ask(account, query.to_query()))


@language_router.get("/api/query", summary="Ask a question in a URL, for earlier clients")
async def api_query_by_get(
    query: Annotated[Words, Query(max_length=500)], account: AccountDep, max_tokens: Annotated[MaxTokens, Query()] = 100
) -> QueryAnswer:
    """The cascade's answer."""
    return QueryAnswer.model_validate(await _ask(account, cascade.Query(query, max_tokens)))


async def open_earlier_stream(
    query: Annotated[WordsInUrl, Query()], account: AccountDep, max_tokens: Annotated[MaxTokens, Query()] = 200
) -> AsyncIterator[AsyncIterator[CascadeEvent]]:
    """The events of an answer, once the first has arrived."""
    _check_words(query)
    async with open_stream(account.ask(cascade.Query(query, max_tokens))) as events:
        yield events


@language_router.get(
    "/api/query/stream",
    summary="Ask a question and stream the answer as unnamed events",
    response_class=EventSourceResponse,
)
async def api_query_stream(
    request: Request, events: Annotated[AsyncIterator[CascadeEvent], Depends(open_earlier_stream)]
) -> AsyncIterator[ServerSentEvent]:
    """Events without names: several of type `chunk`, then one of type `complete` or `error`.

    The text of all chunks is the answer. These clients cannot discard a rejected draft, so a draft is sent only when it
    has been accepted.
    """
    request.state.error_chunk = lambda error: format_sse_event(data_str=_failure(request, error).model_dump_json())
    draft: list[str] = []
    is_final = False
    try:
        async for event in events:
            match event:
                case TextPiece() if is_final:
                    yield _chunk(event.text)
                case TextPiece():
                    draft.append(event.text)
                case Switch():
                    is_final = True
                    draft.clear()
                case Answer():
                    for text in draft:
                        yield _chunk(text)
                    yield ServerSentEvent(data=EarlierEvent.of_answer(event))
    except Exception as error:  # the status has already been sent
        log_failure(request, error)
        yield ServerSentEvent(data=_failure(request, error))


def _chunk(text: str) -> ServerSentEvent:
    return ServerSentEvent(data=EarlierEvent(type="chunk", content=text))


def _failure(request: Request, error: Exception) -> EarlierEvent:
    problem = problem_document(request, error)
    return EarlierEvent(type="error", content=problem.detail, data=problem.model_dump(mode="json"))


@usage_router.get("/api/stats", summary="Show the number of answers and their cost to earlier clients")
async def api_stats(usage: UsageDep, clock: ClockDep) -> EarlierStats:
    """For the whole service, and across restarts."""
    return EarlierStats.of(await usage.totals(), clock.uptime_s)


async def _ask(account: Account, query: cascade.Query) -> Answer:
    _check_words(query.text)
    answer = await last_item(account.ask(query))
    assert isinstance(answer, Answer)
    return answer


def _check_words(text: str) -> None:
    """Raise an error with status 400 for a text that `/v1` rejects with 422."""
    if (n_words := len(text.split())) > MAX_WORDS:
        detail = f"a question may have at most {MAX_WORDS} words, not {n_words}"
        raise HTTPException(status.HTTP_400_BAD_REQUEST, detail)


# ------------------------------------------------------------------------------------------- a single language model


@language_router.post("/chat", summary="Continue a conversation, or answer a message in a URL")
async def chat_earlier(
    account: AccountDep,
    language: LanguageDep,
    message: Annotated[WordsInUrl | None, Query()] = None,
    conversation: Annotated[EarlierConversation | None, Body()] = None,
) -> EarlierChatAnswer | Response:
    """With `message`, the response has no other field than `response`."""
    if message is not None:
        return Response(response=await _generate(account, language.default_model, message))
    if conversation is None:
        missing = {"type": "missing", "loc": ("body",), "msg": "Field required: a conversation, or message in the URL"}
        raise RequestValidationError([missing])
    model = conversation.model or language.default_model
    completion = await collect(account.chat(model, conversation.to_prompt()))
    return EarlierChatAnswer.of(completion, model, f"chat-{uuid4().hex}")


@language_router.post("/batch", summary="Answer several texts")
async def batch_earlier(prompts: Prompts, account: AccountDep, language: LanguageDep) -> Responses:
    """If one fails, all fail."""
    try:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(_generate(account, language.default_model, prompt)) for prompt in prompts]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return Responses(results=[call.result() for call in calls])


@language_router.post("/generate", summary="Answer a text in a URL")
async def generate_earlier(
    prompt: Annotated[WordsInUrl, Query()], account: AccountDep, language: LanguageDep
) -> Response:
    """The default model's answer."""
    return Response(response=await _generate(account, language.default_model, prompt))


async def _generate(account: Account, model: str, text: str) -> str:
    return (await collect(account.chat(model, Prompt((ChatMessage("user", text),))))).text


@language_router.post("/rag/query", summary="Ask a question about the sources in a URL")
async def rag_query_earlier(
    query: Annotated[WordsInUrl, Query()], account: AccountDep, k: Annotated[int, Query(ge=1, le=MAX_SOURCES)] = 5
) -> EarlierRagReply:
    """The answer, and the beginning of each source."""
    answer = await last_item(account.ask_sources(query, k))
    assert isinstance(answer, RagAnswer)
    return EarlierRagReply.of(answer)
