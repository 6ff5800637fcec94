"""Adapts an OpenAI-compatible server to a contract. No type or exception of the ``openai`` client leaves this file."""

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from typing import Annotated, Any

from httpx2 import Response
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AsyncStream,
    AuthenticationError,
    DefaultAsyncHttpxClient,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    Timeout,
    omit,
)
from openai.types.chat import ChatCompletionChunk
from pydantic import AliasChoices, BaseModel, Field, FiniteFloat

from workshop.contracts.errors import (
    DeadlineExceededError,
    ModelFailedError,
    OverloadedError,
    PromptTooLongError,
    UnavailableError,
)
from workshop.contracts.generator import (
    Activity,
    Chunk,
    Completion,
    GeneratorCard,
    Prompt,
    Token,
    Usage,
    collect,
)
from workshop.contracts.services import PROBE_TIMEOUT_S

CONNECT_TIMEOUT_S = 5.0
MAX_RETRIES = 2
MAX_RETRY_AFTER_S = 5.0
"""If a server asks for a longer pause, there is no retry: the caller is told when to come back."""

DEFAULT_CONTEXT_LENGTH = 8192

_LENGTH_REASONS = {"length", "max_tokens", "model_length"}


@contextmanager
def contract_errors(timeout_s: float) -> Iterator[None]:
    """Turn what the client raises, after its retries, into what the contract promises.

    | openai                                            | contract                |
    |---------------------------------------------------|-------------------------|
    | nothing comes for ``timeout_s``                   | DeadlineExceededError   |
    | the connection fails                              | UnavailableError        |
    | 429                                               | OverloadedError         |
    | 5xx                                               | UnavailableError        |
    | 401, 403, 404: how we are set up                  | ModelFailedError        |
    | 400 because of the prompt's length                | PromptTooLongError      |
    | any other status, or an error within a stream     | ModelFailedError        |
    | an answer of another form than OpenAI's           | ModelFailedError        |
    """
    try:
        yield
    except APITimeoutError as error:
        raise DeadlineExceededError("the language model's server did not answer in time", timeout_s) from error
    except APIConnectionError as error:
        raise UnavailableError("the connection to the language model's server failed") from error
    except RateLimitError as error:
        raise OverloadedError("the language model's server is overloaded", _retry_after_s(error.response)) from error
    except InternalServerError as error:
        raise UnavailableError("the language model's server has failed", _retry_after_s(error.response)) from error
    except (AuthenticationError, PermissionDeniedError) as error:
        raise ModelFailedError("the language model's server refuses our key: check LLM_API_KEY") from error
    except NotFoundError as error:
        raise ModelFailedError(
            "the language model's server has no such model or path: check WORKSHOP_MAIN_MODEL and LLM_BASE_URL"
        ) from error
    except APIError as error:
        body = error.body if isinstance(error.body, dict) else {}
        message = str(body.get("message"))
        # OpenAI and this service use a code for it, vLLM only a message.
        if error.code == "context_length_exceeded" or "context length" in message:
            raise PromptTooLongError(message, None, None) from error
        raise ModelFailedError("the language model's server could not answer") from error
    except ValueError as error:  # not JSON, or without the fields that we read
        raise ModelFailedError("the language model's server does not answer as OpenAI's does") from error


