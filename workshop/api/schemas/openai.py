"""OpenAI's protocol: what its clients send and expect, as far as this service goes.

What it does not do (tools, images, several choices) is refused by name rather than ignored. Source: the OpenAI API
reference, chat completions, models and embeddings.
"""

import time
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from annotated_types import Len
from pydantic import BaseModel, Field, model_validator

from workshop.api.schemas.base import Integer, StrictModel, Whole
from workshop.api.schemas.generation import Conversation, Text, TokenCounts
from workshop.contracts.generator import Chunk, Completion, FinishReason, Token, Usage

MAX_EMBEDDINGS = 256


class ErrorDetail(BaseModel):
    """What went wrong. ``param`` names the first field that is wrong."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """An error as OpenAI's clients read it."""

    error: ErrorDetail


class StreamOptions(StrictModel):
    """``include_usage``: one more chunk at the end, with the usage and no choice."""

    include_usage: bool = False


class ChatRequest(Conversation):
    """A conversation to continue. Unlike OpenAI's, the default temperature is 0: the same answer every time."""

    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    # Clients send these; of the last three, only the one value that is served.
    user: str | None = None
    n: Annotated[Literal[1], Whole] | None = None
    presence_penalty: Annotated[Literal[0], Whole] | None = None
    frequency_penalty: Annotated[Literal[0], Whole] | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options goes with stream: true")
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
        """From the contract's values."""
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
    """A whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: TokenCounts

    @classmethod
    def of(cls, completion: Completion, request: ChatRequest) -> Self:
        """From the contract's value."""
        choice = Choice(
            message=AssistantMessage(content=completion.text),
            logprobs=Logprobs.of(completion.tokens) if request.logprobs else None,
            finish_reason=completion.finish_reason,
        )
        return cls(model=request.model, choices=[choice], usage=TokenCounts.of(completion.usage))


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
    """A piece of an answer that is streamed. All pieces of one answer have the same ``id`` and ``created``."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice] = []
    usage: TokenCounts | None = None

    def opening(self) -> "ChatChunk":
        """The first chunk: who speaks."""
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
        """The last chunk, for who asked for the usage."""
        return self.model_copy(update={"usage": TokenCounts.of(usage)})


class ModelEntry(BaseModel):
    """One model. ``context_length`` is of prompt and answer together, in tokens; None for an embedding,
    and while the model does not answer.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "workshop"
    context_length: int | None = None


class ModelList(BaseModel):
    """Every model that may be asked for."""

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
    """One vector: numbers, or little-endian 32-bit floats in base 64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Words stand for tokens: the default embedding has no others."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
