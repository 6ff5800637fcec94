"""Language models on a server that speaks Anthropic's Messages API."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

import anthropic
from anthropic import AsyncAnthropic, AsyncStream, omit
from anthropic.types import RawMessageStreamEvent

from workshop.contracts.errors import InvalidInputError
from workshop.contracts.generator import FinishReason, GeneratorCard, Prompt
from workshop.contracts.services import PROBE_TIMEOUT_S
from workshop.integration.upstream.client import CLIENT_OPTIONS, CONNECT_TIMEOUT_S, MAX_RETRIES
from workshop.integration.upstream.errors import contract_errors
from workshop.integration.upstream.generator import Event, Received, TokenCount, UpstreamGenerator

DEFAULT_CONTEXT_LENGTH = 200_000
DEFAULT_MAX_TOKENS = 8192

_KINDS = ("message_start", "content_block_delta", "message_delta")
"""The events that we read. The protocol says that new kinds may come."""
_LENGTH_REASONS = {"max_tokens", "model_context_window_exceeded"}


class AnthropicGenerator(UpstreamGenerator):
    """A language model of Anthropic, or of a server with the same protocol.

    The protocol has no log-probabilities, so ``tokens`` is always empty: its model can be the main model of a cascade,
    but not the draft.

    Args:
        base_url: up to ``/v1``, without it.
        model: see ``UpstreamGenerator``.
        api_key: if the server wants one.
        timeout_s, max_retries: see ``OpenAIGenerator``.
        context_length, max_tokens: of the model, and of an answer at most; used until the server has reported them.
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
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        super().__init__(model)
        key = api_key or "anonymous"  # without one, the client would look for credentials on this machine
        # The client would send the key as a bearer token, which Anthropic accepts but not every server like it.
        headers: dict[str, Any] = {"x-api-key": key, "Authorization": omit}
        self._client = AsyncAnthropic(
            base_url=base_url,
            api_key=key,
            default_headers=headers,
            timeout=anthropic.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            max_retries=max_retries,
            http_client=anthropic.DefaultAsyncHttpxClient(**CLIENT_OPTIONS),
        )
        self._timeout_s = timeout_s
        self._context_length = context_length
        self._max_tokens = max_tokens
        self._has_sampling = True

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``: asks the server for the model."""
        client = self._client.with_options(timeout=PROBE_TIMEOUT_S, max_retries=0)
        with contract_errors(anthropic, self._name, PROBE_TIMEOUT_S):
            found = await client.models.retrieve(self._model)
            model = _Model.model_validate(found, from_attributes=True)
        self._max_tokens = model.max_tokens or self._max_tokens
        return GeneratorCard(self._name, model.max_input_tokens or self._context_length)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _events(self, prompt: Prompt) -> AsyncGenerator[Event, None]:
        with contract_errors(anthropic, self._name, self._timeout_s):
            async with await self._ask(prompt) as events:
                async for event in events:
                    if getattr(event, "type", None) not in _KINDS:
                        continue
                    yield _Event.model_validate(event, from_attributes=True).to_event()

    async def _ask(self, prompt: Prompt) -> AsyncStream[RawMessageStreamEvent]:
        try:
            return await self._create(prompt, _sampling(prompt) if self._has_sampling else {})
        except anthropic.BadRequestError as error:
            if not self._has_sampling or not any(name in str(error) for name in ("temperature", "top_p")):
                raise
        stream = await self._create(prompt, {})
        self._has_sampling = False  # now it is certain that nothing else was wrong with the request
        return stream

    async def _create(self, prompt: Prompt, sampling: dict[str, float]) -> AsyncStream[RawMessageStreamEvent]:
        if not all(map(str.strip, prompt.stop)):
            raise InvalidInputError(f"{self._name} supports no stop text that is blank", 0, "stop")
        # An empty message would be refused. There is one where an answer was stopped at once.
        messages = [message for message in prompt.messages if message.content.strip()]
        turns: list[Any] = [asdict(message) for message in messages if message.role != "system"]
        return await self._client.messages.create(
            model=self._model,
            system="\n\n".join(message.content for message in messages if message.role == "system") or omit,
            messages=turns,
            max_tokens=min(prompt.max_tokens or self._max_tokens, self._max_tokens),
            stop_sequences=list(prompt.stop) or omit,
            stream=True,
            extra_body=sampling,
        )


def _sampling(prompt: Prompt) -> dict[str, float]:
    """Temperature, or ``top_p``: some models refuse both together, and newer ones refuse either.

    A temperature is at most 1 in this protocol.
    """
    if prompt.temperature >= 1 and prompt.top_p < 1:
        return {"top_p": prompt.top_p}
    return {"temperature": min(prompt.temperature, 1.0)}


class _Usage(Received):
    input_tokens: TokenCount | None = None
    cache_creation_input_tokens: TokenCount | None = None
    cache_read_input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Of the whole prompt, whether or not it was cached."""
        if self.input_tokens is None:
            return None
        return self.input_tokens + (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)


class _Message(Received):
    usage: _Usage


class _Delta(Received):
    text: str | None = None
    stop_reason: str | None = None


class _Event(Received):
    message: _Message | None = None
    """In the first event: the prompt's size."""
    delta: _Delta | None = None
    """The next piece of text; later, why the answer ends."""
    usage: _Usage | None = None
    """With the latter."""

    def to_event(self) -> Event:
        """The same, in no protocol's terms."""
        delta = self.delta or _Delta()
        reason: FinishReason | None = None
        if delta.stop_reason:
            reason = "length" if delta.stop_reason in _LENGTH_REASONS else "stop"
        if self.usage is not None:
            return Event(delta.text or "", (), reason, self.usage.prompt_tokens, self.usage.output_tokens)
        return Event(delta.text or "", (), reason, self.message.usage.prompt_tokens if self.message else None)


class _Model(Received):
    max_input_tokens: TokenCount | None = None
    max_tokens: TokenCount | None = None
