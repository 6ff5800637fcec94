"""A causal language model of ``transformers``, from a folder or a hub name, that answers many prompts at once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch
from safetensors import SafetensorError
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig, logging
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput

from workshop.contracts.errors import ModelFailedError, PromptTooLongError, StartError
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

logging.disable_progress_bar()

CPU_CACHE_TOKENS = 8192
"""What all answers under way may take together, in tokens. On a GPU, its memory decides."""

FEW_PARAMETERS = 100_000_000
"""A step of a smaller model is over before several threads have shared it: on 2 cores, one is 7 to 15 times faster."""

_PAGE = 32


class LanguageModel:
    """A ``TextGenerator`` with continuous batching: a prompt joins those under way at the next token.

    Args:
        name: how callers call it.
        model: a causal language model.
        tokenizer: its tokenizer, with a chat template.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        context_length = model.config.get_text_config().max_position_embeddings
        on_cpu = model.device.type == "cpu"
        self._card = GeneratorCard(name, min(context_length, CPU_CACHE_TOKENS) if on_cpu else context_length)
        self._model = model
        self._tokenizer = tokenizer
        self._specials = list(tokenizer.all_special_tokens)
        ends = model.generation_config.eos_token_id
        self._end_ids: list[int] = ends if isinstance(ends, list) else [ends]
        # Whether tokens are drawn is fixed for a batch, so there are two; each starts when it is first needed.
        self._batches: dict[bool, ContinuousBatchingManager] = {}
        self._running = self._completed = self._cancelled = self._generated_tokens = 0

    @classmethod
    def load(cls, source: str, name: str | None = None) -> Self:
        """Read a model, onto the GPU if there is one.

        Args:
            source: a folder, or a name on the Hugging Face hub.
            name: by default, the last part of the source.

        Raises:
            StartError: there is no such model, or its files cannot be used.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32  # CPUs are slow at half precision
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        except (OSError, ValueError, SafetensorError) as error:
            raise StartError.because(f"cannot load the language model {source}", error) from error
        if tokenizer.chat_template is None:
            raise StartError(f"the language model {source} has no chat template: choose one tuned for conversations")
        if device == "cpu" and model.num_parameters() < FEW_PARAMETERS:
            torch.set_num_threads(1)
        return cls(name or Path(source).name, model.to(device).eval(), tokenizer)

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        return self._card

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        return Activity(self._running, self._completed, self._cancelled, self._generated_tokens)

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        async with aclosing(self.stream(prompt)) as chunks:
            return await collect(chunks)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        prompt_ids = self._encode(prompt)
        text = _Text(self._tokenizer, prompt.stop)
        n_tokens = 0
        reason: FinishReason | None = None
        self._running += 1
        try:
            async with aclosing(self._generate(prompt, prompt_ids)) as outputs:
                async for output in outputs:
                    tokens = []
                    for token_id, logprob in zip(
                        output.generated_tokens[n_tokens:], output.logprobs[n_tokens:], strict=True
                    ):
                        n_tokens += 1
                        tokens.append(Token(text.add(token_id), logprob))
                        if text.stopped:
                            break
                    if text.stopped or (output.is_finished() and output.generated_tokens[-1] in self._end_ids):
                        reason = "stop"
                    elif output.is_finished():
                        reason = "length"
                    usage = Usage(len(prompt_ids), n_tokens) if reason else None
                    self._completed += reason is not None
                    yield Chunk(text.take(everything=reason is not None), tuple(tokens), reason, usage)
                    if reason:
                        return
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled += reason is None
            raise
        finally:
            self._running -= 1

    async def aclose(self) -> None:
        """Stop the threads that generate: while they run, the process does not end."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """See ``aclose``."""
        for batch in self._batches.values():
            if batch.is_running():
                batch.stop(hard_stop=True)

    def _encode(self, prompt: Prompt) -> list[int]:
        messages = [{"role": message.role, "content": self._plain(message.content)} for message in prompt.messages]
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # Not verbose: what is too long is said below, as an error.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if len(ids) >= self._card.context_length:
            limit = self._card.context_length
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens; prompt and answer may have {limit} together", len(ids), limit
            )
        return ids

    def _plain(self, content: str) -> str:
        """The content without the tokens that mark turns: nobody may speak in another's name."""
        for special in self._specials:
            content = content.replace(special, "")
        return content

    async def _generate(self, prompt: Prompt, prompt_ids: list[int]) -> AsyncGenerator[GenerationOutput, None]:
        """What there is of the answer so far, whenever the reader asks and there is more: a slow reader skips steps."""
        sampled = prompt.temperature > 0
        batch = self._batch(sampled)
        request_id = uuid4().hex
        arrived = asyncio.Event()
        latest: GenerationOutput | None = None

        def on_output(output: GenerationOutput) -> None:
            nonlocal latest
            self._generated_tokens += len(output.generated_tokens) - (len(latest.generated_tokens) if latest else 0)
            latest = output
            arrived.set()

        room = self._card.context_length - len(prompt_ids)
        batch.register_result_handler(request_id, on_output)
        try:
            batch.add_request(
                prompt_ids,
                request_id=request_id,
                max_new_tokens=min(prompt.max_tokens or room, room),
                streaming=True,
                **({"temperature": float(prompt.temperature), "top_p": float(prompt.top_p)} if sampled else {}),
            )
            while latest is None or not latest.is_finished():
                await arrived.wait()
                arrived.clear()
                assert latest is not None
                if latest.error is not None:
                    raise ModelFailedError("the model failed")
                yield latest
        finally:
            if latest is None or not latest.is_finished():
                batch.cancel_request(request_id)
                # A cancelled request never says that it ends. What it made before it noticed is still counted.
                forget = batch.output_router.result_handlers.pop
                asyncio.get_running_loop().call_later(1.0, forget, request_id, None)

    def _batch(self, sampled: bool) -> ContinuousBatchingManager:
        batch = self._batches.get(sampled)
        if batch is None or not batch.is_running():
            # Temperature and top_p come with each request; these values only make transformers look for them.
            drawing = {"do_sample": True, "temperature": 0.5, "top_p": 0.5, "top_k": 0} if sampled else {}
            limits = (
                {"num_blocks": CPU_CACHE_TOKENS // _PAGE, "page_size": _PAGE, "max_batch_tokens": 2048}
                if self._model.device.type == "cpu"
                else {}
            )
            batch = self._batches[sampled] = self._model.init_continuous_batching(
                GenerationConfig(eos_token_id=self._end_ids, pad_token_id=self._tokenizer.pad_token_id, **drawing),
                ContinuousBatchingConfig(return_logprobs=True, per_request_processors=True, **limits),
            )
            batch.start()
        return batch


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
        """The text since the last call, but for an end that may become a stop text."""
        keep = 0
        if not everything:
            starts = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
            keep = max((len(start) for start in starts if self._pending.endswith(start)), default=0)
        cut = len(self._pending) - keep
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text
