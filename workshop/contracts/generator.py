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
    """A conversation for a model to answer, and how to answer it.

    Attributes:
        messages: the conversation so far, at least one turn.
        max_tokens: length limit of the answer; None for as long as the model's context allows.
        temperature: 0 always takes the most probable token; higher values sample more freely.
        top_p: sample from the most probable tokens that together have this probability, 0 < top_p <= 1.
        stop: texts that end the answer and do not appear in it.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, and the natural logarithm of the probability with which it was chosen."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Usage:
    """The size of a prompt and its answer, in tokens."""

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
        tokens: the tokens of the text; several if the reader is slower than the model.
        finish_reason: why the answer ends, in the last chunk; None before.
        usage: tokens of the whole prompt and of the answer so far: what an answer that ends here is charged for. If the
            model runs on a server that reports the usage only at the end, it is an estimate until the last chunk.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete answer."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class GeneratorCard:
    """A language model. ``context_length`` is the limit for prompt and answer together, in tokens."""

    name: str
    context_length: int


@dataclass(frozen=True, slots=True)
class Activity:
    """Counters of one replica of a model since it started.

    Attributes:
        running: answers in progress.
        completed: complete answers.
        cancelled: answers that were stopped because the reader left or cancelled.
        generated_tokens: tokens generated, including those of cancelled answers.
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
        """Return the whole answer. Cancelling the call stops the model.

        Raises:
            PromptTooLongError: prompt and answer do not fit into the model's context.
            InvalidInputError: the model does not support the conversation, for instance a system message.
            UnavailableError, DeadlineExceededError, ModelFailedError: see their docstrings.
        """
        ...

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. Closing the stream stops the model. Raises what ``complete`` raises."""
        ...

    async def card(self) -> GeneratorCard:
        """The model's card. Also serves as the readiness probe."""
        ...

    async def activity(self) -> Activity:
        """The counters of the replica that handles the call."""
        ...

    async def aclose(self) -> None:
        """Release the generator's resources."""
        ...


async def collect(stream: AsyncGenerator[Chunk, None]) -> Completion:
    """Collect a stream into one completion."""
    texts, tokens = [], list[Token]()
    async for chunk in stream:
        texts.append(chunk.text)
        tokens += chunk.tokens
        if chunk.finish_reason:
            return Completion("".join(texts), tuple(tokens), chunk.finish_reason, chunk.usage)
    raise ModelFailedError("the model's answer ended unexpectedly")
