"""What the service logs: a line for each request, with its id, and no secret."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.leaving import leaving
from tests.service import RECORD, concurrently, socket_url, until
from tests.stand_ins import UNSURE, StandInClassifier, draft, main, replace_with_a_folder
from workshop.api.app import create_app
from workshop.contracts.classifier import FloatMatrix, Scores
from workshop.contracts.services import Services
from workshop.integration.batching import MAX_LOGGED_IDS, MicroBatched
from workshop.lab.app_server import run_app
from workshop.logs import WRITE_LINES, LogFormat, _Handler, _JsonFormatter, _TextFormatter, log_fields, set_log_fields
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore

pytestmark = pytest.mark.slow

KEY, PASSWORD, TICKET = "key-of-ada", "correct-horse-battery", "ticket-of-ada"

Line = dict[str, Any]


class Log:
    """What the service has logged, as JSON."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.handler = _Handler(self._stream)
        self.handler.setFormatter(_JsonFormatter(log_fields))

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.text.splitlines()]

    def requests(self, count: int) -> list[Line]:
        """The lines of requests, once there are this many: a response may arrive before its line is written."""
        lines = until(lambda: [line for line in self.lines if "status" in line], lambda found: len(found) >= count)
        assert len(lines) == count, self.text
        return lines


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    logger = logging.getLogger("workshop")
    logger.addHandler(log.handler)
    logger.setLevel(logging.DEBUG)
    yield log
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(log.handler)


def test_each_request_has_a_line_with_what_is_known_of_it(serve, log):
    with serve(api_keys={KEY: "ada"}) as service:
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "callers-own-id"}
        case = service.client.post("/v1/cases", json={"measurements": RECORD}, headers=headers).headers["Location"]
        service.client.get(case, headers=headers)
        [_, line] = log.requests(2)
    assert line.pop("timestamp").endswith("Z")
    assert 0 < line.pop("duration_ms") < 30_000
    assert line == {
        "level": "info",
        "logger": "workshop.api.middleware.observation",
        "message": f"GET {case} 200",
        "request_id": "callers-own-id",
        "principal": "ada",
        "method": "GET",
        "route": "/v1/cases/{case_id}",
        "path": case,
        "status": 200,
    }


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [("/v1/nothing", 404, "other"), ("/health", 200, "/health"), ("/v1/model/metadata", 401, "/v1/model/metadata")],
)
def test_a_request_without_a_known_caller_has_no_principal(serve, log, path, status, route):
    with serve(api_keys={KEY: "ada"}) as service:
        answer = service.client.get(path)
        [line] = log.requests(1)
    assert (line["status"], line["route"]) == (status, route)
    assert line["request_id"] == answer.headers["X-Request-ID"] == str(UUID(line["request_id"]))
    assert "principal" not in line


def test_the_next_request_of_a_connection_has_nothing_of_the_one_before(serve, log):
    with serve(api_keys={KEY: "ada"}) as service:
        service.client.get("/v1/model/metadata", headers={"Authorization": f"Bearer {KEY}"})
        service.client.get("/health")
        first, second = log.requests(2)
    assert first["principal"] == "ada"
    assert "principal" not in second
    assert first["request_id"] != second["request_id"]


def test_concurrent_requests_have_their_own_lines(serve, log):
    names = [f"request-{number}" for number in range(40)]
    with serve() as service:
        concurrently(lambda name: service.client.get("/v1/cases", headers={"X-Request-ID": name}), names)
        lines = log.requests(len(names))
    assert sorted(line["request_id"] for line in lines) == sorted(names)


def test_a_stream_has_a_line_when_it_has_ended(serve, log):
    big = main(endless=True)
    with serve(draft(UNSURE), big) as service:
        with leaving(service.client, "GET", "/v1/query/stream?query=Why"):
            until(lambda: big.generated_tokens, lambda made: made > 3)
            assert not [line for line in log.lines if "status" in line]
        [line] = log.requests(1)
    assert (line["route"], line["status"]) == ("/v1/query/stream", 200)


