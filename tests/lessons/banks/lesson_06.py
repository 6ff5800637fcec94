"""Answers to lesson 06: WebSockets."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from websockets.exceptions import ConnectionClosed

from workshop.api.schemas.chat import SERVER_MESSAGE, Done, Error, Ping, Pong, Text
from workshop.lab.fixtures.lesson_06 import Model, UnansweredError


def app(path: str, endpoint: Callable[..., Any]) -> FastAPI:
    made = FastAPI()
    made.websocket(path)(endpoint)
    return made


# 06.1: stop means stop


async def in_a_group(socket: WebSocket, model: Any) -> None:
    answering: asyncio.Task[None] | None = None
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            while True:
                said = await socket.receive_text()
                if said != "stop":
                    answering = tasks.create_task(all_words(socket, model, said))
                elif answering and answering.cancel():
                    await socket.send_text("stopped")


async def all_words(socket: WebSocket, model: Any, question: str) -> None:
    async for word in model.words(question):
        await socket.send_text(word)
    await socket.send_text("done")


async def group_without_except(socket: WebSocket, model: Any) -> None:
    """The server logs the exception that is raised when a client leaves. Here, this is not a mistake."""
    async with asyncio.TaskGroup() as tasks:
        while True:
            said = await socket.receive_text()
            if said == "stop":
                answering.cancel()  # noqa: F821
            else:
                answering = tasks.create_task(with_an_end(socket, model, said))  # noqa: F841


async def with_an_end(socket: WebSocket, model: Any, question: str) -> None:
    try:
        async for word in model.words(question):
            await socket.send_text(word)
        await socket.send_text("done")
    except asyncio.CancelledError:
        with suppress(WebSocketDisconnect):
            await socket.send_text("stopped")
        raise


async def with_finally(socket: WebSocket, model: Any) -> None:
    answering = None
    try:
        async for said in socket.iter_text():
            if said == "stop":
                if answering and answering.cancel():
                    await socket.send_text("stopped")
            else:
                answering = asyncio.create_task(all_words(socket, model, said))
    finally:
        if answering:
            answering.cancel()


async def asks_between_words(socket: WebSocket, model: Any) -> None:
    """One task receives, and the answer waits for the next word or the next message."""
    inbox: asyncio.Queue[str | None] = asyncio.Queue()

    async def listen() -> None:
        async for said in socket.iter_text():
            inbox.put_nowait(said)
        inbox.put_nowait(None)

    listening = asyncio.create_task(listen())
    while (question := await inbox.get()) is not None:
        if question == "stop":
            continue
        words = aiter(model.words(question))
        while True:
            word, news = asyncio.ensure_future(anext(words, None)), asyncio.ensure_future(inbox.get())
            await asyncio.wait([word, news], return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                word.cancel()
                await asyncio.wait([word])
                if news.result() is None:
                    return
                await socket.send_text("stopped")
                break
            news.cancel()
            if word.result() is None:
                await socket.send_text("done")
                break
            await socket.send_text(word.result())
    await listening


async def in_turn(socket: WebSocket, model: Any) -> None:
    async for said in socket.iter_text():
        if said == "stop":
            await socket.send_text("stopped")
        else:
            with suppress(WebSocketDisconnect):
                await all_words(socket, model, said)


async def nobodys_task(socket: WebSocket, model: Any) -> None:
    answering = None
    async for said in socket.iter_text():
        if said != "stop":
            answering = asyncio.create_task(all_words(socket, model, said))
        elif answering and answering.cancel():
            await socket.send_text("stopped")


async def group_that_waits(socket: WebSocket, model: Any) -> None:
    async with asyncio.TaskGroup() as tasks:
        answering = None
        async for said in socket.iter_text():
            if said != "stop":
                answering = tasks.create_task(all_words(socket, model, said))
            elif answering and answering.cancel():
                await socket.send_text("stopped")


async def only_silent(socket: WebSocket, model: Any) -> None:
    """The words are no longer sent, but the model still generates them."""
    stopped = asyncio.Event()

    async def answer(question: str) -> None:
        async for word in model.words(question):
            if not stopped.is_set():
                await socket.send_text(word)
        if not stopped.is_set():
            await socket.send_text("done")

    async with asyncio.TaskGroup() as tasks:
        while True:
            said = await socket.receive_text()
            if said == "stop":
                stopped.set()
                await socket.send_text("stopped")
            else:
                stopped.clear()
                tasks.create_task(answer(said))


async def looks_between_words(socket: WebSocket, model: Any) -> None:
    """Stops at the next word, which may take a long time to come."""
    stopped = asyncio.Event()
    answering: asyncio.Task[None] | None = None

    async def answer(question: str) -> None:
        async for word in model.words(question):
            if stopped.is_set():
                await socket.send_text("stopped")
                return
            await socket.send_text(word)
        await socket.send_text("done")

    async with asyncio.TaskGroup() as tasks:
        while True:
            said = await socket.receive_text()
            if said != "stop":
                stopped.clear()
                answering = tasks.create_task(answer(said))
            elif answering and not answering.done():
                stopped.set()


async def confirms_every_stop(socket: WebSocket, model: Any) -> None:
    answering = None
    async with asyncio.TaskGroup() as tasks:
        while True:
            said = await socket.receive_text()
            if said != "stop":
                answering = tasks.create_task(all_words(socket, model, said))
                continue
            if answering:
                answering.cancel()
            await socket.send_text("stopped")


class OneTaskForAll:
    """The answer in progress belongs to all connections."""

    def __init__(self) -> None:
        self.answering: asyncio.Task[None] | None = None

    async def __call__(self, socket: WebSocket, model: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                said = await socket.receive_text()
                if said != "stop":
                    self.answering = tasks.create_task(all_words(socket, model, said))
                elif self.answering and self.answering.cancel():
                    await socket.send_text("stopped")


async def collects_the_words(socket: WebSocket, model: Any) -> None:
    answering = None

    async def answer(question: str) -> None:
        for word in [word async for word in model.words(question)]:
            await socket.send_text(word)
        await socket.send_text("done")

    async with asyncio.TaskGroup() as tasks:
        while True:
            said = await socket.receive_text()
            if said != "stop":
                answering = tasks.create_task(answer(said))
            elif answering and answering.cancel():
                await socket.send_text("stopped")


async def adds_done_to_stopped(socket: WebSocket, model: Any) -> None:
    answering = None

    async def answer(question: str) -> None:
        try:
            async for word in model.words(question):
                await socket.send_text(word)
        finally:
            await socket.send_text("done")

    async with asyncio.TaskGroup() as tasks:
        while True:
            said = await socket.receive_text()
            if said != "stop":
                answering = tasks.create_task(answer(said))
            elif answering and answering.cancel():
                await socket.send_text("stopped")


async def asks_another_model(socket: WebSocket, model: Any) -> None:
    """As the notebook's `answer` does."""
    another = Model()
    another.length = 3
    await in_a_group(socket, another)


