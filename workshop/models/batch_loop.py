"""Continuous batching that survives a request that breaks it."""

import asyncio
import threading
import time
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.generation.continuous_batching.utils import drain_queue

from workshop.contracts.errors import ModelFailedError, UnavailableError

_CPU_PAGE = 32
_CHECK_EVERY_S = 1.0
"""How often a request that gets no tokens checks whether the loop still runs."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: see ``Prompt``."""

    temperature: float
    top_p: float


@dataclass(slots=True, eq=False)
class TokenRun:
    """Tokens that a model adds to a prompt.

    Attributes:
        prompt_ids: the prompt.
        max_tokens: the most that are added.
        sampling: None takes the most probable token each time.
        ids: the tokens so far.
        logprobs: the logarithms of their probabilities.
        finished: whether these are all.
    """

    prompt_ids: list[int]
    max_tokens: int
    sampling: Sampling | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


class BatchLoops:
    """Extends all prompts under way together, one token at a time.

    An error in such a loop ends it for all requests, and does not tell which of them caused it. So each continues
    alone, from where it was: the one at fault fails, and the others finish.

    Args:
        model: a causal language model.
        context_length: of prompt and answer together, in tokens.
        end_ids: tokens that end an answer.
        pad_id: the padding token.
        cache_tokens: how many tokens the answers of a loop may have together, their prompts included. None: as many as
            fit into the memory of the GPU.
    """

    def __init__(
        self, model: Any, context_length: int, end_ids: list[int], pad_id: int | None, cache_tokens: int | None
    ) -> None:
        self._model = model
        self._context_length = context_length
        self._cache_tokens = cache_tokens
        self._ids = {"eos_token_id": end_ids, "pad_token_id": pad_id}
        # A loop either samples or does not, so there are two shared loops, and two for requests that run alone. Each
        # starts when it is first needed.
        self._loops: dict[_Kind, _Loop] = {}
        self._starting = threading.Lock()  # requests may come from several event loops
        self._alone = asyncio.Lock()
        self._suspects = 0
        self._closings = 0
        self.generated_tokens = 0

    async def extend(self, run: TokenRun) -> AsyncGenerator[None, None]:
        """Extend a run, and yield whenever it has grown. A slow reader skips steps.

        Raises:
            ModelFailedError: the model cannot extend this prompt.
            UnavailableError: the loops were closed.
        """
        closings = self._closings
        try:
            async with aclosing(self._extend(run, alone=False)) as steps:
                async for _ in steps:
                    yield
            return
        except _LoopDiedError:
            self._suspects += 1
        try:
            async with self._alone:
                if self._closings != closings:
                    raise UnavailableError("the model is shutting down")
                async with aclosing(self._extend(run, alone=True)) as steps:
                    async for _ in steps:
                        yield
        except _LoopDiedError:
            raise ModelFailedError("the model failed") from None
        finally:
            self._suspects -= 1
            if not self._suspects:
                await asyncio.to_thread(self._close, [kind for kind in self._loops if kind.alone])

    async def _extend(self, run: TokenRun, *, alone: bool) -> AsyncGenerator[None, None]:
        kind = _Kind(run.sampling is not None, alone)
        with self._starting:
            loop = self._loops.get(kind)
            if loop is None or not loop.runs:
                loop = self._loops[kind] = self._start(kind)
        try:
            async with aclosing(loop.extend(run)) as steps:
                async for _ in steps:
                    yield
        except _LoopDiedError:
            await asyncio.to_thread(loop.free)
            raise

    def close(self) -> None:
        """Stop the threads, which would keep the process alive. Answers under way fail."""
        self._closings += 1
        self._close(list(self._loops))

    def _close(self, kinds: list["_Kind"]) -> None:
        loops = [loop for kind in kinds if (loop := self._loops.pop(kind, None))]
        for loop in loops:
            loop.closed = True
        for loop in loops:
            loop.close()

    def _start(self, kind: "_Kind") -> "_Loop":
        # Temperature and top_p come with each request; these values only make transformers look for them.
        sampling = {"do_sample": True, "temperature": 0.5, "top_p": 0.5, "top_k": 0} if kind.sampled else {}
        page, limits = ContinuousBatchingConfig.page_size, {}
        if self._model.device.type == "cpu":
            page, limits = _CPU_PAGE, {"page_size": _CPU_PAGE, "max_batch_tokens": 2048}
        if tokens := self._context_length if kind.alone else self._cache_tokens:
            limits["num_blocks"] = tokens // page + 1
        manager = self._model.init_continuous_batching(
            GenerationConfig(**self._ids, **sampling),
            ContinuousBatchingConfig(return_logprobs=True, per_request_processors=True, **limits),
        )
        manager.start()
        return _Loop(manager, self)


