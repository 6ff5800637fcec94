"""The messages of the WebSocket chat: JSON objects with a ``type``."""

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


class IdOnly(BaseModel):
    """Reads the ``id`` of a message that may be invalid in other respects."""

    model_config = ConfigDict(strict=True)

    id: Id


class Ask(_Message):
    """The next question of the conversation. The client chooses the ``id``; all messages of the answer have it too."""

    type: Literal["ask"] = "ask"
    id: Id
    content: Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_not_blank)]
    model: Annotated[str, Field(max_length=256)] | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


class Cancel(_Message):
    """Stop the answer to a question. The answer ends with ``done``, as usual."""

    type: Literal["cancel"] = "cancel"
    id: Id


class Reset(_Message):
    """Forget the conversation. Answered with ``ready``."""

    type: Literal["reset"] = "reset"


class Ping(_Message):
    """Check that the other side is alive. Both sides may send it."""

    type: Literal["ping"] = "ping"
    id: Id | None = None


class Pong(_Message):
    """Reply to the ping with this ``id``, sent after reading everything that came before it."""

    type: Literal["pong"] = "pong"
    id: Id | None = None


ClientMessage: TypeAlias = Annotated[Ask | Cancel | Reset | Ping | Pong, Field(discriminator="type")]


class Model(_Message):
    """An available model. ``context_length`` is the limit for conversation and answer together, in tokens."""

    name: str
    context_length: int


class Limits(_Message):
    """``max_message_bytes`` per message, ``max_turns`` remembered, and ``idle_s`` seconds without a question."""

    max_message_bytes: int
    max_turns: int
    idle_s: float


class Ready(_Message):
    """The conversation is empty and can begin. The last of ``models`` is the default."""

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
    """An answer is complete or was cancelled.

    ``usage`` of a cancelled answer covers the prompt and the tokens received so far, or is 0 before the first token.
    """

    type: Literal["done"] = "done"
    id: Id
    finish_reason: FinishReason | Literal["cancelled"]
    usage: TokenCounts

    @classmethod
    def of(cls, id: str, finish_reason: FinishReason | None, usage: Usage) -> Self:
        """The end of an answer. Without a finish reason, it was cancelled."""
        return cls(id=id, finish_reason=finish_reason or "cancelled", usage=TokenCounts.of(usage))


class Error(_Message):
    """A mistake of the client or a failure of the service. With the ``id`` of a question, that question has no answer.

    ``error``, ``message`` and ``details`` correspond to ``error``, ``detail`` and ``details`` of a problem document,
    and ``retry_after_s`` to the header ``Retry-After``: seconds until another try makes sense.
    """

    type: Literal["error"] = "error"
    id: str | None = None
    error: str
    message: str
    details: Sequence[ProblemDetail] = ()
    retry_after_s: int | None = None

    @classmethod
    def of(cls, explanation: Explanation, id: str | None) -> Self:
        """From an explained error."""
        retry_after = (explanation.headers or {}).get("Retry-After")
        return cls(
            id=id,
            error=explanation.error,
            message=explanation.message,
            details=explanation.details,
            retry_after_s=int(retry_after) if retry_after else None,
        )


ServerMessage: TypeAlias = Annotated[Ready | Text | Done | Error | Ping | Pong, Field(discriminator="type")]

CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
SERVER_MESSAGE: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)
"""For clients in Python."""
