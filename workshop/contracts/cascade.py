"""A cascade: a cheap draft model answers first, and a larger one only if the draft is not good enough."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from workshop.contracts.generator import Usage


@dataclass(frozen=True, slots=True)
class Query:
    """A question, and how to answer it.

    Attributes:
        text: the question.
        max_tokens: length limit of the answer; None for as long as the context allows.
        temperature: see ``Prompt.temperature``.
        force_direct: ask the larger model without a draft.
    """

    text: str
    max_tokens: int | None = None
    temperature: float = 0.0
    force_direct: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and what it took.

    Attributes:
        content: the text.
        model_used: name of the model that gave the answer.
        quality: the draft's score, 0 to 1, or None when no draft was made.
        cascaded: whether the larger model was asked after a draft.
        draft_accepted: whether the draft is the answer.
        usage: tokens of all models that worked on it.
        cost: dollars, for all models that worked on it.
        latency_ms: time from the question to the end of the answer.
    """

    content: str
    model_used: str
    quality: float | None
    cascaded: bool
    draft_accepted: bool
    usage: Usage
    cost: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of the answer from ``model``.

    ``so_far`` is the answer up to here: what a reader who leaves now is charged for.
    """

    model: str
    text: str
    so_far: Answer


@dataclass(frozen=True, slots=True)
class Switch:
    """The draft was not good enough: the text so far is discarded, and ``to_model`` answers from the start.

    ``so_far``: see ``TextPiece``.
    """

    from_model: str
    to_model: str
    quality: float
    threshold: float
    so_far: Answer


CascadeEvent: TypeAlias = TextPiece | Switch | Answer
"""A stream of these events ends with an ``Answer``."""


class Cascade(Protocol):
    """Answers each question with the cheapest model whose answer is good enough."""

    def stream(self, query: Query) -> AsyncGenerator[CascadeEvent, None]:
        """Stream the answer. Closing the stream stops the models. Raises what ``TextGenerator.complete`` raises."""
        ...
