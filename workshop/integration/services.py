"""The services of the API, built from models in this process and from handles of deployments.

Heavy modules are imported where they are used: PyTorch alone takes seconds and a quarter of a gigabyte, and neither a
service without language models nor an API in front of replicas needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from workshop import environment
from workshop.api.app import create_app
from workshop.contracts.classifier import Classifier
from workshop.contracts.errors import StartError, start_errors
from workshop.contracts.generator import TextGenerator
from workshop.contracts.metrics import MetricStore
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.registry import ModelRegistry, ModelVersion
from workshop.contracts.retriever import DEFAULT_EMBEDDING, Retriever
from workshop.contracts.services import LanguageServices, Services
from workshop.integration.batching import MicroBatched
from workshop.integration.caching import CachedClassifier
from workshop.integration.classifier import HandleClassifier, InProcessClassifier
from workshop.integration.customers import CustomerClassifiers, RecentClassifiers
from workshop.integration.generator import HandleGenerator, WithDeadline
from workshop.integration.observability import observe
from workshop.integration.prediction_jobs import open_prediction_jobs
from workshop.integration.rag import HandleQuestionAnswerer
from workshop.integration.retriever import HandleRetriever, make_embedding
from workshop.integration.rollout import RegisteredClassifier
from workshop.models.cascade import PricedModel, TwoModelCascade
from workshop.models.tumours import TumourClassifier
from workshop.settings import ModelServer, Settings, read_settings
from workshop.storage.cache import Cache
from workshop.storage.cases import SqlCaseStore
from workshop.storage.metrics import SqlMetricStore
from workshop.storage.usage import SqlUsageStore
from workshop.storage.users import SqlUserStore

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
    cache = Cache.at(settings.redis_url, settings.cache_bytes)
    metrics = SqlMetricStore(settings.database_url)

    def cached(classifier: Classifier) -> Classifier:
        if not settings.cache_predictions:
            return classifier
        return CachedClassifier(classifier, cache, settings.predict_timeout_s)

    registered = None
    if settings.registered_model is None:
        uncached = _classifier(settings, handles)
    else:
        registered = _registered(settings, handles, cached, metrics)
        uncached = registered.champion
    champion = cached(uncached)
    classifier = registered or champion
    if settings.customer_artifacts:
        own = _own(settings, handles)
        own_cached = {id: cached(each) for id, each in own.items()}
        uncached = CustomerClassifiers(uncached, own)
        champion = CustomerClassifiers(champion, own_cached)
        classifier = CustomerClassifiers(classifier, own_cached)
    cases = SqlCaseStore(settings.database_url)
    language = _language(settings, handles, cache) if settings.language_models else None
    return Services(
        classifier,
        cases,
        language,
        users=SqlUserStore(settings.database_url) if settings.token_keys else None,
        prediction_jobs=open_prediction_jobs(settings, uncached),  # not cached: a file would displace all else
        metrics=metrics,
        cache=cache,
        registered=registered,
        champion=champion,
    )


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
    environment.load()
    settings = read_settings()
    observe(settings)
    return create_app(build_services(settings), settings)


def require_pytorch() -> None:
    """Raises StartError without PyTorch, which is missing where its CPU build could not be installed."""
    if find_spec("torch") is None:
        raise StartError("the language models need PyTorch; install it, or set WORKSHOP_LANGUAGE_MODELS=false")


def _calls(handle: Any, timeout_s: float) -> "Calls":
    from workshop.integration.calls import Calls  # a handle exists only if Ray is installed

    return Calls(handle, timeout_s)


def _classifier(settings: Settings, handles: Handles) -> Classifier:
    if handles.classifier is None:
        return batched(InProcessClassifier(TumourClassifier.load(settings.artifact)), settings)
    if settings.has_many_classifiers:
        return _multiplexed(settings, handles, settings.artifact)
    return _behind(settings, handles.classifier)


def _behind(settings: Settings, handle: Any) -> Classifier:
    """The classifier behind a handle."""
    inner = HandleClassifier(_calls(handle, settings.predict_timeout_s))
    return batched(inner, settings, max_calls=settings.deployments.classifier.max_calls)


def _multiplexed(settings: Settings, handles: Handles, location: str) -> Classifier:
    """One of those behind the handle of a ``ClassifiersDeployment``."""
    return _behind(settings, handles.classifier.options(multiplexed_model_id=location))


def _own(settings: Settings, handles: Handles) -> dict[str, Classifier]:
    """The classifiers of customers who have their own, not loaded yet."""
    if handles.classifier is not None:
        return {id: _multiplexed(settings, handles, place) for id, place in settings.customer_artifacts.items()}
    recent = RecentClassifiers(settings.max_loaded_models)
    return {id: batched(recent.at(place), settings) for id, place in settings.customer_artifacts.items()}


def active_location(settings: Settings) -> str:
    """Where the classifier is that should answer now. Raises StartError."""
    if settings.registered_model is None:
        return settings.artifact
    with start_errors():
        return _registry(settings).rollout().champion.location


def _registry(settings: Settings) -> ModelRegistry:
    from workshop.storage.registry import MlflowRegistry  # MLflow takes seconds and 200 MB

    return MlflowRegistry(settings.mlflow_tracking_uri, str(settings.registered_model))


def _registered(
    settings: Settings, handles: Handles, cached: Callable[[Classifier], Classifier], metrics: MetricStore
) -> RegisteredClassifier:
    """The registered classifier, of which other versions may become active."""

    def open_version(version: ModelVersion) -> Classifier:
        if handles.classifier is None:
            return batched(InProcessClassifier(TumourClassifier.load(version.location)), settings)
        return _multiplexed(settings, handles, version.location)

    with start_errors():
        registry = _registry(settings)
    return RegisteredClassifier(
        registry,
        open_version,
        cached,
        metrics,
        timeout_s=settings.predict_timeout_s / 2,
        poll_s=settings.registry_poll_s,
        max_failures=settings.max_challenger_failures,
    )


def _language(settings: Settings, handles: Handles, cache: Cache) -> LanguageServices:
    draft, main = Path(settings.draft_model).name, Path(settings.main_model).name
    generators = {
        draft: _generator(settings, handles, settings.draft_model, settings.draft_server, is_draft=True),
        main: _generator(settings, handles, settings.main_model, settings.main_server),
    }
    retriever = _retriever(settings, handles, cache)
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


def _generator(
    settings: Settings, handles: Handles, model: str, server: ModelServer | None, *, is_draft: bool = False
) -> TextGenerator:
    """A language model, wherever it runs."""
    name, timeout_s = Path(model).name, settings.generate_timeout_s
    if server is not None:
        # A folder exists on this machine only; the other server knows the model by its name.
        return WithDeadline(_upstream(server, name if Path(model).is_dir() else model, timeout_s, is_draft), timeout_s)
    if handles.language_models is not None:
        return HandleGenerator(_calls(handles.language_models, timeout_s), name)
    require_pytorch()
    from workshop.models.language_model import LanguageModel

    return WithDeadline(LanguageModel.load(model, name, settings.model_cache_tokens), timeout_s)


def _upstream(server: ModelServer, model: str, timeout_s: float, needs_logprobs: bool) -> TextGenerator:
    if server.protocol == "anthropic":
        from workshop.integration.upstream.anthropic import AnthropicGenerator

        return AnthropicGenerator(server.base_url, model, server.api_key, timeout_s=timeout_s)
    from workshop.integration.upstream.openai import OpenAIGenerator

    return OpenAIGenerator(server.base_url, model, server.api_key, timeout_s=timeout_s, needs_logprobs=needs_logprobs)


def _retriever(settings: Settings, handles: Handles, cache: Cache) -> Retriever:
    if handles.retriever is not None:
        return HandleRetriever(_calls(handles.retriever, settings.generate_timeout_s))
    from workshop.models.cached_retriever import CachedRetriever
    from workshop.models.retriever import CorpusRetriever

    index = CorpusRetriever.load(settings.retriever_artifact, make_embedding(settings))
    return CachedRetriever(index, cache)


def _rag(
    settings: Settings, handles: Handles, retriever: Retriever, generator: TextGenerator, model: str
) -> QuestionAnswerer:
    if handles.rag is not None:
        return HandleQuestionAnswerer(_calls(handles.rag, settings.generate_timeout_s))
    from workshop.models.rag import Rag

    return Rag(retriever, generator, model, settings.rag_threshold)
