"""A conversation over a WebSocket.

The messages are defined in ``workshop.api.schemas.chat``. The service first sends ``ready``. It answers each question
(``ask``) with ``text`` messages and one ``done``, or with an ``error``, one question at a time. It answers an invalid
message with an ``error``, which does not affect the conversation. Either side answers a ``ping`` with a ``pong`` of
the same ``id``.

Close codes sent by the service:

| Code | Reason                                                                         |
|------|--------------------------------------------------------------------------------|
| 1000 | no question was asked for a while                                              |
| 1008 | the credential is not valid or has expired, the user has logged out, the       |
|      | caller has too many connections, or it keeps sending without reading           |
| 1009 | a message is too large                                                         |
| 1011 | the client does not answer pings, or something went wrong in the service       |
| 1012 | the service is shutting down                                                   |
| 1013 | no model is available, or too many connections are open; try again later       |
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import Any

from fastapi import APIRouter, HTTPException, WebSocket, WebSocketException, status
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from workshop.api.budget import Account, create_account
from workshop.api.dependencies import (
    LanguageDep,
    RateLimitsDep,
    SettingsDep,
    SocketPrincipalDep,
    count_question,
    find_generator,
    require_session,
)
from workshop.api.errors import MAX_DETAILS, explain
from workshop.api.schemas.chat import (
    CLIENT_MESSAGE,
    Ask,
    Cancel,
    ClientMessage,
    Done,
    Error,
    IdOnly,
    Limits,
    Model,
    Ping,
    Pong,
    Ready,
    Reset,
    Text,
)
from workshop.api.sockets import MAX_MESSAGE_BYTES, Peer, close_at_expiry, connection
from workshop.api.streams import open_stream
from workshop.contracts.errors import (
    NotFoundError,
    PromptTooLongError,
    ServiceError,
    UnauthenticatedError,
    UnavailableError,
)
from workshop.contracts.generator import Chunk, FinishReason, Message, Prompt, TextGenerator, Usage
from workshop.contracts.services import cards

logger = logging.getLogger(__name__)
router = APIRouter()

MAX_TURNS = 16
"""How many turns are remembered. Fewer are kept if they do not fit into the model's context."""
IDLE_LIMIT_S = 600.0
"""When a connection without questions is closed. It occupies one of a replica's slots for requests."""


@router.websocket("/chat/ws")
async def chat(
    websocket: WebSocket,
    principal: SocketPrincipalDep,
    language: LanguageDep,
    settings: SettingsDep,
    rate_limits: RateLimitsDep,
) -> None:
    """Answer questions until the connection ends."""
    account = create_account(websocket, principal, language, settings)

    async def admit() -> None:  # checked for each question, since connections are long-lived
        try:
            await require_session(websocket, principal)
        except UnauthenticatedError as error:
            raise WebSocketException(status.WS_1008_POLICY_VIOLATION, error.message) from None
        await count_question(websocket, principal, rate_limits)
        await account.admit()

    async with connection(websocket) as (peer, tasks):
        tasks.create_task(close_at_expiry(principal.expires))
        await Chat(peer, tasks, account, language.generators, language.default_model, admit).run()


@dataclass(slots=True)
class Answer:
    """What has been generated of an answer."""

    ask: Ask
    model: str
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))

    def add(self, chunk: Chunk) -> None:
        """Append a chunk."""
        self.text.append(chunk.text)
        self.finish_reason = chunk.finish_reason
        self.usage = chunk.usage

    def turn(self) -> tuple[Message, Message]:
        """The question and the answer as messages."""
        return Message("user", self.ask.content), Message("assistant", "".join(self.text))


