"""The services within one process: for uvicorn alone, and for an API replica when models are inline."""

import asyncio
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from workshop.api.app import create_app
from workshop.contracts.classifier import Classifier, FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import ServiceError, StartError
from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.retriever import Hit, Retriever, RetrieverCard
from workshop.contracts.services import LanguageServices, Services
from workshop.integration.batching import MicroBatched
from workshop.integration.deadline import WithDeadline
from workshop.integration.upstream import UpstreamGenerator
from workshop.models.cascade import PricedModel, TwoModelCascade
from workshop.models.rag import Rag
from workshop.models.retriever import CorpusRetriever
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import SqlUsageStore


class InProcessClassifier:
    """A classifier in this process, run in a worker thread so that the event loop stays free."""

    def __init__(self, model: TumourClassifier) -> None:
        self._model = model

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        return await anyio.to_thread.run_sync(self._model.predict, rows)

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return self._model.card


class InProcessRetriever:
    """A retriever in this process, run in a worker thread so that the event loop stays free."""

    def __init__(self, retriever: CorpusRetriever) -> None:
        self._retriever = retriever

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """See ``Retriever.embed``."""
        return await anyio.to_thread.run_sync(self._retriever.embed, texts)

    async def search(self, text: str, k: int) -> list[Hit]:
        """See ``Retriever.search``."""
        return await anyio.to_thread.run_sync(self._retriever.search, text, k)

    async def card(self) -> RetrieverCard:
        """See ``Retriever.card``."""
        return self._retriever.card


def batched(classifier: Classifier, settings: Settings, *, max_calls: int = 1) -> Classifier:
    """The classifier with micro-batching as the settings want it."""
    return MicroBatched(
        classifier,
        max_rows=settings.batch_max_rows if settings.batching else 1,
        max_waiting_rows=settings.queue_max_rows,
        max_calls=max_calls,
        timeout_s=settings.predict_timeout_s,
    )


def local_services(settings: Settings) -> Services:
    """Load every model into this process.

    Raises:
        StartError: a model is missing or damaged.
    """
    classifier = batched(InProcessClassifier(TumourClassifier.load(settings.artifact)), settings)
    cases = SqlCaseStore(settings.database_url)
    if not settings.language_models:
        return Services(classifier, cases)
    require_pytorch()
    from workshop.models.language_model import LanguageModel  # noqa: PLC0415 takes seconds and a quarter of a gigabyte

    models = {name: LanguageModel.load(source, name) for name, source in model_sources(settings).items()}
    retriever = InProcessRetriever(CorpusRetriever.load(settings.retriever_artifact, settings.embedding_model))
    return Services(classifier, cases, language_services(models, retriever, settings))


def require_pytorch() -> None:
    """Raises StartError without PyTorch: where its CPU build cannot be had, the environment is set up without."""
    if find_spec("torch") is None:
        raise StartError("the language models need PyTorch; install it, or set WORKSHOP_LANGUAGE_MODELS=false")


def model_sources(settings: Settings) -> dict[str, str]:
    """Folder or hub name of the language models that run here, by the name that callers use."""
    sources = [settings.draft_model] if settings.llm_base_url else [settings.draft_model, settings.main_model]
    return {Path(source).name: source for source in sources}


def language_services(
    models: Mapping[str, TextGenerator],
    retriever: Retriever,
    settings: Settings,
    *,
    rag: QuestionAnswerer | None = None,
) -> LanguageServices:
    """What the routes for language need, on top of the models that run here or behind handles.

    Args:
        models: by name.
        retriever: here or behind a handle.
        settings: of the whole service.
        rag: behind a handle; by default, it runs here.
    """
    generators = dict(models)
    draft, main = Path(settings.draft_model).name, Path(settings.main_model).name
    if settings.llm_base_url:
        key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
        generators[main] = UpstreamGenerator(
            settings.llm_base_url, settings.main_model, key, timeout_s=settings.generate_timeout_s
        )
    generators = {name: WithDeadline(generator, settings.generate_timeout_s) for name, generator in generators.items()}
    cascade = TwoModelCascade(
        PricedModel(generators[draft], draft, settings.draft_cost),
        PricedModel(generators[main], main, settings.main_cost),
        settings.cascade_threshold,
    )
    return LanguageServices(
        generators=generators,
        prices={draft: settings.draft_cost, main: settings.main_cost},
        cascade=cascade,
        retriever=retriever,
        rag=rag or Rag(retriever, generators[main], main),
        usage=SqlUsageStore(settings.database_url),
    )


def check_database(settings: Settings) -> None:
    """Use the database once: what is wrong with it shows here, rather than at the first request.

    Raises:
        StartError: the database does not answer, or its URL is none.
    """

    async def use_database() -> None:
        store = SqlCaseStore(settings.database_url)
        try:
            async with store.transaction():
                pass
        finally:
            await store.aclose()

    try:
        asyncio.run(use_database())
    except (SQLAlchemyError, ServiceError, ImportError, OSError) as error:
        reason, *_ = str(error.__cause__ or error).splitlines()
        raise StartError(f"cannot use the database that DATABASE_URL names: {reason}") from error


def check_models(settings: Settings) -> None:
    """Look at every model: what is wrong shows here, rather than in each replica after minutes.

    Raises:
        StartError: a model is missing or damaged.
    """
    TumourClassifier.load(settings.artifact)
    if not settings.language_models:
        return
    require_pytorch()
    from transformers import AutoConfig  # noqa: PLC0415 takes seconds

    CorpusRetriever.load(settings.retriever_artifact, settings.embedding_model)
    for source in model_sources(settings).values():
        try:
            AutoConfig.from_pretrained(source)  # the weights would take seconds and the memory of a replica
        except (OSError, ValueError) as error:
            raise StartError(
                f"cannot load the language model {source}: {str(error).strip().partition(chr(10))[0]}"
            ) from error


def app() -> FastAPI:
    """The service for ``uvicorn --factory workshop.integration.local:app``."""
    settings = Settings()
    return create_app(local_services(settings), settings)
