"""Answers from sources, with a LangChain chain of prompt and model over our own contracts."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langsmith import tracing_context
from pydantic import SkipValidation

from workshop.contracts.errors import ModelFailedError, PromptTooLongError
from workshop.contracts.generator import FinishReason, Message, Prompt, Role, TextGenerator, Usage
from workshop.contracts.rag import RagAnswer, RagEvent, RagProgress
from workshop.contracts.retriever import Retriever
from workshop.models.prompts import sources_prompt

MAX_TOKENS = 256
UNSURE = RagAnswer(
    "I am not sure: nothing in my sources answers this question.", sources=(), model=None, usage=Usage(0, 0), sure=False
)

_ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}
_PROMPT = ChatPromptTemplate([("system", "{sources}"), ("human", "{question}")])
_NO_USAGE = Usage(0, 0)


def _difference(usage: Usage, before: Usage) -> Usage:
    return Usage(usage.prompt_tokens - before.prompt_tokens, usage.completion_tokens - before.completion_tokens)


class GeneratorChatModel(BaseChatModel):
    """A ``TextGenerator`` as a LangChain chat model that is asynchronous only.

    ``max_tokens``, ``temperature`` and ``top_p`` are as in ``Prompt``; a call, or ``bind``, may override them.
    """

    generator: SkipValidation[TextGenerator]
    model_name: str
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def _llm_type(self) -> str:
        return "text-generator"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        raise NotImplementedError("this model is asynchronous only: use ainvoke or astream")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        completion = await self.generator.complete(self._prompt(messages, stop, options))
        message = AIMessage(content=completion.text, **self._metadata(completion.finish_reason, completion.usage))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        before = _NO_USAGE
        async with aclosing(self.generator.stream(self._prompt(messages, stop, options))) as chunks:
            async for chunk in chunks:
                metadata = self._metadata(chunk.finish_reason, _difference(chunk.usage, before))
                yield ChatGenerationChunk(message=AIMessageChunk(content=chunk.text, **metadata))
                before = chunk.usage

    def _prompt(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> Prompt:
        turns = tuple(Message(_ROLES[message.type], message.text) for message in messages)
        defaults = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        return Prompt(turns, stop=tuple(stop or ()), **defaults | options)

    def _metadata(self, finish_reason: FinishReason | None, usage: Usage) -> dict[str, Any]:
        """The metadata of an answer, or of a piece: LangChain adds up the usage of pieces."""
        metadata: dict[str, Any] = {
            "usage_metadata": UsageMetadata(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            )
        }
        if finish_reason is not None:
            metadata["response_metadata"] = {"model_name": self.model_name, "finish_reason": finish_reason}
        return metadata


class Rag:
    """``QuestionAnswerer`` with a retriever and a language model.

    Args:
        retriever: finds the sources.
        generator: answers from them.
        model: the generator's name.
        threshold: score of the best source below which the model is not asked.
    """

    def __init__(self, retriever: Retriever, generator: TextGenerator, model: str, threshold: float) -> None:
        self._retriever = retriever
        self._model = model
        self._threshold = threshold
        self._reply = _PROMPT | GeneratorChatModel(generator=generator, model_name=model, max_tokens=MAX_TOKENS)

    async def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """See ``QuestionAnswerer.stream``. It uses as many of the sources as leave the model room to answer."""
        hits = await self._retriever.search(question, k)
        if not hits or hits[0].score < self._threshold:
            yield UNSURE
            return
        before = _NO_USAGE
        for n_sources in range(len(hits), 0, -1):
            sources = sources_prompt(hit.passage.text for hit in hits[:n_sources])
            reply = AIMessageChunk(content="")
            try:
                pieces = self._reply.astream({"sources": sources, "question": question})
                async with aclosing(_untraced(pieces)) as untraced:
                    async for piece in untraced:
                        reply = cast(AIMessageChunk, reply + piece)
                        yield RagProgress(self._model, _usage_of(before, reply))
            except PromptTooLongError:
                if n_sources > 1:
                    continue
                raise
            if "finish_reason" not in reply.response_metadata:
                raise ModelFailedError("the model's answer ended unexpectedly")
            before = _usage_of(before, reply)
            if not _is_cut_short(reply):
                break
        yield RagAnswer(reply.text, tuple(hits[:n_sources]), self._model, before, sure=True)


async def _untraced(pieces: AsyncIterator[BaseMessage]) -> AsyncGenerator[BaseMessage, None]:
    """The same pieces, never traced, whatever LangSmith's environment variables say: it never sees a question."""
    async with aclosing(cast(AsyncGenerator[BaseMessage, None], pieces)):
        while True:
            with tracing_context(enabled=False):  # only during a step: between steps, the context is the reader's
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece


def _usage_of(before: Usage, reply: AIMessage) -> Usage:
    metadata = reply.usage_metadata
    assert metadata is not None
    return Usage(before.prompt_tokens + metadata["input_tokens"], before.completion_tokens + metadata["output_tokens"])


def _is_cut_short(reply: AIMessage) -> bool:
    """Whether the context ended before the answer did."""
    assert reply.usage_metadata is not None
    return reply.response_metadata["finish_reason"] == "length" and reply.usage_metadata["output_tokens"] < MAX_TOKENS
