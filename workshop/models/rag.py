"""Answers from sources, as a LangChain chain over our own contracts: retrieve, prompt, model, parse."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langsmith import tracing_context
from pydantic import SkipValidation

from workshop.contracts.errors import PromptTooLongError
from workshop.contracts.generator import FinishReason, Message, Prompt, Role, TextGenerator, Usage
from workshop.contracts.rag import RagAnswer
from workshop.contracts.retriever import Hit, Retriever
from workshop.models.prompts import sources_prompt

MAX_TOKENS = 256
UNSURE = RagAnswer(
    "I am not sure: nothing in my sources answers this question.", sources=(), model=None, usage=Usage(0, 0), sure=False
)

_ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}
_PROMPT = ChatPromptTemplate([("system", "{sources}"), ("human", "{question}")])


class GeneratorChatModel(BaseChatModel):
    """A ``TextGenerator`` as a LangChain chat model, for ``await`` only.

    ``max_tokens``, ``temperature`` and ``top_p`` are as in ``Prompt``; a call, or ``bind``, may give others.
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
        raise NotImplementedError("this model only answers ainvoke, astream and the like")

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
        async with aclosing(self.generator.stream(self._prompt(messages, stop, options))) as chunks:
            async for chunk in chunks:
                metadata = self._metadata(chunk.finish_reason, chunk.usage) if chunk.finish_reason else {}
                yield ChatGenerationChunk(message=AIMessageChunk(content=chunk.text, **metadata))

    def _prompt(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> Prompt:
        turns = tuple(Message(_ROLES[message.type], message.text) for message in messages)
        defaults = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        return Prompt(turns, stop=tuple(stop or ()), **defaults | options)

    def _metadata(self, finish_reason: FinishReason, usage: Usage | None) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "response_metadata": {"model_name": self.model_name, "finish_reason": finish_reason}
        }
        if usage is not None:
            metadata["usage_metadata"] = UsageMetadata(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            )
        return metadata


class Rag:
    """``QuestionAnswerer`` of a retriever and a language model.

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
        self._chain = RunnablePassthrough.assign(hits=RunnableLambda(self._retrieve)) | RunnableBranch(
            (self._is_relevant, RunnableLambda(self._answer_from_sources)), RunnableLambda(lambda _: UNSURE)
        )

    async def answer(self, question: str, k: int) -> RagAnswer:
        """See ``QuestionAnswerer.answer``."""
        # Whatever LangSmith's environment variables say: what people ask here goes to no one else.
        with tracing_context(enabled=False):
            answer: RagAnswer = await self._chain.ainvoke({"question": question, "k": k})
        return answer

    async def _retrieve(self, asked: dict[str, Any]) -> list[Hit]:
        return await self._retriever.search(asked["question"], asked["k"])

    def _is_relevant(self, asked: dict[str, Any]) -> bool:
        return bool(asked["hits"]) and asked["hits"][0].score >= self._threshold

    async def _answer_from_sources(self, asked: dict[str, Any]) -> RagAnswer:
        """From as many of the sources as leave the model room to answer."""
        hits: list[Hit] = asked["hits"]
        usage: UsageMetadata | None = None
        for n_sources in range(len(hits), 0, -1):
            sources = sources_prompt(hit.passage.text for hit in hits[:n_sources])
            try:
                reply = await self._reply.ainvoke({"sources": sources, "question": asked["question"]})
            except PromptTooLongError:
                if n_sources > 1:
                    continue
                raise
            usage = add_usage(usage, reply.usage_metadata)
            if not _is_cut_short(reply):
                break
        assert usage is not None
        tokens = Usage(usage["input_tokens"], usage["output_tokens"])
        return RagAnswer(reply.text, tuple(hits[:n_sources]), self._model, tokens, sure=True)


def _is_cut_short(reply: AIMessage) -> bool:
    """Whether the context ended before the answer did."""
    assert reply.usage_metadata is not None
    return reply.response_metadata["finish_reason"] == "length" and reply.usage_metadata["output_tokens"] < MAX_TOKENS
