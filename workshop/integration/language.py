"""Language models, retriever and what is built on them.

What is heavy is imported where it is loaded: PyTorch alone takes seconds and a quarter of a gigabyte, and neither a
service without language models nor an API in front of replicas needs it.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from workshop.contracts.errors import StartError
from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.retriever import DEFAULT_EMBEDDING, Retriever
from workshop.contracts.services import LanguageServices
from workshop.integration.deadline import WithDeadline
from workshop.models.cascade import PricedModel, TwoModelCascade
from workshop.settings import Settings
from workshop.storage.usage import SqlUsageStore


def local_language(settings: Settings) -> LanguageServices:
    """Load the language models and the retriever into this process.

    Raises:
        StartError: one is missing or damaged.
    """
    _require_pytorch()
    from workshop.models.cached_retriever import CachedRetriever
    from workshop.models.language_model import LanguageModel
    from workshop.models.retriever import CorpusRetriever

    models = {
        name: WithDeadline(LanguageModel.load(source, name), settings.generate_timeout_s)
        for name, source in model_sources(settings).items()
    }
    index = CorpusRetriever.load(settings.retriever_artifact, settings.embedding_model)
    return language_services(models, CachedRetriever(index, settings.redis_url), settings)


def check_language(settings: Settings) -> None:
    """Look at the language models and the retriever.

    Raises:
        StartError: one is missing or damaged.
    """
    _require_pytorch()
    from workshop.models.language_model import check_model
    from workshop.models.retriever import CorpusRetriever

    CorpusRetriever.load(settings.retriever_artifact, settings.embedding_model)
    for source in model_sources(settings).values():
        check_model(source)


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
        models: by name; each ends its answers in time.
        retriever: here or behind a handle.
        settings: of the whole service.
        rag: behind a handle; by default, it runs here.
    """
    generators = dict(models)
    draft, main = Path(settings.draft_model).name, Path(settings.main_model).name
    if settings.llm_base_url:
        from workshop.integration.upstream import UpstreamGenerator

        key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
        # A folder is of this machine: the other server knows the model by its name.
        name = main if Path(settings.main_model).is_dir() else settings.main_model
        upstream = UpstreamGenerator(settings.llm_base_url, name, key, timeout_s=settings.generate_timeout_s)
        generators[main] = WithDeadline(upstream, settings.generate_timeout_s)
    cascade = TwoModelCascade(
        PricedModel(generators[draft], draft, settings.draft_cost),
        PricedModel(generators[main], main, settings.main_cost),
        settings.cascade_threshold,
    )
    if rag is None:
        from workshop.models.rag import Rag

        rag = Rag(retriever, generators[main], main, settings.rag_threshold)
    return LanguageServices(
        generators=generators,
        prices={draft: settings.draft_cost, main: settings.main_cost},
        cascade=cascade,
        retriever=retriever,
        embedding=Path(settings.embedding_model or DEFAULT_EMBEDDING).name,
        rag=rag,
        usage=SqlUsageStore(settings.database_url),
    )


def _require_pytorch() -> None:
    """Raises StartError without PyTorch: where its CPU build cannot be had, the environment is set up without."""
    if find_spec("torch") is None:
        raise StartError("the language models need PyTorch; install it, or set WORKSHOP_LANGUAGE_MODELS=false")
