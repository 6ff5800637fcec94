"""Who has used what: the record of every answer, and what they add up to."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One answer.

    Attributes:
        endpoint: path of the route that gave it.
        principal: who asked.
        model: name of the model whose answer it is.
        prompt_tokens, completion_tokens: of all models that worked on it.
        cost: dollars.
        latency_ms: from the request to the end of the answer.
        cascaded, draft_accepted: see ``Answer``; None when no cascade was involved.
        at: when, with its time zone.
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
    """What all records add up to.

    Attributes:
        answers: how many.
        cost: dollars.
        answers_by_model: how many by the name of the model.
        drafts: answers for which a draft was made.
        drafts_accepted: how many of these drafts became the answer.
        latency_counts: answers that took at most so many milliseconds, by that limit; cumulative, ends with infinity.
        latency_sum_ms: milliseconds of all answers together.
    """

    answers: int
    cost: float
    answers_by_model: Mapping[str, int]
    drafts: int
    drafts_accepted: int
    latency_counts: Mapping[float, int]
    latency_sum_ms: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """A part of a principal's budget, set aside for an answer under way."""

    id: UUID


class UsageStore(Protocol):
    """Keeps records. All replicas of a service share what a store holds."""

    def check_room(self) -> None:
        """Ask this before a model is asked: whatever is answered can then be recorded.

        Raises:
            OverloadedError: too many records wait to be written.
        """
        ...

    def add(self, *records: UsageRecord, settles: Reservation | None = None) -> Awaitable[None]:
        """Keep records, and release a reservation with them; all or nothing.

        Returns at once, and whoever cancels the caller changes nothing. The records are durable when the result has
        been awaited, or when the store is closed. While the database is away, they wait for it.
        """
        ...

    async def totals(self, *, cascades_only: bool = False) -> UsageTotals:
        """What all records add up to, or those of answers for which a cascade was asked. Raises UnavailableError."""
        ...

    async def spent(self, principal: str, since: datetime) -> float:
        """Dollars that a principal has used since. Raises UnavailableError."""
        ...

    async def reserve(self, principal: str, cost: float, budget: float, since: datetime) -> Reservation | None:
        """Set aside what an answer may cost, as far as the budget has it.

        An answer that is still affordable is never refused for its highest possible price: the last one before the
        budget ends reserves what is left. So all answers together exceed a budget by less than the price of one.

        Args:
            principal: who pays.
            cost: dollars that the answer may cost at most.
            budget: dollars that the principal may spend.
            since: from when on.

        Returns:
            What ``add`` settles, or None when all of the budget is spent or reserved. The reservation of a process that
            dies expires by itself.

        Raises:
            UnavailableError: the database does not answer.
        """
        ...

    async def ready(self) -> None:
        """Raises UnavailableError unless records can be read and written. Cheap enough for a probe."""
        ...

    async def aclose(self) -> None:
        """Write what waits, for a while, and give back what the store holds open. What cannot be written is logged."""
        ...
