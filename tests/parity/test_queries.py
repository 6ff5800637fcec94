"""The cascade over HTTP, the same in every runtime."""

import json
import time
from functools import partial
from uuid import uuid4

import httpx
import pytest
from httpx_sse import connect_sse

from tests.leaving import LEAVES, WHOLE_ANSWERS, Watch, has_answer, leaving
from tests.service import concurrently, until
from workshop import corpus

ENTRY = corpus.entries()[3]
QUESTIONS = [entry.held_out[0] for entry in corpus.entries()[::17]]
SAME = ("content", "model_used", "quality", "cost", "cascaded", "draft_accepted")


def same(answer: dict) -> dict:
    """An answer without what differs from run to run."""
    return {name: pytest.approx(answer[name], abs=1e-4) for name in SAME if isinstance(answer[name], float)} | {
        name: answer[name] for name in SAME if not isinstance(answer[name], float)
    }


def events(client: httpx.Client, **parameters) -> list[tuple[str, dict]]:
    with connect_sse(client, "GET", "/v1/query/stream", params=parameters) as source:
        return [(event.event, json.loads(event.data)) for event in source.iter_sse()]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_same_question_gets_the_same_answer(service, reference, question):
    answer, expected = (each.post("/v1/query", json={"query": question}) for each in (service, reference))
    assert answer.status_code == 200, answer.text
    assert answer.json() | same(expected.json()) == answer.json()


def test_drafts_are_accepted_and_rejected(service):
    answers = [service.get("/v1/query", params={"query": question}).json() for question in QUESTIONS]
    assert {answer["draft_accepted"] for answer in answers} == {True, False}
    for answer in answers:
        assert answer["model_used"] == ("workshop-draft" if answer["draft_accepted"] else "workshop-main")
        assert answer["cascaded"] is not answer["draft_accepted"]


def test_the_main_model_alone_costs_more_than_an_accepted_draft(service):
    draft = service.post("/v1/query", json={"query": ENTRY.questions[0]}).json()
    direct = service.post("/v1/query", json={"query": ENTRY.questions[0], "force_direct": True}).json()
    assert (draft["draft_accepted"], direct["model_used"]) == (True, "workshop-main")
    assert 0 < draft["cost"] < direct["cost"]


@pytest.mark.parametrize("question", QUESTIONS[:8])
def test_a_stream_gives_the_same_answer_in_events(service, question):
    answer = service.post("/v1/query", json={"query": question}).json()
    kinds, data = zip(*events(service, query=question), strict=True)
    assert kinds[-1] == "complete"
    assert data[-1] | same(answer) == data[-1]
    assert kinds.count("switch") == answer["cascaded"]
    shown = data[kinds.index("switch") + 1 : -1] if "switch" in kinds else data[:-1]
    assert "".join(piece["text"] for piece in shown) == answer["content"]


def test_a_client_that_reconnects_is_not_answered_twice(service):
    answer = service.get("/v1/query/stream", params={"query": "What is a replica?"}, headers={"Last-Event-ID": "3"})
    assert answer.status_code == 204


def test_a_batch_answers_all_queries_in_their_order(service):
    results = service.post("/v1/batch", json={"queries": [{"query": question} for question in QUESTIONS]}).json()
    alone = [service.post("/v1/query", json={"query": question}).json() for question in QUESTIONS]
    for item, answer in zip(results["results"], alone, strict=True):
        assert item["answer"] | same(answer) == item["answer"]


def test_the_statistics_cover_the_whole_service(running):
    service, caller = running.client, f"caller-{uuid4()}"

    def ask(question: str) -> float:
        answer = service.post("/v1/query", json={"query": question}, headers={"Authorization": f"Bearer {caller}"})
        return answer.json()["cost"]

    def charges() -> list[float]:
        return [record["cost"] for record in running.records() if record["principal"] == caller]

    costs = concurrently(ask, QUESTIONS, at_once=8)
    assert sorted(until(charges, lambda seen: len(seen) >= len(costs))) == pytest.approx(sorted(costs))
    # Other tests may still be charged meanwhile: compare with what is in the store.
    stats, records = until(lambda: (service.get("/v1/stats").json(), running.records()), counts_all)
    assert counts_all((stats, records))
    assert stats["total_cost"] == pytest.approx(sum(record["cost"] for record in records))
    metrics = service.get("/metrics").text
    assert 'cascade_queries_total{model="workshop-draft"}' in metrics
    assert "cascade_query_duration_seconds_bucket" in metrics


def counts_all(seen: tuple[dict, list[dict]]) -> bool:
    stats, records = seen
    return stats["total_queries"] == len(records)


def leave_whole(method: str, path: str, options: dict, client: httpx.Client) -> None:
    """Leave once a replica of the model has generated some tokens, or has ended a short answer."""
    watch = Watch(client, "workshop-main").look()
    made = watch.total("generated_tokens")
    end = time.monotonic() + 60
    with leaving(client, method, path, **options) as connection:
        while watch.look(4).total("generated_tokens") <= made + 2 and not has_answer(connection):
            assert time.monotonic() < end


TRIES = 5

LEAVE_WHOLE = {
    name: partial(leave_whole, method, name.split()[0], options) for name, (method, options) in WHOLE_ANSWERS.items()
}


@pytest.mark.parametrize(
    "leave", [*LEAVES, *LEAVE_WHOLE.values()], ids=[*(leave.__name__ for leave in LEAVES), *LEAVE_WHOLE]
)
def test_a_client_that_leaves_stops_the_model_and_pays_for_what_was_generated(running, leave):
    """The replicas' counters show it: a long answer is cancelled, and not completed after the client has left."""
    service, caller = running.client, f"caller-{uuid4()}"
    watch = Watch(service, "workshop-main").look()
    cancelled, tokens = watch.total("cancelled"), watch.total("generated_tokens")
    leaves = 0
    while leaves < TRIES:  # on a busy machine, an answer may be complete before its client has left
        leaves += 1
        completed = watch.total("completed")
        with httpx.Client(base_url=service.base_url, headers={"Authorization": f"Bearer {caller}"}) as client:
            leave(client)
        ended = cancelled + completed
        until(watch.look, lambda seen, ended=ended: seen.total("cancelled") + seen.total("completed") > ended)
        if watch.total("cancelled") > cancelled:
            break
        tokens = watch.total("generated_tokens")
    assert watch.total("cancelled") == cancelled + 1
    assert watch.total("running") == 0
    charges = until(
        lambda: [record for record in running.records() if record["principal"] == caller],
        lambda seen: len(seen) >= leaves,
    )
    assert len(charges) == leaves
    charged = min(charges, key=lambda record: record["completion_tokens"])
    assert charged["prompt_tokens"] > 0
    assert 0 < charged["completion_tokens"] < 900
    made = watch.total("generated_tokens")
    assert made - tokens < 900
    time.sleep(0.5)
    # The step that was under way still counts.
    assert watch.look().total("generated_tokens") - made <= 2
