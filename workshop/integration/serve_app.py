"""The service on Ray Serve."""

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from opentelemetry import propagate
from opentelemetry.trace import get_current_span
from ray import serve
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.app import create_app
from workshop.api.middleware import request_id
from workshop.deployments.classifier import ClassifierDeployment
from workshop.deployments.classifiers import ClassifiersDeployment
from workshop.deployments.language_models import LanguageModelsDeployment
from workshop.deployments.rag import RagDeployment
from workshop.deployments.retriever import RetrieverDeployment
from workshop.integration.calls import Calls
from workshop.integration.generator import HandleGenerator
from workshop.integration.preflight import check_access
from workshop.integration.replica import replica_of
from workshop.integration.retriever import HandleRetriever, make_embedding
from workshop.integration.services import Handles, build_services
from workshop.integration.stopping import end_tasks
from workshop.logs import LogFormat, default_format
from workshop.settings import Autoscaling, DeploymentOptions, Settings, read_settings

APP_NAME = "workshop"
ALL_ADDRESSES = "0.0.0.0"
TRACES = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"
"""The variable by which Serve's processes export their spans."""
SERVE_LOG = {"log_level": "WARNING", "enable_access_log": False}
"""What Serve itself logs. The service has a log of its own."""
CALL_S = 5.0
"""How long a replica that is to stop goes on with the calls under way. One that it does not finish is made again."""
STREAM_S = 300.0
"""The same for the API, and where the calls are streams: those cannot begin again, and a long answer takes minutes."""
SCALING = {"look_back_period_s": 5.0, "metrics_interval_s": 1.0}
"""Of how many seconds Serve averages the requests under way, and how often it is told of them. Its defaults are 30 and
10, so that it would notice a load late. It calls the interval deprecated, but its new variables have no effect yet."""
ROUTER = {"max_backoff_s": 0.05}
"""How a caller waits while all replicas are full: it asks them again after 25 ms, then every 50 ms. By default, the
pauses grow to half a second, and a replica idles meanwhile."""
STOP_POLL_S = 0.1
"""How often a replica that is shutting down checks whether it is idle. Serve's default is two seconds."""
HEALTH_CHECK_S = 2.0
"""How often Serve checks whether a replica is alive, and replaces it if not. Its default is ten seconds."""
FLUSH_S = 1.0
"""The same for the API. An idle replica is killed at once, so its last messages must have reached the proxy by then."""


class WithoutRequestId:
    """Removes the response's ``X-Request-ID``, because Serve adds it again."""

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
        self._has_traces = bool(os.environ.get(TRACES))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._has_traces and scope["type"] != "lifespan":
            headers = MutableHeaders(scope=scope)
            caller = get_current_span(propagate.extract(headers)).get_span_context()
            if caller.trace_flags.sampled or not caller.is_valid:
                propagate.inject(headers)
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
        graceful_shutdown_timeout_s=STREAM_S,
        graceful_shutdown_wait_loop_s=FLUSH_S,
        **serve_options(settings.deployments.api),
    )(serve.ingress()(replica_of(Api)))
    return api.bind(*_log_options(settings), settings, _bind_models(settings))


def application(arguments: dict[str, Any]) -> serve.Application:
    """The same for ``serve deploy``, which finds this function by its name in the file: see ``deploy_file``.

    Args:
        arguments: settings by name. All others come from the environment of the cluster.

    Raises:
        StartError: a setting is wrong, or the service checks no keys: a cluster's proxies listen on all addresses.
    """
    settings = read_settings(**arguments)
    check_access(settings, ALL_ADDRESSES)
    return build_application(settings)


def deploy_file(arguments: Mapping[str, Any], port: int) -> str:
    """What ``serve deploy`` takes, as YAML.

    Args:
        arguments: of ``application``.
        port: where the proxies listen.
    """
    service = ServeApplicationSchema(
        name=APP_NAME, import_path=f"{__name__}:{application.__name__}", args=dict(arguments), runtime_env={}
    )
    options = HTTPOptionsSchema(host=ALL_ADDRESSES, port=port)
    content = ServeDeploySchema(http_options=options, applications=[service])
    return yaml.safe_dump(content.model_dump(mode="json", exclude_unset=True), sort_keys=False)


def _bind_models(settings: Settings) -> Handles:
    """The deployments of the models that have one."""
    main = Path(settings.main_model).name
    index = settings.retriever_artifact, partial(make_embedding, settings), settings.redis_url, settings.cache_bytes
    timeout_s = settings.generate_timeout_s
    logs = _log_options(settings)
    bound: dict[str, Any] = {}
    for name, options in settings.deployed.items():
        match name:
            case "classifier" if settings.has_many_classifiers:
                bound[name] = _deployment(ClassifiersDeployment, name, options).bind(*logs, settings.max_loaded_models)
            case "classifier":
                bound[name] = _deployment(ClassifierDeployment, name, options).bind(*logs, settings.artifact)
            case "language_models":
                models = _deployment(LanguageModelsDeployment, name, options, grace_s=STREAM_S)
                bound[name] = models.bind(*logs, settings.local_models, settings.model_cache_tokens)
            case "retriever":
                bound[name] = _deployment(RetrieverDeployment, name, options).bind(*logs, *index)
            case "rag":
                # Serve replaces each bound deployment by a handle, inside the adapters too.
                retriever = HandleRetriever(Calls(bound["retriever"], timeout_s))
                generator = HandleGenerator(Calls(bound["language_models"], timeout_s), main)
                rag = _deployment(RagDeployment, name, options, grace_s=STREAM_S)
                bound[name] = rag.bind(*logs, retriever, generator, main, settings.rag_threshold)
    return Handles(**bound)


def reserved_cpus(settings: Settings) -> int:
    """Logical CPUs that the application reserves when every deployment has its maximum of replicas."""
    return ceil(sum(options.max_replicas * options.cpus for options in settings.deployed.values()))


def reserved_gpus(settings: Settings) -> int:
    """The same for GPUs: enough even if no two replicas fit on one."""
    return sum(options.max_replicas * ceil(options.gpus) for options in settings.deployed.values())


def _deployment(kind: type, name: str, options: DeploymentOptions, *, grace_s: float = CALL_S) -> serve.Deployment:
    return serve.deployment(
        name=name.replace("_", "-"),
        graceful_shutdown_timeout_s=grace_s,
        graceful_shutdown_wait_loop_s=STOP_POLL_S,
        **serve_options(options),
    )(replica_of(kind))


def _log_options(settings: Settings) -> tuple[LogFormat, str]:
    """How replicas log. They have no terminal themselves: this process decides."""
    return settings.log_format or default_format(), settings.log_level


def serve_options(options: DeploymentOptions) -> dict[str, Any]:
    """The options as keyword arguments of ``serve.deployment``."""
    if isinstance(options.replicas, Autoscaling):
        scaling: dict[str, Any] = {"autoscaling_config": options.replicas.model_dump() | SCALING}
    else:
        scaling = {"num_replicas": options.replicas}
    resources = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    return {
        **scaling,
        "ray_actor_options": resources,
        "max_ongoing_requests": options.max_ongoing_requests,
        "max_surge_percent": options.max_surge_percent,
        "request_router_config": ROUTER,
        "health_check_period_s": HEALTH_CHECK_S,
        "logging_config": SERVE_LOG,
    }
