"""The messages of the WebSocket chat: JSON objects, whose ``type`` says which of these each one is."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from workshop.api.errors import Explanation, ProblemDetail
from workshop.api.schemas.base import Integer
from workshop.api.schemas.generation import MAX_TEXT, TokenCounts
from workshop.contracts.generator import FinishReason, Usage


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the text must not be blank")
    return text


Id = Annotated[str, Field(min_length=1, max_length=64)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Identified(BaseModel):
    """What of a message says which one it is, though all else be wrong."""

    model_config = ConfigDict(strict=True)

    id: Id


class Ask(_Message):
    """The next question of the conversation. ``id`` is the client's choice; all that answers it bears it."""

    type: Literal["ask"] = "ask"
    id: Id
    content: Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_not_blank)]
    model: Annotated[str, Field(max_length=256)] | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


class Cancel(_Message):
    """Stop the answer to a question. It ends with ``done``, like every other."""

    type: Literal["cancel"] = "cancel"
    id: Id


class Reset(_Message):
    """Forget the conversation. Answered with ``ready``."""

    type: Literal["reset"] = "reset"


class Ping(_Message):
    """Are you there? Either side may ask."""

    type: Literal["ping"] = "ping"
    id: Id | None = None


class Pong(_Message):
    """I am, and I have read all that came before your ping, whose ``id`` this is."""

    type: Literal["pong"] = "pong"
    id: Id | None = None


ClientMessage: TypeAlias = Annotated[Ask | Cancel | Reset | Ping | Pong, Field(discriminator="type")]


class Model(_Message):
    """A model that may be asked. ``context_length`` is of conversation and answer together, in tokens."""

    name: str
    context_length: int


class Limits(_Message):
    """``max_message_bytes`` of one message, ``max_turns`` that are remembered, ``idle_s`` without a question."""

    max_message_bytes: int
    max_turns: int
    idle_s: float


class Ready(_Message):
    """The conversation is empty. Of the models, the last one answers who names none."""

    type: Literal["ready"] = "ready"
    principal: str
    models: list[Model]
    limits: Limits


class Text(_Message):
    """The next piece of an answer: a token, or several for a slow reader."""

    type: Literal["text"] = "text"
    id: Id
    text: str


class Done(_Message):
    """An answer is complete, or was cancelled.

    ``usage`` of a cancelled one counts its own tokens only: a model tells the length of its prompt at the end.
    """

    type: Literal["done"] = "done"
    id: Id
    finish_reason: FinishReason | Literal["cancelled"]
    usage: TokenCounts

    @classmethod
    def of(cls, id: str, finish_reason: FinishReason | None, usage: Usage) -> Self:
        """Of an answer; one without a reason to end was cancelled."""
        return cls(id=id, finish_reason=finish_reason or "cancelled", usage=TokenCounts.of(usage))


class Error(_Message):
    """What a client did wrong, or what went wrong. With the ``id`` of a question, the question has no answer.

    ``error``, ``message`` and ``details`` are a problem document's ``error``, ``detail`` and ``details``.
    """

    type: Literal["error"] = "error"
    id: str | None = None
    error: str
    message: str
    details: Sequence[ProblemDetail] = ()

    @classmethod
    def of(cls, explanation: Explanation, id: str | None) -> Self:
        """Of an error that is explained."""
        return cls(id=id, error=explanation.error, message=explanation.message, details=explanation.details)


ServerMessage: TypeAlias = Annotated[Ready | Text | Done | Error | Ping | Pong, Field(discriminator="type")]

CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
SERVER_MESSAGE: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)
"""For clients in Python."""
