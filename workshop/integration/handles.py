"""Deployment handles as contracts. No Ray type and no Ray exception leaves this file."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import ModelFailedError, OverloadedError, ServiceError, UnavailableError
from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt
from workshop.contracts.rag import RagAnswer
from workshop.contracts.retriever import Hit, RetrieverCard


@contextmanager
def contract_errors() -> Iterator[None]:
    """Turn what a handle raises into what the contract promises.

    | Ray                                         | contract           |
    |---------------------------------------------|--------------------|
    | a contract's error raised in the replica    | that error         |
    | any other error raised in the replica       | ModelFailedError   |
    | an error that cannot be unpickled here      | ModelFailedError   |
    | BackPressureError                           | OverloadedError    |
    | a replica that died or never came up        | UnavailableError   |
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ServiceError):
            raise error.cause from error
        raise ModelFailedError("the model failed") from error
    except UnserializableException as error:
        raise ModelFailedError("the model failed") from error
    except BackPressureError as error:
        raise OverloadedError("the model's queue is full", error.retry_after_s or 1.0) from error
    except (RayServeException, RayError) as error:
        raise UnavailableError("the model is not available") from error


class HandleClassifier:
    """A classifier behind a handle of ``ClassifierDeployment``."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        with contract_errors():
            scores: Scores = await self._handle.predict.remote(rows)
        return scores

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        with contract_errors():
            card: ModelCard = await self._handle.card.remote()
        return card


class HandleRetriever:
    """A retriever behind a handle of ``RetrieverDeployment``."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        with contract_errors():
            vectors: FloatMatrix = await self._handle.embed.remote(texts)
        return vectors

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        with contract_errors():
            hits: list[Hit] = await self._handle.search.remote(text, k)
        return hits

    async def card(self) -> RetrieverCard:
        """See ``Retriever.card``."""
        with contract_errors():
            card: RetrieverCard = await self._handle.card.remote()
        return card

    async def aclose(self) -> None:
        """Nothing: Serve keeps the handle's connections."""


class HandleQuestionAnswerer:
    """A chain behind a handle of ``RagDeployment``."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def answer(self, question: str, k: int) -> RagAnswer:
        """See ``QuestionAnswerer.answer``."""
        with contract_errors():
            answer: RagAnswer = await self._handle.answer.remote(question, k)
        return answer


class HandleGenerator:
    """A language model behind a handle of ``LanguageModelsDeployment``.

    Args:
        handle: of the deployment.
        model: the model's name there.
    """

    def __init__(self, handle: DeploymentHandle[Any], model: str) -> None:
        self._handle = handle
        self._model = model

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        with contract_errors():
            completion: Completion = await self._handle.complete.remote(self._model, prompt)
        return completion

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        with contract_errors():
            chunks: Any = self._handle.options(stream=True).stream.remote(self._model, prompt)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                chunks.cancel()  # of no effect once the stream has ended

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        with contract_errors():
            card: GeneratorCard = await self._handle.card.remote(self._model)
        return card

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        with contract_errors():
            activity: Activity = await self._handle.activity.remote(self._model)
        return activity

    async def aclose(self) -> None:
        """Nothing: Serve keeps the handle's connections."""
