"""Lesson 07: middleware and observability."""

import asyncio
import inspect
import random
import re
import time
from collections import UserList
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from workshop.api.metrics import METHODS
from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import CouldNotCheck, NotAttempted, NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_07 import Bare, Durations, Lines, Spans, Stream, Upstream, Ward, Watched
from workshop.lab.registry import exercise

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""
SLACK_S = 0.1
ID = "X-Request-ID"
PAGE = "https://ward.example"
RARE_METHODS = ("PROPFIND", "PURGE", "REPORT", "SEARCH", "LOCK", "MKCOL")
OTHER_PAGES = (
    "https://evil.example",
    f"{PAGE}.evil.com",
    "https://wardxexample",
    "http://ward.example",
    "https://evil.ward.example",
    "https://evilward.example",
    "http://localhost:3000",
    "null",
)
UNCHANGED = "The response itself must stay the same."


# ------------------------------------------------------------------------------------------------ a record each


@exercise(
    "07.1",
    hints=[
        "Wrap `send`. What you collect must belong to one request, not to `self`.",
        "`try: await self.app(scope, receive, note)`, and append the record in `finally`. Begin with the status 500.",
    ],
    right="A record of everything, and nobody notices.",
    seconds=LIMIT_S,
)
def records_each_request(answer: Answer) -> None:
    streams = {"/slow": Stream(), "/quick": Stream(202), "/left": Stream()}
    bare, records = Bare(streams), UserList[Any]()  # an answer gets a copy of a plain list
    app = Watched(_made(answer, bare, records))
    _expect_lifespan(answer, app, bare)
    with _served(answer, app) as client:
        with _socket(answer, client, "/ws") as socket:
            expect(socket.recv(timeout=5), "hello")
        expect(list(records), [], why="Only HTTP is recorded.")

        expect(client.get("/other%20path?key=secret").status_code, 404)
        _expect_record(records, "/other path", {"status": 404, "bytes": 8, "complete": True})
        expect(client.get("/empty").status_code, 204)
        _expect_record(records, "/empty", {"status": 204, "bytes": 0, "complete": True})

        def no_record() -> None:
            early = [record for record in records if record.get("path") == "/slow"]
            expect(early, [], given="GET /slow, under way", why="A request has its record when it has ended.")

        elapsed = _overlap(answer, client, streams, no_record)
        for path, seconds in elapsed.items():
            expected = {"status": streams[path].status, "bytes": 18, "complete": True}
            record = _expect_record(records, path, expected)
            _expect_seconds(record.get("seconds"), streams[path].took_s, seconds, path)

        _expect_error(app, client, "/crash")
        _expect_record(records, "/crash", {"status": 500, "bytes": 0, "complete": False})
        _expect_broken_off(client, "/cut")
        _expect_record(records, "/cut", {"status": 200, "bytes": 3, "complete": False})
        _leave(client, "/left", streams["/left"])
        _expect_record(records, "/left", {"status": 200, "complete": False})
    _cancel(answer, app, "/waiting")
    _expect_record(records, "/waiting", {"status": 200, "bytes": 0, "complete": False})
    counts = {record["path"]: sum(other["path"] == record["path"] for other in records) for record in records}
    expect(counts, dict.fromkeys(counts, 1), given="all requests", why="Each request gets one record.")


def _expect_record(records: UserList[Any], path: str, expected: dict[str, Any]) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [record for record in records if isinstance(record, dict) and record.get("path") == path]

    if not becomes_true(lambda: bool(found()), 2.0):
        expected_text = show({"path": path} | expected)
        got = f"the last record is {show(records[-1])}" if records else "no record at all"
        raise NotYet(f"There is no record of {path}.", given=f"GET {path}", expected=expected_text, got=got)
    [*_, record] = found()
    expect(record, expected | {"path": path}, given=f"GET {path}", why=f"The record of {path}.")
    if not isinstance(record.get("seconds"), float):
        raise NotYet("Each record has its `seconds`.", given=f"GET {path}", got=show(record))
    return record


# ------------------------------------------------------------------------------------------------ one id in everything


