"""Who may spend how much on a day, and what each answer cost whom."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from workshop.api.clock import now
from workshop.api.dependencies import LanguageDep, PrincipalDep, SettingsDep, find_generator, path_of
from workshop.contracts.cascade import Answer, CascadeEvent, Query
from workshop.contracts.errors import BudgetExceededError, ModelFailedError
from workshop.contracts.generator import Chunk, Prompt, Usage
from workshop.contracts.rag import RagAnswer, RagEvent
from workshop.contracts.services import LanguageServices
from workshop.contracts.usage import Reservation, UsageRecord
from workshop.settings import Settings

Item = TypeVar("Item")

TEMPLATE_TOKENS = 32
"""What a chat template adds to a message, at most."""
SETTLE_LIMIT_S = 1.0
"""How long an answer waits until it is settled. While the database is away, it is settled later."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What an answer has taken so far. See ``UsageRecord`` for the fields that have the same name."""

    model: str
    usage: Usage
    cost: float
    is_whole: bool
    cascaded: bool | None = None
    draft_accepted: bool | None = None


class Account:
    """Runs metered answers: every route, streamed or not, gets its answers from here.

    This is what an answer costs:

    - Whole, it costs what it took, whether or not its reader is still there.
    - A reader who leaves, or cancels, stops the model, and pays for what was made until then and for the prompt.
    - An answer that fails costs nothing, however much of it was read. The failure is ours, or no model has worked yet.

    Nothing is charged in a background task: such a task does not run for a reader who has left.

    With a daily budget, the highest possible price of an answer is reserved before a model is asked, with all replicas
    in view, and settled when the answer ends. It is the price of the prompt and of ``max_tokens``, but of no more than
    the context of each model that may be asked. The prompt is taken to have a token for each byte: no tokenizer makes
    more of them. The last answer before a budget ends reserves only what is left of it, so that nobody is refused who
    could still pay; a budget may be exceeded by a part of one answer. Whoever asks many questions at the same time near
    the end of a budget sets ``max_tokens``, so that more of them fit.

    Args:
        endpoint: path of the route.
        principal: who asks.
        language: the models, their prices, and where records are kept.
        daily_budget: dollars that the principal may spend on a day (UTC), or None.
        context_lengths: of the models, as far as they are known. The account adds to them.
    """

    def __init__(
        self,
        endpoint: str,
        principal: str,
        language: LanguageServices,
        daily_budget: float | None,
        context_lengths: dict[str, int],
    ) -> None:
        self.principal = principal
        self._endpoint = endpoint
        self._language = language
        self._daily_budget = daily_budget
        self._context_lengths = context_lengths

    async def admit(self) -> None:
        """Turn away a request that cannot be charged.

        Raises:
            OverloadedError: too many records wait to be written.
            BudgetExceededError: nothing is left of this day's budget.
        """
        self._language.usage.check_room()
        if self._daily_budget is not None:
            spent = await self._language.usage.spent(self.principal, _midnight())
            if spent >= self._daily_budget:
                raise self._exceeded(spent)

    def chat(self, model: str, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """The answer of one model. Raises NotFoundError, and as ``TextGenerator.stream`` does."""
        generator = find_generator(self._language.generators, model)
        price = self._language.prices[model] / 1000

        def taken(chunk: Chunk) -> Taken:
            return Taken(model, chunk.usage, chunk.usage.total_tokens * price, chunk.finish_reason is not None)

        texts = [message.content for message in prompt.messages]
        return self._metered(generator.stream(prompt), taken, [model], _most_tokens(texts, prompt.max_tokens))

    def ask(self, query: Query) -> AsyncGenerator[CascadeEvent, None]:
        """The cascade's answer. Raises as ``Cascade.stream`` does."""

        def taken(event: CascadeEvent) -> Taken:
            is_whole = isinstance(event, Answer)
            answer = event if isinstance(event, Answer) else event.so_far
            return Taken(answer.model_used, answer.usage, answer.cost, is_whole, answer.cascaded, answer.draft_accepted)

        models = self._language.prices.keys()  # the draft may be thrown away
        return self._metered(
            self._language.cascade.stream(query), taken, models, _most_tokens([query.text], query.max_tokens)
        )

    def ask_sources(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """The answer from sources. Raises as ``QuestionAnswerer.stream`` does."""

        def taken(event: RagEvent) -> Taken:
            price = self._language.prices[event.model] / 1000 if event.model is not None else 0.0
            is_whole = isinstance(event, RagAnswer)
            return Taken(event.model or "", event.usage, event.usage.total_tokens * price, is_whole)

        model = max(self._language.prices, key=lambda name: self._language.prices[name])
        # How long the sources are is not known yet.
        return self._metered(self._language.rag.stream(question, k), taken, [model], math.inf)

    async def _metered(
        self,
        answer: AsyncGenerator[Item, None],
        taken_by: Callable[[Item], Taken],
        models: Collection[str],
        most_tokens: float,
    ) -> AsyncGenerator[Item, None]:
        """The same items, as the class says. Ends with the item that makes the answer whole.

        Args:
            answer: an answer as it comes.
            taken_by: what the answer has taken when it has come to an item.
            models: those that may be asked.
            most_tokens: how many tokens each of them may take, prompt and answer together.
        """
        start = time.perf_counter()
        reservation = await self._reserve(models, most_tokens)
        taken: Taken | None = None
        try:
            async with aclosing(answer):
                async for item in answer:
                    taken = taken_by(item)
                    if taken.is_whole:
                        break
                    yield item
                else:
                    raise ModelFailedError("the model's answer has no end")
        except Exception:
            taken = None
            raise
        finally:  # GeneratorExit and CancelledError, too: the reader has left
            await self._settle(taken, time.perf_counter() - start, reservation)
        yield item

    async def _reserve(self, models: Collection[str], most_tokens: float) -> Reservation | None:
        if self._daily_budget is None:
            return None
        cost = 0.0
        for model in models:
            tokens = min(most_tokens, await self._context_length(model))
            cost += tokens * self._language.prices[model] / 1000
        usage, today = self._language.usage, _midnight()
        reservation = await usage.reserve(self.principal, cost, self._daily_budget, today)
        if reservation is None:
            raise self._exceeded(await usage.spent(self.principal, today))
        return reservation

    async def _context_length(self, model: str) -> int:
        if model not in self._context_lengths:
            self._context_lengths[model] = (await self._language.generators[model].card()).context_length
        return self._context_lengths[model]

    async def _settle(self, taken: Taken | None, seconds: float, reservation: Reservation | None) -> None:
        """Charge. Whoever has a budget waits for it, so that the next request finds what this one has left."""
        records = []
        if taken is not None and taken.usage.total_tokens:
            records.append(self._record(taken, 1000 * seconds))
        if records or reservation:
            written = self._language.usage.add(*records, settles=reservation)
            if reservation:
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(written), SETTLE_LIMIT_S)

    def _record(self, taken: Taken, latency_ms: float) -> UsageRecord:
        return UsageRecord(
            endpoint=self._endpoint,
            principal=self.principal,
            model=taken.model,
            prompt_tokens=taken.usage.prompt_tokens,
            completion_tokens=taken.usage.completion_tokens,
            cost=taken.cost,
            latency_ms=latency_ms,
            cascaded=taken.cascaded,
            draft_accepted=taken.draft_accepted,
            at=now(),
        )

    def _exceeded(self, spent: float) -> BudgetExceededError:
        assert self._daily_budget is not None
        message = f"{spent:.6f} of {self._daily_budget:.6f} dollars for today are spent"
        if spent < self._daily_budget:
            message += "; the rest is reserved for answers under way"
        return BudgetExceededError(message, (_midnight() + timedelta(days=1)).isoformat())


def _midnight() -> datetime:
    """When this day began, in UTC."""
    return now().replace(hour=0, minute=0, second=0, microsecond=0)


def _most_tokens(texts: Collection[str], max_tokens: int | None) -> float:
    """Of a prompt of these texts and its answer, together."""
    prompt_tokens = sum(len(text.encode(errors="replace")) + TEMPLATE_TOKENS for text in texts)
    return prompt_tokens + (math.inf if max_tokens is None else max_tokens)


def account_of(connection: HTTPConnection, principal: str, language: LanguageServices, settings: Settings) -> Account:
    """The account of who asks."""
    lengths = connection.app.state.context_lengths
    return Account(path_of(connection), principal, language, settings.daily_budget, lengths)


async def open_account(
    connection: HTTPConnection, principal: PrincipalDep, language: LanguageDep, settings: SettingsDep
) -> Account:
    """The account of who asks, if the request can be charged."""
    account = account_of(connection, principal.id, language, settings)
    await account.admit()
    return account


AccountDep = Annotated[Account, Depends(open_account)]
