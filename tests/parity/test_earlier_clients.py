"""Clients of the earlier services, unchanged, in every runtime. Each request is one that their documents show."""

import json

import httpx
import pytest

from tests.browser import launched, opened
from tests.service import RECORD, RECORDS
from workshop import corpus
from workshop.contracts.tumours import FEATURES

ENTRY = corpus.entries()[3]
ACCEPTED = ENTRY.questions[0]
"""A question whose draft is accepted."""
MESSAGES = [{"role": "user", "content": ACCEPTED}]
NUMBERED = {f"feature_{number}": value for number, value in enumerate(RECORD.values(), start=1)}
SUCCESSORS = {
    ("POST", "/predict"): "/v1/predict",
    ("POST", "/batch-predict"): "/v1/batch-predict",
    ("GET", "/model/metadata"): "/v1/model/metadata",
    ("GET", "/model/features"): "/v1/model/features",
    ("GET", "/prometheus-metrics"): "/metrics",
    ("POST", "/query"): "/v1/query",
    ("POST", "/api/query"): "/v1/query",
    ("GET", "/api/query"): "/v1/query",
    ("GET", "/api/query/stream"): "/v1/query/stream",
    ("GET", "/api/stats"): "/v1/stats",
    ("POST", "/chat"): "/v1/chat/completions",
    ("POST", "/batch"): "/v1/batch",
    ("POST", "/generate"): "/v1/generate",
    ("POST", "/rag/query"): "/v1/rag/query",
}


@pytest.fixture(scope="module")
def rejected(service) -> str:
    """A question whose draft is rejected."""
    for entry in corpus.entries()[::17]:
        question = entry.held_out[0]
        if not service.post("/v1/query", json={"query": question}).json()["draft_accepted"]:
            return question
    raise AssertionError("the cascade accepts every draft")


def test_every_route_is_deprecated_and_names_its_successor(service):
    paths = service.get("/openapi.json").json()["paths"]
    documented = {
        (method.upper(), path): operation
        for path, operations in paths.items()
        for method, operation in operations.items()
        if operation["tags"] == ["earlier"]
    }
    assert documented.keys() == SUCCESSORS.keys()
    assert all(operation["deprecated"] for operation in documented.values())
    for (method, path), successor in SUCCESSORS.items():
        assert successor in paths
        response = service.request(method, path)  # without what it requires, so that most are errors
        assert response.headers["Deprecation"].startswith("@"), path
        assert response.headers["Sunset"].endswith(" GMT"), path
        assert response.headers["Link"] == f'<{successor}>; rel="successor-version"', path
        if response.is_error:
            problem = response.json()
            assert {"error", "detail", "details"} <= problem.keys()
            assert response.headers["Content-Type"] == "application/problem+json"


# ------------------------------------------------------------------------------------------ the tumour classifier


@pytest.mark.parametrize("features", [RECORD, NUMBERED], ids=["named", "numbered"])
def test_one_tumour(service, features):
    answer = service.post("/predict", json=features).json()
    successor = service.post("/v1/predict", json=RECORD).json()
    assert answer["prediction"] == successor["prediction"]
    assert answer["probability"] == list(successor["probabilities"].values())
    assert answer["confidence"] == max(answer["probability"])
    assert answer.keys() == successor.keys() | {"probability"}


@pytest.mark.parametrize(
    ("features", "rule"),
    [
        ({}, "missing"),
        (NUMBERED | {"feature_31": 1.0}, "extra_forbidden"),
        (NUMBERED | {"mean_radius": 1.0}, "extra_forbidden"),
        (NUMBERED | {"feature_1": "17.99"}, "float_type"),
        (NUMBERED | {"feature_1": -1.0}, "greater_than_equal"),
    ],
    ids=["none", "one too many", "one twice", "a text", "a negative one"],
)
def test_wrong_features(service, features, rule):
    answer = service.post("/predict", json=features)
    assert answer.status_code == 422
    assert rule in {detail["rule"] for detail in answer.json()["details"]}


def test_several_tumours(service):
    answer = service.post("/batch-predict", json={"records": [NUMBERED, *RECORDS[1:20]]}).json()
    alone = [service.post("/predict", json=record).json() for record in RECORDS[:20]]
    assert (answer["total"], "timestamp" in answer) == (20, True)
    assert [one["prediction"] for one in answer["predictions"]] == [one["prediction"] for one in alone]
    assert all(one.keys() == alone[0].keys() for one in answer["predictions"])
    assert service.post("/batch-predict", json={"records": RECORDS[:1] * 1001}).status_code == 422


def test_the_classifier_describes_itself(service):
    metadata, successor = (service.get(path).json() for path in ("/model/metadata", "/v1/model/metadata"))
    assert metadata == {name: value for name, value in successor.items() if name != "f1"} | {
        "f1_score": successor["f1"]
    }
    assert service.get("/model/features").json() == list(FEATURES)


def test_metrics_at_the_earlier_path(service):
    names = [
        {line.split()[2] for line in service.get(path).text.splitlines() if line.startswith("# TYPE")}
        for path in ("/prometheus-metrics", "/metrics")
    ]
    assert names[0] == names[1] != set()


# ---------------------------------------------------------------------------------------------------- the cascade


