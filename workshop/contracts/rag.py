"""Answers that stand on sources: retrieval-augmented generation."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from workshop.contracts.generator import Usage
from workshop.contracts.retriever import Hit


@dataclass(frozen=True, slots=True)
class RagAnswer:
    """What was answered, and from what.

    Attributes:
        text: the answer, or why there is none.
        sources: what the model was given to answer from, the best first; none without ``sure``.
        model: name of the model whose answer it is; None without ``sure``, since no model was asked.
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
    """An answer is under way: ``model`` is giving it, ``usage`` is what it has taken so far."""

    model: str
    usage: Usage


RagEvent: TypeAlias = RagProgress | RagAnswer
"""A stream of them ends with a ``RagAnswer``."""


class QuestionAnswerer(Protocol):
    """Answers questions from sources, and says so when it has none."""

    def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """The answer from at most ``k`` sources, while it comes. Closing the stream stops the model.

        Raises as ``Retriever.search`` and ``TextGenerator.stream`` do.
        """
        ...