@exercise(
    "07.2",
    hints=[
        "In `__init__`: `logger.addFilter(mark)`, where `mark(record)` sets `record.request_id = request_id.get()`.",
        "For each request: `request_id.set(own)` and `scope.setdefault('state', {})['request_id'] = own`. "
        "`re.fullmatch` wants all of the text.",
    ],
    right="Every line says whose it is, and no client writes into your log.",
    seconds=LIMIT_S,
)
def marks_everything(answer: Answer) -> None:
    lines = Lines()
    ward = Ward(lines.logger)
    app = Watched(_made(answer, ward.app, lines.logger))
    _expect_lifespan(answer, app, ward)
    for message in ("the service starts", "before"):
        if message == "before":
            lines.logger.info(message)
        expect(_request_ids(lines, message), {"-"}, given="no request", why="A line outside of all requests.")
    with _served(answer, app) as client:
        _expect_ids(answer, app, client, ward, lines)


def _expect_ids(answer: Answer, app: Watched, client: Client, ward: Ward, lines: Lines) -> None:
    """One id in everything: headers, state, log."""
    for sent in (uuid4().hex, f"_a.B_{uuid4().hex[:5]}-9_", "x" * 64, "7", "-"):
        reply = client.get("/v1/cases/3", headers={ID: sent})
        expect(_id_of(reply), sent, why="A good id is kept.")
        expect(reply.json(), {"case": 3, "request_id": sent}, why="What `request.state.request_id` is.")
        expect(reply.json(), {"beds": 12}, why="`request.state` must keep what the app's lifespan puts there.")
        if "content-type" not in reply.headers:
            raise NotYet(
                "The response has lost its other headers.", expected="content-type", got=show(dict(reply.headers))
            )
    bad = (b"", b"a b", b"x" * 65, b"x" * 10_000, b"caf\xe9", b'"quoted"', b"a;b", b"<b>", b"a[b", b"a^b", b"a`b")
    for header in bad:
        earlier = ""
        for _ in range(2):
            reply = client.get("/v1/cases/3", headers={ID.encode(): header})
            expect(reply.status_code, 200, why="A request with a bad id is served like any other.")
            got = _id_of(reply)
            if got.encode("latin-1") == header or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", got):
                raise NotYet("This id must not come back.", given=f"{ID}: {show(header, 60)}", got=show(got, 60))
            if got == earlier:
                text = "Two requests with the same bad id need a new id each."
                raise NotYet(text, given=f"{ID}: {show(header, 60)}", got=f"{show(got, 70)}, both times")
            expect(reply.json(), {"request_id": got}, why="What `request.state.request_id` is.")
            earlier = got
    got = _id_of_newline(answer, app)
    if "\n" in got:
        raise NotYet("A line break at the end of the id gets through.", given=f"{ID}: 'abc\\n'", got=show(got))
    if len({_id_of(client.get("/v1/cases/3")) for _ in range(10)}) < 10:
        raise NotYet("Each request without an id gets a new one.", got="the same id twice")

    sent = uuid4().hex
    for path in ("/v1/nothing", "/v1/cases/x", "/v1/crash"):
        reply = client.get(path, headers={ID: sent})
        expect(_id_of(reply), sent, why=f"A {reply.status_code} has the id, too.")
    _expect_error(app, client, "/v1/crash")
    _expect_lines(client, lines)
    if not ward.overlapped:
        raise NotYet("A second request has to wait until the first one has ended.", given="20 requests at once")
    with _socket(answer, client, "/v1/socket", sent) as socket:
        if (got := socket.response.headers.get(ID)) != sent:
            raise NotYet(f"The response to a WebSocket needs the {ID}, too.", expected=sent, got=got or "none")
        expect(socket.recv(timeout=5), sent, why="The `request_id` in the state of a WebSocket.")
    expect(_request_ids(lines, "on the socket"), {sent}, why="The line that the WebSocket logs.")
    lines.logger.info("outside")
    expect(_request_ids(lines, "outside"), {"-"}, given="no request", why="A line outside of all requests.")
    with client.stream("GET", "/v1/streams/slow") as response:
        _expect_streamed(response, ward.streams["slow"])