def test_a_question_in_the_url(service):
    answer = service.post("/query", params={"text": ACCEPTED, "max_tokens": 100}).json()
    assert answer == {"content": ENTRY.answer, "model": "workshop-draft", "cost": pytest.approx(answer["cost"])}
    assert answer["cost"] > 0


def test_a_question_as_json(service):
    answer = service.post("/api/query", json={"query": ACCEPTED, "temperature": 0.0}).json()
    assert (answer["content"], answer["model_used"]) == (ENTRY.answer, "workshop-draft")
    assert {"cost", "latency_ms", "cascaded", "draft_accepted"} <= answer.keys()
    direct = service.post("/api/query", json={"query": ACCEPTED, "force_direct": True}).json()
    assert direct["model_used"] == "workshop-main"


def test_a_question_by_get(service):
    assert service.get("/api/query", params={"query": ACCEPTED}).json()["content"]
    assert service.get("/api/query", params={"query": "w" * 501}).status_code == 422


def test_too_many_words_are_a_400_and_a_blank_question_a_422(service):
    long, blank = "word " * 501, " "
    for ask, status in [(long, 400), (blank, 422)]:
        assert service.post("/query", params={"text": ask}).status_code == status
        assert service.post("/api/query", json={"query": ask}).status_code == status
        assert service.get("/api/query/stream", params={"query": ask}).status_code == status
    assert service.post("/api/query", json={"query": "Why?", "max_tokens": 4001}).status_code == 422


def data_lines(client: httpx.Client, question: str) -> list[dict]:
    """What a reader of ``data: `` lines gets."""
    with client.stream("GET", "/api/query/stream", params={"query": question, "max_tokens": 200}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines), "an event with a name does not reach onmessage"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_stream_of_events_without_names(service, rejected):
    for question in (ACCEPTED, rejected):
        *chunks, last = data_lines(service, question)
        result = last["data"]["result"]
        assert {event["type"] for event in chunks} == {"chunk"}
        assert last["type"] == "complete"
        assert "".join(chunk["content"] for chunk in chunks) == last["content"] == result["content"]
        assert result.keys() == {"content", "model_used", "total_cost", "latency_ms"}
        assert result["model_used"] == ("workshop-draft" if question == ACCEPTED else "workshop-main")
        assert chunks  # on a busy machine, one has all tokens


EVENT_SOURCE = """
(url) => new Promise((resolve, reject) => {
    const events = [], source = new EventSource(url)
    source.onmessage = (message) => {
        events.push(JSON.parse(message.data))
        if (events.at(-1).type !== "chunk") { source.close(); resolve(events) }
    }
    source.onerror = () => reject(new Error("the stream broke"))
})
"""


def test_the_event_source_of_a_browser(service, chromium):
    with launched(chromium) as browser, opened(browser) as page:
        page.goto(f"{service.base_url}/docs")  # a page that may ask this service
        *chunks, last = page.evaluate(EVENT_SOURCE, f"/api/query/stream?query={ACCEPTED}")
    assert last["type"] == "complete"
    assert "".join(chunk["content"] for chunk in chunks) == last["content"] == ENTRY.answer


def test_totals(service):
    service.post("/query", params={"text": ACCEPTED})
    answer = service.get("/api/stats").json()
    assert answer.keys() == {"total_queries", "total_cost", "avg_cost_per_query", "models_used", "uptime_seconds"}


# ------------------------------------------------------------------------------------------- a single language model


def test_a_conversation(service):
    answer = service.post("/chat", json={"messages": MESSAGES, "temperature": 0.0}).json()
    assert answer["content"] == ENTRY.answer
    assert answer["model"] == "workshop-main"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] > 0
    other = service.post("/chat", json={"messages": MESSAGES, "model": "workshop-draft"}).json()
    assert (other["model"], other["id"] != answer["id"]) == ("workshop-draft", True)


def test_a_message_in_the_url(service):
    assert service.post("/chat", params={"message": ACCEPTED}).json() == {"response": ENTRY.answer}
    assert service.post("/generate", params={"prompt": ACCEPTED}).json() == {"response": ENTRY.answer}
    assert service.post("/chat").status_code == 422


def test_several_prompts(service):
    answer = service.post("/batch", json=[ACCEPTED, "What is a replica?"]).json()
    alone = service.post("/generate", params={"prompt": "What is a replica?"}).json()["response"]
    assert answer == {"results": [ENTRY.answer, alone]}
    assert service.post("/batch", json=[ACCEPTED, ""]).status_code == 422


def test_a_question_about_the_sources(service):
    answer = service.post("/rag/query", params={"query": ENTRY.held_out[0], "k": 5}).json()
    successor = service.post("/v1/rag/query", json={"query": ENTRY.held_out[0], "k": 5}).json()
    assert answer["answer"] == successor["answer"]
    assert answer["sources"] == [source["text"][:200] for source in successor["sources"]]


def test_a_conversation_in_openais_protocol_without_a_model(service):
    answer = service.post("/v1/chat/completions", json={"messages": MESSAGES}).json()
    assert answer["model"] == "workshop-main"
    assert answer["choices"][0]["message"]["content"] == ENTRY.answer
