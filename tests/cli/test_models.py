"""The commands `models`, `registry` and `model-server`, and a service that follows them."""

import signal
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Run
from tests.registered import trained
from tests.service import RECORD, until
from workshop.machine import free_port

REGISTERED = {"WORKSHOP_ARTIFACT": "models:/tumour-classifier@champion", "WORKSHOP_REGISTRY_POLL_S": "0.2"}


@pytest.fixture
def registry(tmp_path) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.sqlite",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{tmp_path}/mlflow",
    }


@pytest.fixture
def models(run, registry):
    """Run `models` with arguments, to its end. Returns the lines that it prints."""

    def models(*arguments: str, status: int = 0) -> list[str]:
        finished: Run = run("models", *arguments, **registry)
        assert finished.wait() == status, finished.err
        return (finished.err if status else finished.out).splitlines()

    return models


def version(url: str) -> str:
    return httpx.post(f"{url}/v1/predict", json=RECORD).json()["model_version"]


def test_a_running_service_follows_the_commands(run, registry, models, tmp_path):
    assert models("add", trained(tmp_path / "first"), "--activate") == [
        "Version 1 is registered.",
        "Version 1 answers all callers.",
    ]
    assert models("add", trained(tmp_path / "second", regularization=2)) == ["Version 2 is registered."]
    service = run("api", "--port=0", **registry, **REGISTERED)
    url = service.url()
    assert until(lambda: version(url), lambda seen: seen == "1", patience=120) == "1"
    assert httpx.get(f"{url}/v1/model/metadata").json()["version"] == "1"

    assert models("canary", "2", "--share=1") == ["Version 2 answers 100% of the callers."]
    assert until(lambda: version(url), lambda seen: seen == "2") == "2"
    assert models("list") == ["2\tchallenger\t100% of the callers", "1\tchampion"]
    assert models("withdraw") == ["Version 2 answers nobody any more."]
    assert until(lambda: version(url), lambda seen: seen == "1") == "1"
    assert models("list") == ["2\twithdrawn: by hand", "1\tchampion"]
    assert service.send(signal.SIGTERM) == 0
    assert not service.leftovers()


def test_mistakes_are_one_line(models, run, registry):
    assert models("add", "nonsense://nowhere", status=1) == [
        "workshop: cannot read the model: nonsense://nowhere: Protocol not known: nonsense; check WORKSHOP_ARTIFACT"
    ]
    service = run("api", "--port=0", **registry, **REGISTERED)
    assert service.wait() == 1
    assert service.err.splitlines()[-1].startswith("workshop: Registered Model with name=tumour-classifier not found")


def test_mlflows_own_servers(run, registry, artifact, tmp_path):
    """The registry: a model registered through it is in its store. The model server: it predicts what we predict."""
    server = run("registry", f"--port={free_port()}", **registry)
    url = f"http://127.0.0.1:{server.process.args[-1].partition('=')[2]}"
    assert until(lambda: is_up(url), bool, patience=120)
    remote = registry | {"MLFLOW_TRACKING_URI": url, "MLFLOW_ARTIFACTS_DESTINATION": f"{tmp_path}/unused"}
    assert run("models", "add", str(artifact), "--activate", **remote).wait() == 0
    assert list(Path(registry["MLFLOW_ARTIFACTS_DESTINATION"]).glob("**/model.skops"))
    assert not (tmp_path / "unused").exists()

    model_server = run("model-server", "--port=0", **remote, **REGISTERED)
    scored = httpx.post(f"{model_server.url()}/invocations", json={"dataframe_records": [RECORD]}, timeout=60)
    assert scored.json() == {"predictions": [0]}
    assert model_server.interrupt() == 0
    assert not model_server.leftovers()
    server.interrupt()
    assert not server.leftovers()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_registry_that_anyone_could_change_does_not_start(run, registry):
    server = run("registry", "--host=0.0.0.0", f"--port={free_port()}", **registry, WORKSHOP_API_KEYS='{"key": "ada"}')
    assert server.wait() == 1
    assert "other machines can reach 0.0.0.0" in server.err
