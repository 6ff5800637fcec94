"""A cascade: a cheap draft model answers first, and a larger one only where the draft is not good enough."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from workshop.contracts.generator import Usage


@dataclass(frozen=True, slots=True)
class Query:
    """A question, and how it shall be answered.

    Attributes:
        text: the question.
        max_tokens: length limit of the answer; None for as much as fits.
        temperature: see ``Prompt.temperature``.
        force_direct: ask the larger model at once.
    """

    text: str
    max_tokens: int | None = None
    temperature: float = 0.0
    force_direct: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, by whom, and what it took.

    Attributes:
        content: the text.
        model_used: name of the model whose answer it is.
        quality: the draft's score, 0 to 1, or None when no draft was made.
        cascaded: whether the larger model was asked after a draft.
        draft_accepted: whether the draft is the answer.
        usage: tokens of all models that worked on it.
        cost: dollars, of all models that worked on it.
        latency_ms: from the question to the end of the answer.
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
    """The next piece of the answer that ``model`` is giving.

    ``so_far`` is the answer if it ended here: what a reader who leaves is charged for.
    """

    model: str
    text: str
    so_far: Answer


@dataclass(frozen=True, slots=True)
class Switch:
    """The draft was not good enough: what came so far is void, and ``to_model`` answers from the start.

    ``so_far``: see ``TextPiece``.
    """

    from_model: str
    to_model: str
    quality: float
    threshold: float
    so_far: Answer


CascadeEvent: TypeAlias = TextPiece | Switch | Answer
"""A stream of them ends with an ``Answer``."""


class Cascade(Protocol):
    """Answers questions at the lowest price that is good enough."""

    def stream(self, query: Query) -> AsyncGenerator[CascadeEvent, None]:
        """The answer while it comes. Closing the stream stops the models. Raises as ``TextGenerator.complete`` does."""
        ...