class Chat:
    """One conversation. Each answer runs in a task of its own, so that messages can be received meanwhile.

    Args:
        peer: the client.
        tasks: a task group that ends with the connection.
        account: provides the answers.
        generators: the models by name.
        default_model: the name of the one that answers a question that names none.
        admit: called before each answer; raises if the caller may not ask now.
    """

    def __init__(
        self,
        peer: Peer,
        tasks: asyncio.TaskGroup,
        account: Account,
        generators: Mapping[str, TextGenerator],
        default_model: str,
        admit: Callable[[], Awaitable[None]],
    ) -> None:
        self._peer = peer
        self._tasks = tasks
        self._account = account
        self._generators = generators
        self._default_model = default_model
        self._admit = admit
        self._context_lengths: dict[str, int] = {}
        self._turns: list[tuple[Message, Message]] = []
        self._running: tuple[Answer, asyncio.Task[None]] | None = None
        self._idle = asyncio.timeout(IDLE_LIMIT_S)

    async def run(self) -> None:
        """Handle messages until the connection ends. Always raises WebSocketDisconnect or WebSocketException."""
        await self._greet()
        try:
            async with self._idle:
                while True:
                    await self._handle_frame(await self._peer.receive())
        except TimeoutError:
            raise WebSocketException(status.WS_1000_NORMAL_CLOSURE, "no question was asked for a while") from None

    async def _greet(self) -> None:
        """Send ``ready`` with the available models."""
        found = await cards(self._generators)
        if not found:
            raise WebSocketException(status.WS_1013_TRY_AGAIN_LATER, "no model is available")
        self._context_lengths = {name: card.context_length for name, card in found.items()}
        lengths = sorted(self._context_lengths.items(), key=lambda item: item[0] == self._default_model)
        models = [Model(name=name, context_length=length) for name, length in lengths]
        limits = Limits(max_message_bytes=MAX_MESSAGE_BYTES, max_turns=MAX_TURNS, idle_s=IDLE_LIMIT_S)
        await self._peer.send(Ready(principal=self._account.principal, models=models, limits=limits))

    async def _handle_frame(self, frame: str | bytes) -> None:
        try:
            await self._handle(_parse(frame))
        except (ServiceError, RequestValidationError, HTTPException) as error:
            await self._send_error(error, _message_id(frame))

    async def _handle(self, message: ClientMessage) -> None:
        match message:
            case Ask():
                self._start(message)
            case Cancel():
                await self._cancel(message)
            case Reset():
                self._require_idle()
                self._turns = []
                await self._greet()
            case Ping():
                await self._peer.send(Pong(id=message.id))
            case Pong():
                self._peer.pong(message)

    async def _send_error(self, error: Exception, id: str | None) -> None:
        explanation = explain(error)
        if explanation.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("chat: %s", error, exc_info=error)
        await self._peer.send(Error.of(explanation, id))

    def _require_idle(self) -> None:
        if self._running is not None:
            raise HTTPException(
                status.HTTP_409_CONFLICT, "an answer is in progress: wait for it to finish, or cancel it"
            )

    def _start(self, ask: Ask) -> None:
        self._require_idle()
        model = ask.model or self._default_model
        find_generator(self._generators, model)
        if model not in self._context_lengths:
            raise UnavailableError(f"{model} was not available when the conversation began: send a reset to try again")
        self._idle.reschedule(None)
        answer = Answer(ask, model)
        self._running = answer, self._tasks.create_task(self._run_answer(answer))

    async def _run_answer(self, answer: Answer) -> None:
        try:
            await self._admit()
            async with self._open_answer(answer) as chunks:
                async for chunk in chunks:
                    answer.add(chunk)
                    if chunk.text:
                        await self._peer.send(Text(id=answer.ask.id, text=chunk.text))
                        await self._peer.drain()  # the model waits too, since nobody consumes its tokens
        except ServiceError as error:
            self._mark_idle()
            await self._send_error(error, answer.ask.id)
        else:
            await self._finish(answer)

    @asynccontextmanager
    async def _open_answer(self, answer: Answer) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The answer's chunks. Forgets the oldest turns until the prompt fits."""
        ask = answer.ask
        async with AsyncExitStack() as stack:
            for turns in (self._turns[n_forgotten:] for n_forgotten in range(len(self._turns) + 1)):
                messages = (*chain.from_iterable(turns), Message("user", ask.content))
                prompt = Prompt(messages, max_tokens=ask.max_tokens, temperature=ask.temperature)
                try:
                    chunks = await stack.enter_async_context(open_stream(self._account.chat(answer.model, prompt)))
                except PromptTooLongError:
                    if not turns:
                        raise
                else:
                    self._turns = turns
                    yield chunks
                    return

    async def _cancel(self, cancel: Cancel) -> None:
        if self._running is None or self._running[0].ask.id != cancel.id:
            raise NotFoundError(f"no answer to {cancel.id} is in progress")
        answer, task = self._running
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():  # it may have finished or failed instead
            await self._finish(answer)

    async def _finish(self, answer: Answer) -> None:
        self._mark_idle()
        self._remember(answer)
        await self._peer.send(Done.of(answer.ask.id, answer.finish_reason, answer.usage))

    def _remember(self, answer: Answer) -> None:
        """Store the turn. If the conversation takes more than half of the context, forget its oldest turn."""
        if any(answer.text):
            self._turns = [*self._turns, answer.turn()][-MAX_TURNS:]
        if answer.usage.total_tokens > self._context_lengths[answer.model] / 2:
            self._turns = self._turns[1:] or self._turns

    def _mark_idle(self) -> None:
        self._running = None
        self._idle.reschedule(asyncio.get_running_loop().time() + IDLE_LIMIT_S)


def _parse(frame: str | bytes) -> ClientMessage:
    """Parse a client's message. Mistakes are worded as they are over HTTP.

    Raises:
        RequestValidationError: the message is invalid.
    """
    if isinstance(frame, bytes):
        raise RequestValidationError([{"loc": (), "type": "binary_frame", "msg": "Input should be text, not binary"}])
    try:
        return CLIENT_MESSAGE.validate_json(frame)
    except ValidationError as error:
        if (n_mistakes := error.error_count()) > MAX_DETAILS:  # explaining each would take long
            message = f"{n_mistakes} invalid values"
            raise RequestValidationError([{"loc": (), "type": "too_many_mistakes", "msg": message}]) from None
        raise RequestValidationError([_fastapi_error(item) for item in error.errors(include_url=False)]) from None


def _fastapi_error(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] == "json_invalid":
        return {**item, "msg": "JSON decode error"}
    if item["type"].startswith("union_tag"):
        return {**item, "loc": ("body", "type")}
    return dict(item)


def _message_id(frame: str | bytes) -> str | None:
    """The id of a message that may be invalid in other respects, or None."""
    try:
        return IdOnly.model_validate_json(frame).id
    except ValidationError:
        return None
