"""The retriever as a deployment."""

from collections.abc import Sequence
from pathlib import Path

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit, RetrieverCard


class RetrieverDeployment:
    """One replica holds one loaded index. Its methods are plain, so that Serve runs them in threads.

    Args:
        artifact: folder that ``CorpusRetriever.save`` wrote, readable on every node.
        embedding_model: the sentence-transformers model that it was built with, if any.

    Raises:
        StartError: the artifact or the model is missing or damaged; the replica does not start.
    """

    def __init__(self, artifact: Path, embedding_model: str | None = None) -> None:
        from workshop.models.retriever import CorpusRetriever

        self._retriever = CorpusRetriever.load(artifact, embedding_model)

    def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return self._retriever.embed(texts)

    def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return self._retriever.search(text, k)

    def card(self) -> RetrieverCard:
        """The card of the loaded index."""
        return self._retriever.card
