"""Answers to lesson 10: one app, two runtimes."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import count
from secrets import token_bytes, token_hex
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

# 10.1: from factory to application


class Ingress:
    def __init__(self, make_app: Any, *arguments: Any) -> None:
        self.make_app, self.arguments = make_app, arguments

    def __serve_build_asgi_app__(self) -> Any:
        return self.make_app(*self.arguments)


class ForgetsTheStar(Ingress):
    def __serve_build_asgi_app__(self) -> Any:
        return self.make_app(self.arguments)


class ForgetsReturn(Ingress):
    def __serve_build_asgi_app__(self) -> Any:
        self.make_app(*self.arguments)


class BuildsWhereItStarts(Ingress):
    def __init__(self, make_app: Any, *arguments: Any) -> None:
        self.built = make_app(*arguments)

    def __serve_build_asgi_app__(self) -> Any:
        return self.built


class BuildsTwice(Ingress):
    def __init__(self, make_app: Any, *arguments: Any) -> None:
        super().__init__(make_app, *arguments)
        self.built = make_app(*arguments)


class MakesAnAppPerRequest(Ingress):
    def __serve_build_asgi_app__(self) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.make_app(*self.arguments)(scope, receive, send)

        return app


class TakesTheApp:
    def __init__(self, app: Any) -> None:
        self.made = app

    def __serve_build_asgi_app__(self) -> Any:
        return self.made


class TakesTheNameOfServe(Ingress):
    def __init__(self, make_app: Any, *arguments: Any) -> None:
        self.app = make_app(*arguments)


def deployment_of(kind: type) -> serve.Deployment:
    return serve.deployment(serve.ingress()(kind))


def bound(kind: type) -> Callable[..., Any]:
    return lambda make_app, *arguments: deployment_of(kind).bind(make_app, *arguments)


def with_a_builder(make_app: Any, *arguments: Any) -> Any:
    def build() -> Any:
        return make_app(*arguments)

    return serve.deployment(serve.ingress(build)()).bind()


def closes_over_the_factory(make_app: Any, *arguments: Any) -> Any:
    methods = {"__serve_build_asgi_app__": lambda self: make_app(*arguments)}
    return deployment_of(type("Factory", (), methods)).bind()


def without_ingress(make_app: Any, *arguments: Any) -> Any:
    return serve.deployment(Ingress).bind(make_app, *arguments)


def pickles_the_app(make_app: Any, *arguments: Any) -> Any:
    return serve.deployment(serve.ingress(make_app(*arguments))()).bind()


# 10.2: a ticket that every replica accepts


def office(
    seal_of: Callable[[bytes], Callable[[str], str]],
    refusal: int = 401,
    same: Callable[[str, str], bool] = lambda given, made: given == made,
) -> Callable[[bytes], FastAPI]:
    """A ticket is a seal of the name, a dot, and the name."""

    def make(key: bytes) -> FastAPI:
        app, seal = FastAPI(), seal_of(key)

        @app.post("/tickets/{name}")
        async def sell(name: str) -> dict[str, str]:
            return {"ticket": f"{seal(name)}.{name}"}

        @app.get("/holder")
        async def holder(ticket: str) -> dict[str, str]:
            given, _, name = ticket.partition(".")
            if not same(given, seal(name)):
                raise HTTPException(refusal)
            return {"name": name}

        return app

    return make


def signed(key: bytes) -> Callable[[str], str]:
    return lambda name: hmac.new(key, name.encode(), "sha256").hexdigest()


def hashed_without_the_key(key: bytes) -> Callable[[str], str]:
    return lambda name: hashlib.sha256(name.encode()).hexdigest()


def signed_with_its_own_key(key: bytes) -> Callable[[str], str]:
    return signed(token_bytes(32))


def hashed_by_python(key: bytes) -> Callable[[str], str]:
    return lambda name: str(hash((key, name)))


def not_about_the_name(key: bytes) -> Callable[[str], str]:
    return lambda name: signed(key)("ticket")


def the_key_itself(key: bytes) -> Callable[[str], str]:
    return lambda name: key.hex()


def in_base64(key: bytes) -> FastAPI:
    app = FastAPI()

    @app.post("/tickets/{name}")
    def sell(name: str) -> dict[str, str]:
        body = base64.urlsafe_b64encode(json.dumps({"name": name}).encode()).decode()
        return {"ticket": f"{body}.{signed(key)(body)}"}

    @app.get("/holder")
    def holder(ticket: str) -> Any:
        body, _, signature = ticket.rpartition(".")
        if not hmac.compare_digest(signature.encode(), signed(key)(body).encode()):
            return JSONResponse({"detail": "not one of ours"}, status_code=401)
        return json.loads(base64.urlsafe_b64decode(body))

    return app


def with_a_number(key: bytes) -> FastAPI:
    """No two tickets are the same, and a ticket does not show the name in plain text."""
    app = FastAPI()

    def seal(content: str) -> str:
        return hashlib.blake2b(content.encode(), key=key).hexdigest()

    @app.post("/tickets/{name}")
    async def sell(name: str) -> dict[str, str]:
        content = f"{token_hex(8)}-{name.encode().hex()}"
        return {"ticket": f"{content}-{seal(content)}"}

    @app.get("/holder")
    async def holder(ticket: str) -> dict[str, str]:
        content, _, given = ticket.rpartition("-")
        if not hmac.compare_digest(given.encode(), seal(content).encode()):
            raise HTTPException(401)
        return {"name": bytes.fromhex(content.partition("-")[2]).decode()}

    return app


def decoded(encode: Callable[[bytes], str], decode: Callable[[str], bytes]) -> Callable[[bytes], FastAPI]:
    """Compares the decoded content of the ticket, and not its text."""

    def make(key: bytes) -> FastAPI:
        app = FastAPI()

        def sign(name: bytes) -> bytes:
            return hmac.new(key, name, "sha256").digest()

        @app.post("/tickets/{name}")
        async def sell(name: str) -> dict[str, str]:
            return {"ticket": encode(sign(name.encode()) + name.encode())}

        @app.get("/holder")
        async def holder(ticket: str) -> dict[str, str]:
            try:
                content = decode(ticket)
            except ValueError:
                raise HTTPException(401) from None
            if not hmac.compare_digest(content[:32], sign(content[32:])):
                raise HTTPException(401)
            return {"name": content[32:].decode()}

        return app

    return make


def dots_are_for_the_signature(key: bytes) -> FastAPI:
    app = FastAPI()

    @app.post("/tickets/{name}")
    async def sell(name: str) -> dict[str, str]:
        return {"ticket": f"{name}.{signed(key)(name)}"}

    @app.get("/holder")
    async def holder(ticket: str) -> dict[str, str]:
        name, signature = ticket.split(".")
        if signature != signed(key)(name):
            raise HTTPException(401)
        return {"name": name}

    return app


def base64_of(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


def remembering(sold: dict[str, str] | None) -> Callable[[bytes], FastAPI]:
    def make(key: bytes) -> FastAPI:
        app, tickets = FastAPI(), {} if sold is None else sold

        @app.post("/tickets/{name}")
        async def sell(name: str) -> dict[str, str]:
            ticket = token_hex(8)
            tickets[ticket] = name
            return {"ticket": ticket}

        @app.get("/holder")
        async def holder(ticket: str) -> dict[str, str]:
            if ticket not in tickets:
                raise HTTPException(401)
            return {"name": tickets[ticket]}

        return app

    return make


# 10.3: rooms with names


def rooms(enter_of: Callable[[Any], Callable[..., Any]]) -> Callable[[Any], FastAPI]:
    def make(bus: Any) -> FastAPI:
        app, enter = FastAPI(), enter_of(bus)

        @app.websocket("/rooms/{name}")
        async def accept_and_enter(socket: WebSocket, name: str) -> None:
            await socket.accept()
            await enter(socket, name)

        return app

    return make


def simple(
    id_of: Callable[[WebSocket], Any] = lambda socket: token_hex(8),
    *,
    is_mine: Callable[[Any, Any], bool] = lambda speaker, me: speaker == me,
    is_here: Callable[[str, str], bool] = lambda room, name: room == name,
    drops: Callable[[str], bool] = lambda said: False,
    cancels: bool = True,
) -> Callable[[Any], Callable[..., Any]]:
    """The usual answer. Each argument changes one part of it."""

    def enter_of(bus: Any) -> Callable[..., Any]:
        async def enter(socket: WebSocket, name: str) -> None:
            me = id_of(socket)

            async def forward() -> None:
                async for room, speaker, said in bus.subscribe():
                    if is_here(room, name) and not is_mine(speaker, me):
                        await socket.send_text(said)

            forwarding = asyncio.create_task(forward())
            async for said in socket.iter_text():
                if not drops(said):
                    await bus.publish((name, me, said))
            if cancels:
                forwarding.cancel()

        return enter

    return enter_of


def in_a_group(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        me = {"room": name, "from": token_hex(8)}

        async def forward() -> None:
            async for text in bus.subscribe():
                item = json.loads(text)
                if item["room"] == name and item["from"] != me["from"]:
                    await socket.send_text(item["said"])

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forward())
                while True:
                    await bus.publish(json.dumps(me | {"said": await socket.receive_text()}))
        except* WebSocketDisconnect:
            pass

    return enter


def one_subscription_per_app(bus: Any) -> Callable[..., Any]:
    members: dict[str, tuple[str, WebSocket]] = {}
    spreading: list[asyncio.Task[None]] = []

    async def spread() -> None:
        async for room, speaker, said in bus.subscribe():
            for member, (its_room, socket) in list(members.items()):
                if its_room == room and member != speaker:
                    await socket.send_text(said)

    async def enter(socket: WebSocket, name: str) -> None:
        me = token_hex(8)
        members[me] = name, socket
        if len(members) == 1:
            spreading.append(asyncio.create_task(spread()))
        async for said in socket.iter_text():
            await bus.publish((name, me, said))
        del members[me]
        if not members:
            spreading.pop().cancel()

    return enter


@dataclass(frozen=True)
class Said:
    room: str
    speaker: UUID
    text: str


def first_to_end(bus: Any) -> Callable[..., Any]:
    """Two tasks side by side. The published items are dataclass objects."""

    async def enter(socket: WebSocket, name: str) -> None:
        me = uuid4()

        async def speak() -> None:
            async for text in socket.iter_text():
                await bus.publish(Said(name, me, text))

        async def listen() -> None:
            async with aclosing(bus.subscribe()) as items:
                async for item in items:
                    if item.room == name and item.speaker != me:
                        await socket.send_text(item.text)

        both = [asyncio.create_task(speak()), asyncio.create_task(listen())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    return enter


def knows_itself_by_the_text(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        mine: set[str] = set()

        async def forward() -> None:
            async for room, said in bus.subscribe():
                if room == name and said not in mine:
                    await socket.send_text(said)

        forwarding = asyncio.create_task(forward())
        try:
            async for said in socket.iter_text():
                mine.add(said)
                await bus.publish((name, said))
        finally:
            forwarding.cancel()

    return enter


def awaits_what_does_not_end(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        async for room, said in bus.subscribe():
            if room == name:
                await socket.send_text(said)
        async for said in socket.iter_text():
            await bus.publish((name, said))

    return enter


def with_colons(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        me = token_hex(8)

        async def forward() -> None:
            async for item in bus.subscribe():
                room, speaker, said = item.split(":")[:3]
                if room == name and speaker != me:
                    await socket.send_text(said)

        forwarding = asyncio.create_task(forward())
        async for said in socket.iter_text():
            await bus.publish(f"{name}:{me}:{said}")
        forwarding.cancel()

    return enter


def number_of_the_seat(bus: Any) -> Callable[..., Any]:
    seats: dict[WebSocket, int] = {}

    def take(socket: WebSocket) -> tuple[int, int]:
        seats[socket] = len(seats)
        return id(seats), seats[socket]

    enter = simple(take)(bus)

    async def enter_and_leave(socket: WebSocket, name: str) -> None:
        await enter(socket, name)
        del seats[socket]

    return enter_and_leave


def counted(numbers: Iterator[int] | None) -> Callable[[Any], Callable[..., Any]]:
    def enter_of(bus: Any) -> Callable[..., Any]:
        own = count() if numbers is None else numbers
        return simple(lambda socket: next(own))(bus)

    return enter_of


def local_members(bus: Any) -> Callable[..., Any]:
    members: dict[str, set[WebSocket]] = {}

    async def enter(socket: WebSocket, name: str) -> None:
        here = members.setdefault(name, set())
        here.add(socket)
        async for said in socket.iter_text():
            for member in here - {socket}:
                await member.send_text(said)
        here.discard(socket)

    return enter


def without_finally(bus: Any) -> Callable[..., Any]:
    async def enter(socket: WebSocket, name: str) -> None:
        me = token_hex(8)

        async def forward() -> None:
            async for room, speaker, said in bus.subscribe():
                if room == name and speaker != me:
                    await socket.send_text(said)

        forwarding = asyncio.create_task(forward())
        try:
            while (said := await socket.receive_text()) is not None:
                await bus.publish((name, me, said))
            forwarding.cancel()
        except WebSocketDisconnect:
            pass

    return enter


# 10.4: the layer between


class Busy(Exception):
    """Try again in a moment."""


class Unavailable(Exception):
    """Try again later."""


class Adapter:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    async def predict(self, row: Any) -> Any:
        try:
            return await self.handle.predict.remote(row)
        except RayTaskError as error:
            raise error.cause from None
        except BackPressureError as error:
            raise Busy from error
        except RayError as error:
            raise Unavailable from error


class Api:
    adapter: Any = Adapter

    def __init__(self, create_app: Any, model: Any) -> None:
        self.create_app, self.model = create_app, model

    def __serve_build_asgi_app__(self) -> Any:
        return self.create_app(self.adapter(self.model))


def layer(adapter: Any, *, ignores_options: bool = False) -> Any:
    def integrate(create_app: Any, Model: Any, **options: Any) -> Any:
        ingress = type("Api", (Api,), {"adapter": staticmethod(adapter)})
        model = serve.deployment(Model).options(**({} if ignores_options else options)).bind()
        return serve.deployment(serve.ingress()(ingress)).bind(create_app, model)

    return integrate


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except RayError as error:
        if isinstance(error, RayTaskError):
            raise error.cause from error
        raise Unavailable("gone") from error
    except RayServeException as error:
        raise (Busy() if isinstance(error, BackPressureError) else Unavailable()) from error


def with_a_function(create_app: Any, Model: Any, **options: Any) -> Any:
    """An object with one function, and a factory that `serve.ingress` takes."""

    class Layer:
        def __init__(self, model: Any) -> None:
            async def predict(row: Any) -> Any:
                with translated():
                    return await model.predict.remote(row)

            self.model = SimpleNamespace(predict=predict)

        def __serve_build_asgi_app__(self) -> Any:
            return create_app(self.model)

    deployed = serve.deployment(name="the-model", **options)(Model)
    return serve.deployment(name="the-api")(serve.ingress()(Layer)).bind(deployed.bind())


class PassesAllOn(Adapter):
    async def predict(self, row: Any) -> Any:
        return await self.handle.predict.remote(row)


class TakesAllForUnavailable(Adapter):
    async def predict(self, row: Any) -> Any:
        try:
            return await self.handle.predict.remote(row)
        except Exception as error:
            raise Unavailable from error


class KnowsNoQueue(Adapter):
    async def predict(self, row: Any) -> Any:
        try:
            return await self.handle.predict.remote(row)
        except RayTaskError as error:
            raise error.cause from None
        except (RayError, RayServeException) as error:
            raise Unavailable from error


class KnowsNoDeath(Adapter):
    async def predict(self, row: Any) -> Any:
        try:
            return await self.handle.predict.remote(row)
        except RayTaskError as error:
            raise error.cause from None
        except BackPressureError as error:
            raise Busy from error


class RayErrorFirst(Adapter):
    async def predict(self, row: Any) -> Any:
        try:
            return await self.handle.predict.remote(row)
        except RayError as error:
            raise Unavailable from error
        except BackPressureError as error:
            raise Busy from error


class ForgetsRemote(Adapter):
    async def predict(self, row: Any) -> Any:
        return await self.handle.predict(row)


class ForgetsAwait(Adapter):
    async def predict(self, row: Any) -> Any:
        return self.handle.predict.remote(row)


def without_a_hop(create_app: Any, Model: Any, **options: Any) -> Any:
    class Layer:
        def __serve_build_asgi_app__(self) -> Any:
            return create_app(Model())

    return serve.deployment(serve.ingress()(Layer)).bind()


BANK = {
    "10.1": {
        "right": [bound(Ingress), bound(BuildsWhereItStarts), with_a_builder, closes_over_the_factory],
        "wrong": [
            (lambda make_app, *arguments: make_app(*arguments), "the app itself"),
            (lambda make_app, *arguments: deployment_of(Ingress), "`.bind(…)` makes an application"),
            (lambda make_app, *arguments: deployment_of(Ingress).bind(make_app), "arguments of the factory"),
            (lambda make_app, *arguments: None, "is a `return` missing"),
            (lambda make_app, *arguments: deployment_of(TakesTheApp).bind(make_app(*arguments)), "made here"),
            (pickles_the_app, "made here"),
            (bound(BuildsTwice), "How often the factory"),
            (without_ingress, "not the app's response"),
            (bound(ForgetsTheStar), "arguments of the factory"),
            (bound(MakesAnAppPerRequest), "not per request"),
            (bound(ForgetsReturn), "No replica of"),
            (bound(TakesTheNameOfServe), "property 'app'"),
        ],
    },
    "10.2": {
        "right": [office(signed), in_base64, with_a_number],
        "wrong": [
            (remembering(None), "at another one with the same key"),
            (remembering({}), "at another one with the same key"),
            (office(hashed_without_the_key), "an office with another key"),
            (office(signed_with_its_own_key), "at another one with the same key"),
            (office(hashed_by_python), "at another one with the same key"),
            (office(not_about_the_name), "made of two"),
            (office(the_key_itself), "The key is in the ticket"),
            (office(signed, refusal=403), "This is nonsense"),
            (office(signed, same=hmac.compare_digest), "non-ASCII characters"),
            (decoded(base64_of, base64.urlsafe_b64decode), "`!` behind it"),
            (decoded(bytes.hex, bytes.fromhex), "in capitals"),
            (dots_are_for_the_signature, "values to unpack"),
            (lambda key: None, "FastAPI app"),
        ],
    },
    "10.3": {
        "right": [rooms(simple()), rooms(in_a_group), rooms(one_subscription_per_app), rooms(first_to_end)],
        "wrong": [
            (rooms(with_colons), "as it was said"),
            (rooms(number_of_the_seat), "hears nothing"),
            (rooms(counted(None)), "hears nothing"),
            (rooms(counted(count())), "hears nothing"),
            (rooms(simple(lambda socket: socket.client and socket.client.host)), "hears nothing"),
            (rooms(simple(is_mine=lambda speaker, me: False)), "but not the sender"),
            (rooms(simple(is_here=lambda room, name: True)), "hears `tea`"),
            (rooms(simple(is_here=lambda room, name: room.startswith(name))), "hears `tea`"),
            (rooms(simple(drops=lambda said: not said)), "expected ''"),
            (rooms(simple(drops=lambda said: said == "stop")), "expected 'stop'"),
            (rooms(simple(cancels=False)), "of a connection that has ended"),
            (rooms(without_finally), "of a connection that has ended"),
            (rooms(knows_itself_by_the_text), "hears nothing"),
            (rooms(awaits_what_does_not_end), "hears nothing"),
            (rooms(local_members), "hears nothing"),
            (rooms(simple(lambda socket: socket)), "await bus.publish"),
            (lambda bus: None, "FastAPI app"),
        ],
    },
    "10.4": {
        "right": [layer(Adapter), with_a_function],
        "wrong": [
            (layer(lambda handle: handle), "`await model.predict(21)` in the API."),
            (layer(PassesAllOn), "RayTaskError(TooLow)"),
            (layer(TakesAllForUnavailable), "'error': 'Unavailable'"),
            (layer(RayErrorFirst), "'error': 'Unavailable'"),
            (layer(KnowsNoQueue), "The queue is full."),
            (layer(Adapter, ignores_options=True), "The queue is full."),
            (layer(KnowsNoDeath), "The model's replica has died."),
            (layer(ForgetsRemote), "`await model.predict(21)` in the API."),
            (layer(ForgetsAwait), "`await model.predict(21)` in the API."),
            (without_a_hop, "The model runs in the API's process."),
            (lambda create_app, Model, **options: create_app(Model()), "A bound application"),
            (lambda create_app, Model, **options: None, "is a `return` missing?"),
        ],
    },
}
