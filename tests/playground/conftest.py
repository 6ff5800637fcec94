"""The playground in Chromium, on services of the kinds that its tests need."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Browser, Page

from tests.browser import launched, opened
from tests.language import StandInModel, StandInRetriever
from workshop.api.app import create_app
from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.rag import RagAnswer
from workshop.contracts.services import LanguageServices, Services
from workshop.lab.serving import Server, run_app
from workshop.models.cascade import PricedModel, TwoModelCascade
from workshop.models.tumours import TumourClassifier, train
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.usage import SqlUsageStore

PREFIX = "/behind/a/proxy"


class Classifier:
    """The real model: it is small, and its examples have to come out right."""

    def __init__(self, model: TumourClassifier) -> None:
        self._model = model

    async def predict(self, rows: FloatMatrix) -> Scores:
        return await anyio.to_thread.run_sync(self._model.predict, rows)

    async def card(self) -> ModelCard:
        return self._model.card


class Rag:
    """The page does not ask it."""

    async def answer(self, question: str, k: int) -> RagAnswer:
        raise NotImplementedError


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
    """Starts a service; its models can be told what to do even while it runs. All stop after the test."""
    started = []
    database = f"sqlite+aiosqlite:///{tmp_path}/service.sqlite"

    def serve(*, language: bool = True, port: int = 0, **settings: Any) -> Service:
        draft = StandInModel("draft", ("A", " draft."), probability=0.5)
        main = StandInModel("main", ("The", " whole", " answer."))
        models = language_services(draft, main, database) if language else None
        app = create_app(Services(classifier, SqlCaseStore(database), models), Settings(**settings))
        server = run_app(app, port=port)
        started.append(server)
        return Service(server, draft, main)

    yield serve
    for server in started:
        server.stop()


def language_services(draft: StandInModel, main: StandInModel, database: str) -> LanguageServices:
    prices = {draft.name: 0.1, main.name: 1.0}
    priced = (PricedModel(model, model.name, prices[model.name]) for model in (draft, main))
    return LanguageServices(
        generators={draft.name: draft, main.name: main},
        prices=prices,
        cascade=TwoModelCascade(*priced, threshold=0.8),
        retriever=StandInRetriever(),
        rag=Rag(),
        usage=SqlUsageStore(database),
    )


@pytest.fixture(params=["", PREFIX], ids=["direct", "behind a proxy"])
def page_url(request, serve) -> Iterator[str]:
    """Where the playground is, with whatever models: the tests that take this one know nothing of their words."""
    url = serve().url
    if not request.param:
        yield url
        return
    with prefix_proxy(url) as proxy:
        yield f"{proxy}{PREFIX}/"


@contextmanager
def prefix_proxy(url: str) -> Iterator[str]:
    """A reverse proxy that removes ``PREFIX``, and passes everything on as it comes, WebSockets too."""
    host, port = url.removeprefix("http://").split(":")

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, rest = head.split(b" ", 2)
            assert path.startswith(PREFIX.encode())
            if b"\r\nupgrade:" not in rest.lower():  # one request for each connection: only the first is rewritten
                rest = rest.replace(b"keep-alive", b"close")
            up_reader, up_writer = await asyncio.open_connection(host, port)
            with closing(up_writer):
                up_writer.write(b" ".join((method, path.removeprefix(PREFIX.encode()), rest)))
                there = asyncio.create_task(_pass_on(reader, up_writer))
                await _pass_on(up_reader, writer)
                there.cancel()

    # In a thread of its own: Playwright keeps a loop running in this one.
    with start_blocking_portal() as portal:
        server = portal.call(asyncio.start_server, serve_one, "127.0.0.1")
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
        portal.call(server.close)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(2**16):
        writer.write(piece)
        await writer.drain()


@pytest.fixture(scope="module")  # see `launched`
def browser(chromium) -> Iterator[Browser]:
    with launched(chromium) as browser:
        yield browser


@pytest.fixture
def page(browser) -> Iterator[Page]:
    with opened(browser) as page:
        yield page
