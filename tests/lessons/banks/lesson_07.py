"""Answers to lesson 07: middleware and observability."""

import asyncio
import logging
import re
import threading
import time
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from opentelemetry.propagate import inject
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context, use_span
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response

from workshop.api.metrics import METHODS
from workshop.api.middleware.observation import _route
from workshop.api.middleware.timing import TimingMiddleware


def one_at_a_time(made):
    """The same, with a lock around each request. The state of both is the answer's."""

    def locked(*args):
        app, lock = made(*args), asyncio.Lock()

        async def wait(scope, receive, send):
            if scope["type"] != "http":
                return await app(scope, receive, send)
            async with lock:
                await app(scope, receive, send)

        return wait

    return locked


# 07.1: a record of each request


class Access:
    """A class, with the record in a dict. Subclasses make one mistake each."""

    scopes = ("http",)
    status = 500
    swallows = False

    def __init__(self, app, records):
        self.app, self.records = app, records

    async def __call__(self, scope, receive, send):
        if scope["type"] not in self.scopes:
            await self.other(scope, receive, send)
            return
        record = {"path": scope.get("path"), "status": self.status, "bytes": 0, "complete": False}
        start = time.perf_counter()
        try:
            await self.app(scope, receive, partial(self.note, record, send))
        except Exception:
            if not self.swallows:
                raise
        finally:
            self.records.append(record | {"seconds": self.seconds(start)})

    async def other(self, scope, receive, send):
        await self.app(scope, receive, send)

    async def note(self, record, send, message):
        if message["type"] == "http.response.start":
            record["status"] = message["status"]
        elif message["type"] == "http.response.body":
            record["bytes"] += len(message.get("body", b""))
            record["complete"] = not message.get("more_body", False)
        await send(message)

    def seconds(self, start):
        return time.perf_counter() - start


