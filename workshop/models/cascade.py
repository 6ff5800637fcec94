"""The cascade of two language models: plain asyncio over two generators, wherever these run."""

import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from workshop.contracts.cascade import Answer, CascadeEvent, Query, Switch, TextPiece
from workshop.contracts.errors import ModelFailedError
from workshop.contracts.generator import Message, Prompt, TextGenerator, Usage


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A named model, and its price in dollars per 1000 tokens, of prompt and answer together."""

    generator: TextGenerator
    name: str
    cost: float


class TwoModelCascade:
    """``Cascade`` of a draft model and a main model.

    Args:
        draft: cheap; answers first.
        main: better; answers where the draft is not good enough.
        threshold: minimum quality, 0 to 1, at which a draft is accepted.
    """

    def __init__(self, draft: PricedModel, main: PricedModel, threshold: float) -> None:
        self._draft = draft
        self._main = main
        self._threshold = threshold

    async def stream(self, query: Query) -> AsyncGenerator[CascadeEvent, None]:
        """See ``Cascade.stream``."""
        run = _Run(query)
        if not query.force_direct:
            async with aclosing(run.ask(self._draft)) as pieces:
                async for piece in pieces:
                    yield piece
            score = quality(run.logprobs)
            accepted = score >= self._threshold
            run.answer = replace(run.answer, quality=score, cascaded=not accepted, draft_accepted=accepted)
            if accepted:
                yield run.answer
                return
            yield Switch(self._draft.name, self._main.name, score, self._threshold, run.answer)
        async with aclosing(run.ask(self._main)) as pieces:
            async for piece in pieces:
                yield piece
        yield run.answer


def quality(logprobs: list[float]) -> float:
    """How sure a model was of its answer: the geometric mean of its tokens' probabilities, exp(mean logprob).

    The product of the probabilities is the model's own probability of the whole answer, but it falls with every token.
    The geometric mean is what each token contributes on average, so long and short answers can be compared. 0.8 means
    odds of four to one at each token. An answer without tokens scores 0. The model may well be sure of something wrong:
    the right threshold has to be measured.
    """
    if not logprobs:
        return 0.0
    return math.exp(min(0.0, math.fsum(logprobs) / len(logprobs)))


class _Run:
    """One query under way.

    Attributes:
        answer: the answer so far.
        logprobs: of the tokens of the model that was asked last.
    """

    def __init__(self, query: Query) -> None:
        self._prompt = Prompt((Message("user", query.text),), query.max_tokens, query.temperature)
        self._start = time.perf_counter()
        self.answer = Answer("", "", None, False, False, Usage(0, 0), 0.0, 0.0)
        self.logprobs: list[float] = []

    async def ask(self, model: PricedModel) -> AsyncGenerator[TextPiece, None]:
        """Stream the model's answer, which replaces an earlier one. Its cost is added."""
        before, text, self.logprobs = self.answer, "", []
        async with aclosing(model.generator.stream(self._prompt)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                self.logprobs += [token.logprob for token in chunk.tokens]
                usage = chunk.usage
                self.answer = replace(
                    before,
                    content=text,
                    model_used=model.name,
                    usage=Usage(
                        before.usage.prompt_tokens + usage.prompt_tokens,
                        before.usage.completion_tokens + usage.completion_tokens,
                    ),
                    cost=before.cost + usage.total_tokens * model.cost / 1000,
                    latency_ms=1000 * (time.perf_counter() - self._start),
                )
                if chunk.text:
                    yield TextPiece(model.name, chunk.text, self.answer)
                if chunk.finish_reason:
                    return
        raise ModelFailedError("the model's answer ended unexpectedly")
