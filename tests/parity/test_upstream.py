"""A service whose main model is another instance of the service, over OpenAI's protocol."""

from collections.abc import Iterator

import httpx
import pytest

from tests.leaving import HOT_QUESTION, Watch, leave_chat, leave_events
from tests.service import RECORD, client_at, until
from workshop import corpus
from workshop.api.app import create_app
from workshop.integration.services import build_services
from workshop.lab.app_server import run_app
from workshop.machine import free_port

ENTRY = corpus.entries()[3]
ASKED = {"model": "workshop-main", "messages": [{"role": "user", "content": ENTRY.held_out[0]}]}


@pytest.fixture(scope="module")
def downstream(reference, new_settings) -> Iterator[httpx.Client]:
    settings = new_settings(llm_base_url=f"{reference.base_url}/v1", llm_api_key="downstream")
    with run_app(create_app(build_services(settings), settings)) as server, client_at(server.url) as client:
        yield client


def test_its_answers_are_those_of_the_upstream(downstream, reference):
    here, there = (
        each.post("/v1/chat/completions", json=ASKED | {"logprobs": True}).json() for each in (downstream, reference)
    )
    assert here["choices"] == there["choices"]
    assert here["usage"] == there["usage"]


@pytest.mark.parametrize("path", ["/v1/query", "/v1/rag/query"])
def test_the_cascade_and_answers_from_sources_work_as_well(downstream, reference, path):
    here, there = (each.post(path, json={"query": ENTRY.held_out[0]}).json() for each in (downstream, reference))
    for name in {"content", "model_used", "quality", "answer", "sources"} & there.keys():
        assert here[name] == there[name]


def test_errors_of_the_upstream_are_passed_on(downstream):
    long = ASKED | {"messages": [{"role": "user", "content": "word " * 3000}]}
    answer = downstream.post("/v1/chat/completions", json=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("leave", [leave_chat, leave_events])
def test_a_client_that_leaves_stops_the_model_of_the_upstream(downstream, reference, leave):
    watch = Watch(reference, "workshop-main").look()
    cancelled = watch.total("cancelled")
    with httpx.Client(base_url=downstream.base_url) as client:
        leave(client)
    until(watch.look, lambda seen: seen.total("cancelled") > cancelled)
    assert (watch.total("cancelled"), watch.total("running")) == (cancelled + 1, 0)


def test_usage_is_kept_in_both(downstream, reference):
    """Those of earlier tests, whose client has left, may still be written meanwhile."""

    def kept(service: httpx.Client) -> int:
        return service.get("/v1/stats").json()["total_queries"]

    before = [kept(service) for service in (downstream, reference)]
    for _ in range(5):
        downstream.post("/v1/chat/completions", json=ASKED)
    for service, n in zip((downstream, reference), before, strict=True):
        assert until(lambda service=service: kept(service), lambda seen, n=n: seen >= n + 5) >= n + 5


def test_a_service_whose_upstream_is_unreachable_starts_and_does_all_that_does_not_need_it(new_settings):
    settings = new_settings(llm_base_url=f"http://127.0.0.1:{free_port()}/v1")
    with run_app(create_app(build_services(settings), settings)) as server, client_at(server.url) as client:
        answer = client.get("/readiness")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "degraded": ["workshop-main"]})
        assert client.post("/v1/predict", json=RECORD).status_code == 200
        draft = client.post("/v1/query", json={"query": ENTRY.questions[0]})
        assert (draft.status_code, draft.json()["draft_accepted"]) == (200, True)
        for path, body in [
            ("/v1/query", {"query": HOT_QUESTION, "force_direct": True}),
            ("/v1/chat/completions", ASKED),
            ("/v1/rag/query", {"query": ENTRY.held_out[0]}),
        ]:
            answer = client.post(path, json=body)
            assert answer.status_code == 503, path
            assert int(answer.headers["Retry-After"]) >= 1
