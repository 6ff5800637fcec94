"""A conversation over a WebSocket.

The messages are those of ``workshop.api.schemas.chat``. The service says ``ready`` first. Each question (``ask``) is
answered with ``text`` messages and one ``done``, or with an ``error``; one question at a time. A mistake is answered
with an ``error`` and changes nothing. Whoever gets a ``ping`` sends a ``pong`` with the same ``id``.

How a connection ends, unless the client wants it to:

| Code | Why                                                                            |
|------|--------------------------------------------------------------------------------|
| 1000 | nothing was asked for a while                                                  |
| 1008 | the key is wrong or has expired, the caller has too many connections, or it    |
|      | keeps sending without reading                                                  |
| 1009 | a message is too large                                                         |
| 1011 | the client does not answer pings, or something went wrong in the service       |
| 1012 | the service stops                                                              |
| 1013 | no model answers, or too many connections are open; try again later            |
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

from workshop.api.budget import Account, account_of
from workshop.api.dependencies import (
    LanguageDep,
    RateLimitsDep,
    SettingsDep,
    SocketPrincipalDep,
    caller_of,
    find_generator,
    path_of,
)
from workshop.api.errors import MAX_DETAILS, explain
from workshop.api.schemas.chat import (
    CLIENT_MESSAGE,
    Ask,
    Cancel,
    ClientMessage,
    Done,
    Error,
    Identified,
    Limits,
    Model,
    Ping,
    Pong,
    Ready,
    Reset,
    Text,
)
from workshop.api.sockets import MAX_MESSAGE_BYTES, Peer, connection, end_at
from workshop.api.streams import started
from workshop.contracts.errors import NotFoundError, PromptTooLongError, ServiceError, UnavailableError
from workshop.contracts.generator import Chunk, FinishReason, Message, Prompt, TextGenerator, Usage
from workshop.contracts.services import cards

logger = logging.getLogger(__name__)
router = APIRouter()

MAX_TURNS = 16
"""How many questions and answers are remembered; fewer, where they do not fit into the model's context."""
IDLE_LIMIT_S = 600.0
"""A connection takes one of the places that a replica has for requests: without a question, it is given back."""
"""A model that is being replaced may take minutes."""


@router.websocket("/chat/ws")
async def chat(
    websocket: WebSocket,
    principal: SocketPrincipalDep,
    language: LanguageDep,
    settings: SettingsDep,
    rate_limits: RateLimitsDep,
) -> None:
    """Answer questions, until the client leaves or has to."""
    account = account_of(websocket, principal.id, language, settings)

    async def admit() -> None:  # each question: a connection lasts
        await rate_limits.check(path_of(websocket), caller_of(websocket, principal))
        await account.admit()

    async with connection(websocket) as (peer, tasks):
        tasks.create_task(end_at(principal.expires))
        await Chat(peer, tasks, account, language.generators, admit).run()


@dataclass(slots=True)
class Answer:
    """What there is of an answer."""

    ask: Ask
    model: str
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))

    def add(self, chunk: Chunk) -> None:
        """The next piece of it."""
        self.text.append(chunk.text)
        self.finish_reason = chunk.finish_reason
        self.usage = chunk.usage

    def turn(self) -> tuple[Message, Message]:
        """Question and answer."""
        return Message("user", self.ask.content), Message("assistant", "".join(self.text))


