"""Questions for the cascade, and its answers."""

from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_wrap_validator_function

from workshop.api.errors import Problem
from workshop.api.schemas.base import ClosedModel, Integer
from workshop.contracts.cascade import Query
from workshop.contracts.usage import UsageTotals

MAX_CHARACTERS = 2000
MAX_WORDS = 500
MAX_TOKENS = 4096
MAX_BATCH = 32


def _check_words(text: str) -> str:
    n_words = len(text.split())
    if n_words == 0:
        raise PydanticCustomError("blank", "Text should not be blank")
    if n_words > MAX_WORDS:
        raise PydanticCustomError(
            "too_many_words", "Text should have at most {most} words, not {n}", {"most": MAX_WORDS, "n": n_words}
        )
    return text


class QueryParameters(ClosedModel):
    """A question, and how to answer it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "What is a replica?"}]})

    query: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(_check_words)]
    max_tokens: Annotated[Integer, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    force_direct: bool = False

    def to_query(self) -> Query:
        """Convert to the contract's type."""
        return Query(self.query, self.max_tokens, self.temperature, self.force_direct)


class QueryBody(QueryParameters):
    """A question as JSON, without type conversion: "12" is a string, not a number."""

    model_config = ConfigDict(strict=True)


class QueryAnswer(BaseModel):
    """An answer. ``cost`` is in dollars, for all models that worked on it.

    ``quality`` is the draft's score from 0 to 1, or null if there was no draft.
    """

    model_config = ConfigDict(from_attributes=True)

    content: str
    model_used: str
    quality: float | None
    cascaded: bool
    draft_accepted: bool
    cost: float
    latency_ms: float


class AnswerChunk(BaseModel):
    """The next piece of the answer from ``model``."""

    model_config = ConfigDict(from_attributes=True)

    model: str
    text: str


class ModelSwitch(BaseModel):
    """The draft was rejected. Discard the text so far: ``to_model`` answers from the start."""

    model_config = ConfigDict(from_attributes=True)

    from_model: str
    to_model: str
    quality: float
    threshold: float


class _OrValidationError:
    """A question, or the ``ValidationError`` of an invalid one. JSON Schema therefore allows any value."""

    @staticmethod
    def __get_pydantic_core_schema__(_source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_wrap_validator_function(_question_or_error, handler.generate_schema(QueryBody))

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"description": "Any other value. Its result is an error."}]}


def _question_or_error(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    try:
        return validate(value)
    except ValidationError as error:
        return error


class QueryBatch(ClosedModel):
    """Several questions. If one is invalid, its result is an error."""

    queries: Annotated[
        list[Annotated[QueryBody | ValidationError, _OrValidationError]], Field(min_length=1, max_length=MAX_BATCH)
    ]


class BatchItem(BaseModel):
    """The result of one question of a batch: an answer or an error."""

    answer: QueryAnswer | None = None
    error: Problem | None = None


class QueryBatchAnswer(BaseModel):
    """The results, in the order of the questions. ``cost`` is the total in dollars."""

    results: list[BatchItem]
    answered: int
    failed: int
    cost: float

    @classmethod
    def of(cls, results: list[BatchItem]) -> Self:
        """From the results of all questions."""
        answers = [item.answer for item in results if item.answer]
        return cls(
            results=results,
            answered=len(answers),
            failed=len(results) - len(answers),
            cost=sum(answer.cost for answer in answers),
        )


class Stats(BaseModel):
    """Totals of the language models' answers since the first start, for all replicas.

    ``acceptance_rate`` is the share of drafts that became the answer. ``uptime_seconds`` is for one replica.
    """

    total_queries: int
    total_cost: float
    average_cost: float | None
    queries_by_model: dict[str, int]
    acceptance_rate: float | None
    uptime_seconds: float

    @classmethod
    def of(cls, totals: UsageTotals, uptime_s: float) -> Self:
        """From the contract's type."""
        return cls(
            total_queries=totals.answers,
            total_cost=totals.cost,
            average_cost=totals.cost / totals.answers if totals.answers else None,
            queries_by_model=dict(totals.answers_by_model),
            acceptance_rate=totals.drafts_accepted / totals.drafts if totals.drafts else None,
            uptime_seconds=uptime_s,
        )
