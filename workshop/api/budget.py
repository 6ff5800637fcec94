"""Who may spend how much on a day, and what each answer cost whom."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from workshop.api.clock import now
from workshop.api.dependencies import PrincipalDep, SettingsDep, UsageDep
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
        daily_budget: dollars that the principal may spend on a day (UTC), or None.
    """

    def __init__(self, endpoint: str, principal: str, usage: UsageStore, daily_budget: float | None) -> None:
        self.principal = principal
        self._endpoint = endpoint
        self._usage = usage
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

    async def metered(
        self, chunks: AsyncGenerator[Chunk, None], model: str, price: float
    ) -> AsyncGenerator[Chunk, None]:
        """The same chunks. When they end, or their reader has gone, what was made of them is charged.

        Args:
            chunks: of one answer.
            model: whose answer it is.
            price: dollars for 1000 tokens.
        """
        start = time.perf_counter()
        usage = Usage(0, 0)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    usage = chunk.usage or Usage(0, usage.completion_tokens + len(chunk.tokens))
                    yield chunk
        finally:
            cost = usage.total_tokens * price / 1000
            if usage.total_tokens:  # it did not fail before its first token
                await self.charge(self.record(model, usage, cost=cost, latency_ms=1000 * (time.perf_counter() - start)))

    async def charge(self, *records: UsageRecord) -> None:
        """Keep records. Nobody waits for it any more, so that a failure is only logged."""
        try:
            await self._usage.add(*records)
        except ServiceError:
            logger.exception("lost: %s", records)


def endpoint_of(connection: HTTPConnection) -> str:
    """The path of a route without parameters, without the prefix that a proxy has removed."""
    path: str = connection.scope["path"]
    return path.removeprefix(connection.scope.get("root_path", ""))


async def open_account(
    connection: HTTPConnection, principal: PrincipalDep, usage: UsageDep, settings: SettingsDep
) -> Account:
    """The account of who asks, if it is within its budget."""
    account = Account(endpoint_of(connection), principal, usage, settings.daily_budget)
    await account.check_budget()
    return account


AccountDep = Annotated[Account, Depends(open_account)]
