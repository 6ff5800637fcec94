"""Rate limits over HTTP and on the WebSocket, counted in the process and in a real Redis."""

import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import httpx
import openai
import pytest
from pydantic import ValidationError
from websockets.sync.client import connect

from tests.redis_server import running_redis
from tests.service import until
from tests.stand_ins import application, draft, main
from workshop.api import rate_limits
from workshop.api.app import check_rate_limits
from workshop.contracts.errors import StartError
from workshop.settings import Settings

pytestmark = pytest.mark.slow

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


def quotas(answer: httpx.Response) -> list[tuple[str, int, int, int, int]]:
    """Name, quota, window, remaining and reset of each policy, read as a client with a parser would read them."""
    policies = re.findall(r'"([^"]+)";q=(\d+);w=(\d+)(?:, |$)', answer.headers.get("RateLimit-Policy", ""))
    limits = re.findall(r'"([^"]+)";r=(\d+);t=(\d+)(?:, |$)', answer.headers.get("RateLimit", ""))
    assert [name for name, *_ in policies] == [name for name, *_ in limits]
    return [(name, int(q), int(w), int(r), int(t)) for (name, q, w), (_, r, t) in zip(policies, limits, strict=True)]


def test_every_response_of_a_limited_route_says_what_is_left(serve):
    with serve(rate_limits={"/v1/query": "3/minute"}) as service:
        answers = [
            service.client.post("/v1/query", json=QUESTION),
            service.client.post("/v1/query", json={}),  # counts too
            service.client.get("/v1/query/stream", params=QUESTION),
            service.client.post("/v1/query", json=QUESTION),
        ]
        assert [answer.status_code for answer in answers] == [200, 422, 200, 429]
        for answer, left in zip(answers, (2, 1, 0, 0), strict=True):
            [(name, quota, window, remaining, resets)] = quotas(answer)
            assert (name, quota, window, remaining) == ("/v1/query", 3, 60, left)
            assert 1 <= resets <= 60
        assert int(answers[-1].headers["Retry-After"]) >= resets
        assert quotas(service.client.get("/v1/stats")) == []


def test_each_limit_that_a_request_counts_in_is_named(serve):
    options = {"api_keys": {"a-key": "ada"}, "anonymous_limit": "2/hour", "rate_limits": {"/v1": "5/minute"}}
    with serve(**options) as service:
        answer = service.client.post("/v1/query", json=QUESTION)
        assert [quota[:4] for quota in quotas(answer)] == [("requests without a key", 2, 3600, 1), ("/v1", 5, 60, 4)]
        answer = service.client.post("/v1/query", json=QUESTION, headers={"Authorization": "Bearer guess"})
        assert answer.status_code == 401
        assert [quota[:4] for quota in quotas(answer)] == [("wrong keys", 30, 60, 29)]


def test_an_anonymous_caller_asks_no_more_on_a_websocket(serve):
    with serve(api_keys={"a-key": "ada"}, anonymous_limit="3/hour") as service:
        with connect(f"ws{service.server.url.removeprefix('http')}/v1/chat/ws") as socket:
            assert [last_answer(socket, str(n))["type"] for n in range(3)] == ["done", "done", "error"]
        assert service.client.post("/v1/query", json=QUESTION).status_code == 429


@pytest.mark.parametrize(
    ("first", "second", "is_one_caller"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.5", "203.0.113.5", True),
        ("::ffff:203.0.113.5", "::ffff:203.0.113.6", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_all_addresses_of_an_ipv6_network_are_one_caller(serve, first, second, is_one_caller):
    with serve(rate_limits={"/v1/query": "1/minute"}, trusted_proxies=["127.0.0.1"]) as service:
        statuses = [ask(service.client, headers={"X-Forwarded-For": address}) for address in (first, second)]
    assert statuses == ([200, 429] if is_one_caller else [200, 200])


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
                assert last_answer(socket, "1")["type"] == "done"
            refused = last_answer(first, "2")
            assert (refused["type"], refused["error"]) == ("error", "RateLimitedError")
            assert 1 <= refused["retry_after_s"] <= 60
            first.send(json.dumps({"type": "ping", "id": "still there"}))
            assert json.loads(first.recv(timeout=60)) == {"type": "pong", "id": "still there"}


def last_answer(socket, id: str) -> dict:
    """The message that ends the answer to a question."""
    socket.send(json.dumps({"type": "ask", "id": id, "content": "What is a replica?"}))
    while (message := json.loads(socket.recv(timeout=60)))["type"] not in ("done", "error"):
        pass
    return message


def test_replicas_that_share_a_redis_count_together(serve, redis):
    url, _ = redis
    with ExitStack() as stack:
        one, two = (stack.enter_context(serve(rate_limits=TWICE, redis_url=url)) for _ in range(2))
        assert [ask(each.client, headers=ADA) for each in (one, two, one, two)] == [200, 200, 429, 429]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(rate_limits, "REDIS_RETRY_S", 0.1)


def test_each_process_counts_alone_while_redis_is_gone(serve, redis, redis_server, tmp_path, impatient, caplog):
    url, process = redis
    with ExitStack() as stack:
        one, two = (stack.enter_context(serve(rate_limits=TWICE, redis_url=url)) for _ in range(2))
        assert [ask(one.client), ask(two.client), ask(one.client)] == [200, 200, 429]
        process.kill()
        process.wait()
        assert [ask(each.client) for each in (one, one, one, two, two, two)] == [200, 200, 429, 200, 200, 429]
        with running_redis(redis_server, int(url.rpartition(":")[2]), tmp_path):
            for n, each in enumerate((one, two)):
                look = partial(ask, each.client, headers={"Authorization": "Bearer somebody else"})
                until(look, lambda _, n=n: caplog.text.count("Redis answers again") > n)
            assert [ask(each.client, headers=GRACE) for each in (one, two, one, two)] == [200, 200, 429, 429]
    assert caplog.text.count("Redis does not answer") == 2  # once for each process, not for each request


def test_a_redis_that_is_gone_in_the_middle_costs_no_request(serve, redis, redis_server, tmp_path, impatient):
    """It is killed and comes back while eight clients ask."""
    url, process = redis
    statuses: list[int] = []
    is_over = threading.Event()
    with serve(rate_limits={"/v1/query": "1000000/minute"}, redis_url=url) as service, ThreadPoolExecutor(8) as pool:

        def ask_on(_: int) -> None:
            while not is_over.is_set():
                statuses.append(ask(service.client))

        def wait_for_answers() -> None:
            target = len(statuses) + 50
            until(lambda: len(statuses), lambda n: n > target)

        clients = [pool.submit(ask_on, n) for n in range(8)]
        wait_for_answers()
        process.kill()
        process.wait()
        wait_for_answers()
        with running_redis(redis_server, int(url.rpartition(":")[2]), tmp_path):
            wait_for_answers()
            is_over.set()
            for client in clients:
                client.result()
    assert set(statuses) == {200}


def test_only_one_request_waits_for_a_redis_that_hangs(serve, redis, monkeypatch):
    monkeypatch.setattr(rate_limits, "REDIS_TIMEOUT_S", 2.0)
    monkeypatch.setattr(rate_limits, "REDIS_RETRY_S", 600.0)
    url, process = redis
    with serve(rate_limits={"/v1/query": "1000/minute"}, redis_url=url) as service:
        assert ask(service.client) == 200
        process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        assert [ask(service.client) for _ in range(10)] == [200] * 10
        assert time.monotonic() - start < 5 * rate_limits.REDIS_TIMEOUT_S


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