def test_a_websocket_has_a_line_when_it_is_closed(serve, log):
    with serve(api_keys={KEY: "ada"}) as service:
        headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "callers-own-id"}
        with connect(socket_url(service.client), additional_headers=headers) as socket:
            assert socket.response.headers["X-Request-ID"] == "callers-own-id"
            socket.recv(10)
            assert not [line for line in log.lines if "status" in line]
        [line] = log.requests(1)
    assert (line["method"], line["route"], line["status"]) == ("WEBSOCKET", "/v1/chat/ws", 1000)
    assert (line["request_id"], line["principal"]) == ("callers-own-id", "ada")


def test_a_rejected_websocket_has_a_line_too(serve, log):
    with serve() as service:
        with pytest.raises(InvalidStatus):
            connect(socket_url(service.client), origin="https://evil.example")
        [line] = log.requests(1)
    assert (line["route"], line["status"]) == ("/v1/chat/ws", 1008)


class Buggy(StandInClassifier):
    async def predict(self, rows: FloatMatrix) -> Scores:
        raise RuntimeError("a bug")


def classifier_alone(file, classifier, **options):
    services = Services(classifier, SqlCaseStore(f"sqlite+aiosqlite:///{file}"))
    return run_app(create_app(services, Settings(**options)))


def test_the_traceback_of_a_bug_has_the_requests_id(file, log):
    uvicorn_logger = logging.getLogger("uvicorn.error")
    uvicorn_logger.addHandler(log.handler)
    try:
        with classifier_alone(file, Buggy()) as server:
            answer = httpx.post(f"{server.url}/v1/predict", json=RECORD)
            log.requests(1)
            bugs = until(lambda: [line for line in log.lines if "exception" in line], bool)
    finally:
        uvicorn_logger.removeHandler(log.handler)
    assert answer.status_code == 500
    [bug] = bugs
    assert bug["request_id"] == answer.headers["X-Request-ID"]
    assert "RuntimeError: a bug" in bug["exception"]


