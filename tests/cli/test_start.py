"""A start that fails prints one clear line and leaves nothing behind. One that succeeds says where it serves."""

import re
import shutil
import socket
import sys

import httpx
import pytest

from tests.cli.conftest import environment_of
from tests.service import RECORD
from workshop import cli
from workshop.cli import main

COMMANDS = ["api", "serve"]


@pytest.fixture(autouse=True)
def no_log_of_its_own(monkeypatch) -> None:
    """A start in this process must not set up the log of the test run."""
    monkeypatch.setattr(cli, "set_up_logs", lambda *_: None)
    monkeypatch.setattr(cli, "observe", lambda _: None)


@pytest.fixture
def fails(monkeypatch, capsys, artifact, tmp_path):
    """Asserts that a start fails with one line with these words. Runs in this process: it fails before Ray starts."""

    def fails(*arguments: str, words: tuple[str, ...], **environment: str) -> None:
        for name, value in {**environment_of(artifact, tmp_path), **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["workshop", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert_is_one_line(end.value.code, *words)
        shown = capsys.readouterr()
        assert "Serving" not in shown.out
        assert shown.err == ""

    return fails


def assert_is_one_line(text: object, *words: str) -> None:
    [line] = str(text).splitlines()
    assert line.startswith("workshop: ")
    for word in words:
        assert word in line


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


@pytest.mark.parametrize("command", COMMANDS)
def test_as_a_process(run, command, taken_port):
    run = run(command, "--port", taken_port)
    assert run.wait() == 1
    assert_is_one_line(run.err, taken_port, "in use", "--port 0")
    assert run.out == ""
    assert not run.leftovers()


def test_an_address_of_another_machine(fails):
    fails("api", "--host", "203.0.113.1", words=("203.0.113.1", "assign"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_service_without_keys_is_for_this_machine(fails, command):
    words = ("0.0.0.0", "WORKSHOP_API_KEYS", "WORKSHOP_TOKEN_KEYS", "WORKSHOP_UNVERIFIED_NAMES=true")
    fails(command, "--host", "0.0.0.0", "--port", "0", words=words)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_model(fails, command, tmp_path):
    nothing = str(tmp_path / "nothing")
    fails(command, WORKSHOP_ARTIFACT=nothing, words=(nothing, "run: python -m workshop train"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_model(fails, command, artifact, tmp_path):
    damaged = shutil.copytree(artifact, tmp_path / "damaged")
    (damaged / "model.skops").write_bytes(b"half of a mod")
    fails(command, WORKSHOP_ARTIFACT=str(damaged), words=(str(damaged), "damaged", "run: python -m workshop train"))


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("api", "WORKSHOP_PLACEMENT", "orbit"),
        ("api", "WORKSHOP_MAX_BODY_BYTES", "many"),
        ("serve", "WORKSHOP_PLACEMENT", "orbit"),
        ("serve", "WORKSHOP_DEPLOYMENTS__API__REPLICAS", "0"),
        ("serve", "WORKSHOP_DEPLOYMENTS__API__REPLICAS__MAX_REPLICAS", "0"),
    ],
)
def test_a_bad_setting(fails, command, name, value):
    fails(command, **{name: value}, words=(*name.removeprefix("WORKSHOP_").lower().split("__"), value, "should be"))


def test_a_redis_url_of_another_scheme(fails):
    fails("api", REDIS_URL="http://cache", words=("REDIS_URL", "http://cache"))


def test_a_rate_limit_for_a_route_that_is_not_there(fails):
    limits = '{"/v1/predikt": "10/minute"}'
    fails("api", WORKSHOP_RATE_LIMITS=limits, words=("rate_limits", "/v1/predikt"))


TWICE = {"api": ["--workers", "2"], "serve": []}
LIMITS = {
    "WORKSHOP_RATE_LIMITS": '{"/v1/predict": "10/minute"}',
    "WORKSHOP_ANONYMOUS_LIMIT": "10/minute",
    "WORKSHOP_WRONG_KEYS_LIMIT": "10/minute",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_two_processes_would_double(fails, command, name):
    environment = {name: LIMITS[name], "WORKSHOP_DEPLOYMENTS__API__REPLICAS": "2"}
    words = (name.removeprefix("WORKSHOP_").lower(), "2 times", "REDIS_URL")
    fails(command, *TWICE[command], **environment, words=words)


def test_a_missing_model_of_several_workers(fails, tmp_path):
    fails("api", "--workers", "2", WORKSHOP_ARTIFACT=str(tmp_path / "nothing"), words=("nothing", "train"))


DATABASES = {
    "nonsense": "parse",
    "nosuchdatabase+driver://host/name": "nosuchdatabase+driver; the service works with",
    "mysql+asyncmy://user:secret@host/name": "postgresql+asyncpg://",
    "sqlite:///cases.sqlite": "sqlite+aiosqlite:///",
    "sqlite+aiosqlite:////no/such/folder/cases.sqlite": "unable to open",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("url", DATABASES)
def test_a_database_that_cannot_be_used(fails, command, url):
    fails(command, DATABASE_URL=url, words=("DATABASE_URL", DATABASES[url]))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("url", ["nonsense://folder", "s3://bucket"])
def test_a_storage_for_files_that_is_not_there(fails, command, url):
    fails(command, "--port", "0", WORKSHOP_FILES_URL=url, words=("files_url", url.partition(":")[0]))


def test_too_little_memory_for_ray(fails):
    words = ("10487.0 GB", "are free", "python -m workshop api")
    fails("serve", "--port", "0", WORKSHOP_OBJECT_STORE_MB="10000000", words=words)


@pytest.mark.slow
def test_a_proxy_that_takes_too_long(run):
    run = run("serve", "--port", "0", RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="0.001")
    assert run.wait() == 1
    assert_is_one_line(run.err.splitlines()[-1], "Ray Serve does not come up", "too busy")
    assert not run.leftovers()


@pytest.mark.slow
@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine may have a GPU")
def test_a_deployment_that_reserves_a_gpu_runs_on_the_cpu_where_there_is_none(run):
    run = run("serve", "--placement", "deployment", "--port", "0", WORKSHOP_DEPLOYMENTS__CLASSIFIER__GPUS="0.5")
    assert httpx.post(f"{run.url()}/v1/predict", json=RECORD, timeout=60).status_code == 200
    assert "this machine has no GPU" in run.err


@pytest.mark.parametrize(
    "arguments", [("serve", "--placement", "orbit"), ("api", "--port", "70000"), ("api", "--colour"), ("fly",)]
)
def test_a_mistyped_command_is_a_usage_error(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["workshop", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Usage: ")
    assert arguments[-1].strip("-") in shown or "65535" in shown


@pytest.mark.slow
def test_train_writes_a_model_that_the_service_starts_with(run, tmp_path):
    place = {"WORKSHOP_ARTIFACT": str(tmp_path / "new" / "model")}
    training = run("train", **place)
    assert training.wait() == 0, training.err
    assert re.match(r"tumour-classifier 1\.0\.0: accuracy 0\.9\d+, f1 0\.9\d+, in ", training.out)
    assert httpx.post(run("api", "--port", "0", **place).url() + "/v1/predict", json=RECORD).status_code == 200
