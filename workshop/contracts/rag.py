"""Answers that stand on sources: retrieval-augmented generation."""

from dataclasses import dataclass
from typing import Protocol

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


class QuestionAnswerer(Protocol):
    """Answers questions from sources, and says so when it has none."""

    async def answer(self, question: str, k: int) -> RagAnswer:
        """Answer from at most ``k`` sources. Cancelling the call stops the model.

        Raises as ``Retriever.search`` and ``TextGenerator.complete`` do.
        """
        ...
