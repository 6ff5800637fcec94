"""A start that fails: one clear line, soon, and nothing left. A start that succeeds: where it serves."""

import re
import shutil
import socket

import httpx
import pytest

from tests.service import RECORD

COMMANDS = ["api", "serve"]


def assert_fails_with_one_line(run, *words: str) -> None:
    assert run.wait() == 1
    [line] = run.err.splitlines()
    assert line.startswith("workshop: ")
    for word in words:
        assert word in line
    assert "Serving" not in run.out
    assert not run.leftovers()


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_taken_port(run, command, taken_port):
    assert_fails_with_one_line(run(command, "--port", taken_port), taken_port, "in use", "--port 0")


def test_an_address_of_another_machine(run):
    assert_fails_with_one_line(run("api", "--host", "203.0.113.1"), "203.0.113.1", "assign")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_model(run, command, tmp_path):
    run = run(command, "--port", "0", WORKSHOP_ARTIFACT=str(tmp_path / "nothing"))
    assert_fails_with_one_line(run, str(tmp_path / "nothing"), "run: python -m workshop train")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_model(run, command, artifact, tmp_path):
    damaged = shutil.copytree(artifact, tmp_path / "damaged")
    (damaged / "model.skops").write_bytes(b"half of a mod")
    run = run(command, "--port", "0", WORKSHOP_ARTIFACT=str(damaged))
    assert_fails_with_one_line(run, str(damaged), "damaged", "run: python -m workshop train")


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("api", "WORKSHOP_PLACEMENT", "orbit"),
        ("api", "WORKSHOP_MAX_BODY_BYTES", "many"),
        ("serve", "WORKSHOP_PLACEMENT", "orbit"),
        ("serve", "WORKSHOP_API_REPLICAS", "0"),
    ],
)
def test_a_bad_setting(run, command, name, value):
    run = run(command, "--port", "0", **{name: value})
    assert_fails_with_one_line(run, name.removeprefix("WORKSHOP_").lower(), value, "should be")


def test_a_redis_url_that_is_none(run):
    assert_fails_with_one_line(run("api", "--port", "0", REDIS_URL="http://cache"), "REDIS_URL", "http://cache")


def test_a_rate_limit_for_a_route_that_is_not_there(run):
    limits = '{"/v1/predikt": "10/minute"}'
    assert_fails_with_one_line(run("api", "--port", "0", WORKSHOP_RATE_LIMITS=limits), "rate_limits", "/v1/predikt")


DATABASES = {
    "nonsense": "parse",
    "nosuchdatabase+driver://host/name": "nosuchdatabase",
    "sqlite:///cases.sqlite": "async driver",
    "sqlite+aiosqlite:////no/such/folder/cases.sqlite": "unable to open",
}


@pytest.mark.parametrize("url", DATABASES)
def test_a_database_that_cannot_be_used(run, url):
    assert_fails_with_one_line(run("api", "--port", "0", DATABASE_URL=url), "DATABASE_URL", DATABASES[url])


def test_a_database_that_cannot_be_used_stops_ray_serve_before_it_starts(run):
    assert_fails_with_one_line(run("serve", "--port", "0", DATABASE_URL="nonsense"), "DATABASE_URL")


def test_too_little_memory_for_ray(run):
    run = run("serve", "--port", "0", WORKSHOP_OBJECT_STORE_MB="10000000")
    assert_fails_with_one_line(run, "10486.8 GB", "are free", "python -m workshop api")


@pytest.mark.parametrize(
    "arguments", [("serve", "--placement", "orbit"), ("api", "--port", "70000"), ("api", "--colour"), ("fly",)]
)
def test_a_command_that_is_none_is_a_usage_error(run, arguments):
    run = run(*arguments)
    assert run.wait() == 2
    assert run.err.startswith("Usage: ")
    assert arguments[-1].strip("-") in run.err or "65535" in run.err
    assert "Traceback" not in run.err


def test_train_writes_a_model_that_the_service_starts_with(run, tmp_path):
    place = {"WORKSHOP_ARTIFACT": str(tmp_path / "new" / "model")}
    training = run("train", **place)
    assert training.wait() == 0, training.err
    assert re.match(r"tumour-classifier 1\.0\.0: accuracy 0\.9\d+, f1 0\.9\d+, in ", training.out)
    assert httpx.post(run("api", "--port", "0", **place).url() + "/v1/predict", json=RECORD).status_code == 200