def _expect_lines(client: Client, lines: Lines) -> None:
    """Twenty requests at once, in the event loop and in threads."""
    sent = {f"{kind}/{uuid4().hex[:8]}": uuid4().hex for kind in ("async-def", "def") for _ in range(10)}
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda path: client.get(f"/v1/{path}", headers={ID: sent[path]}), sent))
    for path, own in sent.items():
        number = path.partition("/")[2]
        got = _request_ids(lines, f"begins {number}") | _request_ids(lines, f"ends {number}")
        if got != {own}:
            raise NotYet(
                "20 requests at once, and a line has the id of another one, or none.",
                given=f"GET /v1/{path}, among others",
                expected=f"every line: {own}",
                got=show(sorted(got)),
            )


def _request_ids(lines: Lines, message: str) -> set[str]:
    records = [record for record in lines.records if record.getMessage() == message]
    if not records:
        text = "A line that the app logs is missing. Does the filter return `True`?"
        raise NotYet(text, given=f"logger.info({message!r})", expected=message, got="no such line")
    return {str(getattr(record, "request_id", "no attribute request_id")) for record in records}


def _id_of(reply: httpx.Response) -> str:
    found = reply.headers.get_list(ID)
    if len(found) != 1:
        where = f"The response with status {reply.status_code}"
        raise NotYet(f"{where} has {'no' if not found else 'more than one'} {ID}.", expected="one", got=f"{len(found)}")
    return str(found[0])


