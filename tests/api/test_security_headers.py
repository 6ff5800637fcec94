"""The headers that every response has, whatever made it."""

import pytest

from tests.stand_ins import main

DATA = "default-src 'none'; frame-ancestors 'none'"
KEY = {"Authorization": "Bearer a-key"}
QUESTION = {"query": "What is a replica?"}
FAULTY = {"model": "main", "prompt": "What is a replica?"}

REQUESTS = {
    "health": (200, "GET", "/health", {}),
    "an answer": (200, "GET", "/v1/cases", {"headers": KEY}),
    "a stream": (200, "GET", "/v1/query/stream", {"headers": KEY, "params": QUESTION}),
    "metrics": (200, "GET", "/prometheus-metrics", {"headers": KEY}),
    "the document": (200, "GET", "/openapi.json", {}),
    "no key": (401, "GET", "/v1/cases", {}),
    "nothing there": (404, "GET", "/nowhere", {}),
    "a method that is not allowed": (405, "DELETE", "/v1/predict", {"headers": KEY}),
    "a mistake": (422, "POST", "/v1/predict", {"headers": KEY, "json": {}}),
    "a mistake for OpenAI": (400, "POST", "/v1/chat/completions", {"headers": KEY, "json": {}}),
    "headers that are too large": (431, "GET", "/health", {"headers": {"X-Long": 40_000 * "a"}}),
    "a bug": (500, "POST", "/v1/generate", {"headers": KEY, "json": FAULTY}),
}


@pytest.fixture
def client(serve):
    with serve(big=main(error=RuntimeError("a bug")), api_keys={"a-key": "ada"}) as service:
        yield service.client


@pytest.mark.parametrize("case", REQUESTS)
def test_data_is_neither_run_nor_framed_nor_kept(client, case):
    status, method, path, options = REQUESTS[case]
    answer = client.request(method, path, **options)
    assert answer.status_code == status
    assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]
    assert answer.headers.get_list("Referrer-Policy") == ["no-referrer"]
    assert answer.headers.get_list("Content-Security-Policy") == [DATA]
    [kept] = answer.headers.get_list("Cache-Control")
    assert kept == ("no-cache" if case == "a stream" else "no-store")
    assert "Strict-Transport-Security" not in answer.headers


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_the_documentation_loads_only_files_of_this_service(client, page):
    policy = client.get(page).headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    allowed = {source for sources in rules.values() for source in sources.split()}
    assert allowed <= {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}


def test_a_file_may_be_kept_and_revalidated(client):
    first = client.get("/static-offline-docs/swagger-ui.css")
    again = client.get("/static-offline-docs/swagger-ui.css", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code) == (200, 304)
    assert "no-store" not in first.headers.get("Cache-Control", "") + again.headers.get("Cache-Control", "")
    assert again.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("scheme", "expected"), [("https", "max-age=31536000"), ("http", None)])
@pytest.mark.parametrize("path", ["/health", "/nowhere", "/"])
def test_a_browser_that_came_by_https_stays_with_it(serve, scheme, expected, path):
    with serve(trusted_proxies=["127.0.0.1"]) as service:
        answer = service.client.get(path, headers={"X-Forwarded-Proto": scheme})
    assert answer.headers.get("Strict-Transport-Security") == expected


def test_a_caller_who_only_says_https_changes_nothing(client):
    answer = client.get("/health", headers={"X-Forwarded-Proto": "https"})
    assert "Strict-Transport-Security" not in answer.headers
