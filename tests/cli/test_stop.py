"""From start to stop: however it is stopped, the service ends, and no process and no port is left."""

import json
import re
import signal
import time
from urllib.parse import urljoin

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from tests.service import RECORD, concurrently
from tests.stand_ins import records_in
from workshop.lab.app_server import run_app

pytestmark = pytest.mark.slow

WAYS = {
    "Ctrl-C": lambda run: run.interrupt(),
    "SIGINT": lambda run: run.send(signal.SIGINT),
    "SIGTERM": lambda run: run.send(signal.SIGTERM),
}
PREFIX = "/behind/a/proxy"
CUT_SHORT = 1
"""The exit status of a stop that is not over after ten seconds: on a busy machine, Ray may need longer."""


def proxy_to(url: str):
    """A reverse proxy that removes ``PREFIX``."""

    async def forward(scope, receive, send):
        assert scope["type"] == "http"
        request = Request(scope, receive)
        assert request.url.path.startswith(PREFIX)
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.request(
                request.method,
                request.url.path.removeprefix(PREFIX),
                content=await request.body(),
                headers={"Content-Type": request.headers.get("Content-Type", "")},
            )
        headers = {name: answer.headers[name] for name in ("Content-Type", "Location") if name in answer.headers}
        await Response(answer.content, answer.status_code, headers)(scope, receive, send)

    return forward


def assert_works_behind_a_proxy(url: str) -> None:
    """Its pages, and all that they and its responses link to, can be reached through the proxy."""
    with run_app(proxy_to(url), lifespan="off") as proxy, httpx.Client(base_url=proxy.url) as client:
        for page in ("/docs", "/redoc"):
            text = client.get(PREFIX + page).text
            assert f"{PREFIX}/openapi.json" in text
            assets = re.findall(r"""(?:src|href|url|spec-url)\s*[=:]\s*["']([^"']+)["']""", text)
            assert len(assets) >= 2
            for asset in assets:
                assert client.get(urljoin(PREFIX + page, asset)).status_code == 200, asset
        assert client.get(f"{PREFIX}/openapi.json").json()["servers"] == [{"url": PREFIX}]
        kept = client.post(f"{PREFIX}/v1/cases", json={"measurements": RECORD})
        assert client.get(kept.headers["Location"]).json() == kept.json()


def assert_stops(run, url, stop) -> None:
    assert run.processes()
    assert stop(run) in (0, -signal.SIGTERM, CUT_SHORT)
    assert "Traceback" not in run.err
    assert not run.leftovers()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


# On Serve, test_shutdown.py sends Ctrl-C and SIGINT.
@pytest.mark.parametrize("way", WAYS)
def test_api(run, way):
    run = run("api", "--port", "0", "--root-path", PREFIX)
    url = run.url()
    assert_works_behind_a_proxy(url)
    assert_stops(run, url, WAYS[way])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["api"], "Serving on"),
        pytest.param(["serve", "--placement", "deployment"], "deployment placement", marks=pytest.mark.ray(own=True)),
    ],
    ids=["api", "serve"],
)
def test_no_usage_is_lost_when_it_is_stopped_right_after_a_response(run, command, says, retriever_artifact, tmp_path):
    language = {"WORKSHOP_LANGUAGE_MODELS": "true", "WORKSHOP_RETRIEVER_ARTIFACT": str(retriever_artifact)}
    run = run(*command, "--port", "0", "--root-path", PREFIX, **language)
    url = run.url()
    assert says in run.out
    assert_works_behind_a_proxy(url)
    questions = ["What is Ray Serve?", "What is a deployment handle?", "What is an event loop?"]
    answers = concurrently(lambda query: httpx.post(url + "/v1/query", json={"query": query}, timeout=60), questions)
    assert_stops(run, url, WAYS["SIGTERM"])
    costs = [answer.json()["cost"] for answer in answers]
    charged = [record["cost"] for record in records_in(tmp_path / "service.sqlite")]
    assert sorted(charged) == pytest.approx(sorted(costs))


@pytest.mark.ray(own=True)
@pytest.mark.parametrize("way", ["Ctrl-C", "SIGTERM"])
def test_serve_while_it_starts(run, way):
    run = run("serve", "--port", "0")
    while not any(process.name() == "raylet" for process in run.processes()):
        assert run.process.poll() is None, run.err
        time.sleep(0.1)
    assert WAYS[way](run) in (0, CUT_SHORT)
    assert "Serving" not in run.out
    assert {json.loads(line)["level"] for line in run.err.splitlines()} <= {"info"}
    assert not run.leftovers()
