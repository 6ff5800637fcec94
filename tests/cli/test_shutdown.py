"""A stop while requests are in progress: all are answered, generated tokens are charged, the process ends in time.

Real processes, sockets and signals; stand-in models, which answer for as long as a test wants.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from socket import create_connection
from threading import Semaphore
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.service import JSON_LINES, until
from tests.stand_ins import application, draft, main, records_in
from workshop.lab.app_server import run_app

pytestmark = pytest.mark.slow

SERVICE = """
import asyncio, sys, time
from pathlib import Path
from tests.stand_ins import application, draft, main
from workshop.integration import stopping
from workshop.integration.uvicorn_server import run
from workshop.machine import bound_socket, listen

database, stopping.GRACE_S, stopping.LIMIT_S = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
app = application(database, draft(), main(endless=True))

@app.get("/second")
async def second():
    print("begun", flush=True)
    await asyncio.sleep(1)
    return "done"

@app.get("/hang")
async def hang():
    print("begun", flush=True)
    time.sleep(600)

with bound_socket("127.0.0.1", 0) as listener:
    listen(listener)
    print(listener.getsockname()[1], flush=True)
    run(app, listener)
"""
PATIENT_WORKSHOP = """
from workshop.cli import main
from workshop.integration import serve_cluster, stopping