def _id_of_newline(answer: Answer, app: ASGIApp) -> str:
    """What becomes of an id with a line break, which HTTP/1.1 cannot carry but other servers might."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"ward"), (ID.lower().encode(), b"abc\n")]
    scope = {"type": "http", "method": "GET", "path": "/v1/nothing", "query_string": b"", "headers": headers}
    answer.run(app(scope | {"scheme": "http", "http_version": "1.1", "root_path": ""}, receive, send))
    found = [value for name, value in sent[0]["headers"] if name.lower() == ID.lower().encode()]
    return found[0].decode() if found else ""


# ------------------------------------------------------------------------------------------------ durations


@exercise(
    "07.3",
    hints=[
        "Begin with the status 500, and let the wrapped `send` note another one. Observe in `finally`.",
        "`self.durations.labels(method=…, route=_route(scope), status=str(status)).observe(seconds)`.",
    ],
    right="Every request is in its bucket, at its end.",
    seconds=LIMIT_S,
)
def measures_each_request(answer: Answer) -> None:
    durations, ward = Durations(), Ward(Lines().logger)
    app = Watched(_made(answer, ward.app, durations.histogram))
    _expect_lifespan(answer, app, ward)
    with _served(answer, app) as client:
        with _socket(answer, client, "/v1/socket") as socket:
            socket.recv(timeout=5)
        expect(durations.found(), {}, why="Only HTTP is measured.")
        _expect_durations(answer, app, client, ward, durations)
    crashed = Durations()
    bare = Bare({})
    app = Watched(_made(answer, bare, crashed.histogram))
    with _served(answer, app) as client:
        _expect_error(app, client, "/crash")
    _cancel(answer, app, "/waiting")
    _expect_counts(crashed, {("GET", "other", "500"): 1, ("GET", "other", "200"): 1})


def _expect_durations(answer: Answer, app: Watched, client: Client, ward: Ward, durations: Durations) -> None:
    for case in range(3):
        client.get(f"/v1/cases/{uuid4().int % 1000 + case}?key=secret")
    client.post("/v1/cases/7")
    client.get("/v1/cases/x")
    usual = METHODS - {"GET", "POST"}
    for method in ("GET", *usual):
        client.request(method, f"/{uuid4()}")
    for method in random.sample(RARE_METHODS, 2):
        client.request(method, f"/{uuid4()}")
    _expect_error(app, client, "/v1/crash")
    route = "/v1/cases/{case}"
    counts = {("GET", route, "200"): 3, ("POST", route, "200"): 1, ("GET", route, "422"): 1}
    counts |= {("GET", "other", "404"): 1, ("other", "other", "404"): 2, ("GET", "/v1/crash", "500"): 1}
    counts = {(method, "other", "404"): 1 for method in usual} | counts
    _expect_counts(durations, counts)

    streams = ward.streams
    elapsed = _overlap(answer, client, {f"/v1/streams/{name}": streams[name] for name in ("slow", "quick")})
    key = ("GET", "/v1/streams/{name}", "200")
    counts[("GET", "/v1/streams/{name}", "202")] = 1
    _expect_counts(durations, counts | {key: 1})
    for (path, seconds), status in zip(elapsed.items(), ("200", "202"), strict=True):
        got = durations.found()["GET", "/v1/streams/{name}", status][1]
        _expect_seconds(got, streams[path.rpartition("/")[2]].took_s, seconds, path)
    _leave(client, "/v1/streams/left", streams["left"])
    _expect_counts(durations, counts | {key: 2})
    _expect_broken_off(client, "/v1/streams/cut", streams["cut"])
    _expect_counts(durations, counts | {key: 3})


def _expect_counts(durations: Durations, expected: dict[tuple[str, str, str], int]) -> None:
    def found() -> dict[tuple[str, str, str], int]:
        return {key: number for key, (number, _) in durations.found().items()}

    becomes_true(lambda: sum(found().values()) >= sum(expected.values()), 2.0)
    got = found()
    for key in {**expected, **got}:
        if got.get(key) != expected.get(key):
            raise NotYet(
                "This series is not right: (method, route, status).",
                given="requests to several routes",
                expected=f"{key}: {expected.get(key, 'no such series')}",
                got=f"{key}: {got.get(key, 'no such series')}; there are {show(sorted(got))}",
            )


# ------------------------------------------------------------------------------------------------ a call with a trace


@exercise(
    "07.4",
    hints=[
        "`with tracer.start_as_current_span(name, kind=SpanKind.CLIENT) as span:` around all of it, and then `inject`.",
        "`inject(headers)` writes the *current* span into a new dict. `raise_for_status()` belongs inside the `with`.",
    ],
    right="Whoever looks at the trace sees where the time went.",
    seconds=LIMIT_S,
)
def calls_with_a_trace(answer: Answer) -> None:
    spans, upstream = Spans(), Upstream()
    fetch: Callable[..., Any] = answer.value
    if not callable(fetch):
        raise NotYet("A function is needed here.", got=show(fetch))

    async def request(*paths: str) -> list[Any]:
        with spans.tracer.start_as_current_span("request"):
            return await asyncio.gather(*(_awaitable(fetch(spans.tracer, upstream.client, path)) for path in paths))

    number = uuid4().hex[:6]
    for paths in ([f"/one-{number}"], ["/made"], ["/slow", "/quick", f"/slow-{number}"]):
        answer.given = f"fetch(tracer, client, path) for {', '.join(paths)}" + " at once" * (len(paths) > 1)
        got = answer.run(request(*paths))
        for path, reply in zip(paths, got, strict=True):
            expect(reply, {"path": path, "number": 7}, why="The JSON of the response.")
            _expect_span(spans, upstream, path, 201 if path == "/made" else 200)
    if upstream.most_at_once < len(paths):
        raise NotYet("One call has to wait until another one has ended.", expected="3 calls under way at once")
    status_of = {"/refused": 503, "/missing": 404, "/down": None}
    for path, status in status_of.items():
        kind = httpx.HTTPStatusError if status else httpx.ConnectError
        answer.given = f"fetch(tracer, client, {path!r})"
        try:
            got = answer.run(request(path))
        except kind:
            _expect_span(spans, upstream, path, status, is_error=True)
        else:
            raise NotYet("An error must be raised.", expected=f"{kind.__name__}", got=show(got[0]))
    if "traceparent" in upstream.client.headers:
        raise NotYet(
            "The client is shared: its own headers must stay as they are.", got="client.headers['traceparent']"
        )


def _awaitable(call: Any) -> Awaitable[Any]:
    if call is ...:
        raise NotAttempted
    if not isinstance(call, Awaitable):
        raise NotYet("An `async def` function is needed here.", got=show(call))
    return call


def _expect_span(spans: Spans, upstream: Upstream, path: str, status: int | None, *, is_error: bool = False) -> None:
    name = f"GET {path}"
    found = spans.named(name)
    if len(found) != 1:
        raise NotYet("Each call has one span, which ends.", expected=f"one {name!r}", got=show(spans.names))
    [span] = found
    if span.kind is not SpanKind.CLIENT:
        raise NotYet("This is the wrong kind of span.", expected="SpanKind.CLIENT", got=str(span.kind))
    parent = spans.named("request")[-1]
    if span.parent is None or span.parent.span_id != parent.context.span_id:
        raise NotYet("The span is not a child of the one in which `fetch` was called.", got=show(span.parent))
    attributes = dict(span.attributes or {})
    got = attributes.get("http.response.status_code")
    if got != status:
        text = f"The attribute http.response.status_code of {name!r} is wrong."
        raise NotYet(text, expected=show(status), got=show(got))
    expect(upstream.requests[path], 1, why=f"How many requests {path} gets of one call.")
    if span.end_time is not None and span.end_time < upstream.ended_ns[path]:
        raise NotYet("The span ends before the whole response is there.", expected="the body is read inside the span")
    sent = upstream.headers[path].get("traceparent")
    if sent is None:
        raise NotYet("The other service gets no `traceparent`.", got=show(dict(upstream.headers[path])))
    expected = f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
    if expected not in sent:
        raise NotYet("The `traceparent` names another span.", expected=f"00-{expected}-…", got=sent)
    if (span.status.status_code is StatusCode.ERROR) != is_error:
        expected = "StatusCode.ERROR" if is_error else "no error"
        raise NotYet(f"The status of the span {name!r} is wrong.", expected=expected, got=str(span.status.status_code))


# ------------------------------------------------------------------------------------------------ the whole stack


@exercise(
    "07.5",
    hints=[
        "Wrap the whole app, rather than `app.add_middleware`: `app = CORSMiddleware(app, …)`, and so on, outwards.",
        "From the inside: CORS, timing, durations, records, and the id around all. `records` may be any object with "
        "an `append`, which logs.",
    ],
    right="It sees everything, and changes nothing.",
    seconds=2 * LIMIT_S,
)
def observes_everything(answer: Answer) -> None:
    lines, durations = Lines(), Durations()
    ward = Ward(lines.logger)
    app = Watched(_made(answer, ward.app, lines.logger, durations.histogram))
    _expect_lifespan(answer, app, ward)
    with _served(answer, app) as client:
        preflight = _expect_every_header(client)
        found = _access_lines(lines, preflight, "OPTIONS")
        expect(len(found), 1, given=f"OPTIONS {preflight}", why="How many records there are of a preflight.")
        if not becomes_true(lambda: any(method == "OPTIONS" for method, *_ in durations.found()), 2.0):
            raise NotYet(
                "A preflight is not measured.", given=f"OPTIONS {preflight}", got=show(sorted(durations.found()))
            )
        _expect_ids(answer, app, client, ward, lines)
    _expect_access_lines(lines)

    lines, durations = Lines(), Durations()
    ward = Ward(lines.logger)
    app = Watched(_made(answer, ward.app, lines.logger, durations.histogram))
    with _served(answer, app) as client:
        _expect_durations(answer, app, client, ward, durations)
        ended = {
            "/v1/streams/slow": (200, True),
            "/v1/streams/left": (200, False),
            "/v1/streams/cut": (200, False),
        }
        for path, expected in ended.items():
            [*others, record] = _access_lines(lines, path)
            expect(len(others), 0, given=f"GET {path}", why=f"There is more than one record for {path}.")
            got = getattr(record, "status", "no status"), getattr(record, "complete", "no complete")
            expect(got, expected, given=f"GET {path}", why=f"`status` and `complete` of the record for {path}.")
        expect(
            getattr(_access_lines(lines, "/v1/crash")[0], "status", None),
            500,
            given="GET /v1/crash",
            why="The record for /v1/crash.",
        )


def _expect_every_header(client: Client) -> str:
    """What each response has. Returns the path of the preflight."""
    preflight = f"/v1/cases/{random.randrange(1000, 10_000)}"
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
    for method, path in (
        ("GET", "/v1/cases/3"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1/crash"),
        ("OPTIONS", preflight),
    ):
        reply = client.request(method, path, headers=asks)
        _id_of(reply)
        where = f"The response with status {reply.status_code} to {method}"
        for name in ("X-Process-Time", "Access-Control-Allow-Origin"):
            if len(reply.headers.get_list(name)) != 1:
                raise NotYet(f"{where} needs one {name}.", got=show(dict(reply.headers), 600))
        if reply.headers["Access-Control-Allow-Origin"] not in (PAGE, "*"):
            raise NotYet("The page may not read this.", got=reply.headers["Access-Control-Allow-Origin"])
        exposed = reply.headers.get("Access-Control-Expose-Headers", "").lower()
        if method == "GET" and ID.lower() not in exposed:
            raise NotYet(f"{where} does not let the page read its {ID}.", expected=f"expose_headers=[{ID!r}]")
    for origin in OTHER_PAGES:
        reply = client.get("/v1/cases/3", headers={"Origin": origin})
        if reply.headers.get("Access-Control-Allow-Origin") in (origin, "*"):
            got = f"a page of {origin} may, too"
            raise NotYet(f"Only pages of {PAGE} may read responses.", given=f"Origin: {origin}", got=got)
    took = client.get("/v1/def/0").headers.get("X-Process-Time", "none")
    number = re.match(r"\d+(\.\d+)?", took)
    if number is None or float(number[0]) < 0.05:
        raise NotYet("The X-Process-Time is wrong.", expected="0.1 seconds or more", got=took)
    return preflight


def _expect_access_lines(lines: Lines) -> None:
    for path in ("/v1/cases/3", "/v1/nothing", "/v1/crash", "/v1/streams/slow"):
        record = _access_lines(lines, path)[-1]
        if getattr(record, "request_id", "-") == "-":
            raise NotYet(f"The line for {path} has no request id.", given=f"GET {path}")


def _access_lines(lines: Lines, path: str, method: str = "GET") -> list[Any]:
    def found() -> list[Any]:
        return [record for record in lines.records if getattr(record, "path", None) == path]

    if not becomes_true(lambda: bool(found()), 2.0):
        text = "Each HTTP request gets one record in the log, with `path` as an attribute."
        raise NotYet(text, given=f"{method} {path}", got="no such record of level INFO or above")
    for record in lines.records:
        leaks = {name: value for name, value in vars(record).items() if "secret" in str(value)}
        if leaks:
            given = "GET /v1/cases/… with ?key=secret"
            raise NotYet("A query may hold a credential: keep it out of the log.", given=given, got=show(leaks))
    return found()


# ------------------------------------------------------------------------------------------------ for several


def _made(answer: Answer, *args: Any) -> ASGIApp:
    """The learner's app around the first of these."""
    if inspect.iscoroutinefunction(answer.value):
        raise NotYet("Only the app itself is `async`: this must be a class, or a `def` that returns the app.")
    app: ASGIApp = answer.call(*args)
    if not callable(app):
        raise NotYet("This is not an ASGI app.", got=show(app))
    return app


