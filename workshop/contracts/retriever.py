"""Text embeddings, and the search for passages that answer a question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workshop.contracts.classifier import FloatMatrix

DEFAULT_EMBEDDING = "tfidf-svd"
"""The embedding that needs no external model."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be cited. ``source`` is where it comes from, such as ``ray_serve`` or ``lesson 01``."""

    id: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage, and its similarity to the query, at most 1. Scores of different embeddings are on different scales."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class RetrieverCard:
    """A retriever.

    Attributes:
        embedding: name of the embedding.
        dimensions: length of a vector.
        passages: how many passages it searches.
        version: changes whenever the vectors of texts may change.
    """

    embedding: str
    dimensions: int
    passages: int
    version: str


class Retriever(Protocol):
    """Embeds texts, and finds the passages nearest to one."""

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """Vectors of shape (n, dimensions) and norm 1; all zeros for a text without a known word.

        Raises:
            UnavailableError, DeadlineExceededError, ModelFailedError: see their docstrings.
        """
        ...

    async def search(self, text: str, k: int) -> list[Hit]:
        """The ``k`` nearest passages, best first. Raises what ``embed`` raises."""
        ...

    async def card(self) -> RetrieverCard:
        """The retriever's card. Also serves as the readiness probe."""
        ...

    async def aclose(self) -> None:
        """Release the retriever's resources."""
        ...
