"""A text for a text, and a conversation as JSON lines, in every runtime."""

import json

from tests.service import RATE_LIMIT
from workshop import corpus

ENTRY = corpus.entries()[3]


def test_a_text_for_a_text(service):
    answer = service.post("/v1/generate", json={"model": "workshop-main", "prompt": ENTRY.questions[0]}).json()
    assert (answer["text"], answer["finish_reason"]) == (ENTRY.answer, "stop")


def test_a_conversation_line_by_line(service):
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": ENTRY.questions[0]}]}
    with service.stream("POST", "/v1/chat/stream", json=body) as answer:
        *pieces, last = [json.loads(line) for line in answer.iter_lines()]
    assert "".join(line["text"] for line in (*pieces, last)) == ENTRY.answer
    assert len(pieces) > 5
    assert last["finish_reason"] == "stop"


def test_what_fails_first_is_a_problem_document(service):
    body = {"model": "workshop-main", "messages": [{"role": "user", "content": "word " * 3000}]}
    for path, sent in (("/v1/chat/stream", body), ("/v1/generate", {"model": "workshop-main", "prompt": "w " * 3000})):
        answer = service.post(path, json=sent)
        assert (answer.status_code, answer.json()["error"]) == (400, "PromptTooLongError")


def test_who_asks_too_often_is_told_when_to_come_back(service):
    """Mistakes count too. Two replicas without a Redis let twice as many through."""
    hasty = {"Authorization": "Bearer hasty"}
    answers = [service.post("/v1/generate", json={}, headers=hasty) for _ in range(2 * RATE_LIMIT + 1)]
    assert [answer.status_code for answer in answers[:RATE_LIMIT]] == [422] * RATE_LIMIT
    refused = next(answer for answer in answers if answer.status_code != 422)
    assert (refused.status_code, refused.json()["error"]) == (429, "RateLimitedError")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
