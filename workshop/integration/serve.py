"""The service on Ray Serve."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.app import create_app
from workshop.api.middleware import request_id
from workshop.contracts.services import Services
from workshop.deployments.classifier import ClassifierDeployment
from workshop.deployments.language_models import LanguageModelsDeployment
from workshop.deployments.rag import RagDeployment
from workshop.deployments.retriever import RetrieverDeployment
from workshop.integration.handles import HandleClassifier, HandleGenerator, HandleQuestionAnswerer, HandleRetriever
from workshop.integration.language import language_services, model_sources
from workshop.integration.local import batched, local_services
from workshop.integration.stopping import end_tasks
from workshop.settings import Placement, Settings
from workshop.storage.cases import SqlCaseStore

APP_NAME = "workshop"
STOP_POLL_S = 0.1
"""A replica that stops looks so often whether it is idle; every two seconds by default."""
FLUSH_S = 1.0
"""The same for the API. It is killed as soon as it is idle, and by then its last words must have reached the proxy."""


class WithoutRequestId:
    """Drops the response's ``X-Request-ID``: Serve's proxy adds the same one again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[request_id.HEADER]
            await send(message)

        await self.app(scope, receive, send_without_id)


class UnderWay:
    """Knows the requests under way in this replica, and can end them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._tasks: dict[asyncio.Task[Any], Scope] = {}
        self._stops = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = scope
        if self._stops:
            task.cancel()
        try:
            await self.app(scope, receive, send)
        finally:
            del self._tasks[task]

    async def end(self) -> None:
        """End them as uvicorn does when it stops: WebSockets at once, others when they have had their time.

        What comes after this is turned away.
        """
        self._stops = True
        for task, scope in list(self._tasks.items()):
            if scope["type"] == "websocket":
                task.cancel()
        await end_tasks(self._tasks.keys)


@dataclass(frozen=True)
class Handles:
    """The deployments that hold the models: bound ones when the application is built, handles in its replicas."""

    classifier: Any
    language_models: Any = None
    retriever: Any = None
    rag: Any = None


class Api:
    """The ingress: each replica builds the FastAPI application for itself, so nothing of it is pickled.

    Args:
        settings: of the whole service.
        handles: of the deployments that hold the models, or None to hold them in this process.
    """

    def __init__(self, settings: Settings, handles: Handles | None = None) -> None:
        self._settings = settings
        self._handles = handles

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self._requests = UnderWay(WithoutRequestId(create_app(self._services(), self._settings)))
        return self._requests

    async def end_requests(self) -> None:
        """Prepare for a stop: Serve kills a replica that is still busy when its time is over, and all that it holds."""
        await self._requests.end()

    def _services(self) -> Services:
        settings, handles = self._settings, self._handles
        if handles is None:
            return local_services(settings)
        classifier = batched(
            HandleClassifier(handles.classifier, settings.predict_timeout_s),
            settings,
            max_calls=settings.classifier_replicas,
        )
        cases = SqlCaseStore(settings.database_url)
        if not settings.language_models:
            return Services(classifier, cases)
        timeout_s = settings.generate_timeout_s
        models = {name: HandleGenerator(handles.language_models, name, timeout_s) for name in model_sources(settings)}
        retriever = HandleRetriever(handles.retriever, timeout_s)
        rag = HandleQuestionAnswerer(handles.rag, timeout_s) if handles.rag is not None else None
        return Services(classifier, cases, language_services(models, retriever, settings, rag=rag))


def build_application(settings: Settings) -> serve.Application:
    """The Serve application that the settings describe.

    The decorators are applied here, so that the classes themselves stay plain and are pickled by name.
    """
    api = serve.deployment(
        name="api",
        num_replicas=settings.api_replicas,
        max_ongoing_requests=1000,  # the queue that counts is the micro-batcher's
        graceful_shutdown_timeout_s=5,  # a WebSocket may stay open for hours
        graceful_shutdown_wait_loop_s=FLUSH_S,
    )(serve.ingress()(Api))
    if settings.placement is Placement.INLINE:
        return api.bind(settings)
    handles = Handles(_deployment("classifier", ClassifierDeployment, settings.classifier_replicas, settings.artifact))
    if settings.language_models:
        sources, main = model_sources(settings), Path(settings.main_model).name
        models = _deployment("language-models", LanguageModelsDeployment, settings.language_model_replicas, sources)
        retriever = _deployment(
            "retriever",
            RetrieverDeployment,
            1,
            settings.retriever_artifact,
            settings.embedding_model,
            settings.redis_url,
        )
        handles = replace(handles, language_models=models, retriever=retriever)
        if main in sources:
            # Serve puts a handle in the place of each bound deployment, within the adapters too.
            timeout_s = settings.generate_timeout_s
            parts = HandleRetriever(retriever, timeout_s), HandleGenerator(models, main, timeout_s)
            rag = _deployment("rag", RagDeployment, 1, *parts, main, settings.rag_threshold)
            handles = replace(handles, rag=rag)
    return api.bind(settings, handles)


def count_replicas(settings: Settings) -> int:
    """Of all deployments of ``build_application`` together. Each books one logical CPU."""
    if settings.placement is Placement.INLINE:
        return settings.api_replicas
    language = settings.language_model_replicas + 2 if settings.language_models else 0  # with retriever and RAG
    return settings.api_replicas + settings.classifier_replicas + language


def _deployment(name: str, kind: type, replicas: int, *arguments: object) -> Any:
    deployment = serve.deployment(
        name=name,
        num_replicas=replicas,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=STOP_POLL_S,
        max_ongoing_requests=100,  # at a limit, handles would back off for longer than a quick call takes
    )(kind)
    return deployment.bind(*arguments)
