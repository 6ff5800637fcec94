"""Services on a Ray cluster that is not theirs, where others run too: they come and go, and nothing of them stays."""

import json
import signal
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.cli.conftest import Run, environment_of
from tests.service import RECORD, until
from workshop.machine import free_port

pytestmark = [pytest.mark.ray(own=True), pytest.mark.slow]

RAY = ("-m", "ray.scripts.scripts")
SERVE = ("-m", "ray.serve.scripts")
OURS = ("api", "classifier", "ServeController", "ProxyActor")
"""Parts of the names of the processes that Serve and a service run in."""


class Cluster:
    """A Ray with a dashboard, as an administrator starts it, and programs that use it."""

    def __init__(self, tmp_path_factory, artifact) -> None:
        self._folders = tmp_path_factory
        self._artifact = artifact
        gcs, self.dashboard, *others = (free_port() for _ in range(5))
        options = ("--ray-client-server-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port")
        ports = [f"{option}={port}" for option, port in zip(options, others, strict=True)]
        self.environment = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""}
        head = ["--head", "--block", "--num-cpus=6", "--disable-usage-stats", "--include-dashboard=true"]
        addresses = ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={self.dashboard}"]
        for _ in range(5):  # a busy machine misses limits of Ray's, which no setting changes
            self.ray = self._start(RAY, "start", *head, *addresses, *ports)
            until(lambda: self._is_up() or self.ray.process.poll() is not None, bool, patience=120)
            if self._is_up():
                break
            self.ray.kill()
        assert self._is_up(), self.ray.err + self.ray.out
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"

    def serve(self, *arguments: str) -> Run:
        """Our service on it."""
        return self._start(("-m", "workshop"), "serve", "--port=0", *arguments)

    def serve_command(self, *arguments: str) -> None:
        """Ray's own command line."""
        run = self._start(SERVE, *arguments, f"--address=http://127.0.0.1:{self.dashboard}")
        assert run.wait() == 0, run.err + run.out

    def processes(self) -> list[str]:
        """The names of the processes of Serve and of services."""
        names = [process.name() for process in self.ray.processes() if process.is_running()]
        return [name for name in names if any(part in name for part in OURS)]

    def _start(self, program: tuple[str, ...], *arguments: str) -> Run:
        folder = self._folders.mktemp("run")
        return Run(folder, *arguments, program=program, **environment_of(self._artifact, folder), **self.environment)

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.dashboard}/api/version").is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def cluster_of_others(tmp_path_factory, artifact) -> Iterator[Cluster]:
    others = Cluster(tmp_path_factory, artifact)
    try:
        yield others
    finally:
        others.ray.kill()


def predicts(url: str) -> bool:
    answer = httpx.post(f"{url}/v1/predict", json=RECORD)
    return answer.status_code == 200 and answer.json()["label"] == "malignant"


def is_free(url: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", httpx.URL(url).port)) != 0


def test_several_learners_share_a_cluster(cluster_of_others):
    ada = cluster_of_others.serve("--name=ada")
    first = ada.url()
    bo = cluster_of_others.serve("--name=bo")
    second = bo.url()
    assert (first[-4:], second[-3:]) == ("/ada", "/bo")
    assert first.removesuffix("/ada") == second.removesuffix("/bo")
    assert predicts(first)
    assert predicts(second)
    assert "/ada/" in httpx.get(f"{first}/docs").text  # the documentation finds its own files

    again = cluster_of_others.serve("--name=ada")
    assert again.wait() == 1
    assert again.err.splitlines()[-1].endswith("the service already runs on this Ray as 'ada'; choose another --name")
    assert predicts(first)

    assert ada.send(signal.SIGTERM) == 0
    assert httpx.get(f"{first}/health").status_code == 404
    assert predicts(second)  # though ada started Serve
    assert bo.interrupt() == 0
    assert until(cluster_of_others.processes, lambda left: not left) == []
    assert until(lambda: is_free(second), bool)


def test_a_service_that_serve_deploy_has_started_stays_when_a_learner_leaves(cluster_of_others, tmp_path):
    settings, file = tmp_path / "settings.yaml", tmp_path / "deploy.yaml"
    options = {"unverified_names": True, "deployments": {"classifier": {"placement": "deployment"}}}
    settings.write_text(json.dumps(options | {"api_keys": {"a-key": "ada"}}))
    port = free_port()
    made = Run(tmp_path, "deploy-file", f"--config={settings}", f"--port={port}")
    assert made.wait() == 0
    assert made.err.splitlines() == ["api_keys may be secret and is left out: set WORKSHOP_API_KEYS on the cluster"]
    file.write_text(made.out)
    url = f"http://127.0.0.1:{port}"

    cluster_of_others.serve_command("deploy", str(file))
    assert until(lambda: answers(url), bool, patience=120)
    assert any("classifier" in name for name in cluster_of_others.processes())

    eve = cluster_of_others.serve("--name=eve")
    assert predicts(eve.url())
    assert eve.url().endswith(f":{port}/eve")  # the address of the Serve that was there
    assert eve.interrupt() == 0
    assert predicts(url)
    cluster_of_others.serve_command("shutdown", "--yes")
    assert until(cluster_of_others.processes, lambda left: not left) == []


def answers(url: str) -> bool:
    try:
        return predicts(url)
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("name", ["Ada", "a b", "", "-a", "a/b", "a" * 64])
def test_a_name_has_to_fit_into_a_url(run, name):
    started = run("serve", f"--name={name}")
    assert started.wait() == 1
    assert "1 to 63 letters" in started.err
