"""The services that the API is built on, in one bundle."""

import asyncio
from asyncio import gather
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from workshop.contracts.cascade import Cascade
from workshop.contracts.cases import CaseStore
from workshop.contracts.classifier import Classifier
from workshop.contracts.errors import DeadlineExceededError
from workshop.contracts.generator import GeneratorCard, TextGenerator
from workshop.contracts.metrics import MetricStore, ProcessMetrics
from workshop.contracts.prediction_jobs import PredictionJobs
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.retriever import Retriever
from workshop.contracts.usage import UsageStore
from workshop.contracts.users import UserStore

PROBE_TIMEOUT_S = 3.0
"""Time limit for calls that a healthy part answers at once: its card, its counters."""


@dataclass(frozen=True, slots=True)
class Health:
    """Which parts of the service do not answer, and why, by name.

    Attributes:
        missing: parts without which the service must not get any requests.
        degraded: parts that only some routes need. These answer with an error; all others work.
    """

    missing: Mapping[str, Exception]
    degraded: Mapping[str, Exception]


async def _failures(probes: Mapping[str, Awaitable[object]]) -> dict[str, Exception]:
    """What each probe raised, by its name. They run at the same time, each for ``PROBE_TIMEOUT_S`` at most."""

    async def failure(probe: Awaitable[object]) -> Exception | None:
        limit = asyncio.timeout(PROBE_TIMEOUT_S)
        try:
            async with limit:
                await probe
        except Exception as error:
            return DeadlineExceededError("it does not answer", PROBE_TIMEOUT_S) if limit.expired() else error
        return None

    failures = await gather(*map(failure, probes.values()))
    return {name: failure for name, failure in zip(probes, failures, strict=True) if failure is not None}


async def cards(generators: Mapping[str, TextGenerator]) -> dict[str, GeneratorCard]:
    """The cards of those that answer, by name."""
    calls = {name: asyncio.ensure_future(generator.card()) for name, generator in generators.items()}
    failures = await _failures(calls)
    return {name: call.result() for name, call in calls.items() if name not in failures}


@dataclass(frozen=True, slots=True)
class LanguageServices:
    """The services that the language routes call.

    Attributes:
        generators: by the name of their model.
        prices: dollars for 1000 tokens, of prompt and answer together, by the same names.
        default_model: the one that answers a request that names none.
        embedding: the name of the retriever's embedding.
    """

    generators: Mapping[str, TextGenerator]
    prices: Mapping[str, float]
    default_model: str
    cascade: Cascade
    retriever: Retriever
    embedding: str
    rag: QuestionAnswerer
    usage: UsageStore

    def probes(self) -> dict[str, Awaitable[object]]:
        """A quick call to each part, which fails if the part is unhealthy, by name."""
        models = {name: generator.card() for name, generator in self.generators.items()}
        return {**models, "retriever": self.retriever.card(), "usage": self.usage.ready()}

    async def aclose(self) -> None:
        """Release all resources."""
        generators = (generator.aclose() for generator in self.generators.values())
        await gather(self.usage.aclose(), self.retriever.aclose(), *generators)


class Resource(Protocol):
    """Something that must be released."""

    async def aclose(self) -> None:
        """Release it."""
        ...


class BackgroundWork(Resource, Protocol):
    """Something that goes on beside requests."""

    def start(self) -> None:
        """Begin it."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that endpoints may call, whatever runs behind it.

    Without ``language`` or ``prediction_jobs``, their routes do not exist. Without ``users``, nobody can log in.
    ``champion`` is the classifier without versions on trial, if it may have some.
    ``cache`` and ``registered`` are what some of them use; endpoints do not.
    """

    classifier: Classifier
    cases: CaseStore
    language: LanguageServices | None = None
    users: UserStore | None = None
    prediction_jobs: PredictionJobs | None = None
    metrics: MetricStore = field(default_factory=ProcessMetrics)
    cache: Resource | None = None
    registered: BackgroundWork | None = None
    champion: Classifier | None = None

    def start(self) -> None:
        """Begin what goes on beside requests."""
        for part in (self.prediction_jobs, self.registered):
            if part is not None:
                part.start()

    async def health(self) -> Health:
        """Ask every part. Classifier and database are required; ``language`` is not, whoever runs its models."""
        required = {"classifier": self.classifier.card(), "database": self.cases.ready()}
        others = self.language.probes() if self.language else {}
        missing, degraded = await gather(_failures(required), _failures(others))
        return Health(missing, degraded)

    async def aclose(self) -> None:
        """Release all resources."""
        parts = self.registered, self.prediction_jobs, self.cases, self.users, self.language, self.metrics, self.cache
        await gather(*(part.aclose() for part in parts if part is not None))