def access_in_functions(app, records):
    async def access(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        started, seen = time.monotonic(), []

        async def see(message):
            await send(message)
            seen.append(message)

        def record():
            bodies = [message for message in seen if message["type"] == "http.response.body"]
            statuses = [message["status"] for message in seen if "status" in message]
            return {
                "path": scope["path"],
                "status": (statuses or [500])[0],
                "bytes": sum(len(message.get("body", b"")) for message in bodies),
                "complete": bool(bodies) and not bodies[-1].get("more_body"),
                "seconds": time.monotonic() - started,
            }

        try:
            await app(scope, receive, see)
        except BaseException:
            records.append(record())
            raise
        records.append(record())

    return access


class AccessOfOneRequest:
    """An object for each request."""

    def __init__(self, app, records):
        self.app, self.records = app, records

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await AccessOfOneRequest.Request(self, scope, send).run(receive)
        else:
            await self.app(scope, receive, send)

    class Request:
        def __init__(self, owner, scope, send):
            self.owner, self.scope, self.send = owner, scope, send
            self.status, self.bytes, self.complete, self.start = 500, 0, False, time.perf_counter()

        async def run(self, receive):
            try:
                await self.owner.app(self.scope, receive, self.note)
            finally:
                took = time.perf_counter() - self.start
                record = {"status": self.status, "bytes": self.bytes, "complete": self.complete, "seconds": took}
                self.owner.records.append({"path": self.scope["path"], **record})

        async def note(self, message):
            self.status = message.get("status", self.status)
            self.bytes += len(message.get("body", b""))
            self.complete = message["type"] == "http.response.body" and not message.get("more_body")
            await self.send(message)


def access_with_call_next(app, records):
    async def watch(request, call_next):
        start = time.perf_counter()
        record = {"path": request.url.path, "status": 500, "bytes": 0, "complete": False}
        try:
            response = await call_next(request)
            record |= {"status": response.status_code, "complete": True}
            body = b"".join([piece async for piece in response.body_iterator])
            record["bytes"] = len(body)
            return Response(body, response.status_code, response.headers)
        finally:
            records.append(record | {"seconds": time.perf_counter() - start})

    return BaseHTTPMiddleware(app, watch)


class AccessAtTheStart(Access):
    async def note(self, record, send, message):
        if message["type"] == "http.response.start":
            self.records.append(record | {"status": message["status"], "complete": True, "seconds": 0.0})
        await send(message)


class AccessWithoutFinally(Access):
    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = {"path": scope["path"], "status": 500, "bytes": 0, "complete": False}
        start = time.perf_counter()
        await self.app(scope, receive, partial(self.note, record, send))
        self.records.append(record | {"seconds": time.perf_counter() - start})


class AccessOfEverything(Access):
    scopes = ("http", "websocket", "lifespan")


class AccessOnlyHttp(Access):
    async def other(self, scope, receive, send):
        return None


class AccessWithoutWebSockets(Access):
    async def other(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)


class AccessThatSwallows(Access):
    swallows = True


class AccessWithStatus200(Access):
    status = 200


class AccessInMilliseconds(Access):
    def seconds(self, start):
        return 1000 * (time.perf_counter() - start)


class AccessWithOneStart(Access):
    def __init__(self, app, records):
        super().__init__(app, records)
        self.start = time.perf_counter()

    async def __call__(self, scope, receive, send):
        self.start = time.perf_counter()
        await super().__call__(scope, receive, send)

    def seconds(self, start):
        return time.perf_counter() - self.start


class AccessThatHolds(Access):
    """Keeps the messages until the last one."""

    async def note(self, record, send, message):
        held = record.setdefault("held", [])
        held.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            for one in held:
                await super().note(record, send, one)


class AccessOfTheLastPiece(Access):
    async def note(self, record, send, message):
        record["bytes"] = 0
        await super().note(record, send, message)


class AccessWithBodyAlways(Access):
    async def note(self, record, send, message):
        if message["type"] == "http.response.body":
            message["body"]
        await super().note(record, send, message)


class AccessAlwaysComplete(Access):
    async def note(self, record, send, message):
        await super().note(record, send, message)
        record["complete"] = True


class AccessCompleteFromTheStart(Access):
    async def note(self, record, send, message):
        await super().note(record, send, message)
        record["complete"] = not message.get("more_body", False)


class AccessWithoutCancellation(AccessWithoutFinally):
    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = {"path": scope["path"], "status": 500, "bytes": 0, "complete": False}
        start = time.perf_counter()
        try:
            await self.app(scope, receive, partial(self.note, record, send))
        except Exception:
            self.records.append(record | {"seconds": time.perf_counter() - start})
            raise
        self.records.append(record | {"seconds": time.perf_counter() - start})


class AccessTwice(Access):
    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        except Exception:
            self.records.append(self.records[-1])
            raise


class AccessWithRecordsUnderWay(Access):
    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = {"path": scope["path"], "status": 500, "bytes": 0, "complete": False, "seconds": 0.0}
        start = time.perf_counter()
        self.records.append(record)
        try:
            await self.app(scope, receive, partial(self.note, record, send))
        finally:
            record["seconds"] = time.perf_counter() - start


class AccessWithItsOwnError(Access):
    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        except Exception as error:
            raise RuntimeError("the app has failed") from error


async def async_function(app, *_):
    return app


# 07.2: one id in everything

request_id = ContextVar("request_id", default="-")


class RequestId:
    scopes = ("http", "websocket")
    messages = ("http.response.start", "websocket.accept")
    state = True
    variable = request_id

    def __init__(self, app, logger):
        self.app = app
        logger.addFilter(self.mark)

    def mark(self, record):
        record.request_id = self.variable.get()
        return True

    def own(self, scope):
        sent = Headers(scope=scope).get("X-Request-ID", "")
        return sent if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", sent) else str(uuid4())

    async def __call__(self, scope, receive, send):
        if scope["type"] not in self.scopes:
            return await self.app(scope, receive, send)
        own = self.own(scope)
        if self.state:
            scope.setdefault("state", {})["request_id"] = own
        self.variable.set(own)

        async def send_with_id(message):
            if message["type"] in self.messages:
                MutableHeaders(scope=message)["X-Request-ID"] = own
            await send(message)

        await self.app(scope, receive, send_with_id)


def ids_in_functions(app, logger):
    current = ContextVar("current")
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

    class Filter:
        def filter(self, record):
            record.request_id = current.get("-")
            return True

    logger.addFilter(Filter())

    async def with_id(scope, receive, send):
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        own = sent if 1 <= len(sent) <= 64 and set(sent) <= allowed else uuid4().hex
        token = current.set(own)

        async def mark(message):
            if message["type"].endswith(("response.start", ".accept")):
                message = message | {"headers": [*message.get("headers", []), (b"x-request-id", own.encode())]}
            await send(message)

        try:
            await app(scope | {"state": {**scope.get("state", {}), "request_id": own}}, receive, mark)
        finally:
            current.reset(token)

    return with_id


class Fixed:
    """Something with `get` and `set` that is no context variable."""

    def __init__(self):
        self.value = "-"

    def get(self):
        return self.value

    def set(self, value):
        self.value = value


class Local(threading.local):
    value = "-"

    def get(self):
        return self.value

    def set(self, value):
        self.value = value


class IdInAGlobal(RequestId):
    variable = Fixed()


class IdInTheThread(RequestId):
    variable = Local()


class IdOfTheApp(RequestId):
    def __init__(self, app, logger):
        super().__init__(app, logger)
        self.id = str(uuid4())

    def own(self, scope):
        return Headers(scope=scope).get("X-Request-ID") or self.id


class IdWithoutFilter(RequestId):
    def __init__(self, app, logger):
        self.app = app


class FilterThatDrops(RequestId):
    def mark(self, record):
        super().mark(record)


class IdOfHttpOnly(RequestId):
    scopes = ("http",)


class IdWithoutAccept(RequestId):
    messages = ("http.response.start",)


class IdNotInTheState(RequestId):
    state = False


class AnyId(RequestId):
    def own(self, scope):
        return Headers(scope=scope).get("X-Request-ID") or str(uuid4())


class ShortIds(RequestId):
    def own(self, scope):
        return Headers(scope=scope).get("X-Request-ID", "")[:64] or str(uuid4())


class IdWithDollar(RequestId):
    def own(self, scope):
        sent = Headers(scope=scope).get("X-Request-ID", "")
        return sent if re.match(r"^[A-Za-z0-9._-]{1,64}$", sent) else str(uuid4())


class AlwaysNewId(RequestId):
    def own(self, scope):
        return str(uuid4())


class CleanedIds(RequestId):
    def own(self, scope):
        return re.sub(r"[^A-Za-z0-9._-]", "", Headers(scope=scope).get("X-Request-ID", ""))[:64] or str(uuid4())


class IdsFromAToz(RequestId):
    def own(self, scope):
        sent = Headers(scope=scope).get("X-Request-ID", "")
        return sent if re.fullmatch(r"[A-z0-9._-]{1,64}", sent) else str(uuid4())


class IdInItsOwnState(RequestId):
    async def __call__(self, scope, receive, send):
        scope["state"] = {}
        await super().__call__(scope, receive, send)


class IdAsTheOnlyHeader(RequestId):
    async def __call__(self, scope, receive, send):
        async def alone(message):
            if message["type"] in self.messages:
                message["headers"] = [pair for pair in message["headers"] if pair[0] == b"x-request-id"]
            await send(message)

        await super().__call__(scope, receive, alone if scope["type"] != "lifespan" else send)


class IdThatSwallows(RequestId):
    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        except Exception:
            return


class IdOfTheLifespan(RequestId):
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            self.variable.set(str(uuid4()))
        await super().__call__(scope, receive, send)


class IdOnlyOnInfo(RequestId):
    def mark(self, record):
        return super().mark(record) if record.levelno == logging.INFO else True


def id_with_call_next(app, logger):
    made = RequestId(app, logger)

    async def add(request, call_next):
        own = request.state.request_id = made.own(request.scope)
        request_id.set(own)
        response = await call_next(request)
        response.headers["X-Request-ID"] = own
        return response

    return BaseHTTPMiddleware(app, add)


def id_inside(app, logger):
    app.add_middleware(RequestId, logger=logger)
    return app


# 07.3: durations of all requests


class Measure:
    swallows = False
    status = 500

    def __init__(self, app, durations):
        self.app, self.durations = app, durations

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = SimpleNamespace(status=self.status, start=time.perf_counter())
        try:
            await self.app(scope, receive, partial(self.note, seen, send))
        except Exception:
            if not self.swallows:
                raise
        finally:
            self.observe(scope, seen)

    async def note(self, seen, send, message):
        if message["type"] == "http.response.start":
            seen.status = message["status"]
        await send(message)

    def observe(self, scope, seen):
        labels = {"method": self.method(scope), "route": self.route(scope), "status": str(seen.status)}
        self.durations.labels(**labels).observe(self.seconds(seen))

    def method(self, scope):
        return scope["method"] if scope["method"] in METHODS else "other"

    def route(self, scope):
        return _route(scope)

    def seconds(self, seen):
        return time.perf_counter() - seen.start


def measure_in_functions(app, durations):
    async def measure(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        statuses, start = [], time.monotonic()

        def observe():
            method = scope["method"] if scope["method"] in METHODS else "other"
            series = durations.labels(method, _route(scope), (statuses or ["500"])[0])
            series.observe(time.monotonic() - start)

        async def note(message):
            if "status" in message:
                statuses.append(str(message["status"]))
            await send(message)

        try:
            await app(scope, receive, note)
        except BaseException:
            observe()
            raise
        observe()

    return measure


class MeasureByPath(Measure):
    def route(self, scope):
        return scope["path"]


class MeasureByRoute(Measure):
    def route(self, scope):
        return getattr(scope.get("route"), "path", "other")


class MeasureRouteBefore(Measure):
    async def __call__(self, scope, receive, send):
        route = _route(scope)
        self.route = lambda scope: route
        await super().__call__(scope, receive, send)


class MeasureAnyMethod(Measure):
    def method(self, scope):
        return scope["method"]


class MeasureWithStatus200(Measure):
    status = 200


class MeasureThatSwallows(Measure):
    swallows = True


class MeasureAtTheStart(Measure):
    async def note(self, seen, send, message):
        if message["type"] == "http.response.start":
            seen.took = time.perf_counter() - seen.start
        await super().note(seen, send, message)

    def seconds(self, seen):
        return seen.took


class MeasureWithOneStart(Measure):
    async def __call__(self, scope, receive, send):
        self.start = time.perf_counter()
        await super().__call__(scope, receive, send)

    def seconds(self, seen):
        return time.perf_counter() - self.start


class MeasureWithoutErrors(Measure):
    def observe(self, scope, seen):
        if seen.status < 500:
            super().observe(scope, seen)


class MeasureOnlyHttp(Measure):
    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)


class MeasureWithoutCancellation(Measure):
    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = SimpleNamespace(status=self.status, start=time.perf_counter())
        try:
            await self.app(scope, receive, partial(self.note, seen, send))
        except Exception:
            self.observe(scope, seen)
            raise
        self.observe(scope, seen)


class MeasureFourMethods(Measure):
    def method(self, scope):
        return scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE") else "other"


class MeasureWithOneStatus(Measure):
    async def note(self, seen, send, message):
        if message["type"] == "http.response.start":
            self.last = message["status"]
        await send(message)

    def observe(self, scope, seen):
        seen.status = self.last
        super().observe(scope, seen)

    async def __call__(self, scope, receive, send):
        self.last = 500
        await super().__call__(scope, receive, send)


def measure_with_call_next(app, durations):
    async def watch(request, call_next):
        start = time.perf_counter()
        response = await call_next(request)
        scope = request.scope
        method = scope["method"] if scope["method"] in METHODS else "other"
        series = durations.labels(method, _route(scope), str(response.status_code))
        series.observe(time.perf_counter() - start)
        return response

    return BaseHTTPMiddleware(app, watch)


# 07.4: a call with a trace


async def fetch(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_by_hand(tracer, client, path):
    span = tracer.start_span(f"GET {path}", kind=SpanKind.CLIENT)
    context = span.get_span_context()
    request = client.build_request("GET", path)
    request.headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    try:
        response = await client.send(request)
        span.set_attributes({"http.response.status_code": response.status_code})
        response.raise_for_status()
    except Exception as error:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        span.end()
    return response.json()


async def fetch_in_a_context(tracer, client, path):
    span = tracer.start_span(f"GET {path}", kind=SpanKind.CLIENT)
    headers = {}
    inject(headers, context=set_span_in_context(span))
    with use_span(span, end_on_exit=True):
        async with client.stream("GET", path, headers=headers) as response:
            await response.aread()
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_without_header(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        response = await client.get(path)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_that_injects_before(tracer, client, path):
    headers = {}
    inject(headers)
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_with_shared_headers(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        inject(client.headers)
        response = await client.get(path)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_that_raises_outside(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
    return response.raise_for_status().json()


async def fetch_that_does_not_raise(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.json()


async def fetch_without_status(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT):
        headers = {}
        inject(headers)
        return (await client.get(path, headers=headers)).raise_for_status().json()


async def fetch_without_kind(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}") as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_with_an_open_span(tracer, client, path):
    span = tracer.start_span(f"GET {path}", kind=SpanKind.CLIENT)
    headers = {}
    inject(headers, context=set_span_in_context(span))
    response = await client.get(path, headers=headers)
    span.set_attribute("http.response.status_code", response.status_code)
    return response.raise_for_status().json()


async def fetch_without_await(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT):
        headers = {}
        inject(headers)
        return client.get(path, headers=headers)


async def fetch_that_returns_the_response(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status()


async def fetch_of_server_errors(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        if response.status_code >= 500:
            response.raise_for_status()
        return response.json()


async def fetch_twice(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        await client.get(path, headers=headers)
        response = await client.get(path, headers=headers)
        span.set_attribute("http.response.status_code", response.status_code)
        return response.raise_for_status().json()


async def fetch_that_ends_early(tracer, client, path):
    with tracer.start_as_current_span(f"GET {path}", kind=SpanKind.CLIENT) as span:
        headers = {}
        inject(headers)
        request = client.build_request("GET", path, headers=headers)
        response = await client.send(request, stream=True)
        span.set_attribute("http.response.status_code", response.status_code)
        response.raise_for_status()
    await response.aread()
    return response.json()


turns = asyncio.Lock()


async def fetch_one_at_a_time(tracer, client, path):
    async with turns:
        return await fetch(tracer, client, path)


# 07.5: the whole stack

PAGE = "https://ward.example"
cors = partial(CORSMiddleware, allow_origins=[PAGE], expose_headers=["X-Request-ID"])


class Lines:
    def __init__(self, logger, drop=()):
        self.logger, self.drop = logger, drop

    def append(self, record):
        extra = {name: value for name, value in record.items() if name not in self.drop}
        self.logger.info("%s %s", record["path"], record["status"], extra=extra)


def stack(cors=cors, timing=TimingMiddleware, measure=Measure, access=Access, identify=RequestId, lines=Lines):
    """The stack, with some of its layers exchanged."""

    def observe(app, logger, durations):
        app = measure(timing(cors(app)), durations)
        return identify(access(app, lines(logger)), logger)

    return observe


def with_add_middleware(app, logger, durations):
    """Inside the app, so that the handler of unexpected errors has to respond within."""

    def respond_to_errors(inner):
        async def respond(scope, receive, send):
            started = False

            async def note(message):
                nonlocal started
                started = True
                await send(message)

            try:
                await inner(scope, receive, note)
            except Exception:
                if not started and scope["type"] == "http":
                    await JSONResponse({"detail": "sorry"}, 500)(scope, receive, send)
                raise

        return respond

    app.add_middleware(respond_to_errors)
    app.add_middleware(cors)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(Measure, durations=durations)
    app.add_middleware(access_in_functions, records=Lines(logger))
    app.add_middleware(ids_in_functions, logger=logger)
    return app


def only_added(app, logger, durations):
    app.add_middleware(TimingMiddleware)
    app.add_middleware(cors)
    app.add_middleware(Measure, durations=durations)
    app.add_middleware(Access, records=Lines(logger))
    app.add_middleware(RequestId, logger=logger)
    return app


def cors_outside(app, logger, durations):
    return cors(stack(cors=lambda app: app)(app, logger, durations))


def open_to_all(app):
    return CORSMiddleware(app, allow_origins=["*"], expose_headers=["X-Request-ID"])


def hidden_id(app):
    return CORSMiddleware(app, allow_origins=[PAGE])


def open_to_patterns(pattern):
    return partial(CORSMiddleware, allow_origin_regex=pattern, expose_headers=["X-Request-ID"])


def measure_inside(app, logger, durations):
    app = access_in_functions(cors(Measure(app, durations)), Lines(logger))
    return RequestId(TimingMiddleware(app), logger)


def access_inside(app, logger, durations):
    app = Measure(cors(access_in_functions(app, Lines(logger))), durations)
    return RequestId(TimingMiddleware(app), logger)


def access_outside(app, logger, durations):
    app = ids_in_functions(TimingMiddleware(Measure(cors(app), durations)), logger)
    return Access(app, Lines(logger))


def no_time(app):
    async def zero(scope, receive, send):
        async def note(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-process-time", b"0")]
            await send(message)

        await app(scope, receive, note)

    return zero


def nothing(app, *_):
    return app


class AccessWithQuery(Access):
    async def __call__(self, scope, receive, send):
        self.query = scope.get("query_string", b"").decode()
        await super().__call__(scope, receive, send)

    async def note(self, record, send, message):
        record["query"] = self.query
        await super().note(record, send, message)


BANK = {
    "07.1": {
        "right": [Access, access_in_functions, AccessOfOneRequest],
        "wrong": [
            (access_with_call_next, "is held back"),
            (AccessAtTheStart, "The record of"),
            (AccessWithoutFinally, "no record of /crash"),
            (AccessOfEverything, "Only HTTP is recorded"),
            (AccessOnlyHttp, "must pass through"),
            (AccessWithoutWebSockets, "A WebSocket must pass through"),
            (AccessThatSwallows, "must go on to the caller"),
            (AccessWithStatus200, "The record of /crash"),
            (AccessInMilliseconds, "more than it took"),
            (AccessWithOneStart, "less than it took"),
            (AccessThatHolds, "is held back"),
            (AccessOfTheLastPiece, "The record of"),
            (AccessWithBodyAlways, "KeyError"),
            (AccessAlwaysComplete, "The record of /cut"),
            (lambda app, records: None, "not an ASGI app"),
            (one_at_a_time(Access), "has to wait until the first"),
            (AccessCompleteFromTheStart, "The record of /waiting"),
            (AccessWithoutCancellation, "no record of /waiting"),
            (AccessTwice, "Each request gets one record"),
            (AccessWithRecordsUnderWay, "when it has ended"),
            (AccessWithItsOwnError, "the app has failed"),
            (async_function, "Only the app itself is `async`"),
        ],
    },
    "07.2": {
        "right": [RequestId, ids_in_functions],
        "wrong": [
            (IdInAGlobal, "has the id of another one, or none"),
            (IdInTheThread, "has the id of another one, or none"),
            (IdOfTheApp, "need a new id each"),
            (IdWithoutFilter, "no attribute request_id"),
            (FilterThatDrops, "Does the filter return `True`?"),
            (IdOfHttpOnly, "The response to a WebSocket needs"),
            (IdWithoutAccept, "The response to a WebSocket needs"),
            (IdNotInTheState, "request.state.request_id"),
            (AnyId, "must not come back"),
            (ShortIds, "must not come back"),
            (CleanedIds, "need a new id each"),
            (IdsFromAToz, "must not come back"),
            (IdInItsOwnState, "what the app's lifespan puts there"),
            (IdAsTheOnlyHeader, "lost its other headers"),
            (IdThatSwallows, "must go on to the caller"),
            (IdOfTheLifespan, "A line outside of all requests"),
            (IdOnlyOnInfo, "no attribute request_id"),
            (one_at_a_time(RequestId), "has to wait until the first"),
            (IdWithDollar, "A line break at the end"),
            (AlwaysNewId, "A good id is kept"),
            (id_with_call_next, "The response to a WebSocket needs"),
            (id_inside, "status 500 has no X-Request-ID"),
        ],
    },
    "07.3": {
        "right": [Measure, measure_in_functions],
        "wrong": [
            (MeasureByPath, "This series is not right"),
            (MeasureByRoute, "/v1/cases/{case}"),
            (MeasureRouteBefore, "/v1/cases/{case}"),
            (MeasureAnyMethod, "('other', 'other', '404'): 2"),
            (MeasureWithStatus200, "('GET', 'other', '500'): 1"),
            (MeasureThatSwallows, "must go on to the caller"),
            (MeasureAtTheStart, "less than it took"),
            (MeasureWithOneStart, "less than it took"),
            (MeasureWithoutErrors, "('GET', '/v1/crash', '500'): 1"),
            (MeasureOnlyHttp, "must pass through"),
            (measure_with_call_next, "it took"),
            (MeasureWithoutCancellation, "('GET', 'other', '200'): 1"),
            (MeasureFourMethods, "'other', '404'): no such series"),
            (MeasureWithOneStatus, "This series is not right"),
            (one_at_a_time(Measure), "has to wait until the first"),
        ],
    },
    "07.4": {
        "right": [fetch, fetch_by_hand, fetch_in_a_context],
        "wrong": [
            (fetch_without_header, "gets no `traceparent`"),
            (fetch_that_injects_before, "names another span"),
            (fetch_with_shared_headers, "its own headers must stay"),
            (fetch_that_raises_outside, "StatusCode.ERROR"),
            (fetch_that_does_not_raise, "An error must be raised"),
            (fetch_without_status, "http.response.status_code"),
            (fetch_without_kind, "wrong kind"),
            (fetch_with_an_open_span, "which ends"),
            (fetch_without_await, "await"),
            (fetch_that_returns_the_response, "The JSON of the response"),
            (fetch_of_server_errors, "An error must be raised"),
            (fetch_twice, "How many requests"),
            (fetch_that_ends_early, "before the whole response is there"),
            (fetch_one_at_a_time, "has to wait until another"),
        ],
    },
    "07.5": {
        "right": [
            stack(),
            with_add_middleware,
            stack(access=access_in_functions, measure=measure_in_functions, identify=ids_in_functions),
        ],
        "wrong": [
            (only_added, "status 500 has no X-Request-ID"),
            (cors_outside, "OPTIONS /v1/cases/"),
            (stack(cors=open_to_all), "Only pages of"),
            (stack(cors=hidden_id), "does not let the page read"),
            (stack(cors=nothing), "needs one Access-Control-Allow-Origin"),
            (stack(timing=nothing), "needs one X-Process-Time"),
            (stack(identify=nothing), "no X-Request-ID"),
            (stack(identify=IdInAGlobal), "has the id of another one, or none"),
            (stack(measure=MeasureByPath), "This series is not right"),
            (stack(access=nothing), "one record in the log"),
            (stack(access=AccessWithQuery), "A query may hold a credential"),
            (stack(lines=partial(Lines, drop=("complete",))), "`status` and `complete`"),
            (stack(access=access_with_call_next), "held back"),
            (lambda app, logger, durations: app, "no X-Request-ID"),
            (measure_inside, "A preflight is not measured"),
            (access_inside, "given    OPTIONS /v1/cases/"),
            (access_outside, "has no request id"),
            (stack(cors=open_to_patterns(r"https://ward.example")), "wardxexample"),
            (stack(cors=open_to_patterns(r"https://ward\.example.*")), "evil.com"),
            (stack(timing=no_time), "The X-Process-Time is wrong"),
        ],
    },
}
