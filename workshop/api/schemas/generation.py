"""Prompts and conversations for one language model, and its answers."""

from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import BaseModel, Field, model_validator

from workshop.api.errors import Problem
from workshop.api.schemas.base import Integer, StrictModel
from workshop.contracts.generator import Chunk, Completion, FinishReason, Message, Prompt, Role, Usage

MAX_MESSAGES = 256
MAX_TEXT = 100_000
"""Characters of a text. Whether they fit into its context, a model decides; a whole body has a limit of its own."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


class TextPart(StrictModel):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(StrictModel):
    """One message of a conversation. ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64, fail_fast=True)]
    name: str | None = None

    def to_message(self) -> Message:
        """Convert to the contract's type."""
        role: Role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role, text)


class _Generation(StrictModel):
    """Which model should answer, and how. Without ``model``, the service's default model does."""

    model: str | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Len(1, 4)] | None = None

    def _prompt(self, *messages: Message) -> Prompt:
        return Prompt(
            messages=messages,
            max_tokens=self.max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        )


class Conversation(_Generation):
    """A conversation to continue."""

    messages: Annotated[list[ChatMessage], Len(1, MAX_MESSAGES)]

    @model_validator(mode="after")
    def _check_messages(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if not self.messages[-1].to_message().content.strip():
            raise ValueError("the last message must not be blank")
        return self

    def to_prompt(self) -> Prompt:
        """Convert to the contract's type."""
        return self._prompt(*(message.to_message() for message in self.messages))


class Question(_Generation):
    """A single text to answer."""

    prompt: Annotated[Text, Field(min_length=1, pattern=r"\S")]

    def to_prompt(self) -> Prompt:
        """Convert to the contract's type."""
        return self._prompt(Message("user", self.prompt))


class TokenCounts(BaseModel):
    """Usage in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """From the contract's type."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class Generated(BaseModel):
    """A complete answer."""

    text: str
    model: str
    finish_reason: FinishReason
    usage: TokenCounts

    @classmethod
    def of(cls, completion: Completion, model: str) -> Self:
        """From the contract's type."""
        return cls(
            text=completion.text,
            model=model,
            finish_reason=completion.finish_reason,
            usage=TokenCounts.of(completion.usage),
        )


class AnswerLine(BaseModel):
    """One line of a streamed answer, with its next piece. The last line has ``finish_reason`` or ``error``."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: TokenCounts | None = None
    error: Problem | None = None

    @classmethod
    def of(cls, chunk: Chunk) -> Self:
        """From the contract's type."""
        usage = TokenCounts.of(chunk.usage) if chunk.finish_reason else None
        return cls(text=chunk.text, finish_reason=chunk.finish_reason, usage=usage)
