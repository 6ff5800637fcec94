"""The service on Ray Serve."""

import asyncio
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from opentelemetry import propagate
from opentelemetry.trace import get_current_span
from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.app import create_app
from workshop.api.middleware import request_id
from workshop.deployments.classifier import ClassifierDeployment
from workshop.deployments.language_models import LanguageModelsDeployment
from workshop.deployments.rag import RagDeployment
from workshop.deployments.retriever import RetrieverDeployment
from workshop.integration.calls import Calls
from workshop.integration.generator import HandleGenerator
from workshop.integration.replica import replica_of
from workshop.integration.retriever import HandleRetriever, make_embedding
from workshop.integration.services import Handles, build_services
from workshop.integration.stopping import end_tasks
from workshop.logs import LogFormat, default_format
from workshop.settings import Autoscaling, DeploymentOptions, Settings

APP_NAME = "workshop"
STOP_POLL_S = 0.1
"""How often a replica that is shutting down checks whether it is idle. Serve's default is two seconds."""
FLUSH_S = 1.0
"""The same for the API. An idle replica is killed at once, so its last messages must have reached the proxy by then."""


class WithoutRequestId:
    """Removes the response's ``X-Request-ID``, because Serve's proxy adds it again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[request_id.HEADER]
            await send(message)

        await self.app(scope, receive, send_without_id)


class WithinTrace:
    """Makes FastAPI continue the trace of Serve's own spans. It would begin another, or continue that of the caller.

    A caller who does not record its trace is left alone: there, Serve would begin a trace that nobody wants.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            headers = MutableHeaders(scope=scope)
            caller = get_current_span(propagate.extract(headers)).get_span_context()
            if caller.trace_flags.sampled or not caller.is_valid:
                propagate.inject(headers)  # does nothing without traces
        await self.app(scope, receive, send)


class RequestTracker:
    """Keeps track of the requests under way in this replica, and can end them."""

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
        """End them as uvicorn does at a shutdown: WebSockets at once, other requests after a grace period.

        What comes after this is turned away.
        """
        self._stops = True
        for task, scope in list(self._tasks.items()):
            if scope["type"] == "websocket":
                task.cancel()
        await end_tasks(self._tasks.keys)


class Api:
    """The ingress: each replica builds its own FastAPI application, so none of it is pickled.

    Args:
        settings: of the whole service.
        handles: of the deployments that hold models; this process holds all others.
    """

    def __init__(self, settings: Settings, handles: Handles) -> None:
        self._settings = settings
        self._handles = handles

    def __serve_build_asgi_app__(self) -> ASGIApp:
        application = create_app(build_services(self._settings, self._handles), self._settings)
        self._requests = RequestTracker(WithinTrace(WithoutRequestId(application)))
        return self._requests

    async def end_requests(self) -> None:
        """Prepare for a shutdown: Serve kills a replica, with all its requests, if it is still busy after a while."""
        await self._requests.end()


def build_application(settings: Settings) -> serve.Application:
    """The Serve application that the settings describe.

    The decorators are applied here, so that the classes themselves stay plain and are pickled by name.
    """
    api = serve.deployment(
        name="api",
        graceful_shutdown_timeout_s=5,  # a WebSocket may stay open for hours
        graceful_shutdown_wait_loop_s=FLUSH_S,
        **serve_options(settings.deployments.api),
    )(serve.ingress()(replica_of(Api)))
    return api.bind(*_log_options(settings), settings, _bind_models(settings))


def _bind_models(settings: Settings) -> Handles:
    """The deployments of the models that have one."""
    main = Path(settings.main_model).name
    index = settings.retriever_artifact, partial(make_embedding, settings), settings.redis_url, settings.cache_bytes
    timeout_s = settings.generate_timeout_s
    logs = _log_options(settings)
    bound: dict[str, Any] = {}
    for name, options in settings.deployed.items():
        match name:
            case "classifier":
                bound[name] = _deployment(ClassifierDeployment, name, options).bind(*logs, settings.artifact)
            case "language_models":
                bound[name] = _deployment(LanguageModelsDeployment, name, options).bind(*logs, settings.local_models)
            case "retriever":
                bound[name] = _deployment(RetrieverDeployment, name, options).bind(*logs, *index)
            case "rag":
                # Serve replaces each bound deployment by a handle, inside the adapters too.
                retriever = HandleRetriever(Calls(bound["retriever"], timeout_s))
                generator = HandleGenerator(Calls(bound["language_models"], timeout_s), main)
                rag = _deployment(RagDeployment, name, options)
                bound[name] = rag.bind(*logs, retriever, generator, main, settings.rag_threshold)
    return Handles(**bound)


def reserved_cpus(settings: Settings) -> int:
    """Logical CPUs that the application reserves when every deployment has its maximum of replicas."""
    return ceil(sum(options.max_replicas * options.cpus for options in settings.deployed.values()))


def _deployment(kind: type, name: str, options: DeploymentOptions) -> serve.Deployment:
    return serve.deployment(
        name=name.replace("_", "-"),
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=STOP_POLL_S,
        **serve_options(options),
    )(replica_of(kind))


def _log_options(settings: Settings) -> tuple[LogFormat, str]:
    """How replicas log. They have no terminal themselves: this process decides."""
    return settings.log_format or default_format(), settings.log_level


def serve_options(options: DeploymentOptions) -> dict[str, Any]:
    """The options as keyword arguments of ``serve.deployment``."""
    if isinstance(options.replicas, Autoscaling):
        scaling: dict[str, Any] = {"autoscaling_config": options.replicas.model_dump()}
    else:
        scaling = {"num_replicas": options.replicas}
    resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    return {**scaling, "ray_actor_options": resources, "max_ongoing_requests": options.max_ongoing_requests}
