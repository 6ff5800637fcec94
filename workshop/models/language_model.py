"""A causal language model of ``transformers``, from a folder or a hub name, that answers many prompts at once."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

from workshop.contracts.errors import PromptTooLongError, StartError
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
from workshop.models.batch_loop import BatchLoops, Sampling, TokenRun
from workshop.models.chat_template import ChatTemplate

transformers_logging.disable_progress_bar()

logger = logging.getLogger(__name__)

MIN_TEMPERATURE = 0.01
"""Below it the most probable token is taken. No other would be sampled anyway, and dividing by less overflows."""

CPU_CACHE_TOKENS = 8192
"""What the cache of a model holds on a CPU, unless it is told otherwise. On a GPU, it takes what memory there is."""

SMALL_MODEL = 100_000_000
"""Parameters below which one thread computes. A step is too short to share: on 2 cores, one is 7 to 15 times faster."""


class LanguageModel:
    """A ``TextGenerator`` with continuous batching: a prompt joins those under way at the next token.

    Args:
        name: the name that callers use.
        model: a causal language model.
        tokenizer: its tokenizer, with a chat template.
        cache_tokens: how many tokens all answers under way may have together, prompts included. Where several models or
            replicas share a GPU, each should have its part. Answers that sample have such a cache of their own.

    Raises:
        ValueError: the chat template cannot be used.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, cache_tokens: int | None = None) -> None:
        context_length = model.config.get_text_config().max_position_embeddings
        if cache_tokens is None and model.device.type == "cpu":
            cache_tokens = CPU_CACHE_TOKENS
        self._card = GeneratorCard(name, min(context_length, cache_tokens or context_length))
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        ends = model.generation_config.eos_token_id
        self._end_ids: list[int] = ends if isinstance(ends, list) else [ends]
        self._loops = BatchLoops(model, self._card.context_length, self._end_ids, tokenizer.pad_token_id, cache_tokens)
        self._running = self._completed = self._cancelled = 0

    @classmethod
    def load(cls, source: str, name: str | None = None, cache_tokens: int | None = None) -> Self:
        """Read a model, onto the GPU if there is one.

        Args:
            source: a folder, or a name on the Hugging Face hub.
            name: by default, the last part of the source.
            cache_tokens: see the class.

        Raises:
            StartError: there is no such model, or its files cannot be used.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32  # CPUs are slow at half precision
        with _start_errors(source):
            tokenizer = AutoTokenizer.from_pretrained(source)
            network = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
            model = cls(name or Path(source).name, network.to(device).eval(), tokenizer, cache_tokens)
        if device == "cpu" and network.num_parameters() < SMALL_MODEL:
            torch.set_num_threads(1)
        return model

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        return self._card

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        return Activity(self._running, self._completed, self._cancelled, self._loops.generated_tokens)

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        async with aclosing(self.stream(prompt)) as chunks:
            return await collect(chunks)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        self._check_length(self._template.min_tokens(prompt.messages), "at least ")
        prompt_ids = await asyncio.to_thread(self._template.encode, prompt.messages)
        self._check_length(len(prompt_ids))
        room = self._card.context_length - len(prompt_ids)
        samples = prompt.temperature >= MIN_TEMPERATURE
        sampling = Sampling(float(prompt.temperature), float(prompt.top_p)) if samples else None
        run = TokenRun(prompt_ids, min(prompt.max_tokens or room, room), sampling)
        text = _Text(self._tokenizer, prompt.stop)
        start = time.perf_counter()
        n_tokens = 0
        reason: FinishReason | None = None
        self._running += 1
        try:
            async with aclosing(self._loops.extend(run)) as steps:
                async for _ in steps:
                    tokens = []
                    for token_id, logprob in zip(run.ids[n_tokens:], run.logprobs[n_tokens:], strict=True):
                        n_tokens += 1
                        tokens.append(Token(text.add(token_id), logprob))
                        if text.stopped:
                            break
                    if text.stopped or (run.finished and run.ids[-1] in self._end_ids):
                        reason = "stop"
                    elif run.finished:
                        reason = "length"
                    usage = Usage(len(prompt_ids), n_tokens)
                    self._completed += reason is not None
                    yield Chunk(text.take(everything=reason is not None), tuple(tokens), reason, usage=usage)
                    if reason:
                        return
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled += reason is None
            raise
        finally:
            self._running -= 1
            facts = {
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": n_tokens,
                "finish_reason": reason,
                "duration_ms": round(1000 * (time.perf_counter() - start), 3),
            }
            logger.info("%s generated %d tokens", self._card.name, n_tokens, extra=facts)

    async def aclose(self) -> None:
        """Stop the threads that generate, which would keep the process alive."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """See ``aclose``."""
        self._loops.close()

    def _check_length(self, n_tokens: int, quantity: str = "") -> None:
        limit = self._card.context_length
        if n_tokens >= limit:
            raise PromptTooLongError(
                f"the prompt has {quantity}{n_tokens} tokens; prompt and answer may have {limit} together",
                n_tokens,
                limit,
            )


def check_model(source: str) -> None:
    """Check all of a model except its weights: loading them takes seconds, and as much memory as a replica.

    Raises:
        StartError: there is no such model, or its files cannot be used.
    """
    with _start_errors(source):
        AutoConfig.from_pretrained(source)
        ChatTemplate(AutoTokenizer.from_pretrained(source))


@contextmanager
def _start_errors(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise StartError.because(f"cannot load the language model {source}", error) from error


class _Text:
    """Turns tokens into text, and ends it before a stop text.

    Args:
        tokenizer: decodes the tokens.
        stop: see ``Prompt.stop``.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._pending = ""

    def add(self, token_id: int) -> str:
        """The text that the token adds."""
        text: str = self._decoder.step(self._tokenizer, token_id) or ""
        self._pending += text
        ends = [at for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._pending = self._pending[: min(ends)]
        return text

    def take(self, *, everything: bool) -> str:
        """The text since the last call. An ending that may become a stop text is held back."""
        keep = 0
        if not everything:
            starts = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
            keep = max((len(start) for start in starts if self._pending.endswith(start)), default=0)
        cut = len(self._pending) - keep
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text
