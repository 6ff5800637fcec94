"""A language model that says what a test wants, and the services around it."""

import asyncio
import math
import sqlite3
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from workshop.api.app import create_app
from workshop.contracts.classifier import FeatureRange, FloatMatrix, ModelCard, Scores
from workshop.contracts.generator import (
    Activity,
    Chunk,
    Completion,
    GeneratorCard,
    Prompt,
    Token,
    Usage,
    collect,
)
from workshop.contracts.rag import RagAnswer, RagEvent
from workshop.contracts.retriever import Hit, Passage, RetrieverCard
from workshop.contracts.services import LanguageServices, Services
from workshop.contracts.tumours import FEATURES
from workshop.integration.prediction_jobs import open_prediction_jobs
from workshop.lab.app_server import Server
from workshop.models.cascade import PricedModel, TwoModelCascade
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.metrics import SqlMetricStore
from workshop.storage.usage import SqlUsageStore
from workshop.storage.users import SqlUserStore

PROMPT_TOKENS = 10
SURE, UNSURE = 0.9, 0.7
DRAFT_COST, MAIN_COST = 1.0, 10.0


@dataclass
class StandInModel:
    """Answers every prompt with the same words, each a token of the same probability.

    Attributes:
        endless: says its words again and again.
        error: raised after the words.
        over: set when a stream has ended, however it ended.
    """

    name: str = "stand-in"
    words: Sequence[str] = ("It", " is", " so.")
    probability: float = 0.9
    endless: bool = False
    error: Exception | None = None
    prompts: list[Prompt] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    completed: int = 0
    cancelled: int = 0
    generated_tokens: int = 0

    async def complete(self, prompt: Prompt) -> Completion:
        async with aclosing(self.stream(prompt)) as chunks:
            return await collect(chunks)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.prompts.append(prompt)
        self.over.clear()
        self.running += 1
        ended, made = False, 0
        try:
            for word in cycle(self.words) if self.endless else self.words:
                await asyncio.sleep(0.001 if self.endless else 0)  # a real model also yields control here
                self.generated_tokens += 1
                made += 1
                token = Token(word, math.log(self.probability))
                yield Chunk(word, (token,), usage=Usage(PROMPT_TOKENS, made))
            ended = True
            if self.error is not None:
                raise self.error
            self.completed += 1
            yield Chunk("", (), "stop", usage=Usage(PROMPT_TOKENS, made))
        finally:
            self.running -= 1
            self.cancelled += not ended
            self.over.set()

    async def card(self) -> GeneratorCard:
        return GeneratorCard(self.name, 1024)

    async def activity(self) -> Activity:
        return Activity(self.running, self.completed, self.cancelled, self.generated_tokens)

    async def aclose(self) -> None:
        pass


@dataclass
class StandInRetriever:
    """Knows one passage, and records the texts that it embeds. A vector contains the length of its text."""

    version: str = "1"
    embedded: list[str] = field(default_factory=list)

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        self.embedded += texts
        return np.array([[1.0, len(text)] for text in texts])

    async def search(self, text: str, k: int) -> list[Hit]:
        return [Hit(Passage("1", "stand-in", "It is so."), 1.0)][:k]

    async def card(self) -> RetrieverCard:
        return RetrieverCard("stand-in", 2, 1, self.version)

    async def aclose(self) -> None:
        pass


class StandInSources:
    """Finds nothing."""

    async def stream(self, question: str, k: int) -> AsyncGenerator[RagEvent, None]:
        yield RagAnswer("I do not know.", (), None, Usage(0, 0), sure=False)


class StandInClassifier:
    """Says no."""

    async def predict(self, rows: FloatMatrix) -> Scores:
        return Scores(np.tile([0.75, 0.25], (len(rows), 1)), ("no", "yes"), "1")

    async def card(self) -> ModelCard:
        ranges = tuple(FeatureRange(name, "1", 0.0, 1.0) for name in FEATURES)
        return ModelCard("stand-in", "1", 0.5, 0.5, ("no", "yes"), "yes", ranges)


def draft(probability: float = SURE, **options: Any) -> StandInModel:
    return StandInModel("draft", ("A", " copy."), probability, **options)


def main(**options: Any) -> StandInModel:
    return StandInModel("main", ("One", " of", " several", " copies."), **options)


def database_url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


def language_services(file: Path, draft: StandInModel, main: StandInModel) -> LanguageServices:
    cascade = TwoModelCascade(
        PricedModel(draft, draft.name, DRAFT_COST), PricedModel(main, main.name, MAIN_COST), threshold=0.8
    )
    return LanguageServices(
        generators={draft.name: draft, main.name: main},
        prices={draft.name: DRAFT_COST, main.name: MAIN_COST},
        default_model=main.name,
        cascade=cascade,
        retriever=StandInRetriever(),
        embedding="stand-in",
        rag=StandInSources(),
        usage=SqlUsageStore(database_url(file)),
    )


def application(file: Path, draft: StandInModel, main: StandInModel, **options: Any) -> FastAPI:
    settings = Settings(**{"database_url": database_url(file), "files_url": str(file.with_name("files"))} | options)
    url, classifier = settings.database_url, StandInClassifier()
    services = Services(
        classifier,
        SqlCaseStore(url),
        language_services(file, draft, main),
        users=SqlUserStore(url) if settings.token_keys else None,
        prediction_jobs=open_prediction_jobs(settings, classifier),
        metrics=SqlMetricStore(url),
    )
    return create_app(services, settings)


@dataclass
class Service:
    """The API on a port, the models behind it, and its database."""

    client: httpx.Client
    server: Server
    draft: StandInModel
    main: StandInModel
    file: Path

    def records(self) -> list[dict[str, Any]]:
        """What was charged. Stops the service first: a record is written after its response."""
        self.server.stop()
        return records_in(self.file)


def records_in(file: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        with suppress(sqlite3.OperationalError):  # nothing was ever charged
            return [dict(row) for row in connection.execute("SELECT * FROM usage ORDER BY id")]
        return []


def replace_with_a_folder(file: Path) -> None:
    """Take a service's database away, whatever the service writes meanwhile."""
    while not file.is_dir():
        file.unlink(missing_ok=True)
        with suppress(FileExistsError):
            file.mkdir()
