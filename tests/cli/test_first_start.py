"""The first start after `make env` alone: nothing has been trained, and the folder for artifacts does not exist."""

import os
import shutil
import socket
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Run
from tests.service import RECORD

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path):
    """Environment variables that make a command run a copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "workshop", tmp_path / "clone" / "workshop", ignore=ignored)
    # The copy's commands must not find this package in their working folder.
    return {"PYTHONPATH": str(tmp_path / "clone"), "PYTHONSAFEPATH": "1", "WORKSHOP_LANGUAGE_MODELS": "false"}


@pytest.fixture
def starts(tmp_path, clone, monkeypatch):
    """Starts a command there, with the default settings."""
    for name in list(os.environ):
        if name.startswith("WORKSHOP_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    runs = []

    def start(*arguments: str, **environment: str) -> Run:
        folder = tmp_path / f"run-{len(runs)}"
        folder.mkdir()
        runs.append(Run(folder, *arguments, **clone | environment))
        return runs[-1]

    yield start
    for run in runs:
        for process in run.processes():
            process.kill()
        run.process.wait()


def test_two_first_starts_at_once_make_what_is_missing_once_and_serve(starts):
    both = [starts("api", "--port", "0") for _ in range(2)]
    for run in both:
        assert httpx.post(run.url() + "/v1/predict", json=RECORD).status_code == 200
    assert sorted(run.out.count("does not exist yet") for run in both) == [0, 1]


def test_a_folder_that_the_user_has_named_is_not_filled(starts, tmp_path):
    run = starts("api", "--port", "0", WORKSHOP_ARTIFACT=str(tmp_path / "nothing"))
    assert run.wait() == 1
    assert "nothing" in run.err
    assert "run: python -m workshop train" in run.err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("command", ["api", "serve"])
def test_a_taken_port_is_noticed_before_anything_is_made_or_loaded(starts, tmp_path, command):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        run = starts(command, "--port", str(listener.getsockname()[1]))
        assert run.wait() == 1
    assert "in use" in run.err
    assert run.out == ""
    assert not (tmp_path / "clone" / "artifacts").exists()
