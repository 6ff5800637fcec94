"""Answers from sources behind a deployment's handle. ``Rag``, the chain in this process, needs no adapter."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from workshop.contracts.rag import RagEvent
from workshop.deployments.rag import RagDeployment

if TYPE_CHECKING:  # a service on uvicorn alone needs no Ray
    from workshop.integration.calls import Calls


class HandleQuestionAnswerer:
    """A chain behind a handle of ``RagDeployment``.

    Args:
        calls: calls the deployment.
    """

    def __init__(self, calls: "Calls") -> None:
        self._calls = calls

    def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """See ``QuestionAnswerer.stream``."""
        return self._calls.stream(RagDeployment.stream, question, k)
