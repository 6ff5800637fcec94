"""The bundle of ports that the API is built on."""

from asyncio import gather
from collections.abc import Mapping
from dataclasses import dataclass

from workshop.contracts.cascade import Cascade
from workshop.contracts.cases import CaseStore
from workshop.contracts.classifier import Classifier
from workshop.contracts.generator import TextGenerator
from workshop.contracts.rag import QuestionAnswerer
from workshop.contracts.retriever import Retriever
from workshop.contracts.usage import UsageStore


@dataclass(frozen=True, slots=True)
class LanguageServices:
    """What the routes for language call.

    Attributes:
        generators: by the name of their model.
        prices: dollars for 1000 tokens, of prompt and answer together, by the same names.
    """

    generators: Mapping[str, TextGenerator]
    prices: Mapping[str, float]
    cascade: Cascade
    retriever: Retriever
    rag: QuestionAnswerer
    usage: UsageStore

    async def ready(self) -> None:
        """Raises UnavailableError unless every model and the records of usage can be reached."""
        models = (generator.card() for generator in self.generators.values())
        await gather(self.usage.ready(), self.retriever.card(), *models)

    async def aclose(self) -> None:
        """Give back what all of them hold open."""
        generators = (generator.aclose() for generator in self.generators.values())
        await gather(self.usage.aclose(), self.retriever.aclose(), *generators)


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that endpoints may call, whatever runs behind it. Without ``language``, its routes do not exist."""

    classifier: Classifier
    cases: CaseStore
    language: LanguageServices | None = None

    async def ready(self) -> None:
        """Raises UnavailableError unless every model and store can be reached."""
        await gather(self.classifier.card(), self.cases.ready())
        if self.language is not None:
            await self.language.ready()

    async def aclose(self) -> None:
        """Give back what all of them hold open."""
        await self.cases.aclose()
        if self.language is not None:
            await self.language.aclose()
