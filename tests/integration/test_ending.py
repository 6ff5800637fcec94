"""How a replica that is stopped ends requests in progress. tests/cli/test_shutdown.py tests the whole shutdown."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.service import JSON_LINES, until
from tests.stand_ins import application, draft, main, records_in
from workshop.integration import stopping
from workshop.integration.serve_app import RequestTracker
from workshop.lab.app_server import run_app

CONVERSATION = {"model": "main", "messages": [{"role": "user", "content": "Why?"}]}


@pytest.fixture
def replica(tmp_path, monkeypatch):
    """A client of the replica, its endless model, and a function that ends its requests."""
    monkeypatch.setattr(stopping, "GRACE_S", 0.3)
    model = main(endless=True)
    under_way = RequestTracker(application(tmp_path / "service.sqlite", draft(), model))
    loops = []

    async def app(scope, receive, send):
        async def send_slowly(message):
            await send(message)
            await asyncio.sleep(0.05)  # so that the model is ahead of its reader

        loops.append(asyncio.get_running_loop())
        await under_way(scope, receive, send_slowly)

    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client, model, lambda: asyncio.run_coroutine_threadsafe(under_way.end(), loops[0]).result(60)


def test_requests_in_progress_are_ended_and_charged_and_later_ones_are_rejected(replica, tmp_path):
    client, model, end = replica
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/chat/ws") as talk, ThreadPoolExecutor(2) as threads:
        assert json.loads(talk.recv())["type"] == "ready"
        whole = threads.submit(client.post, "/v1/generate", json={"prompt": "Why?", "model": "main"})
        lines = threads.submit(client.post, "/v1/chat/stream", json=CONVERSATION, headers=JSON_LINES)
        assert until(lambda: model.running, (2).__eq__) == 2
        end()
        with pytest.raises(ConnectionClosed) as closed:
            talk.recv()
        assert closed.value.rcvd.code == 1012
        assert whole.result().status_code == 503
        assert int(whole.result().headers["Retry-After"]) > 0
        *_, last_line = lines.result().text.splitlines()
        assert json.loads(last_line)["error"]["status"] == 503

    late = client.get("/readiness")
    assert late.status_code == 503
    assert late.headers["Content-Type"] == "application/problem+json"
    end()  # a second time does nothing

    def charged() -> set[str]:
        return {record["endpoint"] for record in records_in(tmp_path / "service.sqlite")}

    assert until(charged, {"/v1/chat/stream"}.issubset) >= {"/v1/chat/stream"}  # the response does not wait for it


STREAMS = {
    "lines": ("POST", "/v1/chat/stream", {"json": CONVERSATION}),
    "events": ("GET", "/v1/query/stream", {"params": {"query": "Why?", "force_direct": True}}),
    "OpenAI's": ("POST", "/v1/chat/completions", {"json": CONVERSATION | {"stream": True}}),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_slow_reader_is_told_of_the_shutdown_too(replica, stream, caplog):
    client, _, end = replica
    method, path, options = STREAMS[stream]
    with client.stream(method, path, **options) as response:
        pieces = response.iter_text()
        next(pieces)
        end()
        assert "the service is shutting down" in "".join(pieces)
    assert not caplog.records
