"""Who has used what: the record of every answer, and what they add up to."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


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


class UsageStore(Protocol):
    """Keeps records. All replicas of a service share what a store holds."""

    async def add(self, *records: UsageRecord) -> None:
        """Keep records, all or none; they are durable when this returns, or when the store is closed.

        A caller that is cancelled while it waits leaves; the records are kept all the same. Raises UnavailableError.
        """
        ...

    async def totals(self, *, cascades_only: bool = False) -> UsageTotals:
        """What all records add up to, or those of answers for which a cascade was asked. Raises UnavailableError."""
        ...

    async def spent(self, principal: str, since: datetime) -> float:
        """Dollars that a principal has used since. Raises UnavailableError."""
        ...

    async def ready(self) -> None:
        """Raises UnavailableError unless records can be read and written. Cheap enough for a probe."""
        ...

    async def aclose(self) -> None:
        """Wait for records on their way, and give back what the store holds open."""
        ...
