"""A language model as its callers see it."""

import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workshop.contracts.errors import ModelFailedError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked, and how it shall answer.

    Attributes:
        messages: the conversation so far, at least one turn.
        max_tokens: length limit of the answer; None for as much as fits into the model's context.
        temperature: 0 takes the most probable token each time; above it, tokens are drawn, the more freely the higher.
        top_p: tokens are drawn from the most probable ones that hold this share of the probability, 0 < top_p <= 1.
        stop: texts that end the answer and do not appear in it.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, and the natural logarithm of the probability that it was chosen with."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took, in tokens."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of an answer.

    Attributes:
        text: continues the text so far; may be empty.
        tokens: the tokens behind it; several, when the reader is slower than the model.
        finish_reason: in the last chunk, why the answer ends; None before.
        usage: what the answer has taken so far, its whole prompt included: the price of an answer that ends here. Only
            in the last chunk is it more than an estimate, if the model runs on a server that tells it no earlier.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class GeneratorCard:
    """What a language model says of itself: ``context_length`` is of prompt and answer together, in tokens."""

    name: str
    context_length: int


@dataclass(frozen=True, slots=True)
class Activity:
    """What one replica of a model has done since it started.

    Attributes:
        running: answers under way.
        completed: answers that reached their end.
        cancelled: answers that were given up because nobody wanted the rest.
        generated_tokens: tokens that the model made, those of cancelled answers included.
        process: id of the replica's process, which tells replicas apart.
    """

    running: int
    completed: int
    cancelled: int
    generated_tokens: int
    process: int = field(default_factory=os.getpid)


class TextGenerator(Protocol):
    """Answers prompts."""

    async def complete(self, prompt: Prompt) -> Completion:
        """The whole answer. Cancelling the call stops the model.

        Raises:
            PromptTooLongError: prompt and answer do not fit into the model's context.
            InvalidInputError: the model cannot take such a conversation, for instance one with a system message.
            UnavailableError, DeadlineExceededError, ModelFailedError: see their docstrings.
        """
        ...

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """The answer while it comes. Closing the stream stops the model. Raises as ``complete`` does."""
        ...

    async def card(self) -> GeneratorCard:
        """The card of the model. Doubles as the readiness probe."""
        ...

    async def activity(self) -> Activity:
        """The counters of the replica that answers the call."""
        ...

    async def aclose(self) -> None:
        """Give back what the generator holds open."""
        ...


async def collect(stream: AsyncGenerator[Chunk, None]) -> Completion:
    """A stream's chunks as one completion."""
    texts, tokens = [], list[Token]()
    async for chunk in stream:
        texts.append(chunk.text)
        tokens += chunk.tokens
        if chunk.finish_reason:
            return Completion("".join(texts), tuple(tokens), chunk.finish_reason, chunk.usage)
    raise ModelFailedError("the model's answer has no end")
