"""One request id and one trace, from the first header to the model, whichever processes a request passes through.

Real processes, each with its own log and its own exporter, and a collector on a port.
"""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Proto
from websockets.sync.client import connect

from tests.cli.conftest import Run, environment_of
from tests.collector import Collector, Span, running_collector
from tests.service import RECORD, concurrently, socket_url, until
from workshop import corpus

pytestmark = pytest.mark.slow

COMMANDS = {
    "uvicorn": ["api"],
    "serve, models inline": ["serve"],
    "serve, models apart": ["serve", "--placement", "deployment"],
}
RUNTIMES = [pytest.param(name, marks=pytest.mark.ray(own=True) if "serve" in name else ()) for name in COMMANDS]
KEY = "key-of-ada"
QUESTION = corpus.entries()[3].questions[0]
REQUEST = "workshop.api.middleware.observation"
CLASSIFIER, LANGUAGE_MODEL = "workshop.models.tumours", "workshop.models.language_model"
CALLER = "00f067aa0ba902b7"
"""The span of a caller that has a trace of its own."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """A service, and what it tells of itself."""

    runtime: str
    run: Run
    collector: Collector
    client: httpx.Client

    @property
    def is_apart(self) -> bool:
        return "apart" in self.runtime

    def lines(self, request_id: str, *loggers: str) -> dict[str, list[Line]]:
        """The lines of a request by logger, once all of these loggers have written."""

        def found() -> dict[str, list[Line]]:
            by_logger: dict[str, list[Line]] = {}
            for line in json_lines(self.run.err):
                if request_id in line.get("request_id", "").split(","):
                    by_logger.setdefault(line["logger"], []).append(line)
            return by_logger

        seen = until(found, lambda by_logger: by_logger.keys() >= set(loggers))
        assert seen.keys() == set(loggers), self.run.err
        return seen

    def trace(self, trace: str, *names: str) -> dict[str, Span]:
        """The spans of a trace by name, once all of these have arrived. They are one tree."""

        def found() -> dict[str, Span]:
            return {span.name: span for span in self.collector.trace(trace)}

        def is_complete(spans: dict[str, Span]) -> bool:  # each process sends its own, in any order
            return spans.keys() >= set(names) and [span.parent for span in roots(spans)] in ([""], [CALLER])

        spans = until(found, is_complete)
        assert is_complete(spans), spans
        return spans


def json_lines(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def roots(spans: dict[str, Span]) -> list[Span]:
    ids = {span.id for span in spans.values()}
    return [span for span in spans.values() if span.parent not in ids]


def ancestors(span: Span, spans: dict[str, Span]) -> list[str]:
    """The names of a span and those above it."""
    by_id = {each.id: each for each in spans.values()}
    names = [span.name]
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return names


def headers(request_id: str, trace: str | None = None) -> dict[str, str]:
    traced = {"traceparent": f"00-{trace}-{CALLER}-01"} if trace else {}
    return {"Authorization": f"Bearer {KEY}", "X-Request-ID": request_id, **traced}


@pytest.fixture(scope="module", params=RUNTIMES)
def observed(request, artifact, retriever_artifact, tmp_path_factory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    with running_collector() as collector:
        environment = environment_of(artifact, folder) | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "WORKSHOP_API_KEYS": json.dumps({KEY: "ada"}),
            "WORKSHOP_LANGUAGE_MODELS": "true",
            "WORKSHOP_LOG_LEVEL": "debug",
            "WORKSHOP_RETRIEVER_ARTIFACT": str(retriever_artifact),
        }
        run = Run(folder, *COMMANDS[request.param], "--port", "0", **environment)
        try:
            with httpx.Client(base_url=run.url(), timeout=60) as client:
                yield Observed(request.param, run, collector, client)
            run.send(signal.SIGTERM)
        finally:
            run.kill()


def test_a_prediction_has_one_id_and_one_trace_down_to_the_model(observed):
    request_id, trace = str(uuid4()), uuid4().hex
    answer = observed.client.post("/v1/predict", json=RECORD, headers=headers(request_id, trace))
    assert answer.headers.get_list("X-Request-ID") == [request_id]
    lines = observed.lines(request_id, REQUEST, CLASSIFIER)
    [line] = lines[REQUEST]
    assert (line["route"], line["status"], line["principal"]) == ("/v1/predict", 200, "ada")
    assert {line["trace_id"] for found in lines.values() for line in found} == {trace}

    names = ["POST /v1/predict", "predict"]
    if observed.is_apart:
        names.append("replica_handle_request classifier predict")
    spans = observed.trace(trace, *names)
    assert [span.parent for span in roots(spans)] == [CALLER]
    assert [name for name in ancestors(spans[names[-1]], spans) if name in names] == names[::-1]
    request = spans["POST /v1/predict"]
    assert request.kind == Proto.SPAN_KIND_SERVER
    assert request.service == "workshop"
    assert request.attributes["http.route"] == "/v1/predict"
    assert request.attributes["http.response.status_code"] == 200


def test_a_stream_has_one_id_and_one_trace_that_begins_with_it(observed):
    request_id = str(uuid4())
    path = "/v1/query/stream"
    with observed.client.stream("GET", path, params={"query": QUESTION}, headers=headers(request_id)) as answer:
        for _ in answer.iter_lines():
            pass
    lines = observed.lines(request_id, REQUEST, LANGUAGE_MODEL)
    [line] = lines[REQUEST]
    assert (line["route"], line["status"]) == (path, 200)
    assert lines[LANGUAGE_MODEL][0]["completion_tokens"] > 0
    assert {each["trace_id"] for found in lines.values() for each in found} == {line["trace_id"]}

    names = [f"GET {path}"]
    if observed.is_apart:
        names.append("replica_handle_request language-models stream")
    spans = observed.trace(line["trace_id"], *names)
    assert [span.parent for span in roots(spans)] == [""]
    assert names[0] in ancestors(spans[names[-1]], spans)
    # The model's own time lies within each span above it: none ends before its stream.
    for name in names:
        assert spans[name].seconds >= 0.9 * max(each["duration_ms"] for each in lines[LANGUAGE_MODEL]) / 1000


def test_a_websocket_has_one_id_and_one_trace(observed):
    request_id = str(uuid4())
    with connect(socket_url(observed.client), additional_headers=headers(request_id)) as socket:
        socket.send(json.dumps({"type": "ask", "id": "1", "content": QUESTION}))
        while json.loads(socket.recv(60))["type"] != "done":
            pass
    lines = observed.lines(request_id, REQUEST, LANGUAGE_MODEL)
    [line] = lines[REQUEST]
    assert (line["method"], line["route"], line["principal"]) == ("WEBSOCKET", "/v1/chat/ws", "ada")
    assert {each["trace_id"] for found in lines.values() for each in found} == {line["trace_id"]}
    observed.trace(line["trace_id"], "WS /v1/chat/ws")


def test_requests_that_share_a_call_of_the_model_are_all_named_and_linked(observed):
    ids = [str(uuid4()) for _ in range(40)]
    concurrently(
        lambda request_id: observed.client.post("/v1/predict", json=RECORD, headers=headers(request_id)),
        ids,
        at_once=10,
    )
    lines = [observed.lines(request_id, REQUEST, CLASSIFIER)[REQUEST] for request_id in ids]
    traces = {line["trace_id"] for [line] in lines}
    assert len(traces) == len(ids)

    def calls() -> list[Span]:
        return [span for span in observed.collector.spans if span.name == "predict" and span.trace in traces]

    def requests(calls: list[Span]) -> int:
        return sum(1 + len(call.links) for call in calls)

    seen = until(calls, lambda calls: requests(calls) == len(ids))
    assert requests(seen) == sum(call.attributes["requests"] for call in seen) == len(ids)


def test_an_id_or_a_trace_that_is_not_one_is_replaced_everywhere(observed):
    sent = {"X-Request-ID": "not an id", "traceparent": "00-nonsense"}
    answer = observed.client.post("/v1/predict", json=RECORD, headers=headers("") | sent)
    [request_id] = answer.headers.get_list("X-Request-ID")
    lines = observed.lines(request_id, REQUEST, CLASSIFIER)
    spans = observed.trace(lines[REQUEST][0]["trace_id"], "POST /v1/predict", "predict")
    assert [span.parent for span in roots(spans)] == [""]
    assert "not an id" not in observed.run.err
    assert "not an id" not in observed.collector.text


def test_a_caller_that_does_not_record_its_trace_decides_for_all_processes(observed):
    request_id, trace = str(uuid4()), uuid4().hex
    sent = headers(request_id) | {"traceparent": f"00-{trace}-{CALLER}-00"}
    observed.client.post("/v1/predict", json=RECORD, headers=sent)
    [line] = observed.lines(request_id, REQUEST, CLASSIFIER)[REQUEST]
    assert line["trace_id"] == trace
    later = str(uuid4())
    observed.client.get("/ping", headers=headers(later))
    observed.trace(observed.lines(later, REQUEST)[REQUEST][0]["trace_id"], "GET /ping")  # what came before is here
    assert not observed.collector.trace(trace)


def test_neither_the_log_nor_a_span_has_a_secret(observed):
    secret = uuid4().hex
    client = observed.client
    client.get("/v1/query/stream", params={"query": QUESTION, "ticket": secret}, headers=headers(str(uuid4())))
    client.post("/v1/query", json={"query": secret}, headers=headers(str(uuid4())))
    client.get("/v1/cases", headers={"Authorization": f"Bearer {secret}"})
    client.get("/v1/cases", auth=("ada", secret), headers={"Cookie": f"session={secret}"})
    last = str(uuid4())
    client.get("/ping", headers=headers(last))
    observed.trace(observed.lines(last, REQUEST)[REQUEST][0]["trace_id"], "GET /ping")
    for told in (observed.run.err, observed.run.out, observed.collector.text):
        assert secret not in told
        assert KEY not in told