async def forgets_to_await(socket: WebSocket, model: Any) -> None:
    async for said in socket.iter_text():
        async for word in model.words(said):
            socket.send_text(word)  # type: ignore[unused-coroutine]


async def stops_the_conversation(socket: WebSocket, model: Any) -> None:
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            while True:
                said = await socket.receive_text()
                if said == "stop":
                    await socket.send_text("stopped")
                    await socket.close()
                else:
                    tasks.create_task(all_words(socket, model, said))


async def without_done(socket: WebSocket, model: Any) -> None:
    async for said in socket.iter_text():
        async for word in model.words(said):
            await socket.send_text(word)


# 06.2: a token meter


class Spend(BaseModel):
    type: Literal["spend"]
    tokens: int = Field(ge=1, strict=True)


class Reset(BaseModel):
    type: Literal["reset"]


ORDER: TypeAdapter[Spend | Reset] = TypeAdapter(Annotated[Spend | Reset, Field(discriminator="type")])


async def frame_of(socket: WebSocket) -> str | bytes:
    event = await socket.receive()
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event["code"])
    frame: str | bytes = event["text"] if event.get("text") is not None else event["bytes"]
    return frame


async def with_a_union(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    while True:
        frame = await frame_of(socket)
        try:
            order = ORDER.validate_json(frame)
        except ValidationError:
            await socket.send_json({"type": "error", "message": "not understood"})
            continue
        total = total + order.tokens if isinstance(order, Spend) else 0
        await socket.send_json({"type": "total", "tokens": total})


async def by_hand(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    while True:
        frame = await frame_of(socket)
        try:
            match json.loads(frame):
                case {"type": "spend", "tokens": int(tokens)} if tokens > 0 and tokens is not True:
                    total += tokens
                case {"type": "reset"}:
                    total = 0
                case other:
                    raise ValueError(f"not understood: {other}")
        except ValueError as error:
            await socket.send_json({"type": "error", "message": str(error)})
        else:
            await socket.send_text(json.dumps({"tokens": total, "type": "total"}))


async def refuses_binary(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    while (event := await socket.receive())["type"] == "websocket.receive":
        order = None
        with suppress(ValidationError):
            order = ORDER.validate_json(event.get("text") or "")
        if order is None:
            await socket.send_json({"type": "error", "message": "not understood"})
            continue
        total = total + order.tokens if isinstance(order, Spend) else 0
        await socket.send_json({"type": "total", "tokens": total})


def meter(
    *,
    catch: type[Exception] | tuple[type[Exception], ...] = ValueError,
    strict: bool = True,
    fewest: int = 1,
    forget: bool = False,
    shared: bool = False,
    reply: bool = True,
    error: Any = "not understood",
) -> Any:
    """An answer with one mistake."""

    class Item(BaseModel):
        type: Literal["spend", "reset"]
        tokens: int | None = Field(default=None, ge=fewest, strict=strict)

    totals: dict[Any, int] = {}

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        mine = "all" if shared else socket
        totals.setdefault(mine, 0)
        with suppress(WebSocketDisconnect):
            while True:
                try:
                    item = Item.model_validate_json(await frame_of(socket))
                    if item.type == "spend" and item.tokens is None:
                        raise ValueError("no tokens")
                    totals[mine] = totals[mine] + (item.tokens or 0) if item.type == "spend" else 0
                    await socket.send_json({"type": "total", "tokens": totals[mine]})
                except catch:
                    totals[mine] = 0 if forget else totals[mine]
                    if reply:
                        await socket.send_json({"type": "error", "message": error})

    return app("/meter", endpoint)


async def adds_first(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    while True:
        frame = await frame_of(socket)
        try:
            message = json.loads(frame)
            if message["type"] == "spend":
                if type(message["tokens"]) is not int:
                    raise ValueError("not an integer")
                total += message["tokens"]
                if message["tokens"] < 1:
                    raise ValueError("too few")
            elif message["type"] == "reset":
                total = 0
            else:
                raise ValueError("not understood")
        except (ValueError, KeyError, TypeError) as error:
            await socket.send_json({"type": "error", "message": str(error)})
        else:
            await socket.send_json({"type": "total", "tokens": total})


async def expects_objects(socket: WebSocket) -> None:
    """Valid JSON may have another shape."""
    await socket.accept()
    total = 0
    while True:
        frame = await frame_of(socket)
        try:
            message = json.loads(frame)
        except ValueError:
            message = {"type": "broken"}
        if message["type"] == "spend" and type(message.get("tokens")) is int and message["tokens"] > 0:
            total += message["tokens"]
            await socket.send_json({"type": "total", "tokens": total})
        else:
            await socket.send_json({"type": "error", "message": "not understood"})


async def text_only(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    async for frame in socket.iter_text():
        try:
            order = ORDER.validate_json(frame)
            total = total + order.tokens if isinstance(order, Spend) else 0
            await socket.send_json({"type": "total", "tokens": total})
        except ValidationError:
            await socket.send_json({"type": "error", "message": "not understood"})


async def closes_at_a_mistake(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    while True:
        try:
            order = ORDER.validate_json(await frame_of(socket))
        except ValidationError:
            raise WebSocketException(1008, "not understood") from None
        total = total + order.tokens if isinstance(order, Spend) else 0
        await socket.send_json({"type": "total", "tokens": total})


# 06.3: check the key

KEYS = {"key-1": "ada", "key-2": "grace"}
OURS = "workshop.chat"


def keys_of(socket: WebSocket) -> list[str]:
    credentials = [name.replace("bearer.", "Bearer ", 1) for name in socket.scope["subprotocols"]]
    credentials.append(socket.headers.get("authorization", ""))
    return [credential.removeprefix("Bearer ") for credential in credentials if credential.startswith("Bearer ")]


def choice(socket: WebSocket) -> str | None:
    return OURS if OURS in socket.scope["subprotocols"] else None


async def raises(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    owner = next((KEYS[key] for key in keys_of(socket) if key in KEYS), None)
    if owner is None:
        raise WebSocketException(1008)
    await socket.send_text(f"hello {owner}")


async def closes(socket: WebSocket) -> None:
    owners = [KEYS[key] for key in keys_of(socket) if key in KEYS]
    await socket.accept(choice(socket))
    if owners:
        await socket.send_text(f"hello {owners[0]}")
    await socket.close(1000 if owners else 1008)


async def owner_of(socket: WebSocket) -> str:
    await socket.accept(choice(socket))
    for key in keys_of(socket):
        if key in KEYS:
            return KEYS[key]
    raise WebSocketException(1008, "who are you?")


async def with_a_dependency(socket: WebSocket, owner: Annotated[str, Depends(owner_of)]) -> None:
    await socket.send_text(f"hello {owner}")
    async for _ in socket.iter_text():
        pass


async def refuses_early(socket: WebSocket) -> None:
    if not any(key in KEYS for key in keys_of(socket)):
        raise WebSocketException(1008)
    await raises(socket)


def greets(find: Callable[[WebSocket], str | None]) -> FastAPI:
    """Greets the owner that `find` returns, or closes the connection if it returns None."""

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept(choice(socket))
        owner = find(socket)
        if owner is None:
            raise WebSocketException(1008)
        await socket.send_text(f"hello {owner}")

    return app("/door", endpoint)


def credentials_of(socket: WebSocket) -> list[str]:
    return [socket.headers.get("authorization", ""), *socket.scope["subprotocols"]]


def by_complete_credential(socket: WebSocket) -> str | None:
    owners = {f"{before}{key}": owner for key, owner in KEYS.items() for before in ("Bearer ", "bearer.")}
    return next((owners[credential] for credential in credentials_of(socket) if credential in owners), None)


def in_any_case(socket: WebSocket) -> str | None:
    scheme, _, key = socket.headers.get("authorization", "").partition(" ")
    offered = [name.removeprefix("bearer.") for name in socket.scope["subprotocols"] if name.startswith("bearer.")]
    keys = [key, *offered] if scheme.lower() == "bearer" else offered
    return next((KEYS[key] for key in keys if key in KEYS), None)


def by_the_beginning(socket: WebSocket) -> str | None:
    beginnings = [(f"{before}{key}", owner) for key, owner in KEYS.items() for before in ("Bearer ", "bearer.")]
    found = (owner for text in credentials_of(socket) for beginning, owner in beginnings if text.startswith(beginning))
    return next(found, None)


def by_a_substring(socket: WebSocket) -> str | None:
    return next((owner for key, owner in KEYS.items() for text in credentials_of(socket) if key in text), None)


def by_the_last_word(socket: WebSocket) -> str | None:
    header, *offered = credentials_of(socket)
    keys = header.split()[-1:] + [name.removeprefix("bearer.") for name in offered if name.startswith("bearer.")]
    return next((KEYS[key] for key in keys if key in KEYS), None)


def without_a_scheme(socket: WebSocket) -> str | None:
    keys = [text.removeprefix("Bearer ").removeprefix("bearer.") for text in credentials_of(socket)]
    return next((KEYS[key] for key in keys if key in KEYS), None)


def without_a_prefix(socket: WebSocket) -> str | None:
    keys = [*keys_of(socket), *socket.scope["subprotocols"]]
    return next((KEYS[key] for key in keys if key in KEYS), None)


async def greets_strangers_first(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    owner = by_complete_credential(socket)
    await socket.send_text(f"hello {owner}")
    if owner is None:
        await socket.close(1008)


async def leaves_strangers_alone(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    if owner := by_complete_credential(socket):
        await socket.send_text(f"hello {owner}")
    await socket.receive_text()


async def selects_for_pages_only(socket: WebSocket) -> None:
    page = any(name.startswith("bearer.") for name in socket.scope["subprotocols"])
    await socket.accept(OURS if page else None)
    owner = by_complete_credential(socket)
    if owner is None:
        raise WebSocketException(1008)
    await socket.send_text(f"hello {owner}")


async def lets_everybody_in(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    await socket.send_text("hello " + next((KEYS[key] for key in keys_of(socket) if key in KEYS), "stranger"))


async def headers_only(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    owner = KEYS.get(socket.headers.get("authorization", "").removeprefix("Bearer "))
    if owner is None:
        raise WebSocketException(1008)
    await socket.send_text(f"hello {owner}")


async def picks_nothing(socket: WebSocket) -> None:
    await socket.accept()
    for key in keys_of(socket):
        if key in KEYS:
            await socket.send_text(f"hello {KEYS[key]}")
            return
    raise WebSocketException(1008)


async def picks_the_key(socket: WebSocket) -> None:
    offered = socket.scope["subprotocols"]
    await socket.accept(next((name for name in offered if name.startswith("bearer.")), None))
    for key in keys_of(socket):
        if key in KEYS:
            await socket.send_text(f"hello {KEYS[key]}")
            return
    raise WebSocketException(1008)


async def picks_always(socket: WebSocket) -> None:
    await socket.accept(OURS)
    await socket.send_text("hello ada")


async def returns_without_a_code(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    for key in keys_of(socket):
        if key in KEYS:
            await socket.send_text(f"hello {KEYS[key]}")


async def fails_without_a_header(socket: WebSocket) -> None:
    await socket.accept(choice(socket))
    key = socket.headers["authorization"].removeprefix("Bearer ")
    await socket.send_text(f"hello {KEYS[key]}")


# 06.4: a heartbeat


async def beats_in_a_task(socket: WebSocket, every: float, patience: float) -> None:
    ponged = asyncio.Event()

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(every)
            ponged.clear()
            await socket.send_text("ping")
            try:
                await asyncio.wait_for(ponged.wait(), patience)
            except TimeoutError:
                await socket.close(1011)
                return

    beating = asyncio.create_task(heartbeat())
    async for said in socket.iter_text():
        if said == "pong":
            ponged.set()
        else:
            await socket.send_text(said)
    beating.cancel()


async def beats_in_a_group(
    socket: WebSocket, every: float, patience: float, *, counts: bool = False, waits: bool = False
) -> None:
    """Two mistakes are possible: early pongs count, or it always waits for the full patience."""
    pongs: asyncio.Queue[None] = asyncio.Queue()

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(every)
            while not (pongs.empty() or counts):
                pongs.get_nowait()
            await socket.send_text("ping")
            if waits:
                await asyncio.sleep(patience)
            async with asyncio.timeout(patience):
                await pongs.get()

    async def echo() -> None:
        while True:
            said = await socket.receive_text()
            if said == "pong":
                pongs.put_nowait(None)
            else:
                await socket.send_text(said)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(heartbeat())
            tasks.create_task(echo())
    except* WebSocketDisconnect:
        pass
    except* TimeoutError:
        await socket.close(1011)


counts_pongs = partial(beats_in_a_group, counts=True)
waits_out_its_patience = partial(beats_in_a_group, waits=True)


async def looks_at_the_clock(socket: WebSocket, every: float, patience: float) -> None:
    clock = asyncio.get_running_loop().time
    ping_at, deadline = clock() + every, None
    receiving = asyncio.ensure_future(socket.receive_text())
    while True:
        until = ping_at if deadline is None else deadline
        await asyncio.wait([receiving], timeout=max(0, until - clock()))
        if receiving.done():
            try:
                said = receiving.result()
            except WebSocketDisconnect:
                return
            receiving = asyncio.ensure_future(socket.receive_text())
            if said != "pong":
                await socket.send_text(said)
            elif deadline is not None:
                ping_at, deadline = clock() + every, None
        elif deadline is None:
            await socket.send_text("ping")
            deadline = clock() + patience
        else:
            receiving.cancel()
            await socket.close(1011)
            return


async def pings_by_the_clock(socket: WebSocket, every: float, patience: float) -> None:
    """Pings at regular intervals, whether or not the last ping was answered."""
    loop = asyncio.get_running_loop()
    waits: list[asyncio.TimerHandle] = []
    late = asyncio.Event()

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(every)
            await socket.send_text("ping")
            waits.append(loop.call_later(patience, late.set))

    async def watch() -> None:
        await late.wait()
        await socket.close(1011)

    tasks = [asyncio.create_task(heartbeat()), asyncio.create_task(watch())]
    async for said in socket.iter_text():
        if said == "pong":
            while waits:
                waits.pop().cancel()
        else:
            await socket.send_text(said)
    for task in tasks:
        task.cancel()


def watcher(
    *,
    code: int = 1011,
    echo_pong: bool = False,
    patient: bool = True,
    any_text: bool = False,
    clears: bool = True,
    shared: bool = False,
    cancels: bool = True,
    swapped: bool = False,
    sleep: Callable[[float], Any] = asyncio.sleep,
) -> Any:
    """The first right answer, with a mistake."""
    everybodys = asyncio.Event()

    async def watch(socket: WebSocket, every: float, patience: float) -> None:
        ponged = everybodys if shared else asyncio.Event()
        if swapped:
            every, patience = patience, every

        async def heartbeat() -> None:
            while True:
                await sleep(every)
                if clears:
                    ponged.clear()
                await socket.send_text("ping")
                try:
                    await asyncio.wait_for(ponged.wait(), patience if patient else 0.1)
                except TimeoutError:
                    with suppress(RuntimeError):
                        await socket.close(code)
                    return

        beating = asyncio.create_task(heartbeat())
        with suppress(RuntimeError):
            async for said in socket.iter_text():
                if said == "pong" or any_text:
                    ponged.set()
                if said != "pong" or echo_pong:
                    await socket.send_text(said)
        if cancels:
            beating.cancel()

    return watch


async def sleeps_in_the_loop(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - this is the mistake to be found


async def pings_once(socket: WebSocket, every: float, patience: float) -> None:
    ponged = asyncio.Event()

    async def heartbeat() -> None:
        await asyncio.sleep(every)
        await socket.send_text("ping")
        try:
            await asyncio.wait_for(ponged.wait(), patience)
        except TimeoutError:
            await socket.close(1011)

    beating = asyncio.create_task(heartbeat())
    async for said in socket.iter_text():
        if said == "pong":
            ponged.set()
        else:
            await socket.send_text(said)
    beating.cancel()


async def echoes_only(socket: WebSocket, every: float, patience: float) -> None:
    async for said in socket.iter_text():
        await socket.send_text(said)


async def asks_and_waits(socket: WebSocket, every: float, patience: float) -> None:
    """Takes turns: it reads only after a ping, and not while it waits to send the next."""
    while True:
        await asyncio.sleep(every)
        await socket.send_text("ping")
        try:
            said = await asyncio.wait_for(socket.receive_text(), patience)
        except TimeoutError:
            await socket.close(1011)
            return
        if said != "pong":
            await socket.close(1008)
            return


async def only_pings(socket: WebSocket, every: float, patience: float) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            await asyncio.sleep(every)
            await socket.send_text("ping")


async def raises_in_a_group(socket: WebSocket, every: float, patience: float) -> None:
    """FastAPI does not find the close code inside the group."""
    ponged = asyncio.Event()

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(every)
            ponged.clear()
            await socket.send_text("ping")
            try:
                await asyncio.wait_for(ponged.wait(), patience)
            except TimeoutError:
                raise WebSocketException(1011) from None

    with suppress(WebSocketDisconnect):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(heartbeat())
            while True:
                said = await socket.receive_text()
                if said == "pong":
                    ponged.set()
                else:
                    await socket.send_text(said)


async def pings_at_once(socket: WebSocket, every: float, patience: float) -> None:
    await socket.send_text("ping")
    await beats_in_a_task(socket, every, patience)


def not_async(socket: WebSocket, every: float, patience: float) -> None:
    return None


# 06.5: a robust client


def reads_in_a_loop(socket: Any, id: str) -> str:
    text = ""
    with suppress(ConnectionClosed):
        while True:
            message = json.loads(socket.recv())
            if message["type"] == "ping":
                socket.send(json.dumps({"type": "pong", "id": message["id"]}))
            elif message.get("id") != id:
                continue
            elif message["type"] == "text":
                text += message["text"]
            elif message["type"] == "done":
                return text
            elif message["type"] == "error":
                raise UnansweredError(message["message"])
    raise UnansweredError("closed")


def reads_models(socket: Any, id: str) -> str:
    text = ""
    while True:
        try:
            message = SERVER_MESSAGE.validate_json(socket.recv())
        except ConnectionClosed as closed:
            raise UnansweredError("closed") from closed
        match message:
            case Ping():
                socket.send(Pong(id=message.id).model_dump_json())
            case Text(id=question) if question == id:
                text += message.text
            case Done(id=question) if question == id:
                return text
            case Error(id=question) if question == id:
                raise UnansweredError(message.message)


def reads_with_a_generator(socket: Any, id: str) -> str:
    def messages() -> Iterator[Any]:
        with suppress(ConnectionClosed):
            for message in map(json.loads, socket):
                if message["type"] == "ping":
                    socket.send(json.dumps(message | {"type": "pong"}))
                elif message.get("id") == id:
                    yield message

    text = []
    for message in messages():
        match message["type"]:
            case "text":
                text.append(message["text"])
            case "done":
                return "".join(text)
            case "error":
                break
    raise UnansweredError(id)


def reader(
    *,
    pong: Callable[[Any, str], str] = lambda message, id: json.dumps({"type": "pong", "id": message["id"]}),
    every: tuple[str, ...] = (),
    only: str = "",
    at_close: type[Exception] | None = UnansweredError,
    returns: bool = True,
    whole: bool = False,
) -> Any:
    """The first right answer, with a mistake. `every` lists the types whose id is not checked."""

    def read(socket: Any, id: str) -> str | None:
        text, id = "", only or id
        try:
            while True:
                message = json.loads(socket.recv())
                kind, ours = message["type"], message.get("id") == id
                if kind == "ping" and (reply := pong(message, id)):
                    socket.send(reply)
                elif kind == "text" and (ours or kind in every):
                    text += message["text"]
                elif kind == "done" and (ours or kind in every):
                    if whole and message["finish_reason"] == "cancelled":
                        raise UnansweredError("cancelled")
                    return text if returns else None
                elif kind == "error" and (ours or kind in every):
                    raise UnansweredError(message["message"])
        except ConnectionClosed:
            if at_close is None:
                return text
            if at_close is ConnectionClosed:
                raise
        raise at_close("closed")

    return read


def iterates(socket: Any, id: str) -> str:
    """Code 1000 ends the loop without an error."""
    text = ""
    try:
        for message in map(json.loads, socket):
            if message["type"] == "ping":
                socket.send(json.dumps({"type": "pong", "id": message["id"]}))
            elif message.get("id") == id and message["type"] == "text":
                text += message["text"]
            elif message.get("id") == id and message["type"] == "done":
                break
            elif message.get("id") == id and message["type"] == "error":
                raise UnansweredError(message["message"])
    except ConnectionClosed as closed:
        raise UnansweredError("closed") from closed
    return text


BANK = {
    "06.1": {
        "right": [in_a_group, group_without_except, with_finally, asks_between_words],
        "wrong": [
            (in_turn, "The answer went on to its end"),
            (nobodys_task, "the model still works for it"),
            (group_that_waits, "the model still works for it"),
            (only_silent, "The model still works on the answer that was stopped"),
            (looks_between_words, "`stop` arrives while the model is thinking"),
            (confirms_every_stop, "so this `stop` is ignored"),
            (OneTaskForAll(), "This ended the other client's answer"),
            (collects_the_words, "as soon as it is produced"),
            (adds_done_to_stopped, "The next question after a `stop`"),
            (asks_another_model, "All words of the answer"),
            (forgets_to_await, "was not awaited"),
            (stops_the_conversation, "ended"),
            (without_done, "No further message arrives"),
            (3, "function"),
        ],
    },
    "06.2": {
        "right": [app("/meter", with_a_union), app("/meter", by_hand), app("/meter", refuses_binary), meter()],
        "wrong": [
            (meter(catch=ZeroDivisionError), "ValidationError"),
            (meter(forget=True), "An invalid frame changes nothing"),
            (meter(strict=False), "true"),
            (meter(fewest=0), "This frame is invalid"),
            (meter(shared=True), "Each connection has its own total"),
            (meter(reply=False), "No further message arrives"),
            (meter(error=None), "This frame is invalid"),
            (app("/meter", adds_first), "An invalid frame changes nothing"),
            (app("/meter", expects_objects), "KeyError"),
            (app("/meter", text_only), "KeyError"),
            (app("/meter", closes_at_a_mistake), "has ended"),
            (app("/account", with_a_union), "not accepted"),
        ],
    },
    "06.3": {
        "right": [
            *(app("/door", answer) for answer in (raises, closes, with_a_dependency)),
            greets(by_complete_credential),
            greets(in_any_case),
        ],
        "wrong": [
            (greets(by_the_beginning), "Bearer key-10"),
            (greets(by_a_substring), "Bearer key-10"),
            (greets(by_the_last_word), "Basic key-1"),
            (greets(without_a_scheme), "the header `key-1`"),
            (greets(without_a_prefix), "`workshop.chat`, `key-1`"),
            (app("/door", greets_strangers_first), "A message arrives first"),
            (app("/door", leaves_strangers_alone), "stays open"),
            (app("/door", selects_for_pages_only), "not the subprotocol to select"),
            (app("/door", refuses_early), "not accepted"),
            (app("/door", lets_everybody_in), "A message arrives first"),
            (app("/door", headers_only), "ended"),
            (app("/door", picks_nothing), "not the subprotocol to select"),
            (app("/door", picks_the_key), "not the subprotocol to select"),
            (app("/door", picks_always), "rejects the handshake"),
            (app("/door", returns_without_a_code), "1006"),
            (app("/door", fails_without_a_header), "authorization"),
        ],
    },
    "06.4": {
        "right": [beats_in_a_task, beats_in_a_group, looks_at_the_clock],
        "wrong": [
            (echoes_only, "No `ping` arrives"),
            (asks_and_waits, "No further message arrives"),
            (only_pings, "No further message arrives"),
            (pings_once, "No `ping` arrives"),
            (watcher(clears=False), "nothing before it says `pong`"),
            (counts_pongs, "says `pong` 50 times"),
            (waits_out_its_patience, "No `ping` arrives"),
            (pings_by_the_clock, "nothing before it says `pong`"),
            (watcher(shared=True), "never says `pong`"),
            (watcher(cancels=False), "a task still runs"),
            (watcher(swapped=True), "too early"),
            (watcher(sleep=sleeps_in_the_loop), "No further message arrives"),
            (watcher(code=1000), "this is the close code"),
            (watcher(echo_pong=True), "pong"),
            (watcher(patient=False), "close with 1011"),
            (watcher(any_text=True), "nothing before it says `pong`"),
            (raises_in_a_group, "WebSocketException"),
            (pings_at_once, "too early"),
            (not_async, "async def"),
        ],
    },
    "06.5": {
        "right": [reads_in_a_loop, reads_models, reads_with_a_generator, reader()],
        "wrong": [
            (reader(pong=lambda message, id: ""), "did not get its own pong"),
            (reader(pong=lambda message, id: "pong"), "did not get its own pong"),
            (reader(pong=lambda message, id: json.dumps({"type": "pong", "id": id})), "did not get its own pong"),
            (reader(every=("text",)), "'late"),
            (reader(every=("done",)), "'No.'"),
            (reader(every=("error",)), "UnansweredError"),
            (reader(only="1"), "UnansweredError"),
            (reader(at_close=None), "There is no complete answer"),
            (reader(at_close=ConnectionClosed), "ConnectionClosed"),
            (reader(returns=False), "is a `return` missing"),
            (reader(whole=True), "UnansweredError: cancelled"),
            (iterates, "close with 1000"),
        ],
    },
}
