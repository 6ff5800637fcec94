"""How long the service takes to go from one replica to three under load, and back, and what its users feel meanwhile.

Once for the tumour classifier, asked for single rows, and once for the language models, asked for streams of at most 64
tokens. As many connections as given here send one request after another for a minute. Then all but one of them leave,
and the last one stays until there is one replica again. The delays of autoscaling are the defaults.

Each row is a time in which the number of replicas did not change. It begins so many seconds after the load has begun or
ended: the row with two running replicas says how long it took until the second one was ready. A failure is any answer
that is not whole, or has not status 200.

    make bench, or: python benchmarks/autoscaling.py [--seconds 60]
"""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from tempfile import TemporaryDirectory

import numpy as np
import typer
from ray import serve
from tools.load import client_process, request_bytes

from workshop.contracts.tumours import FEATURES
from workshop.integration.serve_app import APP_NAME, build_application
from workshop.integration.serve_cluster import serve_cluster
from workshop.machine import free_port
from workshop.models.tumours import training_data
from workshop.settings import Autoscaling, Deployments, ModelDeploymentOptions, Placement, Settings

MAX_REPLICAS = 3
PATIENCE_S = 300
RECORD = dict(zip(FEATURES, training_data()[0][0].tolist(), strict=True))
QUESTION = {
    "model": "workshop-main",
    "messages": [{"role": "user", "content": "What is a deployment handle?"}],
    "max_tokens": 64,
    "stream": True,
}


@dataclass(frozen=True)
class Model:
    """A model, and the load on it.

    Attributes:
        name: of its setting.
        path, content: of each request.
        connections: how many send them.
        target: requests, or for the classifier batches of them, that should be under way in each replica.
    """

    name: str
    path: str
    content: dict[str, object]
    connections: int
    target: float


MODELS = [
    Model("classifier", "/v1/predict", RECORD, 32, 1),
    Model("language_models", "/v1/chat/completions", QUESTION, 16, 4),
]


@dataclass(frozen=True, slots=True)
class Answer:
    """When an answer was complete, how many seconds it took, and whether it was whole."""

    end: float
    seconds: float
    is_whole: bool


def load(port: int, request: bytes, connections: int, seconds: float) -> list[Answer]:
    """Send requests for this many seconds. Answers under way at the end are awaited, and count."""
    until = time.time() + seconds

    async def run() -> list[Answer]:
        seen = await asyncio.gather(*(_connection(port, request, until) for _ in range(connections)))
        return [answer for answers in seen for answer in answers]

    return asyncio.run(run())


async def _connection(port: int, request: bytes, until: float) -> list[Answer]:
    answers: list[Answer] = []
    while time.time() < until:  # a connection that was closed is opened again
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        is_whole = True
        while is_whole and time.time() < until:
            start = time.time()
            writer.write(request)
            is_whole = await _is_answered(reader)
            answers.append(Answer(time.time(), time.time() - start, is_whole))
        writer.close()
    return answers


async def _is_answered(reader: asyncio.StreamReader) -> bool:
    """Read a response, and say whether it is a whole answer."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = b""
        if length := re.search(rb"\r\ncontent-length: (\d+)", head):
            body = await reader.readexactly(int(length[1]))
        else:  # chunked: the length in hexadecimal, the bytes, an empty line
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
    except (ValueError, EOFError, OSError):
        return False
    return head.startswith(b"http/1.1 200") and body.endswith((b"}", b"data: [DONE]\n\n"))


@dataclass
class Replicas:
    """How many replicas a deployment has, over time.

    Attributes:
        changes: when their number changed, and what it was from then on, by state.
    """

    deployment: str
    changes: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep track of them during the block."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=[over])
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.1):
            states = serve.status().applications[APP_NAME].deployments[self.deployment].replica_states
            now = {str(state).lower(): count for state, count in states.items() if count}
            if not self.changes or self.changes[-1][1] != now:
                self.changes.append((time.time(), now))

    @property
    def is_one(self) -> bool:
        """Whether there is one replica, and no other starts or stops."""
        return self.changes[-1][1] == {"running": 1}


def measure(model: Model, seconds: float, port: int, client: ProcessPoolExecutor) -> None:
    """Put load on the model, take it away, and print what happened."""
    request = request_bytes(port, model.path, model.content)
    client.submit(load, port, request, 1, 1).result()  # warm up
    replicas = Replicas(model.name.replace("_", "-"))
    with replicas.watched():
        begin = time.time()
        job: Future[list[Answer]] = client.submit(load, port, request, model.connections, seconds)
        answers = job.result()
        end = time.time()
        while not replicas.is_one and time.time() < end + PATIENCE_S:
            answers += client.submit(load, port, request, 1, 1).result()
    last = time.time()
    under_load = [(when, states) for when, states in replicas.changes if when < end]
    afterwards = [(end, under_load[-1][1]), *replicas.changes[len(under_load) :]]
    _print_rows(model, "begin", begin, [*under_load, (end, {})], answers)
    _print_rows(model, "end", end, [*afterwards, (last, {})], answers)


def _print_rows(
    model: Model, event: str, since: float, changes: list[tuple[float, dict[str, int]]], answers: list[Answer]
) -> None:
    for (start, states), (end, _) in pairwise(changes):
        seen = [answer for answer in answers if start <= answer.end < end]
        replicas = ", ".join(f"{states[state]} {state}" for state in sorted(states))
        times = 1000 * np.array([answer.seconds for answer in seen if answer.is_whole])
        median, p99 = (f"{time:.0f} ms" for time in np.percentile(times, (50, 99))) if len(times) else ("", "")
        moment, rate = f"{start - since:.1f} s after its {event}", f"{len(times) / (end - start):.0f}"
        cells = (model.name, moment, replicas, rate, median, p99, len(seen) - len(times))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _scaled(model: Model) -> ModelDeploymentOptions:
    scaling = Autoscaling(max_replicas=MAX_REPLICAS, target_ongoing_requests=model.target)
    return ModelDeploymentOptions(replicas=scaling, placement=Placement.DEPLOYMENT)


def main(seconds: float = 60) -> None:
    """Print a table with the replicas of each model over time."""
    scaled = {model.name: _scaled(model) for model in MODELS}
    print("| model | load | replicas | answers/s | median | 99th percentile | failures |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as folder, client_process() as client:
        settings = Settings(
            database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
            files_url=f"file://{folder}/files",
            log_level="warning",
            deployments=Deployments(**scaled),
        )
        port = free_port()
        with serve_cluster(settings, host="127.0.0.1", port=port, is_fast=True):
            serve.run(build_application(settings), name=APP_NAME)
            for model in MODELS:
                measure(model, seconds, port, client)


if __name__ == "__main__":
    typer.run(main)
