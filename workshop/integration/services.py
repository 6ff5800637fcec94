"""The services of the API, built from models in this process and from handles of deployments.

Heavy modules are imported where they are used: PyTorch alone takes seconds and a quarter of a gigabyte, and neither a
service without language models nor an API in front of replicas needs it.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from workshop.api.app import create_app
from workshop.contracts.classifier import Classifier
from workshop.contracts.errors import StartError
from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.retriever import DEFAULT_EMBEDDING, Retriever
from workshop.contracts.services import LanguageServices, Services
from workshop.integration.batching import MicroBatched
from workshop.integration.classifier import HandleClassifier, InProcessClassifier
from workshop.integration.generator import HandleGenerator, WithDeadline
from workshop.integration.rag import HandleQuestionAnswerer
from workshop.integration.retriever import HandleRetriever
from workshop.models.cascade import PricedModel, TwoModelCascade
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings, read_settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import SqlUsageStore

if TYPE_CHECKING:
    from workshop.integration.calls import Calls


@dataclass(frozen=True)
class Handles:
    """The deployments of the models: bound ones when the application is built, handles in its replicas.

    None stands for a model in the API's process.
    """

    classifier: Any = None
    language_models: Any = None
    retriever: Any = None
    rag: Any = None


IN_PROCESS = Handles()
"""No deployments: every model runs in the process of the API."""


def build_services(settings: Settings, handles: Handles = IN_PROCESS) -> Services:
    """Everything that the API calls. Models without a handle are loaded into this process.

    Raises:
        StartError: a model is missing or damaged.
    """
    classifier = _classifier(settings, handles)
    cases = SqlCaseStore(settings.database_url)
    if not settings.language_models:
        return Services(classifier, cases)
    return Services(classifier, cases, _language(settings, handles))


def batched(classifier: Classifier, settings: Settings, *, max_calls: int = 1) -> Classifier:
    """The classifier with micro-batching, as configured."""
    return MicroBatched(
        classifier,
        max_rows=settings.batch_max_rows if settings.batching else 1,
        max_waiting_rows=settings.queue_max_rows,
        max_calls=max_calls,
        timeout_s=settings.predict_timeout_s,
    )


def app() -> FastAPI:
    """The service for ``uvicorn --factory workshop.integration.services:app``."""
    settings = read_settings()
    return create_app(build_services(settings), settings)


def model_sources(settings: Settings) -> dict[str, str]:
    """Folder or hub name of the language models that we run, by the name that callers use."""
    sources = [settings.draft_model] if settings.llm_base_url else [settings.draft_model, settings.main_model]
    return {Path(source).name: source for source in sources}


def require_pytorch() -> None:
    """Raises StartError without PyTorch, which is missing where its CPU build could not be installed."""
    if find_spec("torch") is None:
        raise StartError("the language models need PyTorch; install it, or set WORKSHOP_LANGUAGE_MODELS=false")


def _calls(handle: Any, timeout_s: float) -> "Calls":
    from workshop.integration.calls import Calls  # a handle exists only if Ray is installed

    return Calls(handle, timeout_s)


def _classifier(settings: Settings, handles: Handles) -> Classifier:
    if handles.classifier is None:
        inner: Classifier = InProcessClassifier(TumourClassifier.load(settings.artifact))
        max_calls = 1
    else:
        inner = HandleClassifier(_calls(handles.classifier, settings.predict_timeout_s))
        max_calls = settings.deployments.classifier.max_calls
    return batched(inner, settings, max_calls=max_calls)


def _language(settings: Settings, handles: Handles) -> LanguageServices:
    draft, main = Path(settings.draft_model).name, Path(settings.main_model).name
    generators = _generators(settings, handles)
    retriever = _retriever(settings, handles)
    cascade = TwoModelCascade(
        PricedModel(generators[draft], draft, settings.draft_cost),
        PricedModel(generators[main], main, settings.main_cost),
        settings.cascade_threshold,
    )
    default = settings.default_model or main
    if default not in generators:
        raise StartError(f"setting default_model: there is no model {default}; there are: {', '.join(generators)}")
    return LanguageServices(
        generators=generators,
        prices={draft: settings.draft_cost, main: settings.main_cost},
        default_model=default,
        cascade=cascade,
        retriever=retriever,
        embedding=Path(settings.embedding_model or DEFAULT_EMBEDDING).name,
        rag=_rag(settings, handles, retriever, generators[main], main),
        usage=SqlUsageStore(settings.database_url),
    )


def _generators(settings: Settings, handles: Handles) -> dict[str, TextGenerator]:
    generators: dict[str, TextGenerator] = {}
    for name, source in model_sources(settings).items():
        if handles.language_models is None:
            require_pytorch()
            from workshop.models.language_model import LanguageModel

            generators[name] = WithDeadline(LanguageModel.load(source, name), settings.generate_timeout_s)
        else:
            generators[name] = HandleGenerator(_calls(handles.language_models, settings.generate_timeout_s), name)
    if settings.llm_base_url:
        from workshop.integration.upstream import UpstreamGenerator

        main = Path(settings.main_model).name
        key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
        # A folder exists on this machine only; the other server knows the model by its name.
        name = main if Path(settings.main_model).is_dir() else settings.main_model
        upstream = UpstreamGenerator(settings.llm_base_url, name, key, timeout_s=settings.generate_timeout_s)
        generators[main] = WithDeadline(upstream, settings.generate_timeout_s)
    return generators


def _retriever(settings: Settings, handles: Handles) -> Retriever:
    if handles.retriever is not None:
        return HandleRetriever(_calls(handles.retriever, settings.generate_timeout_s))
    from workshop.models.cached_retriever import CachedRetriever
    from workshop.models.retriever import CorpusRetriever

    index = CorpusRetriever.load(settings.retriever_artifact, settings.embedding_model)
    return CachedRetriever(index, settings.redis_url)


def _rag(
    settings: Settings, handles: Handles, retriever: Retriever, generator: TextGenerator, model: str
) -> QuestionAnswerer:
    if handles.rag is not None:
        return HandleQuestionAnswerer(_calls(handles.rag, settings.generate_timeout_s))
    from workshop.models.rag import Rag

    return Rag(retriever, generator, model, settings.rag_threshold)