@contextmanager
def _served(answer: Answer, app: Watched) -> Iterator[Client]:
    """Serve it. The learner's own error explains more than what follows from it."""
    with answer.serve(app, allow_500=True, seconds=8) as client:
        try:
            yield client
        except (NotYet, httpx.HTTPError):
            if app.unexpected:
                raise CouldNotCheck(app.unexpected[0]) from None
            raise


def _expect_lifespan(answer: Answer, app: ASGIApp, wrapped: Bare | Ward) -> None:
    received = iter(("startup", "shutdown"))
    sent: list[str] = []

    async def receive() -> Message:
        return {"type": f"lifespan.{next(received)}"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    answer.given = 'a scope of type "lifespan"'
    answer.run(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    if len(sent) != 2:
        raise NotYet(
            "What is not HTTP must pass through to the app.", expected="2 messages from the app", got=show(sent)
        )


@contextmanager
def _socket(answer: Answer, client: Client, path: str, sent: str = "any") -> Iterator[Any]:
    answer.given = f"WebSocket {path}"
    try:
        with connect(client.socket_url(path), additional_headers={ID: sent}, proxy=None) as socket:
            yield socket
    except (WebSocketException, TimeoutError, OSError) as error:
        text = f"{type(error).__name__}: {error}"
        raise NotYet("A WebSocket must pass through to the app.", got=text) from None


def _expect_error(app: Watched, client: Client, path: str) -> None:
    expect(client.get(path).status_code, 500)
    if not becomes_true(lambda: path in dict(app.errors), 2.0):
        raise NotYet("The app's error must go on to the caller: the server logs it.", got="no error")
    expect(str(dict(app.errors)[path]), "a bug", why="The app's own error must go on to the caller.")


def _expect_broken_off(client: Client, path: str, stream: Stream | None = None) -> None:
    try:
        with client.stream("GET", path) as response:
            for _ in response.iter_bytes():
                if stream is not None:
                    stream.received += 1
    except httpx.RemoteProtocolError:
        return
    raise NotYet("The app breaks off, and the client gets a whole response.", expected="a response that breaks off")


def _expect_streamed(response: httpx.Response, stream: Stream) -> None:
    text = b""
    for piece in response.iter_bytes():
        text += piece
        stream.received += 1
    expect(text, b"".join(Stream.PIECES), why=UNCHANGED)
    if stream.held:
        raise NotYet(f"Piece {stream.held} of the body is held back.", expected="each piece is sent on at once")


def _overlap(
    answer: Answer, client: Client, streams: dict[str, Stream], meanwhile: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Ask for the first stream, and while it is under way, for the second. Returns the seconds that each took."""
    (slow, first), (quick, second), *_ = streams.items()
    first.other = second
    elapsed = {}

    def ask(path: str, stream: Stream) -> None:
        start = time.perf_counter()
        with client.stream("GET", path) as response:
            _expect_streamed(response, stream)
        elapsed[path] = time.perf_counter() - start

    with ThreadPoolExecutor(2) as pool:
        slow_one = pool.submit(partial(ask, slow, first))
        becomes_true(lambda: first.started, 2.0)
        time.sleep(0.3)  # a start that the two share is wrong for one of them
        meanwhile()
        quick_one = pool.submit(partial(ask, quick, second))
        answer.given = f"GET {slow}, and GET {quick} while it is under way"
        slow_one.result()
        quick_one.result()
    if first.alone:
        raise NotYet(
            "A second request has to wait until the first one has ended.", expected="both are under way at once"
        )
    return elapsed


def _cancel(answer: Answer, app: ASGIApp, path: str) -> None:
    """Cancel a request that has sent its status and waits."""

    async def receive() -> Message:
        await asyncio.sleep(LIMIT_S)
        return {"type": "http.disconnect"}

    async def cancel() -> bool:
        started = asyncio.Event()

        async def send(message: Message) -> None:
            started.set()

        async def request() -> None:
            await app(scope, receive, send)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        task = asyncio.create_task(request())
        scope |= {"headers": [], "scheme": "http", "http_version": "1.1", "root_path": ""}
        sent = asyncio.create_task(started.wait())
        await asyncio.wait({task, sent}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        sent.cancel()
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        return task.cancelled()

    answer.given = f"GET {path}, which is cancelled"
    if not answer.run(cancel()):
        raise NotYet("The cancellation must go on to the caller.", got="no asyncio.CancelledError")


def _leave(client: Client, path: str, stream: Stream) -> None:
    with client.stream("GET", path) as response:
        next(response.iter_bytes())
        stream.received += 1
    if not becomes_true(lambda: stream.closed, 3.0):
        raise NotYet("The client has left, and the app goes on.", given=f"GET {path}, by a client that leaves")


def _expect_seconds(got: Any, least: float, most: float, what: str) -> None:
    if least - SLACK_S <= got <= most + SLACK_S:
        return
    raise NotYet(
        f"That is {'less' if got < least else 'more'} than it took.",
        expected=f"{what}: about {least:.1f} seconds",
        got=f"{what}: {got:.3f} seconds",
    )
