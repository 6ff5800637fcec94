"""The part of OpenAI's protocol that this service supports.

Unsupported parameters (tools, images, several choices) are rejected by name rather than ignored. Source: the OpenAI API
reference, chat completions, models and embeddings.
"""

import time
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from annotated_types import Len
from pydantic import BaseModel, Field, model_validator

from workshop.api.schemas.base import AcceptIntegralFloat, Integer, StrictModel
from workshop.api.schemas.generation import Conversation, Text, TokenCounts
from workshop.contracts.generator import Chunk, Completion, FinishReason, Token, Usage

MAX_EMBEDDINGS = 256


class ErrorDetail(BaseModel):
    """What went wrong. ``param`` names the first invalid field."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """An error in OpenAI's format."""

    error: ErrorDetail


class StreamOptions(StrictModel):
    """``include_usage``: send one more chunk at the end, with the usage and no choices."""

    include_usage: bool = False


class ChatRequest(Conversation):
    """A conversation to continue. Unlike OpenAI's, the default temperature is 0, so answers are reproducible."""

    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    # Clients send these. Of the last three, only one value is supported.
    user: str | None = None
    n: Annotated[Literal[1], AcceptIntegralFloat] | None = None
    presence_penalty: Annotated[Literal[0], AcceptIntegralFloat] | None = None
    frequency_penalty: Annotated[Literal[0], AcceptIntegralFloat] | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options requires stream: true")
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self


class TokenLogprob(BaseModel):
    """One token with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any] = []


class Logprobs(BaseModel):
    """The tokens of a text."""

    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: tuple[Token, ...]) -> Self:
        """From the contract's type."""
        return cls(
            content=[
                TokenLogprob(token=token.text, logprob=token.logprob, bytes=list(token.text.encode()))
                for token in tokens
            ]
        )


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer."""

    index: int = 0
    message: AssistantMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class _Answer(BaseModel):
    id: str = Field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str


class ChatCompletion(_Answer):
    """A complete answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: TokenCounts

    @classmethod
    def of(cls, completion: Completion, model: str, *, logprobs: bool) -> Self:
        """From the contract's type."""
        choice = Choice(
            message=AssistantMessage(content=completion.text),
            logprobs=Logprobs.of(completion.tokens) if logprobs else None,
            finish_reason=completion.finish_reason,
        )
        return cls(model=model, choices=[choice], usage=TokenCounts.of(completion.usage))


class Delta(BaseModel):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The next piece of the one answer."""

    index: int = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(_Answer):
    """A piece of a streamed answer. All pieces of one answer have the same ``id`` and ``created``."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice] = []
    usage: TokenCounts | None = None

    def opening(self) -> "ChatChunk":
        """The first chunk, with the role."""
        return self.model_copy(update={"choices": [ChunkChoice(delta=Delta(role="assistant", content=""))]})

    def text(self, chunk: Chunk, *, logprobs: bool) -> "ChatChunk":
        """A piece of text."""
        choice = ChunkChoice(
            delta=Delta(content=chunk.text),
            logprobs=Logprobs.of(chunk.tokens) if logprobs else None,
            finish_reason=chunk.finish_reason,
        )
        return self.model_copy(update={"choices": [choice]})

    def closing(self, usage: Usage) -> "ChatChunk":
        """The last chunk, with the usage."""
        return self.model_copy(update={"usage": TokenCounts.of(usage)})


class ModelEntry(BaseModel):
    """One model.

    ``context_length`` is the limit for prompt and answer together, in tokens. It is null for an embedding, and while
    the model does not answer.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "workshop"
    context_length: int | None = None


class ModelList(BaseModel):
    """All available models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class EmbeddingRequest(StrictModel):
    """Texts to embed."""

    model: str
    user: str | None = None
    input: Text | Annotated[list[Text], Len(1, MAX_EMBEDDINGS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None

    @property
    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(text.strip() for text in self.texts):
            raise ValueError("a text to embed must not be blank")
        return self


class Embedding(BaseModel):
    """One vector: numbers, or little-endian 32-bit floats in Base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """The number of words: the default embedding has no other tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
