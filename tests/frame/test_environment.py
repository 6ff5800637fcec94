"""The file .env, and the variables of the earlier services."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workshop.contracts.errors import StartError
from workshop.environment import container_arguments, translate

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
import sys
from workshop import environment
from workshop.contracts.errors import StartError
from workshop.settings import read_settings
try:
    environment.load()
    settings = read_settings()
except StartError as error:
    sys.exit(f"workshop: {error}")
print(settings.model_dump_json(include={"daily_budget", "rate_limits", "log_level", "cascade_threshold"}))
print(settings.main_server and settings.main_server.api_key)
"""


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {}),
        ({"daily_budget": "10.0"}, {"WORKSHOP_DAILY_BUDGET": "10.0"}),
        ({"RATE_LIMIT": " 60"}, {"WORKSHOP_RATE_LIMITS": '{"/": "60/minute"}'}),
        ({"Log_Level": "DEBUG"}, {"WORKSHOP_LOG_LEVEL": "DEBUG"}),
        ({"MODEL_PATH": "/models/a"}, {"WORKSHOP_ARTIFACT": "/models/a"}),
        ({"MODEL_PATH": "/models/a", "WORKSHOP_ARTIFACT": "/models/b"}, {}),
        ({"daily_budget": "10.0", "workshop_daily_budget": "5"}, {}),
        ({"DAILY_BUDGETS": "10.0", "MY_RATE_LIMIT": "3"}, {}),
    ],
    ids=str,
)
def test_an_earlier_variable_sets_ours_unless_it_is_set(given, added):
    variables = dict(given)
    translate(variables)
    assert variables == given | added


@pytest.mark.parametrize("value", ["", "ten", "-1", "1.5", "60/hour", "1e3"])
def test_a_rate_limit_that_is_no_number_is_refused(value):
    with pytest.raises(StartError, match="RATE_LIMIT should be a number of requests per minute"):
        translate({"RATE_LIMIT": value})


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({}, []),
        ({"API_PORT": "9000"}, []),
        ({"SERVE_API": "true"}, ["api", "--host", "0.0.0.0", "--port", "8000"]),
        ({"SERVE_API": "True", "API_PORT": "9000"}, ["api", "--host", "0.0.0.0", "--port", "9000"]),
        ({"SERVE_API": "true", "SERVE_MODEL": "true"}, ["api", "--host", "0.0.0.0", "--port", "8000"]),
    ],
    ids=str,
)
def test_a_container_without_a_command_does_what_its_variables_say(variables, arguments):
    assert container_arguments(variables) == arguments


@pytest.mark.parametrize(
    ("variables", "remedy"),
    [
        ({"SERVE_MODEL": "true", "SERVE_MODEL_PATH": "/m"}, "run: mlflow models serve --model-uri /m; "),
        ({"SERVE_API": "false", "SERVE_MODEL": "TRUE"}, "run: mlflow models serve"),
        ({"SERVE_API": "false"}, "run: mlflow server; "),
        ({"SERVE_API": "", "SERVE_MODEL": "no"}, "run: mlflow server; "),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_one_line_with_a_remedy(variables, remedy):
    with pytest.raises(StartError) as caught:
        container_arguments(variables)
    assert remedy in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def show(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The settings of a process that starts in a folder, as JSON, and the key for the main model's server."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHON_DOTENV_DISABLED"}
    environment = clean | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, "-c", SHOW], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_file_is_read_and_the_environment_comes_first(tmp_path):
    (tmp_path / ".env").write_text(
        "# of the earlier service\n"
        'OPENAI_API_KEY="sk-from-the-file"\n'
        "daily_budget=10.0\n"
        "rate_limit=60\n"
        "log_level=WARNING\n"
        "LLM_BASE_URL=https://api.openai.com/v1\n"
        "workshop_cascade_threshold=0.5\n"
        "POSTGRES_PASSWORD=of-another-service\n"
    )
    done = show(tmp_path, WORKSHOP_CASCADE_THRESHOLD="0.75", LOG_LEVEL="debug")
    assert done.returncode == 0, done.stderr
    settings, key = done.stdout.splitlines()
    assert json.loads(settings) == {
        "daily_budget": 10.0,
        "rate_limits": {"/": "60/minute"},
        "log_level": "debug",
        "cascade_threshold": 0.75,
    }
    assert key == "sk-from-the-file"


def test_without_the_file_nothing_changes(tmp_path):
    assert show(tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"WORKSHOP_PLACMENT=inline", "there is no setting WORKSHOP_PLACMENT; did you mean WORKSHOP_PLACEMENT?"),
        (b"WORKSHOP_DAILY_BUDGET=ten", "setting daily_budget='ten': "),
        (b"daily_budget=ten", "setting daily_budget='ten': "),
        (b"rate_limit=0", "setting rate_limits['/']='0/minute': "),
        (b"log_level=loud", "setting log_level='loud': "),
        (b"WORKSHOP_CASCADE_THRESHOLD=\xff", "cannot read .env: "),
        (b"WORKSHOP_CASCADE_THRESHOLD=0.5\0", "cannot read .env: "),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line(tmp_path, content, line):
    (tmp_path / ".env").write_bytes(content)
    done = show(tmp_path)
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith(f"workshop: {line}")
