"""Who may spend how much on a day, and what each answer cost whom."""

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from workshop.api.clock import now
from workshop.api.dependencies import PricesDep, PrincipalDep, SettingsDep, UsageDep, path_of
from workshop.contracts.errors import BudgetExceededError, ServiceError
from workshop.contracts.generator import Chunk, Usage
from workshop.contracts.usage import UsageRecord, UsageStore

logger = logging.getLogger(__name__)


class Account:
    """Where a request's answers are charged.

    Args:
        endpoint: path of the route.
        principal: who asks.
        usage: where records are kept.
        prices: dollars for 1000 tokens of each model, by its name.
        daily_budget: dollars that the principal may spend on a day (UTC), or None.
    """

    def __init__(
        self,
        endpoint: str,
        principal: str,
        usage: UsageStore,
        prices: Mapping[str, float],
        daily_budget: float | None,
    ) -> None:
        self.principal = principal
        self._endpoint = endpoint
        self._usage = usage
        self._prices = prices
        self._daily_budget = daily_budget

    async def check_budget(self) -> None:
        """Turn away who has spent the budget of this day (UTC).

        What is under way counts when it is done, so requests at the same time may go beyond the budget together.

        Raises:
            BudgetExceededError: nothing is left of it.
        """
        if self._daily_budget is None:
            return
        today = now().replace(hour=0, minute=0, second=0, microsecond=0)
        spent = await self._usage.spent(self.principal, today)
        if spent >= self._daily_budget:
            message = f"{spent:.6f} of {self._daily_budget:.6f} dollars for today are spent"
            raise BudgetExceededError(message, (today + timedelta(days=1)).isoformat())

    def record(
        self,
        model: str,
        usage: Usage,
        *,
        cost: float,
        latency_ms: float,
        cascaded: bool | None = None,
        draft_accepted: bool | None = None,
    ) -> UsageRecord:
        """An answer's record, to be charged when the answer is out: see ``UsageRecord``."""
        return UsageRecord(
            endpoint=self._endpoint,
            principal=self.principal,
            model=model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost=cost,
            latency_ms=latency_ms,
            cascaded=cascaded,
            draft_accepted=draft_accepted,
            at=now(),
        )

    def record_of(self, model: str, usage: Usage, start: float) -> UsageRecord:
        """The record of one model's answer, at the model's price; ``start`` is of ``time.perf_counter``."""
        cost = usage.total_tokens * self._prices[model] / 1000
        return self.record(model, usage, cost=cost, latency_ms=1000 * (time.perf_counter() - start))

    async def metered(self, chunks: AsyncGenerator[Chunk, None], model: str) -> AsyncGenerator[Chunk, None]:
        """The same chunks of a model's answer. When they end, or their reader has gone, what was made is charged."""
        start = time.perf_counter()
        usage = Usage(0, 0)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    usage = chunk.usage or Usage(0, usage.completion_tokens + len(chunk.tokens))
                    yield chunk
        finally:
            if usage.total_tokens:  # it did not fail before its first token
                await self.charge(self.record_of(model, usage, start))

    async def charge(self, *records: UsageRecord) -> None:
        """Keep records. Nobody waits for it any more, so that a failure is only logged."""
        try:
            await self._usage.add(*records)
        except ServiceError:
            logger.exception("lost: %s", records)


async def open_account(
    connection: HTTPConnection, principal: PrincipalDep, usage: UsageDep, prices: PricesDep, settings: SettingsDep
) -> Account:
    """The account of who asks, if it is within its budget."""
    account = Account(path_of(connection), principal.id, usage, prices, settings.daily_budget)
    await account.check_budget()
    return account


AccountDep = Annotated[Account, Depends(open_account)]
