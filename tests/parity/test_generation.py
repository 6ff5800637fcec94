"""Text for a prompt, and a conversation as JSON lines, in every runtime."""

import json

import httpx
import pytest

from tests.service import JSON_LINES, RATE_LIMIT, concurrently
from workshop import corpus

ENTRY = corpus.entries()[3]


def test_a_prompt_gets_a_text(service):
    answer = service.post("/v1/generate", json={"model": "workshop-main", "prompt": ENTRY.questions[0]}).json()
    assert (answer["text"], answer["finish_reason"]) == (ENTRY.answer, "stop")


def test_a_conversation_line_by_line(service):
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": ENTRY.questions[0]}]}
    with service.stream("POST", "/v1/chat/stream", json=body, headers=JSON_LINES) as answer:
        *pieces, last = [json.loads(line) for line in answer.iter_lines()]
    assert "".join(line["text"] for line in (*pieces, last)) == ENTRY.answer
    assert pieces  # on a busy machine, one has many tokens
    assert last["finish_reason"] == "stop"


def test_a_failure_before_the_first_line_is_a_problem_document(service):
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": "word " * 3000}]}
    for path, sent in (("/v1/chat/stream", body), ("/v1/generate", {"model": "workshop-main", "prompt": "w " * 3000})):
        answer = service.post(path, json=sent)
        assert (answer.status_code, answer.json()["error"]) == (400, "PromptTooLongError")


def test_a_caller_that_asks_too_often_is_told_when_to_come_back(service):
    """Invalid requests count too. Without Redis, two replicas let twice as many requests through."""
    hasty = {"Authorization": "Bearer hasty"}
    answers = [service.post("/v1/generate", json={}, headers=hasty) for _ in range(2 * RATE_LIMIT + 1)]
    assert [answer.status_code for answer in answers[:RATE_LIMIT]] == [422] * RATE_LIMIT
    refused = next(answer for answer in answers if answer.status_code != 422)
    assert (refused.status_code, refused.json()["error"]) == (429, "RateLimitedError")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


def test_megabytes_that_cannot_fit_are_refused_while_others_are_answered(service):
    huge = {"model": "workshop-main", "messages": [{"role": "user", "content": "word " * 6000}] * 120}

    def ask(i: int) -> httpx.Response:
        return service.post("/v1/chat/completions", json=huge) if i % 2 else service.get("/health")

    for i, answer in enumerate(concurrently(ask, range(8))):
        assert answer.status_code == (400 if i % 2 else 200)
        if i % 2:
            assert "at least" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", ["a\\ud800b", "\\udfff"])
def test_a_lone_surrogate_is_an_input_error(service, content):
    headers = {"Content-Type": "application/json", "Authorization": "Bearer half"}
    for path, body in (
        ("/v1/generate", '{"model": "workshop-draft", "prompt": "%s"}'),
        ("/v1/chat/completions", '{"model": "workshop-draft", "messages": [{"role": "user", "content": "%s"}]}'),
        ("/v1/embeddings", '{"model": "tfidf-svd", "input": "%s"}'),
        ("/v1/query", '{"query": "%s"}'),
        ("/v1/rag/query", '{"query": "%s"}'),
    ):
        answer = service.post(path, content=body % content, headers=headers)
        assert 400 <= answer.status_code < 500, (path, answer.text)


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-3])
def test_a_tiny_temperature_counts_as_zero(service, temperature):
    messages = [{"role": "user", "content": "What is a replica?"}]
    body = {"model": "workshop-draft", "messages": messages, "max_tokens": 8}
    answers = [service.post("/v1/chat/completions", json=body | {"temperature": t}).json() for t in (0, temperature)]
    assert answers[0]["choices"] == answers[1]["choices"]
