"""Fixtures for the playground in Chromium."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import pytest
from playwright.sync_api import Browser, Page

from tests.browser import launched, opened
from tests.playground.proxy import prefix_proxy
from tests.stand_ins import StandInModel, database_url, language_services
from workshop.api.app import create_app
from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.services import Services
from workshop.lab.app_server import Server, run_app
from workshop.models.tumours import TumourClassifier, train
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore


class Classifier:
    """The real model: it is small, and the examples need correct predictions."""

    def __init__(self, model: TumourClassifier) -> None:
        self._model = model

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await anyio.to_thread.run_sync(self._model.predict, rows)

    async def card(self) -> ModelCard:
        return self._model.card


@dataclass
class Service:
    """A service on a port, and the models behind it."""

    server: Server
    draft: StandInModel
    main: StandInModel

    @property
    def url(self) -> str:
        return self.server.url


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    return Classifier(train())


@pytest.fixture
def serve(classifier, tmp_path) -> Iterator[Callable[..., Service]]:
    """A function that starts a service. Tests may change its models while it runs. All services stop after the test."""
    started = []
    database = tmp_path / "service.sqlite"

    def serve(*, language: bool = True, port: int = 0, **settings: Any) -> Service:
        draft = StandInModel("draft", ("A", " draft."), probability=0.5)
        main = StandInModel("main", ("The", " whole", " answer."))
        models = language_services(database, draft, main) if language else None
        app = create_app(Services(classifier, SqlCaseStore(database_url(database)), models), Settings(**settings))
        server = run_app(app, port=port)
        started.append(server)
        return Service(server, draft, main)

    yield serve
    for server in started:
        server.stop()


@pytest.fixture(params=["direct", "behind a proxy"])
def page_url(request, serve) -> Iterator[str]:
    """The URL of the playground. Tests that use this fixture must not rely on the words of the models."""
    url = serve().url
    if request.param == "direct":
        yield url
        return
    with prefix_proxy(url) as proxied:
        yield proxied


@pytest.fixture(scope="module")  # see `launched`
def browser(chromium) -> Iterator[Browser]:
    with launched(chromium) as browser:
        yield browser


@pytest.fixture
def page(browser) -> Iterator[Page]:
    with opened(browser) as page:
        yield page