class UpstreamGenerator:
    """A language model on any server that speaks OpenAI's protocol: vLLM, Ollama, llama.cpp, this service itself.

    Every answer is requested as a stream: closing it makes any of these servers stop generating.
    The client keeps up to 1000 connections, 100 of them for reuse. It retries, with backoff, what gets no answer
    or a 408, 409, 429 or 5xx. An answer that breaks off is not retried: its reader already has a part of it.

    If a server returns no log-probabilities, ``tokens`` is empty. Its model can be the
    main model of a cascade, but not the draft: a draft's quality is computed from them.

    A server reports the usage at the end of an answer. Until then it is estimated from the tokens received, or else
    from the length of the texts.

    Args:
        base_url: up to and including ``/v1``.
        model: its name on the server. Its last part is the name that our callers use.
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
    ) -> None:
        self._client = AsyncOpenAI(
            base_url=base_url,
            # Without a key, the client would send OPENAI_API_KEY, which is for another server.
            api_key=api_key or "anonymous",
            timeout=Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            max_retries=max_retries,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [_retry_only_soon]}),
        )
        self._model = model
        self._timeout_s = timeout_s
        self._context_length = context_length
        self._has_logprobs = True
        self._running = self._completed = self._cancelled = self._generated_tokens = 0

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        async with aclosing(self.stream(prompt)) as chunks:
            return await collect(chunks)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        reason = usage = None
        prompt_tokens = sum(_estimated_tokens(message.content) for message in prompt.messages)
        n_tokens = n_estimated = 0
        self._running += 1
        try:
            async with aclosing(self._events(prompt)) as events:
                async for event in events:
                    usage = event.usage or usage  # with the finish reason, or in an event after it
                    for choice in event.choices:
                        reason = choice.finish_reason or reason
                        tokens = choice.tokens
                        text = choice.delta.content or ""
                        n_tokens += len(tokens)
                        n_estimated += len(tokens) or _estimated_tokens(text)
                        self._generated_tokens += len(tokens)
                        if text or tokens:
                            yield Chunk(text, tokens, usage=Usage(prompt_tokens, n_estimated))
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled += 1
            raise
        finally:
            self._running -= 1
        if reason is None:
            raise UnavailableError("the language model's server broke off its answer")
        if usage is None:
            raise ModelFailedError("the language model's server does not say how many tokens its answer took")
        self._completed += 1
        self._generated_tokens += usage.completion_tokens - n_tokens
        yield Chunk(
            "",
            finish_reason="length" if reason in _LENGTH_REASONS else "stop",
            usage=Usage(usage.prompt_tokens, usage.completion_tokens),
        )

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``: asks the server for its models.

        Raises:
            UnavailableError: ours is not among them.
        """
        client = self._client.with_options(timeout=PROBE_TIMEOUT_S, max_retries=0)
        with contract_errors(PROBE_TIMEOUT_S):
            models = _Models.model_validate(await client.get("/models", cast_to=object))
        for model in models.data:
            if model.id == self._model:
                return GeneratorCard(self._model.rpartition("/")[2], model.context_length or self._context_length)
        raise UnavailableError(f"the language model's server has no {self._model}: check WORKSHOP_MAIN_MODEL")

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``: counts only the requests of this process."""
        return Activity(self._running, self._completed, self._cancelled, self._generated_tokens)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _events(self, prompt: Prompt) -> AsyncGenerator["_Event", None]:
        with contract_errors(self._timeout_s):
            async with await self._ask(prompt) as events:
                async for event in events:
                    yield _Event.model_validate(event, from_attributes=True)

    async def _ask(self, prompt: Prompt) -> AsyncStream[ChatCompletionChunk]:
        logprobs = self._has_logprobs
        messages: list[Any] = [asdict(message) for message in prompt.messages]
        try:
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
        except APIStatusError as error:
            if not logprobs or "logprobs" not in str(error):
                raise
            self._has_logprobs = False
            return await self._ask(prompt)


# The parts of the protocol that we read. The client does not validate them, and unchecked data must not leave here.


class _Logprob(BaseModel):
    token: str
    logprob: FiniteFloat


class _Logprobs(BaseModel):
    content: list[_Logprob] | None = None


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens behind the text, if the server reports them."""
        content = self.logprobs.content if self.logprobs else None
        return tuple(Token(token.token, token.logprob) for token in content or ())


_TokenCount = Annotated[int, Field(ge=0, lt=2**31)]
"""Above it, a reported usage cannot be true."""


class _Usage(BaseModel):
    prompt_tokens: _TokenCount
    completion_tokens: _TokenCount


class _Event(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str
    context_length: int | None = Field(None, validation_alias=AliasChoices("context_length", "max_model_len"))


class _Models(BaseModel):
    data: list[_Model]


def _estimated_tokens(text: str) -> int:
    """A rule of thumb for English: four characters to a token."""
    return math.ceil(len(text) / 4)


async def _retry_only_soon(response: Response) -> None:
    """Make the client respect MAX_RETRY_AFTER_S. By default it waits for up to two minutes."""
    if _retry_after_s(response) > MAX_RETRY_AFTER_S:
        response.headers["x-should-retry"] = "false"


def _retry_after_s(response: Response) -> float:
    seconds = response.headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() else 1.0
