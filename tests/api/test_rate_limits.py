"""Rate limits over HTTP and on the WebSocket, counted in the process and in a real Redis."""

import json
from contextlib import ExitStack

import httpx
import openai
import pytest
from pydantic import ValidationError
from websockets.sync.client import connect

from tests.stand_ins import application, draft, main
from workshop.api.app import check_rate_limits
from workshop.contracts.errors import StartError
from workshop.settings import Settings

QUESTION = {"query": "What is a replica?"}
ADA, GRACE = ({"Authorization": f"Bearer {name}"} for name in ("ada", "grace"))
TWICE = {"/v1/query": "2/minute"}


def ask(client: httpx.Client, **options: object) -> int:
    return client.post("/v1/query", json=QUESTION, **options).status_code


def test_one_request_too_many_is_told_when_to_retry(serve):
    with serve(rate_limits=TWICE) as service:
        assert [ask(service.client, headers=ADA) for _ in range(2)] == [200, 200]
        answer = service.client.post("/v1/query", json=QUESTION, headers=ADA)
        assert answer.status_code == 429
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["error"] == "RateLimitedError"
        assert answer.json()["detail"] == "rate limit exceeded: 2 per 1 minute for /v1/query"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert len(service.draft.prompts) == 2


def test_each_principal_and_each_route_is_counted_separately(serve):
    with serve(rate_limits=TWICE | {"/v1/stats": "1/minute"}) as service:
        assert [ask(service.client, headers=ADA) for _ in range(3)] == [200, 200, 429]
        assert ask(service.client, headers=GRACE) == 200
        assert [service.client.get("/v1/stats", headers=ADA).status_code for _ in range(2)] == [200, 429]
        assert service.client.get("/v1/activity", headers=ADA).status_code == 200


def test_a_rule_applies_below_its_path_unless_a_longer_rule_does(serve):
    with serve(rate_limits={"/v1": "1/minute", "/v1/query/stream": "3/minute"}) as service:
        assert ask(service.client) == 200
        assert service.client.get("/v1/activity").status_code == 429
        statuses = [service.client.get("/v1/query/stream", params=QUESTION).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert service.client.get("/health").status_code == 200


def test_openais_client_raises_its_own_error(serve):
    with serve(rate_limits={"/v1/chat/completions": "1/minute"}) as service:
        client = openai.OpenAI(base_url=f"{service.server.url}/v1", api_key="ada", max_retries=0)
        ask = {"model": "main", "messages": [{"role": "user", "content": "What is a replica?"}]}
        client.chat.completions.create(**ask)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**ask)
        assert int(caught.value.response.headers["Retry-After"]) >= 1


def test_on_the_websocket_each_question_counts_and_the_connection_stays_usable(serve):
    with serve(rate_limits={"/v1/chat/ws": "1/minute"}) as service:
        address = f"ws{service.server.url.removeprefix('http')}/v1/chat/ws"
        with connect(address, additional_headers=ADA) as first, connect(address, additional_headers=GRACE) as second:
            for socket in (first, second):
                assert last_answer(socket, "1") == "done"
            assert last_answer(first, "2") == "error"
            first.send(json.dumps({"type": "ping", "id": "still there"}))
            assert json.loads(first.recv(timeout=10)) == {"type": "pong", "id": "still there"}


def last_answer(socket, id: str) -> str:
    """The type of the message that ends the answer to a question."""
    socket.send(json.dumps({"type": "ask", "id": id, "content": "What is a replica?"}))
    while (message := json.loads(socket.recv(timeout=10)))["type"] not in ("done", "error"):
        pass
    return message["type"]


def test_replicas_that_share_a_redis_count_together(serve, redis):
    url, _ = redis
    with ExitStack() as stack:
        one, two = (stack.enter_context(serve(rate_limits=TWICE, redis_url=url)) for _ in range(2))
        assert [ask(each.client, headers=ADA) for each in (one, two, one, two)] == [200, 200, 429, 429]


def test_nobody_is_rejected_while_redis_is_down(serve, redis, caplog):
    url, process = redis
    with serve(rate_limits=TWICE, redis_url=url) as service:
        assert ask(service.client) == 200
        process.terminate()
        process.wait()
        assert [ask(service.client) for _ in range(3)] == [200, 200, 200]
    assert "requests are not counted" in caplog.text


@pytest.mark.parametrize("path", ["/v1/qery", "/health", "/metrics", "/docs", "v1", "/v1/cases/{case_id}", "/v1\n/x"])
def test_the_service_does_not_start_with_a_rule_that_limits_nothing(file, path):
    with pytest.raises(StartError, match="rate_limits: there is no rate-limited route at or below") as caught:
        application(file, draft(), main(), rate_limits={path: "1/minute"})
    [line] = str(caught.value).splitlines()
    assert repr(path) in line
    assert "/v1/chat/ws, /v1/embeddings" in line


def test_the_service_does_not_start_with_a_rule_for_disabled_language_models():
    rules = {"/v1/query": "1/minute"}
    check_rate_limits(Settings(rate_limits=rules))
    with pytest.raises(StartError, match="/v1/query"):
        check_rate_limits(Settings(rate_limits=rules, language_models=False))


@pytest.mark.parametrize(
    "rule",
    ["often", "10/fortnight", "", "0/minute", "-1/minute", f"{10**30}/minute", "1/9999 years", "1/s; 2/s", "1e9/s"],
)
def test_a_rule_that_cannot_be_parsed_is_an_invalid_setting(rule):
    with pytest.raises(ValidationError, match="rate_limits"):
        Settings(rate_limits={"/v1": rule})
