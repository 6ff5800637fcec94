"""Answers from sources: retrieval-augmented generation."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from workshop.contracts.generator import Usage
from workshop.contracts.retriever import Hit


@dataclass(frozen=True, slots=True)
class RagAnswer:
    """An answer and its sources.

    Attributes:
        text: the answer, or why there is none.
        sources: the passages that the model was given, best first; empty if not ``sure``.
        model: name of the model that gave the answer; None if not ``sure``, since no model was asked.
        usage: its tokens.
        sure: whether anything relevant was found.
    """

    text: str
    sources: tuple[Hit, ...]
    model: str | None
    usage: Usage
    sure: bool


@dataclass(frozen=True, slots=True)
class RagProgress:
    """An answer from ``model`` is in progress. ``usage`` is what it has taken so far."""

    model: str
    usage: Usage


RagEvent: TypeAlias = RagProgress | RagAnswer
"""A stream of these events ends with a ``RagAnswer``."""


class QuestionAnswerer(Protocol):
    """Answers questions from sources, and says so when it has none."""

    def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """Stream the answer from at most ``k`` sources. Closing the stream stops the model.

        Raises what ``Retriever.search`` and ``TextGenerator.stream`` raise.
        """
        ...
