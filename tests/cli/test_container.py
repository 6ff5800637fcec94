"""The command line without arguments, as the earlier container started it."""

import httpx
import pytest

from tests.service import RECORD
from workshop.machine import free_port

pytestmark = pytest.mark.slow


def test_the_variables_of_the_earlier_container_start_the_api(run, artifact, tmp_path):
    port = str(free_port())
    variables = {"SERVE_API": "true", "API_PORT": port, "MODEL_PATH": str(artifact), "RATE_LIMIT": "2"}
    started = run(**variables, WORKSHOP_ARTIFACT=str(artifact), WORKSHOP_UNVERIFIED_NAMES="true")
    assert started.url() == f"http://0.0.0.0:{port}"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        statuses = [client.post("/predict", json=RECORD).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert started.interrupt() == 0


def test_mlflows_model_server_is_refused_with_a_remedy(run):
    started = run(SERVE_MODEL="true", SERVE_MODEL_PATH="/models/tumours")
    assert started.wait() == 1
    [line] = started.err.splitlines()
    assert "run: mlflow models serve --model-uri /models/tumours" in line


def test_without_arguments_and_variables_it_shows_its_help(run):
    started = run()
    started.wait()
    assert "Usage: " in started.out + started.err
