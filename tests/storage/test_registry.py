"""MLflow's registry: in a database, and behind MLflow's own server."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from tests.registered import trained
from tests.service import until
from workshop.contracts.errors import NotFoundError, StartError, UnavailableError
from workshop.contracts.registry import Rollout
from workshop.integration.registry import add, server_command, try_out, withdraw
from workshop.integration.services import build_services
from workshop.machine import free_port
from workshop.models.artifacts import ArtifactError
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings
from workshop.storage.registry import MlflowRegistry


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """MLflow's server, as `python -m workshop registry` starts it."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = Settings(mlflow_tracking_uri=f"sqlite:///{folder}/mlflow.sqlite", mlflow_files=f"{folder}/files")
    command, environment = server_command(settings, "127.0.0.1", port)
    assert settings.mlflow_tracking_uri not in command  # it may contain a password
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen([*command, "--workers", "1"], env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    assert until(lambda: answers(url), bool, patience=120)
    yield url, process
    kill(process)


def kill(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module", params=["database", "server"])
def settings(request, tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("registry")
    if request.param == "database":
        return Settings(mlflow_tracking_uri=f"sqlite:///{folder}/mlflow.sqlite", mlflow_files=f"{folder}/files")
    return Settings(mlflow_tracking_uri=request.getfixturevalue("server")[0], mlflow_files=f"{folder}/unused")


@pytest.fixture
def registry(settings, request) -> MlflowRegistry:
    return MlflowRegistry(settings.mlflow_tracking_uri, "tumour-classifier")


def added(settings: Settings, folder: Path, **model: float) -> str:
    return add(settings, trained(folder, **model))


def test_the_life_of_a_version(registry, settings, tmp_path):
    first, second = (added(settings, tmp_path, regularization=n) for n in (1, 2))
    with pytest.raises(NotFoundError, match="no version of tumour-classifier is active"):
        registry.rollout()
    registry.activate(first)
    one = registry.rollout().champion
    assert registry.rollout() == Rollout(one)
    model = TumourClassifier.load(one.location)
    assert (model.card.name, model.card.version) == ("tumour-classifier", first)

    registry.try_out(second, 0.25)
    two = registry.rollout().challenger
    assert registry.rollout() == Rollout(one, two, 0.25)
    [newest, _] = registry.versions()
    assert (newest.number, newest.aliases, newest.share) == (second, ["challenger"], 0.25)

    registry.withdraw(second, "it failed")
    assert registry.rollout() == Rollout(one)
    assert registry.versions()[0].withdrawn == "it failed"

    registry.try_out(second, 0.5)
    assert registry.versions()[0].withdrawn == ""
    registry.withdraw(first, "it is not on trial")
    assert registry.rollout().challenger == two
    registry.activate(second)
    assert registry.rollout() == Rollout(two)


def test_what_does_not_exist(registry, settings):
    nothing = MlflowRegistry(settings.mlflow_tracking_uri, "nothing")
    for call in (
        nothing.rollout,
        nothing.versions,
        lambda: registry.activate("99"),
        lambda: registry.try_out("x", 0.5),
    ):
        with pytest.raises(NotFoundError):
            call()


@pytest.mark.parametrize("share", ["many", "nan", "-0.1", "1.1", ""])
def test_a_share_that_is_wrong(registry, settings, tmp_path, share, caplog):
    champion, number = (added(settings, tmp_path, regularization=n) for n in (7, 8))
    registry.activate(champion)
    with pytest.raises(StartError, match="share: "):
        try_out(settings, number, float(share or "inf") if share != "many" else 2.0)
    registry.try_out(number, 0.5)
    registry._client.set_registered_model_tag("tumour-classifier", "challenger_share", share)
    for _ in range(3):
        assert registry.rollout().share == 0
    assert registry.versions()[0].share == 0
    [line] = [line for line in caplog.messages if "the tag challenger_share of tumour-classifier is wrong" in line]
    assert "nobody" in line
    registry.try_out(number, 0.5)
    registry.withdraw(number, "")


def test_a_model_that_was_replaced_in_the_store_is_not_loaded(settings, tmp_path):
    """Even if its card was replaced, too: the registry vouches for the checksum."""
    url = settings.mlflow_tracking_uri
    if not url.startswith("sqlite"):
        pytest.skip("the files are the server's")
    registry = MlflowRegistry(url, "tumour-classifier")
    number = added(settings, tmp_path, regularization=5)
    registry.activate(number)
    location = registry.rollout().champion.location
    TumourClassifier.load(trained(tmp_path / "other", regularization=6)).save(Path(location.partition("#")[0]))
    with pytest.raises(ArtifactError, match="is another one"):
        TumourClassifier.load(location)


def test_a_version_that_somebody_else_has_registered(registry, settings, tmp_path, caplog):
    client = registry._client
    run = client.create_run(client.get_experiment_by_name("tumour-classifier").experiment_id)
    version = client.create_model_version("tumour-classifier", f"{run.info.artifact_uri}/model", run.info.run_id)
    with pytest.raises(NotFoundError, match="has no checksum; register it with: python -m workshop models add"):
        registry.activate(str(version.version))
    champion = added(settings, tmp_path, regularization=9)
    registry.activate(champion)
    client.set_registered_model_alias("tumour-classifier", "challenger", version.version)
    for _ in range(2):
        assert (registry.rollout().champion.number, registry.rollout().challenger) == (champion, None)
    assert len([line for line in caplog.messages if "has no checksum" in line]) == 1
    assert withdraw(settings) == str(version.version)
    assert withdraw(settings) is None


def test_the_share_of_a_new_challenger_is_not_given_to_the_old_one(registry, settings, tmp_path, monkeypatch):
    champion, old, new = (added(settings, tmp_path, regularization=n) for n in (10, 11, 12))
    registry.activate(champion)
    registry.try_out(old, 0.01)
    seen = []
    set_tag = registry._client.set_registered_model_tag

    def noted(*arguments) -> None:
        set_tag(*arguments)
        seen.append(registry.rollout().challenger)

    monkeypatch.setattr(registry._client, "set_registered_model_tag", noted)
    registry.try_out(new, 1.0)
    assert seen == [None]
    assert (registry.rollout().challenger.number, registry.rollout().share) == (new, 1.0)
    registry.withdraw(new, "")


def test_the_champion_cannot_be_on_trial(registry, settings, tmp_path):
    number = added(settings, tmp_path, regularization=13)
    registry.activate(number)
    with pytest.raises(StartError, match=f"version {number} is active: all callers have it"):
        try_out(settings, number, 0.5)


def test_files_that_cannot_be_stored(registry, settings, tmp_path, monkeypatch):
    """Each kind of storage has errors of its own."""

    def fail(*_) -> None:
        raise RuntimeError("Access Denied\nand more")

    monkeypatch.setattr(MlflowClient, "log_artifacts", fail)
    with pytest.raises(StartError, match="cannot store the model: Access Denied"):
        added(settings, tmp_path)
    experiment = registry._client.get_experiment_by_name("tumour-classifier").experiment_id
    assert registry._client.search_runs([experiment])[0].info.status == "FAILED"


def test_a_server_that_is_gone(server, tmp_path):
    url, process = server
    registry = MlflowRegistry(url, "tumour-classifier")
    kill(process)
    for call in (registry.rollout, registry.versions, lambda: registry.withdraw("1", "it failed")):
        with pytest.raises(UnavailableError):
            call()
    with pytest.raises(ArtifactError, match="cannot read the model"):
        TumourClassifier.load(f"{url}/api/2.0/mlflow-artifacts/artifacts/nowhere")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nonsense://x", "unsupported URI"),
        ("sqlite:////proc/nowhere.sqlite", "does not answer"),
        ("http://127.0.0.1:9", "does not answer"),
        ("postgresql://nobody:secret@127.0.0.1:9/x", "needs a package"),
    ],
)
def test_an_address_that_is_wrong(uri, words, tmp_path):
    with pytest.raises(StartError, match=words):
        added(Settings(mlflow_tracking_uri=uri), tmp_path)
    with pytest.raises(StartError, match=words):
        build_services(Settings(mlflow_tracking_uri=uri, artifact="models:/x@champion", language_models=False))