class Logging(StandInClassifier):
    """Logs its calls, the first of which takes until ``go`` is called."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def predict(self, rows: FloatMatrix) -> Scores:
        self.sizes.append(len(rows))
        logging.getLogger("workshop.models").info("%d rows", len(rows))
        return await super().predict(rows)


def test_what_a_model_logs_has_the_ids_of_all_requests_that_it_works_on(file, log):
    batched = MicroBatched(Logging(), max_rows=100, max_waiting_rows=1000, max_calls=1, timeout_s=30)
    names = [f"request-{number}" for number in range(40)]
    with classifier_alone(file, batched) as server, httpx.Client(base_url=server.url) as client:
        concurrently(
            lambda name: client.post("/v1/predict", json=RECORD, headers={"X-Request-ID": name}), names, at_once=20
        )
        log.requests(len(names))
    calls = [line for line in log.lines if line["logger"] == "workshop.models"]
    assert sum(int(line["message"].split()[0]) for line in calls) == len(names)
    logged = [line["request_id"].split(",") for line in calls]
    assert all(
        len(ids) == min(int(line["message"].split()[0]), MAX_LOGGED_IDS + 1)
        for ids, line in zip(logged, calls, strict=True)
    )
    assert {name for ids in logged for name in ids if "more" not in name} <= set(names)


SECRET_REQUESTS: dict[str, Callable[[httpx.Client], object]] = {
    "a right key": lambda client: client.post("/v1/predict", json=RECORD, headers={"Authorization": f"Bearer {KEY}"}),
    "a wrong key": lambda client: client.post(
        "/v1/predict", json=RECORD, headers={"Authorization": f"Bearer {PASSWORD}"}
    ),
    "another scheme": lambda client: client.get("/v1/cases", auth=("ada", PASSWORD)),
    "a ticket": lambda client: client.get("/v1/query/stream", params={"query": "Why?", "ticket": TICKET}),
    "a ticket for nothing": lambda client: client.get("/nothing", params={"ticket": TICKET}),
    "a cookie": lambda client: client.get("/v1/cases", headers={"Cookie": f"session={TICKET}"}),
    "a password": lambda client: client.post("/v1/predict", json={"password": PASSWORD}),
    "a form": lambda client: client.post("/v1/cases", data={"password": PASSWORD}),
    "a long path": lambda client: client.get("/" + "x" * 5000 + PASSWORD),
    "an id": lambda client: client.get("/health", headers={"X-Request-ID": f"{PASSWORD} {TICKET}"}),
}


@pytest.mark.parametrize("send", SECRET_REQUESTS.values(), ids=SECRET_REQUESTS)
@pytest.mark.parametrize("guarded", [True, False], ids=["with keys", "without keys"])
def test_no_line_has_a_secret(serve, log, send, guarded):
    root = logging.getLogger()
    root.addHandler(log.handler)
    try:
        with serve(**({"api_keys": {KEY: "ada"}} if guarded else {})) as service:
            send(service.client)
            until(lambda: [line for line in log.lines if "status" in line], bool)
    finally:
        root.removeHandler(log.handler)
    assert not any(secret in log.text for secret in (KEY, PASSWORD, TICKET))


def test_a_failing_statement_does_not_show_its_values(serve, log, file):
    with serve() as service:
        service.client.get("/v1/cases")
        replace_with_a_folder(file)
        measurements = RECORD | {"mean_radius": 17.125}
        assert service.client.post("/v1/cases", json={"measurements": measurements}).status_code == 503
    assert "17.125" not in log.text


def record(message: str, **extra: Any) -> logging.LogRecord:
    fields = {"name": "workshop.x", "msg": message, "levelno": 30, "levelname": "WARNING", "created": 1_700_000_000.25}
    return logging.makeLogRecord(fields | extra)


def test_a_line_of_text():
    set_log_fields(request_id="7")
    try:
        line = _TextFormatter(log_fields).format(record("Be careful.", status=200))
    finally:
        set_log_fields()
    assert line == "2023-11-14T22:13:20.250Z WARNING workshop.x: Be careful. [request_id=7]"
    assert _TextFormatter(log_fields).format(record("Be careful.")).endswith("workshop.x: Be careful.")


@pytest.mark.parametrize("log_format", LogFormat)
@pytest.mark.parametrize("message", ["a\n2023-11-14T22:13:20.250Z ERROR forged: line", "a\r\x1b[2Jb", "\ud800", "\x85"])
def test_what_a_caller_sends_cannot_forge_a_line(log_format, message):
    formatter = _JsonFormatter(log_fields) if log_format is LogFormat.JSON else _TextFormatter(log_fields)
    line = formatter.format(record(message))
    assert len(line.splitlines()) == 1
    assert not any(ord(character) < 32 for character in line)
    if log_format is LogFormat.JSON:
        assert json.loads(line)["message"] == message.strip()


def test_a_line_of_json_has_any_extra_value():
    line = json.loads(_JsonFormatter(log_fields).format(record("x", when=UUID(int=1), many={"a": [1]})))
    assert (line["when"], line["many"]) == (str(UUID(int=1)), {"a": [1]})


class Stream(io.StringIO):
    """Notes each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


@pytest.fixture
def handler() -> logging.StreamHandler[Stream]:
    return _Handler(Stream())


def test_the_lines_of_one_turn_of_the_event_loop_are_written_together(handler):
    async def log() -> None:
        for number in range(3):
            handler.handle(record(f"line {number}"))
        assert handler.stream.writes == []
        await asyncio.sleep(0)
        assert handler.stream.writes == ["line 0\nline 1\nline 2\n"]

    asyncio.run(log())


def test_so_many_lines_that_a_pipe_would_split_them_are_not_written_together(handler):
    async def log() -> None:
        for number in range(WRITE_LINES + 1):
            handler.handle(record(f"line {number}"))
        assert handler.stream.writes == ["".join(f"line {number}\n" for number in range(WRITE_LINES))]

    asyncio.run(log())


def test_without_an_event_loop_each_line_is_written_at_once(handler):
    handler.handle(record("one"))
    handler.handle(record("two"))
    assert handler.stream.writes == ["one\n", "two\n"]


def test_the_last_lines_of_an_event_loop_are_written_at_the_end_of_the_process(handler):
    async def log() -> None:
        handler.handle(record("the last one"))

    asyncio.run(log())
    handler.flush()  # as logging.shutdown does
    assert handler.stream.writes == ["the last one\n"]


def test_a_full_disk_ends_nothing(handler, monkeypatch):
    def fail(text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handler.stream, "write", fail)
    handler.handle(record("lost"))
    monkeypatch.undo()
    handler.handle(record("kept"))
    assert handler.stream.writes == ["kept\n"]