class Chat:
    """One conversation. While an answer is given, in a task of its own, messages are received.

    Args:
        peer: who asks.
        tasks: a group that ends with the connection.
        account: where its answers come from.
        generators: the models by name.
        admit: called before each answer; raises for who may not ask.
    """

    def __init__(
        self,
        peer: Peer,
        tasks: asyncio.TaskGroup,
        account: Account,
        generators: Mapping[str, TextGenerator],
        admit: Callable[[], Awaitable[None]],
    ) -> None:
        self._peer = peer
        self._tasks = tasks
        self._account = account
        self._generators = generators
        self._admit = admit
        self._context_lengths: dict[str, int] = {}
        self._turns: list[tuple[Message, Message]] = []
        self._running: tuple[Answer, asyncio.Task[None]] | None = None
        self._idle = asyncio.timeout(IDLE_LIMIT_S)

    async def run(self) -> None:
        """Converse. Ends with WebSocketDisconnect or WebSocketException."""
        await self._greet()
        try:
            async with self._idle:
                while True:
                    await self._react(await self._peer.receive())
        except TimeoutError:
            raise WebSocketException(status.WS_1000_NORMAL_CLOSURE, "nothing was asked for a while") from None

    async def _greet(self) -> None:
        """Offer the models that answer now."""
        found = await cards(self._generators)
        if not found:
            raise WebSocketException(status.WS_1013_TRY_AGAIN_LATER, "no model answers")
        self._context_lengths = {name: card.context_length for name, card in found.items()}
        models = [Model(name=name, context_length=length) for name, length in self._context_lengths.items()]
        limits = Limits(max_message_bytes=MAX_MESSAGE_BYTES, max_turns=MAX_TURNS, idle_s=IDLE_LIMIT_S)
        await self._peer.send(Ready(principal=self._account.principal, models=models, limits=limits))

    async def _react(self, frame: str | bytes) -> None:
        try:
            await self._obey(_parsed(frame))
        except (ServiceError, RequestValidationError, HTTPException) as error:
            await self._refuse(error, _id_of(frame))

    async def _obey(self, message: ClientMessage) -> None:
        match message:
            case Ask():
                self._start(message)
            case Cancel():
                await self._cancel(message)
            case Reset():
                self._must_be_free()
                self._turns = []
                await self._greet()
            case Ping():
                await self._peer.send(Pong(id=message.id))
            case Pong():
                self._peer.pong(message)

    async def _refuse(self, error: Exception, id: str | None) -> None:
        explanation = explain(error)
        if explanation.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("chat: %s", error, exc_info=error)
        await self._peer.send(Error.of(explanation, id))

    def _must_be_free(self) -> None:
        if self._running is not None:
            raise HTTPException(status.HTTP_409_CONFLICT, "an answer is under way: wait for its end, or cancel it")

    def _start(self, ask: Ask) -> None:
        self._must_be_free()
        model = ask.model or list(self._generators)[-1]
        find_generator(self._generators, model)
        if model not in self._context_lengths:
            raise UnavailableError(f"{model} did not answer when this chat was greeted: reset it to try again")
        self._idle.reschedule(None)
        answer = Answer(ask, model)
        self._running = answer, self._tasks.create_task(self._give(answer))

    async def _give(self, answer: Answer) -> None:
        try:
            await self._admit()
            async with self._begun(answer) as chunks:
                async for chunk in chunks:
                    answer.add(chunk)
                    if chunk.text:
                        await self._peer.send(Text(id=answer.ask.id, text=chunk.text))
                        await self._peer.room()  # the model waits too: nothing takes its tokens
        except ServiceError as error:
            self._rest()
            await self._refuse(error, answer.ask.id)
        else:
            await self._finish(answer)

    @asynccontextmanager
    async def _begun(self, answer: Answer) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The answer's chunks. The oldest turns are forgotten, as many as it takes for the prompt to fit."""
        ask = answer.ask
        async with AsyncExitStack() as stack:
            for turns in (self._turns[n_forgotten:] for n_forgotten in range(len(self._turns) + 1)):
                messages = (*chain.from_iterable(turns), Message("user", ask.content))
                prompt = Prompt(messages, max_tokens=ask.max_tokens, temperature=ask.temperature)
                try:
                    chunks = await stack.enter_async_context(started(self._account.chat(answer.model, prompt)))
                except PromptTooLongError:
                    if not turns:
                        raise
                else:
                    self._turns = turns
                    yield chunks
                    return

    async def _cancel(self, cancel: Cancel) -> None:
        if self._running is None or self._running[0].ask.id != cancel.id:
            raise NotFoundError(f"no answer to {cancel.id} is under way")
        answer, task = self._running
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():  # it may have come to its end, or to an error, all the same
            await self._finish(answer)

    async def _finish(self, answer: Answer) -> None:
        self._rest()
        self._remember(answer)
        await self._peer.send(Done.of(answer.ask.id, answer.finish_reason, answer.usage))

    def _remember(self, answer: Answer) -> None:
        """Keep the turn. Beyond half of the context, the oldest goes, so that there is room for answers."""
        if any(answer.text):
            self._turns = [*self._turns, answer.turn()][-MAX_TURNS:]
        if answer.usage.total_tokens > self._context_lengths[answer.model] / 2:
            self._turns = self._turns[1:] or self._turns

    def _rest(self) -> None:
        self._running = None
        self._idle.reschedule(asyncio.get_running_loop().time() + IDLE_LIMIT_S)


def _parsed(frame: str | bytes) -> ClientMessage:
    """A client's message. What is wrong with it is said in the words that it has over HTTP.

    Raises:
        RequestValidationError: it is none.
    """
    if isinstance(frame, bytes):
        raise RequestValidationError([{"loc": (), "type": "binary_frame", "msg": "Input should be text, not binary"}])
    try:
        return CLIENT_MESSAGE.validate_json(frame)
    except ValidationError as error:
        if (n_mistakes := error.error_count()) > MAX_DETAILS:  # each takes time to explain
            message = f"{n_mistakes} values break a rule"
            raise RequestValidationError([{"loc": (), "type": "too_many_mistakes", "msg": message}]) from None
        raise RequestValidationError([_mistake(item) for item in error.errors(include_url=False)]) from None


def _mistake(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] == "json_invalid":
        return {**item, "msg": "JSON decode error"}
    if item["type"].startswith("union_tag"):
        return {**item, "loc": ("body", "type")}
    return dict(item)


def _id_of(frame: str | bytes) -> str | None:
    """The id of a message that may be wrong otherwise."""
    try:
        return Identified.model_validate_json(frame).id
    except ValidationError:
        return None
