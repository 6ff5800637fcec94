"""Answers from sources as a deployment: the LangChain chain runs in its replicas."""

from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import RagAnswer
from workshop.contracts.retriever import Retriever


class RagDeployment:
    """One replica holds one chain; the models that it calls may be anywhere.

    Args:
        retriever, generator, model, threshold: see ``Rag``.
    """

    def __init__(self, retriever: Retriever, generator: TextGenerator, model: str, threshold: float) -> None:
        from workshop.models.rag import Rag

        self._rag = Rag(retriever, generator, model, threshold)

    async def answer(self, question: str, k: int) -> RagAnswer:
        """See ``QuestionAnswerer.answer``."""
        return await self._rag.answer(question, k)
