"""The service on a real cluster under load, when a process is killed or everything changes: requests are counted."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil
import pytest
from fastapi.responses import JSONResponse
from ray import serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from tests.load import CLIENTS, under_load
from tests.processes import descendants, of_each
from tests.service import socket_url, until
from tests.upstreams import Upstream, failing, openai_events
from workshop.integration.serve_app import APP_NAME, build_application
from workshop.lab.serve_panel import replica_states
from workshop.settings import DeploymentOptions, Deployments, ModelDeploymentOptions, Placement, Settings

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Service:
    """Two replicas of everything. The main model is a server that the test controls."""

    url: str
    folder: str
    upstream: Upstream

    def deploy(self, replicas: int = 2, **settings) -> None:
        """Bring it to this state, and wait for it."""
        options = Settings(
            artifact=f"{self.folder}/artifact",
            database_url=f"sqlite+aiosqlite:///{self.folder}/service.sqlite",
            files_url=f"file://{self.folder}/files",
            llm_base_url=self.upstream.url,
            draft_base_url=self.upstream.url,
            retriever_artifact=f"{self.folder}/retriever",
            predict_timeout_s=60,  # a busy machine may be slow; what is lost never comes
            generate_timeout_s=300,
            placement=Placement.DEPLOYMENT,
            deployments=Deployments(
                api=DeploymentOptions(replicas=replicas, cpus=0.5, max_ongoing_requests=1000),
                classifier=ModelDeploymentOptions(replicas=replicas, cpus=0.5),
                retriever=ModelDeploymentOptions(placement=Placement.INLINE),
            ),
            **settings,
        )
        serve.run(build_application(options), name=APP_NAME)

    def counted(self) -> float:
        """Predictions that it has counted, in all replicas together."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("http_requests_total{") and '"/v1/predict"' in line]
        return sum(float(line.split()[-1]) for line in found if 'status="200"' in line)


@pytest.fixture(scope="module")
def service(cluster, artifact, retriever_artifact, tmp_path_factory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "artifact").symlink_to(artifact)
    (folder / "retriever").symlink_to(retriever_artifact)
    models = {"data": [{"id": "workshop-draft"}, {"id": "workshop-main"}]}
    with Upstream([failing(503)], lambda: JSONResponse(models)).running() as upstream:
        running = Service(cluster, str(folder), upstream)
        running.deploy()
        yield running
        serve.delete(APP_NAME)


def kill_one(name: str) -> psutil.Process:
    """``kill -9`` of the process that has worked most: an idle one would show nothing."""
    worked = of_each(descendants(name), lambda process: sum(process.cpu_times()[:2]))
    victim = max(worked, key=worked.__getitem__)
    victim.kill()
    return victim


def is_replaced(name: str, victim: psutil.Process, count: int) -> Callable[[], bool]:
    return lambda: len(set(descendants(name)) - {victim}) >= count


def test_no_request_is_lost_with_a_replica_of_the_model(service):
    before = service.counted()
    with under_load(service.url) as load:
        for _ in range(2):
            victim = kill_one("workshop:classifier")
            load.more()
            assert until(is_replaced("workshop:classifier", victim, 2), bool, patience=60)
    assert set(load.ended) == {200}
    assert until(service.counted, lambda counted: counted >= before + load.ended[200]) == before + load.ended[200]


def test_what_a_replica_of_the_api_was_doing_fails_visibly(service):
    with under_load(service.url) as load:
        stored = service.counted()
        victim = kill_one("workshop:api")
        load.more()
        assert until(is_replaced("workshop:api", victim, 2), bool, patience=60)
    assert load.partial == []
    assert sum(load.ended.values()) - load.ended[200] <= 2 * CLIENTS
    assert service.counted() >= stored


@pytest.mark.parametrize("part", ["HAProxyMan", "haproxy"])
def test_the_proxy_comes_back(service, part):
    before = service.counted()
    with under_load(service.url) as load:
        victim = kill_one(part)
        assert until(is_replaced("haproxy", victim, 1), bool, patience=60)
        load.more()
    assert load.partial == []
    # The state is that of the replicas, which store it a moment later.
    assert until(service.counted, lambda counted: counted >= before + load.ended[200]) >= before + load.ended[200]


def test_nobody_notices_that_the_controller_is_gone(service):
    with under_load(service.url) as load:
        victim = kill_one("ServeContr")
        load.more()
        assert until(is_replaced("ServeContr", victim, 1), bool, patience=60)
    assert set(load.ended) == {200}


@contextmanager
def fewest(*deployments: str) -> Iterator[dict[str, int]]:
    """The smallest number of replicas of each that were ready at the same time while the block ran."""
    seen = {name: replica_states(name, APP_NAME)["RUNNING"] for name in deployments}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for name in deployments:
                seen[name] = min(seen[name], replica_states(name, APP_NAME).get("RUNNING", 0))

    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            ended.set()
    watching.result()


@pytest.mark.parametrize(
    "change",
    [{"replicas": 1}, {"replicas": 1, "max_body_bytes": 2**20}, {"replicas": 2}],
    ids=["fewer replicas", "other settings", "more replicas"],
)
def test_a_change_loses_nothing(service, change):
    with under_load(service.url) as load, fewest("api", "classifier") as replicas:
        service.deploy(**change)
    assert set(load.ended) == {200}
    assert min(replicas.values()) >= 1


def close_code(socket: ClientConnection) -> int:
    """Answer pings until the service closes a WebSocket, and return with which code."""
    try:
        for text in socket:
            if (message := json.loads(text))["type"] == "ping":
                socket.send(json.dumps({"type": "pong", "id": message["id"]}))
    except ConnectionClosed:
        pass
    return socket.close_code


def test_a_replica_of_the_api_that_is_to_stop_finishes_its_streams(service):
    service.deploy(replicas=1)
    begun = {"index": 0, "delta": {"content": "It goes"}, "finish_reason": None}
    pieces = f"data: {json.dumps({'choices': [begun]})}\n\n".encode(), *openai_events(" on.", -0.5, 7, 2)
    service.upstream.answers = [service.upstream.pausing(*pieces)]
    question = {"model": "workshop-main", "messages": [{"role": "user", "content": "?"}], "stream": True}
    with (
        httpx.Client(base_url=service.url, timeout=120) as client,
        connect(socket_url(client)) as socket,
        ThreadPoolExecutor() as pool,
    ):
        try:
            code = pool.submit(close_code, socket)
            answer = pool.submit(client.post, "/v1/chat/completions", json=question)
            assert service.upstream.at_work.wait(60)
            change = pool.submit(service.deploy, replicas=1, max_body_bytes=2**21)
            both = {"RUNNING": 1, "STOPPING": 1}
            assert until(lambda: replica_states("api", APP_NAME), both.__eq__, patience=120) == both
            assert code.result(timeout=60) == CloseCode.SERVICE_RESTART
            time.sleep(8)  # Serve kills a replica of which it waits for nothing within seven seconds
        finally:
            service.upstream.resumed.set()
            socket.close()
        text = answer.result().text
        change.result()
    assert "It goes" in text
    assert " on." in text
    assert text.rstrip().endswith("data: [DONE]")
