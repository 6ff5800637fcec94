"""Answers to lesson 06: WebSockets."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from pydantic import BaseModel, Field, TypeAdapter, ValidationError


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
    """The server logs what is raised when a client leaves; that is no mistake here."""
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
    """One task that receives, and the answer looks whether something came."""
    inbox: asyncio.Queue[str | None] = asyncio.Queue()

    async def listen() -> None:
        async for said in socket.iter_text():
            inbox.put_nowait(said)
        inbox.put_nowait(None)

    listening = asyncio.create_task(listen())
    while (question := await inbox.get()) is not None:
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
        elif answering:
            answering.cancel()
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
    """The words are not sent any more, and the model makes them."""
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
                tasks.create_task(answer(said))


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


# 06.2: a budget


class Spend(BaseModel):
    type: Literal["spend"]
    tokens: int = Field(ge=1)


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
            await socket.send_json({"type": "error"})
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
                case {"type": "spend", "tokens": int(tokens)} if tokens > 0:
                    total += tokens
                case {"type": "reset"}:
                    total = 0
                case other:
                    raise ValueError(f"not understood: {other}")
        except ValueError as error:
            await socket.send_json({"type": "error", "message": str(error)})
        else:
            await socket.send_text(json.dumps({"tokens": total, "type": "total"}))


def budget(*, catch: type[Exception] | tuple[type[Exception], ...], forget: bool = False) -> Any:
    """Variations on the theme, each with a mistake."""

    class Item(BaseModel):
        type: Literal["spend", "reset"]
        tokens: int | None = Field(default=None, ge=1)

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        total = 0
        with suppress(WebSocketDisconnect):
            while True:
                try:
                    item = Item.model_validate_json(await frame_of(socket))
                    total = total + (item.tokens or 0) if item.type == "spend" else 0
                    await socket.send_json({"type": "total", "tokens": total})
                except catch:
                    total = 0 if forget else total
                    await socket.send_json({"type": "error"})

    return app("/budget", endpoint)


async def text_only(socket: WebSocket) -> None:
    await socket.accept()
    total = 0
    async for frame in socket.iter_text():
        try:
            order = ORDER.validate_json(frame)
            total = total + order.tokens if isinstance(order, Spend) else 0
            await socket.send_json({"type": "total", "tokens": total})
        except ValidationError:
            await socket.send_json({"type": "error"})


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


# 06.3: who are you?

KEYS = {"key-1": "ada", "key-2": "grace"}
OURS = "workshop.chat"


def keys_of(socket: WebSocket) -> list[str]:
    header = socket.headers.get("authorization", "")
    offered = [name for name in socket.scope["subprotocols"] if name.startswith("bearer.")]
    return [header.removeprefix("Bearer "), *(name.removeprefix("bearer.") for name in offered)]


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


async def beats_in_a_group(socket: WebSocket, every: float, patience: float) -> None:
    pongs: asyncio.Queue[None] = asyncio.Queue()

    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(every)
            await socket.send_text("ping")
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
            if said == "pong":
                ping_at, deadline = clock() + every, None
            else:
                await socket.send_text(said)
        elif deadline is None:
            await socket.send_text("ping")
            deadline = clock() + patience
        else:
            receiving.cancel()
            await socket.close(1011)
            return


async def pings_by_the_clock(socket: WebSocket, every: float, patience: float) -> None:
    """Every so often, whether or not the last one is answered."""
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


def watcher(*, code: int = 1011, echo_pong: bool = False, patient: bool = True, any_text: bool = False) -> Any:
    """The first right answer, with a mistake."""

    async def watch(socket: WebSocket, every: float, patience: float) -> None:
        ponged = asyncio.Event()

        async def heartbeat() -> None:
            while True:
                await asyncio.sleep(every)
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
        beating.cancel()

    return watch


async def echoes_only(socket: WebSocket, every: float, patience: float) -> None:
    async for said in socket.iter_text():
        await socket.send_text(said)


async def asks_and_waits(socket: WebSocket, every: float, patience: float) -> None:
    """In turn: between pings it reads nothing."""
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


def not_async(socket: WebSocket, every: float, patience: float) -> None:
    return None


# 06.5: rooms with names


def rooms(endpoint_of: Callable[[Any], Callable[..., Any]]) -> Callable[[Any], FastAPI]:
    return lambda bus: app("/rooms/{name}", endpoint_of(bus))


def tuples(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        me = token_hex(8)

        async def forward() -> None:
            async for room, speaker, said in bus.subscribe():
                if room == name and speaker != me:
                    await socket.send_text(said)

        await socket.accept()
        forwarding = asyncio.create_task(forward())
        async for said in socket.iter_text():
            await bus.publish((name, me, said))
        forwarding.cancel()

    return enter


def documents(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        me = {"room": name, "from": token_hex(8)}

        async def forward() -> None:
            async for item in bus.subscribe():
                if item["room"] == name and item["from"] != me["from"]:
                    await socket.send_text(item["said"])

        await socket.accept()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forward())
                while True:
                    await bus.publish(me | {"said": await socket.receive_text()})
        except* WebSocketDisconnect:
            pass

    return enter


def echo_to_all(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        async def forward() -> None:
            async for room, said in bus.subscribe():
                if room == name:
                    await socket.send_text(said)

        await socket.accept()
        forwarding = asyncio.create_task(forward())
        async for said in socket.iter_text():
            await bus.publish((name, said))
        forwarding.cancel()

    return enter


def one_room(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        me = token_hex(8)

        async def forward() -> None:
            async for speaker, said in bus.subscribe():
                if speaker != me:
                    await socket.send_text(said)

        await socket.accept()
        forwarding = asyncio.create_task(forward())
        async for said in socket.iter_text():
            await bus.publish((me, said))
        forwarding.cancel()

    return enter


def stays_subscribed(bus: Any) -> Callable[..., Any]:
    forwarding = set()

    async def enter(socket: WebSocket, name: str) -> None:
        me = token_hex(8)

        async def forward() -> None:
            async for room, speaker, said in bus.subscribe():
                if room == name and speaker != me:
                    await socket.send_text(said)

        await socket.accept()
        forwarding.add(asyncio.create_task(forward()))
        async for said in socket.iter_text():
            await bus.publish((name, me, said))

    return enter


def local_members(bus: Any) -> Callable[..., Any]:
    members: dict[str, set[WebSocket]] = {}

    async def enter(socket: WebSocket, name: str) -> None:
        await socket.accept()
        here = members.setdefault(name, set())
        here.add(socket)
        async for said in socket.iter_text():
            for member in here - {socket}:
                await member.send_text(said)
        here.discard(socket)

    return enter


def publishes_the_socket(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        async def forward() -> None:
            async for room, speaker, said in bus.subscribe():
                if room == name and speaker is not socket:
                    await socket.send_text(said)

        await socket.accept()
        forwarding = asyncio.create_task(forward())
        try:
            async for said in socket.iter_text():
                await bus.publish((name, socket, said))
        finally:
            forwarding.cancel()

    return enter


BANK = {
    "06.1": {
        "right": [in_a_group, group_without_except, with_finally, asks_between_words],
        "wrong": [
            (in_turn, "The answer went on to its end"),
            (nobodys_task, "the model still works for it"),
            (group_that_waits, "the model still works for it"),
            (only_silent, "The model still works on the answer that was stopped"),
            (stops_the_conversation, "ended"),
            (without_done, "hears nothing more"),
            (3, "function"),
        ],
    },
    "06.2": {
        "right": [app("/budget", with_a_union), app("/budget", by_hand)],
        "wrong": [
            (budget(catch=ZeroDivisionError), "ValidationError"),
            (budget(catch=ValidationError), "This is no order"),
            (budget(catch=ValidationError, forget=True), "A mistake changes nothing"),
            (app("/budget", text_only), "KeyError"),
            (app("/budget", closes_at_a_mistake), "has ended"),
            (app("/account", with_a_union), "not accepted"),
        ],
    },
    "06.3": {
        "right": [app("/door", answer) for answer in (raises, closes, with_a_dependency)],
        "wrong": [
            (app("/door", refuses_early), "not accepted"),
            (app("/door", lets_everybody_in), "sent away"),
            (app("/door", headers_only), "ended"),
            (app("/door", picks_nothing), "no subprotocol for it"),
            (app("/door", picks_the_key), "no subprotocol for it"),
            (app("/door", picks_always), "gives up the handshake"),
            (app("/door", returns_without_a_code), "1006"),
            (app("/door", fails_without_a_header), "authorization"),
        ],
    },
    "06.4": {
        "right": [beats_in_a_task, beats_in_a_group, looks_at_the_clock, pings_by_the_clock],
        "wrong": [
            (echoes_only, "No `ping` comes"),
            (asks_and_waits, "ended"),
            (only_pings, "Every text is echoed"),
            (watcher(code=1000), "No `pong` came in time"),
            (watcher(echo_pong=True), "but for `pong`"),
            (watcher(patient=False), "ended"),
            (watcher(any_text=True), "It goes on and on"),
            (not_async, "async def"),
        ],
    },
    "06.5": {
        "right": [rooms(tuples), rooms(documents)],
        "wrong": [
            (rooms(echo_to_all), "She does not hear herself"),
            (rooms(one_room), "stays there"),
            (rooms(stays_subscribed), "the bus still works for them"),
            (rooms(local_members), "hears nothing more"),
            (rooms(publishes_the_socket), "pickle"),
            (lambda bus: None, "FastAPI app"),
        ],
    },
}
