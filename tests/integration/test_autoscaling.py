"""Autoscaling on a real cluster: a second replica comes under load and goes after it, and no client notices."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from tests.deployed import deployed
from tests.service import RECORD, until
from workshop.integration.serve_app import APP_NAME
from workshop.lab.serve_panel import replica_states
from workshop.settings import Autoscaling, DeploymentOptions, Deployments, ModelDeploymentOptions, Placement, Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning"),
]

PATIENCE_S = 120


def autoscaled(target: float) -> ModelDeploymentOptions:
    scaling = Autoscaling(max_replicas=2, target_ongoing_requests=target, upscale_delay_s=0.5, downscale_delay_s=1)
    return ModelDeploymentOptions(replicas=scaling, cpus=0.5, placement=Placement.DEPLOYMENT)


@pytest.fixture(scope="module")
def service(cluster, artifact, retriever_artifact, tmp_path_factory) -> Iterator[str]:
    """Its URL. Each model has one replica, and may have two."""
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(
        artifact=artifact,
        retriever_artifact=retriever_artifact,
        database_url=f"sqlite+aiosqlite:///{folder}/service.sqlite",
        files_url=f"file://{folder}/files",
        deployments=Deployments(
            api=DeploymentOptions(cpus=0.5, max_ongoing_requests=1000),
            classifier=autoscaled(1.5),
            language_models=autoscaled(2.5),
        ),
    )
    with deployed(settings):
        yield cluster


async def predict(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/predict", json=RECORD)
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "malignant"


async def read_a_stream(client: httpx.AsyncClient) -> None:
    question = {"role": "user", "content": "What is a deployment handle?"}
    body = {"model": "workshop-main", "messages": [question], "temperature": 2, "stream": True}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    *events, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert end == "[DONE]", answer.text
    assert json.loads(events[-1])["choices"][0]["finish_reason"], answer.text


@dataclass
class Load:
    """Clients that ask the same thing again and again.

    Attributes:
        clients: how many there are; fewer from now on, if it is lowered.
        failures: what went wrong, instead of a whole answer.
    """

    url: str
    ask: Callable[[httpx.AsyncClient], Awaitable[None]]
    clients: int
    answers: int = 0
    failures: list[Exception] = field(default_factory=list)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(self.clients):
                clients.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            while number < self.clients:
                try:
                    await self.ask(client)
                    self.answers += 1
                except Exception as error:
                    self.failures.append(error)
                    await asyncio.sleep(0.05)

    def more(self, count: int = 10) -> None:
        """Wait until that many more requests have been answered."""
        wanted = self.answers + count
        assert until(lambda: self.answers, lambda answers: answers >= wanted, PATIENCE_S) >= wanted, self.failures


@contextmanager
def under_load(url: str, ask: Callable[[httpx.AsyncClient], Awaitable[None]], clients: int) -> Iterator[Load]:
    load = Load(url, ask, clients)
    thread = threading.Thread(target=lambda: asyncio.run(load.run()))
    thread.start()
    try:
        yield load
    finally:
        load.clients = 0
        thread.join()


@pytest.mark.parametrize(
    ("deployment", "ask", "many", "few"),
    [
        ("classifier", predict, 8, 1),
        ("language-models", read_a_stream, 4, 2),  # at the end, each replica has a stream when one of them stops
    ],
)
def test_replicas_come_with_the_load_and_go_with_it(service, deployment, ask, many, few):
    def becomes(count: int) -> bool:
        wanted = {"RUNNING": count}
        return until(lambda: replica_states(deployment, APP_NAME), wanted.__eq__, PATIENCE_S) == wanted

    assert replica_states(deployment, APP_NAME) == {"RUNNING": 1}
    with under_load(service, ask, many) as load:
        assert becomes(2), load.failures
        load.more()
        load.clients = few
        assert becomes(1), load.failures
        load.more()
    assert load.failures == []
