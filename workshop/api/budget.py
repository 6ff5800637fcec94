"""Daily budgets, and the cost of each answer."""

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
from workshop.api.dependencies import LanguageDep, PrincipalDep, SettingsDep, find_generator, request_path
from workshop.api.metrics import count_answer
from workshop.contracts.cascade import Answer, CascadeEvent, Query
from workshop.contracts.errors import BudgetExceededError, ModelFailedError, UnauthenticatedError
from workshop.contracts.generator import Chunk, Prompt, Usage
from workshop.contracts.metrics import MetricStore
from workshop.contracts.principals import Principal
from workshop.contracts.rag import RagAnswer, RagEvent
from workshop.contracts.services import LanguageServices
from workshop.contracts.usage import Reservation, UsageRecord
from workshop.settings import Settings

Item = TypeVar("Item")

TEMPLATE_TOKENS = 32
"""The most tokens that a chat template adds to a message."""
SETTLE_LIMIT_S = 1.0
"""How long an answer waits for its charge to be stored. If the database is down, it is stored later."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What an answer has cost so far. ``UsageRecord`` explains the fields that it has too."""

    model: str
    usage: Usage
    cost: float
    is_complete: bool
    cascaded: bool | None = None
    draft_accepted: bool | None = None


class Account:
    """Runs metered answers. Every route, streaming or not, gets its answers from here.

    The cost of an answer:

    - A complete answer costs the tokens it took, even if its reader has left.
    - A reader who leaves or cancels stops the model, and pays for the prompt and the tokens generated so far.
    - An answer that fails costs nothing, however much of it was read: either the service is at fault, or no model has
      worked yet.

    Nothing is charged in a background task, because such a task does not run when the reader has left.

    With a daily budget, the highest possible price of an answer is reserved before a model is asked, and settled when
    the answer ends. All replicas share the reservations. The highest price is that of the prompt and ``max_tokens``, or
    of the context length if that is less, for each model that may be asked. The prompt is counted as one token per
    byte, since no tokenizer produces more. The last answer before a budget runs out reserves only what is left, so that
    no caller with money left is refused; a budget may thus be exceeded by a part of one answer. A caller who asks many
    questions at once near the end of a budget should set ``max_tokens``, so that more of them fit.

    Args:
        endpoint: path of the route.
        principal: the caller. Its answers end when its credential expires, and cost what was generated until then.
        language: the models, their prices, and the store of usage records.
        daily_budget: dollars that the principal may spend per day (UTC), or None for no limit.
        context_lengths: the known context lengths by model. The account adds those that it looks up.
        metrics: where answers of the cascade are counted.
    """

    def __init__(
        self,
        endpoint: str,
        principal: Principal,
        language: LanguageServices,
        daily_budget: float | None,
        context_lengths: dict[str, int],
        metrics: MetricStore,
    ) -> None:
        self.principal = principal.id
        self._expires = principal.expires
        self._endpoint = endpoint
        self._language = language
        self._daily_budget = daily_budget
        self._context_lengths = context_lengths
        self._metrics = metrics

    async def admit(self) -> None:
        """Reject a request that cannot be charged.

        Raises:
            OverloadedError: too many records are waiting to be written.
            BudgetExceededError: nothing is left of today's budget.
        """
        self._language.usage.check_capacity()
        if self._daily_budget is not None:
            spent = await self._language.usage.spent(self.principal, _midnight())
            if spent >= self._daily_budget:
                raise self._budget_exceeded(spent)

    def chat(self, model: str, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream one model's answer. Raises NotFoundError, and what ``TextGenerator.stream`` raises."""
        generator = find_generator(self._language.generators, model)
        price = self._language.prices[model] / 1000

        def charge(chunk: Chunk) -> Charge:
            return Charge(model, chunk.usage, chunk.usage.total_tokens * price, chunk.finish_reason is not None)

        texts = [message.content for message in prompt.messages]
        bound = _token_bound(texts, prompt.max_tokens)
        return self._until_expiry(self._metered(generator.stream(prompt), charge, [model], bound))

    def ask(self, query: Query) -> AsyncGenerator[CascadeEvent, None]:
        """Stream the cascade's answer. Raises what ``Cascade.stream`` raises."""

        def charge(event: CascadeEvent) -> Charge:
            is_complete = isinstance(event, Answer)
            answer = event if isinstance(event, Answer) else event.so_far
            return Charge(
                answer.model_used, answer.usage, answer.cost, is_complete, answer.cascaded, answer.draft_accepted
            )

        models = self._language.prices.keys()  # the draft may be discarded
        bound = _token_bound([query.text], query.max_tokens)
        return self._until_expiry(self._metered(self._language.cascade.stream(query), charge, models, bound))

    def ask_sources(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """Stream an answer from sources. Raises what ``QuestionAnswerer.stream`` raises."""

        def charge(event: RagEvent) -> Charge:
            price = self._language.prices[event.model] / 1000 if event.model is not None else 0.0
            is_complete = isinstance(event, RagAnswer)
            return Charge(event.model or "", event.usage, event.usage.total_tokens * price, is_complete)

        model = max(self._language.prices, key=lambda name: self._language.prices[name])
        # The length of the sources is not known yet.
        answer = self._language.rag.stream(question, k)
        return self._until_expiry(self._metered(answer, charge, [model], math.inf))

    async def _until_expiry(self, answer: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
        """The items of an answer. Raises UnauthenticatedError once the caller's credential has expired."""
        async with aclosing(answer):
            async for item in answer:
                if self._expires is not None and now() >= self._expires:
                    raise UnauthenticatedError("the credential has expired")
                yield item

    async def _metered(
        self,
        answer: AsyncGenerator[Item, None],
        charge_for: Callable[[Item], Charge],
        models: Collection[str],
        token_bound: float,
    ) -> AsyncGenerator[Item, None]:
        """Yield the items of an answer up to the one that completes it, and charge as the class describes.

        Args:
            answer: the stream of an answer.
            charge_for: returns what the answer has cost up to an item.
            models: the models that may be asked.
            token_bound: the most tokens that each of them may take, prompt and answer together.
        """
        start = time.perf_counter()
        reservation = await self._reserve(models, token_bound)
        charge: Charge | None = None
        try:
            async with aclosing(answer):
                async for item in answer:
                    charge = charge_for(item)
                    if charge.is_complete:
                        break
                    yield item
                else:
                    raise ModelFailedError("the model's answer ended unexpectedly")
        except Exception:
            charge = None
            raise
        finally:  # also on GeneratorExit and CancelledError: the reader has left
            await self._settle(charge, time.perf_counter() - start, reservation)
        yield item

    async def _reserve(self, models: Collection[str], token_bound: float) -> Reservation | None:
        if self._daily_budget is None:
            return None
        cost = 0.0
        for model in models:
            tokens = min(token_bound, await self._context_length(model))
            cost += tokens * self._language.prices[model] / 1000
        usage, today = self._language.usage, _midnight()
        reservation = await usage.reserve(self.principal, cost, self._daily_budget, today)
        if reservation is None:
            raise self._budget_exceeded(await usage.spent(self.principal, today))
        return reservation

    async def _context_length(self, model: str) -> int:
        if model not in self._context_lengths:
            self._context_lengths[model] = (await self._language.generators[model].card()).context_length
        return self._context_lengths[model]

    async def _settle(self, charge: Charge | None, seconds: float, reservation: Reservation | None) -> None:
        """Store the charge. With a budget, wait until it is stored, so that the next request sees what is left."""
        records = []
        if charge is not None and charge.usage.total_tokens:
            records.append(self._record(charge, 1000 * seconds))
            if charge.cascaded is not None:
                count_answer(self._metrics, charge.model, charge.cost, seconds)
        if records or reservation:
            written = self._language.usage.add(*records, settles=reservation)
            if reservation:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SETTLE_LIMIT_S):
                        await asyncio.shield(written)

    def _record(self, charge: Charge, latency_ms: float) -> UsageRecord:
        return UsageRecord(
            endpoint=self._endpoint,
            principal=self.principal,
            model=charge.model,
            prompt_tokens=charge.usage.prompt_tokens,
            completion_tokens=charge.usage.completion_tokens,
            cost=charge.cost,
            latency_ms=latency_ms,
            cascaded=charge.cascaded,
            draft_accepted=charge.draft_accepted,
            at=now(),
        )

    def _budget_exceeded(self, spent: float) -> BudgetExceededError:
        assert self._daily_budget is not None
        message = f"{spent:.6f} of {self._daily_budget:.6f} dollars of today's budget are spent"
        if spent < self._daily_budget:
            message += "; the rest is reserved for answers in progress"
        return BudgetExceededError(message, (_midnight() + timedelta(days=1)).isoformat())


def _midnight() -> datetime:
    """The start of today, in UTC."""
    return now().replace(hour=0, minute=0, second=0, microsecond=0)


def _token_bound(texts: Collection[str], max_tokens: int | None) -> float:
    """The most tokens of a prompt of these texts and its answer together."""
    prompt_tokens = sum(len(text.encode(errors="replace")) + TEMPLATE_TOKENS for text in texts)
    return prompt_tokens + (math.inf if max_tokens is None else max_tokens)


def create_account(
    connection: HTTPConnection, principal: Principal, language: LanguageServices, settings: Settings
) -> Account:
    """An account for a principal's requests to this route."""
    state = connection.app.state
    endpoint, metrics = request_path(connection), state.services.metrics
    return Account(endpoint, principal, language, settings.daily_budget, state.context_lengths, metrics)


async def open_account(
    connection: HTTPConnection, principal: PrincipalDep, language: LanguageDep, settings: SettingsDep
) -> Account:
    """The caller's account. Raises what ``Account.admit`` raises."""
    account = create_account(connection, principal, language, settings)
    await account.admit()
    return account


AccountDep = Annotated[Account, Depends(open_account)]