class _Kind(NamedTuple):
    """What a loop is for: requests that sample or do not, one at a time or all together."""

    sampled: bool
    alone: bool


class _LoopDiedError(Exception):
    """The loop has ended because of an error, whichever request caused it."""


class _Loop:
    """A loop of ``transformers`` in a thread."""

    def __init__(self, manager: ContinuousBatchingManager, loops: BatchLoops) -> None:
        self._manager = manager
        self._loops = loops
        self.closed = False

    @property
    def runs(self) -> bool:
        """Whether it accepts requests."""
        status = self._manager.background_thread_status
        return self._manager.is_running() and status.can_accept_new_requests() is None

    async def extend(self, run: TokenRun) -> AsyncGenerator[None, None]:
        """As ``BatchLoops.extend``, and raises _LoopDiedError."""
        request_id = uuid4().hex
        arrived = asyncio.Event()
        latest: GenerationOutput | None = None
        error: GenerationOutput | None = None
        n_before = len(run.ids)
        event_loop = asyncio.get_running_loop()

        def on_output(output: GenerationOutput) -> None:
            # May run in the event loop of another request: transformers delivers all outputs of a step in a single one.
            nonlocal latest, error
            if output.error is None:
                n_counted = len(latest.generated_tokens) if latest else 0
                self._loops.generated_tokens += len(output.generated_tokens) - n_counted
                latest = output
            else:
                error = output
            with suppress(RuntimeError):  # our event loop has been closed
                event_loop.call_soon_threadsafe(arrived.set)

        self._manager.register_result_handler(request_id, on_output)
        try:
            options = run.sampling and {"temperature": run.sampling.temperature, "top_p": run.sampling.top_p}
            accepted_id = self._manager.add_request(
                run.prompt_ids + run.ids,
                request_id=request_id,
                max_new_tokens=run.max_tokens - n_before,
                streaming=True,
                **(options or {}),
            )
            if accepted_id is None:
                raise self._end_error()
            while not run.finished:
                await self._wait(arrived)
                if latest is not None:
                    run.ids[n_before:] = latest.generated_tokens
                    run.logprobs[n_before:] = latest.logprobs
                    run.finished = latest.is_finished()
                if error is not None:
                    raise self._end_error() if self.closed or not self.runs else ModelFailedError("the model failed")
                yield
        finally:
            if error is None and not run.finished:
                self._manager.cancel_request(request_id)
                # The loop does not report the end of a cancelled request. Tokens that come until then still count.
                asyncio.get_running_loop().call_later(1.0, self._forget, request_id)

    def close(self) -> None:
        """Stop the thread and free its memory."""
        self.closed = True
        if self._manager.is_running():
            self._manager.stop(hard_stop=True)
        self.free()

    def free(self) -> None:
        """Free the memory of a loop that has ended or is about to."""
        while self._manager.is_running():
            time.sleep(0.001)
        self._manager.batch_processor = None
        if error := self._manager.background_thread_status.fatal_error:
            traceback.clear_frames(error.__traceback__)  # a log that keeps the error must not keep its frames

    async def _wait(self, arrived: asyncio.Event) -> None:
        while not arrived.is_set():
            try:
                async with asyncio.timeout(_CHECK_EVERY_S):
                    await arrived.wait()
            except TimeoutError:
                # A loop that has ended reads no more requests, and tells only those that it had read.
                if not self._manager.is_running():
                    raise self._end_error() from None
        arrived.clear()

    def _end_error(self) -> Exception:
        return UnavailableError("the model is shutting down") if self.closed else _LoopDiedError()

    def _forget(self, request_id: str) -> None:
        router = self._manager.output_router
        router.result_handlers.pop(request_id, None)
        drain_queue(router.output_queue)  # results for requests that were forgotten
