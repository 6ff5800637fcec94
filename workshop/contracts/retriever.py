"""Texts as vectors, and the search for the passages that answer a question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workshop.contracts.classifier import FloatMatrix

DEFAULT_EMBEDDING = "tfidf-svd"
"""The embedding that needs no other model than our own."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be cited. ``source`` says where it stands, such as ``ray_serve`` or ``lesson 01``."""

    id: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage and its cosine similarity with what was searched for, -1 to 1."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class RetrieverCard:
    """What a retriever says of itself.

    Attributes:
        embedding: its name.
        dimensions: of a vector.
        passages: how many it searches.
        version: another one as soon as a text's vector may be another one.
    """

    embedding: str
    dimensions: int
    passages: int
    version: str


class Retriever(Protocol):
    """Embeds texts, and finds the passages nearest to one."""

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """Vectors of shape (n, dimensions) and length 1; all zeros for a text without a known word.

        Raises:
            UnavailableError, DeadlineExceededError, ModelFailedError: see their docstrings.
        """
        ...

    async def search(self, text: str, k: int) -> list[Hit]:
        """The ``k`` nearest passages, the best first. Raises as ``embed`` does."""
        ...

    async def card(self) -> RetrieverCard:
        """The card. Doubles as the readiness probe."""
        ...

    async def aclose(self) -> None:
        """Give back what the retriever holds open."""
        ...
