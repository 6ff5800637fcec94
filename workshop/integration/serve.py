"""The service on Ray Serve."""

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.app import create_app
from workshop.api.middleware import request_id
from workshop.contracts.services import Services
from workshop.deployments.classifier import ClassifierDeployment
from workshop.integration.handles import HandleClassifier
from workshop.integration.local import batched, local_services
from workshop.settings import Placement, Settings
from workshop.storage.cases import SqlCaseStore

APP_NAME = "workshop"


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


class Api:
    """The ingress: each replica builds the FastAPI application for itself, so nothing of it is pickled.

    Args:
        settings: of the whole service.
        classifier: a handle, or None to predict in this process.
    """

    def __init__(self, settings: Settings, classifier: DeploymentHandle[Any] | None = None) -> None:
        self._settings = settings
        self._classifier = classifier

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return WithoutRequestId(create_app(self._services(), self._settings))

    def _services(self) -> Services:
        if self._classifier is None:
            return local_services(self._settings)
        classifier = batched(
            HandleClassifier(self._classifier), self._settings, max_calls=self._settings.classifier_replicas
        )
        return Services(classifier, SqlCaseStore(self._settings.database_url))


def build_application(settings: Settings) -> serve.Application:
    """The Serve application that the settings describe.

    The decorators are applied here, so that the classes themselves stay plain and are pickled by name.
    """
    api = serve.deployment(
        name="api",
        num_replicas=settings.api_replicas,
        max_ongoing_requests=1000,  # the queue that counts is the micro-batcher's
    )(serve.ingress()(Api))
    if settings.placement is Placement.INLINE:
        return api.bind(settings)
    classifier = serve.deployment(
        name="classifier",
        num_replicas=settings.classifier_replicas,
        max_ongoing_requests=100,  # calls are quick: at a limit, handles would back off for longer than a call takes
    )(ClassifierDeployment)
    return api.bind(settings, classifier.bind(settings.artifact))