serve_cluster.GRACE_S, stopping.LIMIT_S = 60.0, 120.0  # on a busy machine, Serve needs longer than ten seconds
main()
"""
MESSAGES = [{"role": "user", "content": "Why?"}]
PATIENCE_S = 60


class Service:
    """A process that serves, with an endless model."""

    def __init__(self, process: subprocess.Popen, url: str, database: Path) -> None:
        self.process = process
        self.address = url.removeprefix("http://")
        self.client = httpx.Client(base_url=url, timeout=60)
        self.database = database
        self.first_pieces = Semaphore(0)
        """Released once for each stream that has sent something to its client."""

    def under_way(self) -> int:
        return self.client.get("/v1/activity").json()["main"]["running"]

    def wait_until_begun(self) -> None:
        """Return once a request to one of this test's own routes has begun."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def refuses(self) -> bool:
        try:
            connection = create_connection(self.address.split(":"))
        except ConnectionRefusedError:
            return True
        connection.close()
        return False

    def stop(self, *signals: signal.Signals) -> int:
        """The exit status. The signals are sent repeatedly until the process has ended."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
            for number in signals:
                self.process.send_signal(number)
                time.sleep(0.05)
        return self.process.wait()


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Service]]:
    services = []

    def start(grace_s: float = 0.5, limit_s: float = 60.0) -> Service:
        database = tmp_path / "service.sqlite"
        command = [sys.executable, "-c", SERVICE, str(database), str(grace_s), str(limit_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(tmp_path / "err").open("wb"), text=True)
        assert process.stdout is not None
        services.append(Service(process, f"http://127.0.0.1:{process.stdout.readline().strip()}", database))
        return services[-1]

    yield start
    for service in services:
        service.process.kill()
        service.process.wait()
        service.client.close()


def generate(service: Service) -> httpx.Response:
    return service.client.post("/v1/generate", json={"prompt": "Why?", "model": "main"})


def batch(service: Service) -> httpx.Response:
    return service.client.post("/v1/batch", json={"queries": [{"query": "Why?", "force_direct": True}]})


def chat(service: Service) -> httpx.Response:
    return service.client.post("/v1/chat/completions", json={"model": "main", "messages": MESSAGES})


def lines(service: Service) -> str:
    body = {"model": "main", "messages": MESSAGES}
    return read_stream(service, "POST", "/v1/chat/stream", json=body, headers=JSON_LINES)


def events(service: Service) -> str:
    return read_stream(service, "GET", "/v1/query/stream", params={"query": "Why?", "force_direct": True})


def chat_events(service: Service) -> str:
    body = {"model": "main", "messages": MESSAGES, "stream": True}
    return read_stream(service, "POST", "/v1/chat/completions", json=body)


def read_stream(service: Service, method: str, path: str, **options: Any) -> str:
    with service.client.stream(method, path, **options) as response:
        pieces = response.iter_text()
        first = next(pieces)
        service.first_pieces.release()
        return first + "".join(pieces)


def socket(service: Service) -> int:
    """The code with which a conversation is closed."""
    with connect(f"ws://{service.address}/v1/chat/ws") as websocket:
        assert json.loads(websocket.recv())["type"] == "ready"
        websocket.send(json.dumps({"type": "ask", "id": "1", "content": "Why?", "model": "main"}))
        with pytest.raises(ConnectionClosed) as closed:
            listen(websocket, service.first_pieces)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def listen(websocket: ClientConnection, first_pieces: Semaphore) -> None:
    has_begun = False
    while True:
        match json.loads(message := websocket.recv())["type"]:
            case "ping":
                websocket.send(message.replace("ping", "pong"))
            case "text" if not has_begun:
                has_begun = True
                first_pieces.release()


WHOLE, STREAMED = [generate, batch, chat], [lines, events, chat_events, socket]


def begin(service: Service, threads: ThreadPoolExecutor) -> dict[Callable, Future]:
    """Start all requests. Returns once the model is answering them and each stream has sent something."""
    answers = {request: threads.submit(request, service) for request in (*WHOLE, *STREAMED)}
    assert until(service.under_way, len(answers).__eq__, PATIENCE_S) == len(answers)
    for _ in STREAMED:
        assert service.first_pieces.acquire(timeout=PATIENCE_S)
    return answers


def assert_told(answers: dict[Callable, Future]) -> None:
    """Each client learns, in the form that it expects, that its request was ended."""
    for request in WHOLE:
        answer = answers[request].result()
        assert answer.status_code == 503, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    *_, last_line = answers[lines].result().splitlines()
    assert json.loads(last_line)["error"]["status"] == 503
    *_, last_event = answers[events].result().strip().split("\n\n")
    kind, data = last_event.splitlines()
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: "))["status"] == 503
    *_, last_event = answers[chat_events].result().strip().split("\n\n")
    assert json.loads(last_event.removeprefix("data: "))["error"]["code"] == "UnavailableError"
    assert answers[socket].result() == 1012


def assert_charged(service: Service) -> None:
    charged = [record["endpoint"] for record in records_in(service.database)]
    assert {"/v1/chat/stream", "/v1/query/stream", "/v1/chat/completions", "/v1/chat/ws"} <= set(charged)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]], ids=["SIGTERM", "both"])
def test_a_stop_answers_what_is_under_way_and_loses_no_charge(start, signals, tmp_path):
    service = start()
    with ThreadPoolExecutor(10) as threads:
        answers = begin(service, threads)
        assert service.stop(*signals) == 0
    assert_told(answers)
    assert_charged(service)
    assert "Traceback" not in (tmp_path / "err").read_text()


@pytest.mark.ray(own=True)
def test_serve_does_the_same(run, tmp_path, retriever_artifact):
    """All with a single start of Ray."""
    with run_app(application(tmp_path / "upstream.sqlite", draft(), main(endless=True))) as upstream:
        language = {"WORKSHOP_LANGUAGE_MODELS": "true", "WORKSHOP_RETRIEVER_ARTIFACT": str(retriever_artifact)}
        language |= {"WORKSHOP_MAIN_MODEL": "main", "LLM_BASE_URL": f"{upstream.url}/v1"}
        run = run("serve", "--port", "0", program=["-c", PATIENT_WORKSHOP], **language)
        service = Service(run.process, run.url(), tmp_path / "service.sqlite")
        with service.client, ThreadPoolExecutor(10) as threads:
            assert "inline placement" in run.out
            assert service.client.get("/readiness").status_code == 200
            answers = begin(service, threads)
            run.processes()
            os.killpg(run.process.pid, signal.SIGINT)  # Ctrl-C: the terminal signals every process in the group
            # Just after Ray has stopped, SIGTERM may end the process itself.
            assert service.stop(signal.SIGINT, signal.SIGTERM) in (0, -signal.SIGTERM)
            assert not run.leftovers()
            assert until(service.refuses, bool)  # processes that Ray started meanwhile end with it
    assert_told(answers)
    assert_charged(service)
    assert "Traceback" not in run.err


def test_a_short_request_is_answered_and_nothing_new_is_accepted(start):
    service = start(grace_s=60.0)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(service.client.get, "/second")
        service.wait_until_begun()
        service.process.send_signal(signal.SIGTERM)
        assert until(service.refuses, bool)
        assert answer.result().json() == "done"
    assert service.process.wait(PATIENCE_S) == 0


def test_an_event_loop_that_hangs_does_not_keep_the_process_alive(start):
    service = start(limit_s=2.0)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(service.client.get, "/hang")
        service.wait_until_begun()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) != 0
        assert isinstance(answer.exception(), httpx.TransportError)
