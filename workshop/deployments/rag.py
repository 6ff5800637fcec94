"""Answers from sources as a deployment: the LangChain chain runs in its replicas."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import RagEvent
from workshop.contracts.retriever import Retriever


class RagDeployment:
    """One replica holds one chain; the models that it calls may be anywhere.

    Args:
        retriever, generator, model, threshold: see ``Rag``.
    """

    def __init__(self, retriever: Retriever, generator: TextGenerator, model: str, threshold: float) -> None:
        from workshop.models.rag import Rag

        self._rag = Rag(retriever, generator, model, threshold)

    async def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """See ``QuestionAnswerer.stream``."""
        async with aclosing(self._rag.stream(question, k)) as events:
            async for event in events:
                yield event
