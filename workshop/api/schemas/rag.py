"""Questions that are answered from sources."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from workshop.api.schemas.base import Integer, StrictModel
from workshop.contracts.rag import RagAnswer

MAX_CHARACTERS = 2000
MAX_SOURCES = 10


class RagQuestion(StrictModel):
    """A question, and the most sources to answer from."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "What is a deployment handle?", "k": 1}]})

    query: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")]
    k: Annotated[Integer, Field(ge=1, le=MAX_SOURCES)] = 1


class Source(BaseModel):
    """A passage, where it comes from, and its similarity to the question, at most 1."""

    source: str
    text: str
    score: float


class RagReply(BaseModel):
    """The answer and its sources, best first. If not ``sure``, nothing relevant was found and no model was asked."""

    answer: str
    sources: list[Source]
    sure: bool
    model: str | None

    @classmethod
    def of(cls, answer: RagAnswer) -> Self:
        """From the contract's type."""
        sources = [Source(source=hit.passage.source, text=hit.passage.text, score=hit.score) for hit in answer.sources]
        return cls(answer=answer.text, sources=sources, sure=answer.sure, model=answer.model)
