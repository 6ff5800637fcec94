"""Requests and responses of the earlier services, in the form that their clients know."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from annotated_types import Len
from pydantic import BaseModel, Field, model_validator

from workshop.api.clock import now
from workshop.api.schemas.base import ClosedModel, Integer, StrictModel
from workshop.api.schemas.generation import MAX_TEXT, Conversation, TokenCounts
from workshop.api.schemas.queries import MAX_BATCH
from workshop.api.schemas.tumours import MAX_RECORDS, Label, Measurements
from workshop.contracts.cascade import Answer, Query
from workshop.contracts.classifier import ModelCard, Scores
from workshop.contracts.generator import Completion, FinishReason
from workshop.contracts.rag import RagAnswer
from workshop.contracts.tumours import FEATURES
from workshop.contracts.usage import UsageTotals

MAX_SOURCE_CHARACTERS = 200

_NAMES = {f"feature_{number}": name for number, name in enumerate(FEATURES, start=1)}

Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]
WordsInUrl = Annotated[Words, Field(max_length=32_768)]
"""The server takes no URL above 64 KiB."""
MaxTokens = Annotated[Integer, Field(ge=1, le=4000)]


class NumberedMeasurements(Measurements):
    """The 30 measurements, by name or as ``feature_1`` to ``feature_30`` in the order of the data set."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        renamed = {_NAMES.get(name, name): value for name, value in data.items()}
        return renamed if len(renamed) == len(data) else data  # otherwise a feature is there twice


class NumberedBatch(ClosedModel):
    """Several tumours."""

    records: Annotated[list[NumberedMeasurements], Len(1, MAX_RECORDS)]


class EarlierPrediction(Label):
    """The predicted class of one tumour. ``probability`` has one number for each class, in the model's order."""

    probability: list[float]
    model_version: str
    timestamp: datetime

    @classmethod
    def all_of(cls, scores: Scores) -> list[Self]:
        """One for each row."""
        moment = now()
        return [
            cls(
                **dict(label),
                probability=list(label.probabilities.values()),
                model_version=scores.model_version,
                timestamp=moment,
            )
            for label in Label.of(scores)
        ]


class EarlierBatchPrediction(BaseModel):
    """The predicted classes of several tumours, in the order of the records."""

    predictions: list[EarlierPrediction]
    total: int
    timestamp: datetime


class EarlierMetadata(BaseModel):
    """The classifier."""

    name: str
    version: str
    accuracy: float
    f1_score: float
    classes: list[str]
    n_features: int

    @classmethod
    def of(cls, card: ModelCard) -> Self:
        """From the contract's type."""
        return cls(
            name=card.name,
            version=card.version,
            accuracy=card.accuracy,
            f1_score=card.f1,
            classes=list(card.classes),
            n_features=len(card.features),
        )


class EarlierQuery(StrictModel):
    """A question to the cascade."""

    query: Words
    max_tokens: MaxTokens = 100
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    force_direct: bool = False

    def to_query(self) -> Query:
        """Convert to the contract's type."""
        return Query(self.query, self.max_tokens, self.temperature, self.force_direct)


class ShortAnswer(BaseModel):
    """An answer of the cascade, with the model that gave it and the cost in dollars."""

    content: str
    model: str
    cost: float


class EarlierEvent(BaseModel):
    """An event of a streamed answer. Without a name of its own, so that ``onmessage`` receives it."""

    type: Literal["chunk", "complete", "error"]
    content: str
    data: dict[str, Any] = {}

    @classmethod
    def of_answer(cls, answer: Answer) -> Self:
        """The last event of a complete answer."""
        result = {
            "content": answer.content,
            "model_used": answer.model_used,
            "total_cost": answer.cost,
            "latency_ms": answer.latency_ms,
        }
        return cls(type="complete", content=answer.content, data={"result": result})


class EarlierStats(BaseModel):
    """Totals of the answers."""

    total_queries: int
    total_cost: float
    avg_cost_per_query: float
    models_used: dict[str, int]
    uptime_seconds: float

    @classmethod
    def of(cls, totals: UsageTotals, uptime_s: float) -> Self:
        """From the contract's type."""
        return cls(
            total_queries=totals.answers,
            total_cost=totals.cost,
            avg_cost_per_query=totals.cost / totals.answers if totals.answers else 0.0,
            models_used=dict(totals.answers_by_model),
            uptime_seconds=uptime_s,
        )


class EarlierConversation(Conversation):
    """A conversation to continue."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.7
    max_tokens: Annotated[Integer, Field(ge=1)] | None = 1024


class EarlierChatAnswer(BaseModel):
    """The answer to a conversation."""

    id: str
    content: str
    model: str
    usage: TokenCounts
    finish_reason: FinishReason

    @classmethod
    def of(cls, completion: Completion, model: str, id: str) -> Self:
        """From the contract's type."""
        return cls(
            id=id,
            content=completion.text,
            model=model,
            usage=TokenCounts.of(completion.usage),
            finish_reason=completion.finish_reason,
        )


class Response(BaseModel):
    """The answer to a single text."""

    response: str


Prompts = Annotated[list[Words], Len(1, MAX_BATCH)]


class Responses(BaseModel):
    """The answers to several texts, in their order."""

    results: list[str]


class EarlierRagReply(BaseModel):
    """An answer, and the beginnings of the passages that it is based on."""

    answer: str
    sources: list[str]

    @classmethod
    def of(cls, answer: RagAnswer) -> Self:
        """From the contract's type."""
        return cls(answer=answer.text, sources=[hit.passage.text[:MAX_SOURCE_CHARACTERS] for hit in answer.sources])
