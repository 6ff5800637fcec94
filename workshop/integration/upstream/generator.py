"""What language models on other servers have in common, whatever protocol the server speaks."""

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field

from workshop.contracts.errors import ModelFailedError, UnavailableError
from workshop.contracts.generator import (
    Activity,
    Chunk,
    Completion,
    FinishReason,
    GeneratorCard,
    Prompt,
    Token,
    Usage,
    collect,
)

logger = logging.getLogger(__name__)

TokenCount = Annotated[int, Field(ge=0, lt=2**31)]
"""Above it, a reported usage cannot be true."""


class Received(BaseModel, hide_input_in_errors=True):
    """The parts that we read of something that a server sends. The clients do not validate it, and unchecked data must
    not leave this package. Errors do not show it: they are logged."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a server says of an answer. None for what it does not say here.

    Attributes:
        text: continues the text so far.
        tokens: the tokens of the text, if the server reports them.
        finish_reason: why the answer ends.
        prompt_tokens: of the whole prompt.
        completion_tokens: of the whole answer.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class UpstreamGenerator(ABC):
    """A ``TextGenerator`` on another server.

    Every answer is requested as a stream: closing it makes the server stop generating. The client keeps up to 1000
    connections, 100 of them for reuse. It retries, with backoff, what gets no answer or a 408, 409, 429 or 5xx. An
    answer that breaks off is not retried: its reader already has a part of it.

    A server reports the usage of an answer at its end. Until then it is estimated from the tokens received, or else
    from the length of the texts.

    Args:
        model: its name on the server. Its last part is the name that our callers use.
        needs_logprobs: log a warning if the server returns none. A cascade computes a draft's quality from them.
    """

    def __init__(self, model: str, *, needs_logprobs: bool = False) -> None:
        self._model = model
        self._needs_logprobs = needs_logprobs
        self._name = model.rpartition("/")[2]
        self._running = self._completed = self._cancelled = self._generated_tokens = 0

    @abstractmethod
    def _events(self, prompt: Prompt) -> AsyncGenerator[Event, None]:
        """Ask the server, and yield what it says. Closing the stream closes the connection."""

    @abstractmethod
    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``: asks the server for its models."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections."""

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        async with aclosing(self.stream(prompt)) as chunks:
            return await collect(chunks)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        reason: FinishReason | None = None
        prompt_tokens = completion_tokens = None
        estimated_prompt = sum(_estimated_tokens(message.content) for message in prompt.messages)
        n_tokens = n_estimated = 0
        self._running += 1
        try:
            async with aclosing(self._events(prompt)) as events:
                async for event in events:
                    reason = event.finish_reason or reason
                    prompt_tokens = prompt_tokens if event.prompt_tokens is None else event.prompt_tokens
                    completion_tokens = (
                        completion_tokens if event.completion_tokens is None else event.completion_tokens
                    )
                    n_tokens += len(event.tokens)
                    n_estimated += len(event.tokens) or _estimated_tokens(event.text)
                    self._generated_tokens += len(event.tokens)
                    if event.text or event.tokens:
                        so_far = Usage(estimated_prompt if prompt_tokens is None else prompt_tokens, n_estimated)
                        yield Chunk(event.text, event.tokens, usage=so_far)
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled += 1
            raise
        finally:
            self._running -= 1
        if reason is None:
            raise UnavailableError(f"the server of {self._name} broke off its answer")
        if prompt_tokens is None or completion_tokens is None:
            raise ModelFailedError(f"the server of {self._name} does not say how many tokens its answer took")
        if self._needs_logprobs and n_estimated and not n_tokens:
            self._needs_logprobs = False  # once is enough
            logger.warning("the server of %s returns no log-probabilities: its drafts have a quality of 0", self._name)
        self._completed += 1
        self._generated_tokens += completion_tokens - n_tokens
        yield Chunk("", finish_reason=reason, usage=Usage(prompt_tokens, completion_tokens))

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``: counts only the requests of this process."""
        return Activity(self._running, self._completed, self._cancelled, self._generated_tokens)


def _estimated_tokens(text: str) -> int:
    """A rule of thumb for English: four characters to a token."""
    return math.ceil(len(text) / 4)
