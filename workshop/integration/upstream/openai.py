"""Language models and embeddings on any server that speaks OpenAI's protocol."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import openai
from openai import AsyncOpenAI, AsyncStream, omit
from openai.types.chat import ChatCompletionChunk
from pydantic import AliasChoices, Field, FiniteFloat

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.errors import UnavailableError
from workshop.contracts.generator import FinishReason, GeneratorCard, Prompt, Token
from workshop.contracts.services import PROBE_TIMEOUT_S
from workshop.integration.deadline import deadline
from workshop.integration.upstream.client import CLIENT_OPTIONS, CONNECT_TIMEOUT_S, MAX_RETRIES
from workshop.integration.upstream.errors import contract_errors
from workshop.integration.upstream.generator import Event, Received, TokenCount, UpstreamGenerator

DEFAULT_CONTEXT_LENGTH = 8192
MAX_TEXTS = 32
"""In one request. Hugging Face's server takes no more by default, and OpenAI's no more tokens than they may have."""

_LENGTH_REASONS = {"length", "max_tokens", "model_length"}


class OpenAIGenerator(UpstreamGenerator):
    """A language model of OpenAI, vLLM, Ollama, llama.cpp, or this service itself.

    If a server returns no log-probabilities, ``tokens`` is empty. Its model can be the main model of a cascade, but not
    the draft: a draft's quality is computed from them, and is 0 without them.

    Args:
        base_url: up to and including ``/v1``.
        model, needs_logprobs: see ``UpstreamGenerator``.
        api_key: if the server wants one.
        timeout_s: how long the server may be silent before a retry. ``WithDeadline`` limits the wait with all retries.
        max_retries: how often a request is repeated.
        context_length: used if the server does not report it; OpenAI's does not.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout_s: float,
        max_retries: int = MAX_RETRIES,
        context_length: int = DEFAULT_CONTEXT_LENGTH,
        needs_logprobs: bool = False,
    ) -> None:
        super().__init__(model, needs_logprobs=needs_logprobs)
        self._client = _client(base_url, api_key, timeout_s, max_retries)
        self._timeout_s = timeout_s
        self._context_length = context_length
        self._has_logprobs = True

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``: asks the server for its models.

        Raises:
            UnavailableError: ours is not among them.
        """
        client = self._client.with_options(timeout=PROBE_TIMEOUT_S, max_retries=0)
        with contract_errors(openai, self._name, PROBE_TIMEOUT_S):
            models = _Models.model_validate(await client.get("/models", cast_to=object))
        for model in models.data:
            if model.id == self._model:
                return GeneratorCard(self._name, model.context_length or self._context_length)
        raise UnavailableError(f"the server of {self._name} has no model {self._model}: check it in the settings")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _events(self, prompt: Prompt) -> AsyncGenerator[Event, None]:
        with contract_errors(openai, self._name, self._timeout_s):
            async with await self._ask(prompt) as chunks:
                async for chunk in chunks:
                    yield _Chunk.model_validate(chunk, from_attributes=True).to_event()

    async def _ask(self, prompt: Prompt) -> AsyncStream[ChatCompletionChunk]:
        try:
            return await self._create(prompt, logprobs=self._has_logprobs)
        except openai.APIStatusError as error:
            if not self._has_logprobs or "logprobs" not in str(error):
                raise
        stream = await self._create(prompt, logprobs=False)
        self._has_logprobs = False  # now it is certain that nothing else was wrong with the request
        return stream

    async def _create(self, prompt: Prompt, *, logprobs: bool) -> AsyncStream[ChatCompletionChunk]:
        messages: list[Any] = [asdict(message) for message in prompt.messages]
        return await self._client.chat.completions.create(
            model=self._model,
            messages=messages,
            # OpenAI now calls it max_completion_tokens, which many other servers do not accept.
            max_tokens=prompt.max_tokens or omit,
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            stop=list(prompt.stop) or omit,
            logprobs=logprobs or omit,
            stream=True,
            stream_options={"include_usage": True},
        )


class OpenAIEmbedding:
    """An ``Embedding`` of OpenAI, vLLM, Hugging Face's text-embeddings-inference, or this service itself.

    Args:
        base_url, model, api_key, max_retries: see ``OpenAIGenerator``.
        timeout_s: for ``MAX_TEXTS`` texts, all retries included.
    """

    def __init__(
        self, base_url: str, model: str, api_key: str | None, *, timeout_s: float, max_retries: int = MAX_RETRIES
    ) -> None:
        self.name = model.rpartition("/")[2]
        self._client = _client(base_url, api_key, timeout_s, max_retries)
        self._model = model
        self._timeout_s = timeout_s

    async def project(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Embedding.project``. All vectors have length 1."""
        with contract_errors(openai, self.name, self._timeout_s):
            batches = [texts[start : start + MAX_TEXTS] for start in range(0, len(texts), MAX_TEXTS)]
            vectors = np.concatenate([await self._embed(batch) for batch in batches])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths, lengths, 1.0)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _embed(self, texts: Sequence[str]) -> FloatMatrix:
        async with deadline(self._timeout_s):
            # By default, the client requests Base64, which not every server knows.
            answer = await self._client.embeddings.create(model=self._model, input=list(texts), encoding_format="float")
        found = sorted(_Embeddings.model_validate(answer, from_attributes=True).data, key=lambda item: item.index)
        if [item.index for item in found] != list(range(len(texts))):
            raise ValueError("it should be a vector for each text")
        return np.array([item.embedding for item in found])


def _client(base_url: str, api_key: str | None, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=base_url,
        # Without a key, the client would send OPENAI_API_KEY: the settings decide who gets it.
        api_key=api_key or "anonymous",
        timeout=openai.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        max_retries=max_retries,
        http_client=openai.DefaultAsyncHttpxClient(**CLIENT_OPTIONS),
    )


class _Logprob(Received):
    token: str
    logprob: FiniteFloat


class _Logprobs(Received):
    content: list[_Logprob] | None = None


class _Delta(Received):
    content: str | None = None


class _Choice(Received):
    delta: _Delta
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(Received):
    prompt_tokens: TokenCount
    completion_tokens: TokenCount


class _Chunk(Received):
    choices: list[_Choice]
    usage: _Usage | None = None  # with the finish reason, or in a chunk after it

    def to_event(self) -> Event:
        """The one choice that was requested, if this chunk has it, and the usage."""
        text, tokens = "", list[Token]()
        reason: FinishReason | None = None
        for choice in self.choices:
            text += choice.delta.content or ""
            content = choice.logprobs.content if choice.logprobs else None
            tokens += [Token(token.token, token.logprob) for token in content or ()]
            if choice.finish_reason:
                reason = "length" if choice.finish_reason in _LENGTH_REASONS else "stop"
        usage = (self.usage.prompt_tokens, self.usage.completion_tokens) if self.usage else (None, None)
        return Event(text, tuple(tokens), reason, *usage)


class _Model(Received):
    id: str
    context_length: int | None = Field(None, validation_alias=AliasChoices("context_length", "max_model_len"))


class _Models(Received):
    data: list[_Model]


class _Embedding(Received):
    index: int
    embedding: Annotated[list[FiniteFloat], Field(min_length=1)]


class _Embeddings(Received):
    data: list[_Embedding]
