"""Deployment handles as contracts. No Ray type and no Ray exception leaves this file."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray.exceptions import RayError, RayTaskError, UnserializableException
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import ModelFailedError, OverloadedError, ServiceError, UnavailableError
from workshop.contracts.generator import Activity, Chunk, Completion, GeneratorCard, Prompt
from workshop.contracts.rag import RagEvent
from workshop.contracts.retriever import Hit, RetrieverCard
from workshop.contracts.services import PROBE_TIMEOUT_S
from workshop.deployments.classifier import ClassifierDeployment
from workshop.deployments.language_models import LanguageModelsDeployment
from workshop.deployments.rag import RagDeployment
from workshop.deployments.retriever import RetrieverDeployment
from workshop.integration.deadline import deadline, each_in_time

Given = ParamSpec("Given")
Result = TypeVar("Result")


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


class Calls:
    """The one way to call a deployment: within a time limit, and with the contract's errors.

    When the time is up or the caller is cancelled, the call is cancelled too. If it still waits for a replica, it never
    starts. In a replica, an ``async def`` method is cancelled, and with it the calls that it awaits. A plain method
    runs in a thread, which cannot be stopped: it runs to its end, and occupies its place in the replica until then.

    Args:
        handle: of the deployment.
        timeout_s: for a call, its wait for a replica included; for a stream, for each next piece.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def __call__(
        self,
        method: Callable[Concatenate[Any, Given], Awaitable[Result] | Result],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Result:
        """What a method of the deployment's class returns."""
        async with deadline(self._timeout_s):
            with contract_errors():
                response = getattr(self._handle, method.__name__).remote(*args, **kwargs)
                try:
                    result: Result = await response
                except asyncio.CancelledError:
                    response.cancel()
                    raise
                return result

    def stream(
        self,
        method: Callable[Concatenate[Any, Given], AsyncGenerator[Result, None]],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> AsyncGenerator[Result, None]:
        """What a method of the deployment's class yields. Closing the stream cancels the call."""

        async def pieces() -> AsyncGenerator[Result, None]:
            with contract_errors():
                response = getattr(self._handle.options(stream=True), method.__name__).remote(*args, **kwargs)
                try:
                    async for piece in response:
                        yield piece
                finally:
                    response.cancel()  # of no effect once the stream has ended

        return each_in_time(pieces(), self._timeout_s)


class HandleClassifier:
    """A classifier behind a handle of ``ClassifierDeployment``.

    Args:
        handle: of the deployment.
        timeout_s: for a prediction.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._call = Calls(handle, timeout_s)
        self._probe = Calls(handle, PROBE_TIMEOUT_S)

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        return await self._call(ClassifierDeployment.predict, rows)

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return await self._probe(ClassifierDeployment.card)


class HandleRetriever:
    """A retriever behind a handle of ``RetrieverDeployment``.

    Args:
        handle: of the deployment.
        timeout_s: for a search, or for all texts of a call together. Their work runs in threads: see ``Calls``.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._call = Calls(handle, timeout_s)
        self._probe = Calls(handle, PROBE_TIMEOUT_S)

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return await self._call(RetrieverDeployment.embed, texts)

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await self._call(RetrieverDeployment.search, text, k)

    async def card(self) -> RetrieverCard:
        """See ``Retriever.card``."""
        return await self._probe(RetrieverDeployment.card)

    async def aclose(self) -> None:
        """Nothing: Serve keeps the handle's connections."""


class HandleQuestionAnswerer:
    """A chain behind a handle of ``RagDeployment``.

    Args:
        handle: of the deployment.
        timeout_s: for the search and the first piece of the answer together, then for each next piece.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._call = Calls(handle, timeout_s)

    def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        """See ``QuestionAnswerer.stream``."""
        return self._call.stream(RagDeployment.stream, question, k)


class HandleGenerator:
    """A language model behind a handle of ``LanguageModelsDeployment``.

    Args:
        handle: of the deployment.
        model: the model's name there.
        timeout_s: for an answer, or for the next piece of a stream.
    """

    def __init__(self, handle: DeploymentHandle[Any], model: str, timeout_s: float) -> None:
        self._call = Calls(handle, timeout_s)
        self._probe = Calls(handle, PROBE_TIMEOUT_S)
        self._model = model

    async def complete(self, prompt: Prompt) -> Completion:
        """See ``TextGenerator.complete``."""
        return await self._call(LanguageModelsDeployment.complete, self._model, prompt)

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """See ``TextGenerator.stream``."""
        return self._call.stream(LanguageModelsDeployment.stream, self._model, prompt)

    async def card(self) -> GeneratorCard:
        """See ``TextGenerator.card``."""
        return await self._probe(LanguageModelsDeployment.card, self._model)

    async def activity(self) -> Activity:
        """See ``TextGenerator.activity``."""
        return await self._probe(LanguageModelsDeployment.activity, self._model)

    async def aclose(self) -> None:
        """Nothing: Serve keeps the handle's connections."""
