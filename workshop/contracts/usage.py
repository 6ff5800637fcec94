"""Usage: a record of every answer, and their totals."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One answer.

    Attributes:
        endpoint: path of the route.
        principal: id of the caller.
        model: name of the model that gave the answer.
        prompt_tokens, completion_tokens: tokens of all models that worked on it.
        cost: dollars.
        latency_ms: time from the request to the end of the answer.
        cascaded, draft_accepted: see ``Answer``; None if no cascade was involved.
        at: time of the answer, with its time zone.
    """

    endpoint: str
    principal: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    latency_ms: float
    cascaded: bool | None
    draft_accepted: bool | None
    at: datetime


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """The totals of all records.

    Attributes:
        answers: number of answers.
        cost: dollars.
        answers_by_model: number of answers by model.
        drafts: answers for which a draft was made.
        drafts_accepted: how many of these drafts became the answer.
    """

    answers: int
    cost: float
    answers_by_model: Mapping[str, int]
    drafts: int
    drafts_accepted: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """A part of a principal's budget, reserved for an answer in progress."""

    id: UUID


class UsageStore(Protocol):
    """Stores usage records. All replicas of a service share one store."""

    def check_capacity(self) -> None:
        """Check that another record can be queued. Call this before a model is asked.

        Raises:
            OverloadedError: too many records are waiting to be written.
        """
        ...

    def add(self, *records: UsageRecord, settles: Reservation | None = None) -> Awaitable[None]:
        """Store records and release a reservation, in one transaction.

        Returns at once, and cancelling the caller does not stop it. The records are durable once the result has been
        awaited or the store is closed. While the database is down, they wait for it.
        """
        ...

    async def totals(self) -> UsageTotals:
        """The totals of all records. Raises UnavailableError."""
        ...

    async def spent(self, principal: str, since: datetime) -> float:
        """Dollars that a principal has spent since a time. Raises UnavailableError."""
        ...

    async def reserve(self, principal: str, cost: float, budget: float, since: datetime) -> Reservation | None:
        """Reserve what an answer may cost, or what is left of the budget if that is less.

        So a principal with money left is never refused because of an answer's highest possible price, and all answers
        together exceed a budget by less than the price of one.

        Args:
            principal: id of the caller.
            cost: the most dollars that the answer may cost.
            budget: dollars that the principal may spend.
            since: the start of the budget's period.

        Returns:
            A reservation for ``add`` to settle, or None if all of the budget is spent or reserved. The reservation of a
            process that dies expires by itself.

        Raises:
            UnavailableError: the database does not answer.
        """
        ...

    async def ready(self) -> None:
        """Raise UnavailableError unless records can be read and written. Cheap enough for a probe."""
        ...

    async def aclose(self) -> None:
        """Write the waiting records, within a time limit, and release the store's resources. Logs unwritten records."""
        ...
