"""Settings in the environment: every error is reported in one clear line that shows no secret."""

import json
import os
import re
import subprocess
import sys
import traceback
from itertools import product

import pytest
import yaml
from pydantic import ValidationError

from workshop.contracts.errors import StartError
from workshop.settings import SECRETS, ModelServer, Settings, read_settings, settings_in, variable_of

SECRET = "the-secret-key"
NUMBERS = [
    name for name, field in Settings.model_fields.items() if re.search(r"\b(int|float)\b", str(field.annotation))
]
EXTREMES = ["inf", "-inf", "nan", "1e400", "-1", "-0.001", str(10**30), "9" * 5000, "", " ", "0x10", "1,5", "٣", "null"]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith(("WORKSHOP_", "LLM_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


def refused(monkeypatch, name: str, value: str) -> str:
    """The line that refuses a setting."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as caught:
        read_settings()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    [line] = str(caught.value).splitlines()
    return line


def test_the_numbers_are_found():
    assert len(NUMBERS) >= 13
    assert {"max_body_bytes", "daily_budget", "rag_threshold", "ray_cpus"} < set(NUMBERS)


@pytest.mark.parametrize(("name", "value"), [*product(NUMBERS, EXTREMES)])
def test_an_extreme_number_is_refused(monkeypatch, name, value):
    assert refused(monkeypatch, f"WORKSHOP_{name.upper()}", value).startswith(f"setting {name}=")


@pytest.mark.parametrize("name", NUMBERS)
def test_zero_is_refused_except_as_a_price_or_a_threshold(monkeypatch, name):
    if name.endswith(("_cost", "_threshold")):
        monkeypatch.setenv(f"WORKSHOP_{name.upper()}", "0")
        assert getattr(read_settings(), name) == 0
    else:
        refused(monkeypatch, f"WORKSHOP_{name.upper()}", "0")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (SECRET, "JSON"),
        ("", "JSON"),
        (f'{{"{SECRET}": "ada"', "JSON"),
        ("[" * 100_000, "JSON"),
        (f'["{SECRET}"]', "JSON"),
        (f'"{SECRET}"', "JSON"),
        ("{}", "at least one key"),
        ('{"": "ada"}', "a key should"),
        ('{" ": "ada"}', "a key should"),
        (f'{{"{SECRET} ": "ada"}}', "a key should"),
        (f'{{"{SECRET}é": "ada"}}', "a key should"),
        (f'{{"{SECRET}\\ud800": "ada"}}', "a key should"),
        (f'{{"{SECRET}\\n": "ada"}}', "a key should"),
        (f'{{"{SECRET * 20}": "ada"}}', "a key should"),
        (f'{{"{SECRET}": ""}}', "a principal should"),
        (f'{{"{SECRET}": "  "}}', "a principal should"),
        (f'{{"{SECRET}": 3}}', "a principal should"),
        (f'{{"{SECRET}": null}}', "a principal should"),
        (f'{{"{SECRET}": "a\\nb"}}', "a principal should"),
        (f'{{"{SECRET}": "\\ud800"}}', "a principal should"),
        (f'{{"{SECRET}": "ada", "{SECRET}": "grace"}}', "twice"),
    ],
)
def test_wrong_keys_are_refused_without_being_shown(monkeypatch, value, word):
    line = refused(monkeypatch, "WORKSHOP_API_KEYS", value)
    assert line.startswith("setting api_keys: ")
    assert word in line


def test_pydantics_own_error_shows_no_key_either():
    with pytest.raises(ValidationError) as caught:
        Settings(api_keys={SECRET: 3})
    assert SECRET not in str(caught.value)


def test_good_keys_are_read(monkeypatch):
    monkeypatch.setenv("WORKSHOP_API_KEYS", f'{{"{SECRET}": "Ada L.", "other": "Ada L."}}')
    keys = read_settings().api_keys
    assert {key.get_secret_value(): owner.principal for key, owner in keys.items()} == {
        SECRET: "Ada L.",
        "other": "Ada L.",
    }


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (SECRET, "JSON"),
        ("{}", "at least one key"),
        (f'{{"1": "{SECRET[:20]}"}}', "32 to 1024"),
        (f'{{"1": "{"a" * 64}"}}', "random"),
        (f'{{"a b": "{SECRET * 4}"}}', "id of a key"),
        ('{"1": 3}', "32 to 1024"),
        (f'{{"1": "{SECRET * 4}", "1": "{SECRET * 4}"}}', "twice"),
    ],
)
def test_wrong_token_keys_are_refused_without_being_shown(monkeypatch, value, word):
    line = refused(monkeypatch, "WORKSHOP_TOKEN_KEYS", value)
    assert line.startswith("setting token_keys: ")
    assert word in line


def test_a_password_in_a_url_is_not_shown(monkeypatch):
    assert "REDIS_URL: " in refused(monkeypatch, "REDIS_URL", f"http://user:{SECRET}@cache")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("WORKSHOP_RATE_LIMITS", '{"/v1": "often"}', "setting rate_limits['/v1']='often': "),
        ("WORKSHOP_RATE_LIMITS", '{"/v1": "1/s", "/v1": "2/s"}', "twice"),
        ("WORKSHOP_RATE_LIMITS", "600/minute", "it should be JSON"),
        ("WORKSHOP_RATE_LIMITS", '["600/minute"]', "valid dictionary"),
        ("WORKSHOP_WRONG_KEYS_LIMIT", "0/minute", "1 to 1000000"),
        ("WORKSHOP_PLACEMENT", "orbit", "setting placement='orbit': Input should be 'inline' or 'deployment'"),
        ("REDIS_URL", "http://cache", "setting REDIS_URL='http://cache': "),
    ],
)
def test_a_wrong_value_is_named(monkeypatch, name, value, line):
    assert line in refused(monkeypatch, name, value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("WORKSHOP_PLACMENT", "WORKSHOP_PLACEMENT"),
        ("WORKSHOP_API_KEY", "WORKSHOP_API_KEYS"),
        ("workshop_daily_buget", "WORKSHOP_DAILY_BUDGET"),
        ("WORKSHOP_DATABASE_URL", "DATABASE_URL"),
        ("WORKSHOP_LLM_BASE_URL", "LLM_BASE_URL"),
        ("WORKSHOP_", "WORKSHOP_"),
        ("WORKSHOP_X" + "Y" * 1000, "WORKSHOP_"),
    ],
)
def test_a_misspelt_variable_is_refused_and_the_nearest_named(monkeypatch, name, nearest):
    line = refused(monkeypatch, name, SECRET)
    assert line.startswith(f"there is no setting {name.upper()}; did you mean {nearest}")


@pytest.mark.parametrize("name", ["WORKSHOP_PLACEMENT", "workshop_placement"])
def test_a_variable_that_is_spelt_correctly_is_read(monkeypatch, name):
    monkeypatch.setenv(name, "deployment")
    assert read_settings().placement == "deployment"
    assert read_settings(placement="inline").placement == "inline"


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORKSHOP_API_KEYS", SECRET), ("WORKSHOP_PLACMENT", SECRET), ("WORKSHOP_RATE_LIMITS", '{"/health": "1/s"}')],
)
@pytest.mark.parametrize("command", ["api", "serve"])
def test_both_commands_refuse_to_start(command, name, value, artifact, retriever_artifact, tmp_path):
    places = {
        "WORKSHOP_ARTIFACT": str(artifact),
        "WORKSHOP_LANGUAGE_MODELS": "false",
        "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/service.sqlite",
    }
    done = subprocess.run(
        [sys.executable, "-m", "workshop", command, "--port", "0"],
        env=os.environ | places | {name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("workshop: ")
    assert SECRET not in line


OPTIONS = {"api": {"replicas": 2}, "classifier": {"placement": "inline", "replicas": {"max_replicas": 3}}}
DEPLOYMENTS = Settings(deployments=OPTIONS).deployments
VARIABLES = {
    "WORKSHOP_DEPLOYMENTS__API__REPLICAS": "2",
    "WORKSHOP_DEPLOYMENTS__CLASSIFIER__PLACEMENT": "inline",
    "workshop_deployments__classifier__replicas__max_replicas": "3",
}


@pytest.fixture
def settings_file(monkeypatch, tmp_path):
    """The path of the settings file that the environment names. A test writes the file."""
    file = tmp_path / "settings.yaml"
    monkeypatch.setenv("WORKSHOP_SETTINGS_FILE", str(file))
    return file


def test_the_options_of_deployments_may_be_variables(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert read_settings().deployments == DEPLOYMENTS


def test_the_options_of_deployments_may_be_json(monkeypatch):
    monkeypatch.setenv("WORKSHOP_DEPLOYMENTS", json.dumps(OPTIONS))
    assert read_settings().deployments == DEPLOYMENTS


def test_settings_may_come_from_a_file_and_variables_override_it(monkeypatch, settings_file):
    settings_file.write_text(yaml.safe_dump({"deployments": OPTIONS, "placement": "deployment", "main_cost": 7.0}))
    monkeypatch.setenv("WORKSHOP_PLACEMENT", "inline")
    monkeypatch.setenv("WORKSHOP_DEPLOYMENTS__API__CPUS", "0.5")
    settings = read_settings()
    assert (settings.placement, settings.main_cost) == ("inline", 7.0)
    assert settings.deployments.api == DEPLOYMENTS.api.model_copy(update={"cpus": 0.5})
    assert settings.deployments.classifier == DEPLOYMENTS.classifier


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("placement: [", "cannot read "),
        ("\x00", "cannot read "),
        ("- placement", "cannot read "),
        ("3", "cannot read "),
        ("placment: inline", "setting placment='inline': "),
        ("placement: orbit", "setting placement='orbit': "),
        (f"api_keys: {{{SECRET}: 3}}", "setting api_keys: "),
        (f"llm_api_key: [{SECRET}]", "setting LLM_API_KEY: "),
        (f"draft_api_key: [{SECRET}]", "setting draft_api_key: "),
    ],
)
def test_a_wrong_file_gives_a_one_line_error(settings_file, text, line):
    settings_file.write_text(text)
    with pytest.raises(StartError) as caught:
        read_settings()
    assert str(caught.value).startswith(line)
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_is_named(settings_file):
    with pytest.raises(StartError, match=f"there is no file {settings_file}"):
        read_settings()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", "{"),
        ("", "[]"),
        ("__CLASSIFER__REPLICAS", "2"),
        ("__CLASSIFIER__REPLICAS", "0"),
        ("__CLASSIFIER__REPLICAS", "many"),
        ("__CLASSIFIER__REPLICAS", "{}"),
        ("__CLASSIFIER__REPLICAS", '{"min_replicas": 3, "max_replicas": 2}'),
        ("__CLASSIFIER__REPLICAS", '{"max_replicas": 2, "target_ongoing_requests": 0}'),
        ("__CLASSIFIER__PLACEMENT", "orbit"),
        ("__API__PLACEMENT", "inline"),
        ("__API__GPUS", "-1"),
        ("__API__CPUS", "nan"),
        ("__API__MAX_ONGOING_REQUESTS", "0"),
        ("__RAG__PLACEMENT", "deployment"),
    ],
)
def test_wrong_options_of_a_deployment_are_refused(monkeypatch, path, value):
    assert "deployments" in refused(monkeypatch, f"WORKSHOP_DEPLOYMENTS{path}", value).lower()


@pytest.mark.parametrize(
    ("settings", "deployed"),
    [
        ({}, {"api"}),
        ({"placement": "deployment"}, {"api", "classifier", "language_models", "retriever", "rag"}),
        ({"placement": "deployment", "language_models": False}, {"api", "classifier"}),
        (
            {"placement": "deployment", "LLM_BASE_URL": "http://x"},
            {"api", "classifier", "language_models", "retriever"},
        ),
        (
            {"placement": "deployment", "draft_base_url": "http://x"},
            {"api", "classifier", "language_models", "retriever", "rag"},
        ),
        (
            {"placement": "deployment", "draft_base_url": "http://x", "llm_base_url": "http://x"},
            {"api", "classifier", "retriever"},
        ),
        (
            {"placement": "deployment", "deployments": {"classifier": {"placement": "inline"}}},
            {"api", "language_models", "retriever", "rag"},
        ),
        (
            {"placement": "deployment", "deployments": {"retriever": {"placement": "inline"}}},
            {"api", "classifier", "language_models"},
        ),
        ({"deployments": {"classifier": {"placement": "deployment"}}}, {"api", "classifier"}),
        ({"deployments": {"language_models": {"placement": "deployment"}}}, {"api", "language_models"}),
    ],
)
def test_a_model_is_a_deployment_where_its_placement_says_so(settings, deployed):
    assert set(Settings(**settings).deployed) == deployed


URL = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("variables", "draft", "main"),
    [
        ({}, None, None),
        ({"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a"}, None, None),
        ({"LLM_BASE_URL": URL}, None, ("openai", URL, None)),
        ({"LLM_BASE_URL": URL, "LLM_API_KEY": "k", "OPENAI_API_KEY": "o"}, None, ("openai", URL, "k")),
        ({"LLM_BASE_URL": URL, "OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a"}, None, ("openai", URL, "o")),
        (
            {"LLM_BASE_URL": URL, "LLM_PROTOCOL": "anthropic", "OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a"},
            None,
            ("anthropic", URL, "a"),
        ),
        ({"LLM_BASE_URL": URL, "LLM_PROTOCOL": "anthropic", "OPENAI_API_KEY": "o"}, None, ("anthropic", URL, None)),
        ({"WORKSHOP_DRAFT_BASE_URL": URL, "OPENAI_API_KEY": "o"}, ("openai", URL, "o"), None),
        (
            {"WORKSHOP_DRAFT_BASE_URL": URL, "WORKSHOP_DRAFT_API_KEY": "d", "LLM_API_KEY": "k", "OPENAI_API_KEY": "o"},
            ("openai", URL, "d"),
            None,
        ),
        ({"LLM_BASE_URL": URL, "LLM_API_KEY": "", "OPENAI_API_KEY": "o"}, None, ("openai", URL, None)),
    ],
    ids=str,
)
def test_each_model_has_a_server_and_a_key_of_its_own(monkeypatch, variables, draft, main):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.draft_server == (draft and ModelServer(*draft))
    assert settings.main_server == (main and ModelServer(*main))


@pytest.mark.parametrize("url", ["http://a", "https://a.b-c.de:1/x/y/", "http://[::1]:9000/v1", "http://übel.de/v1"])
def test_a_url_of_a_server_may_have_a_port_and_a_path(url):
    assert Settings(llm_base_url=url).main_server == ModelServer("openai", url, None)


def test_no_key_is_shown():
    settings = Settings(llm_base_url=URL, llm_api_key=SECRET, openai_api_key=SECRET)
    assert SECRET not in f"{settings!r} {settings.main_server!r}"


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"LLM_BASE_URL": "127.0.0.1:9000"}, "setting LLM_BASE_URL='127.0.0.1:9000': "),
        *(
            ({"LLM_BASE_URL": url}, f"setting LLM_BASE_URL={url!r}: ")
            for url in [
                "",
                "http://",
                "http://:9000",
                "http://a:port/v1",
                "http://a/v1\n",
                "http://a/v1?b=c",
                "http://[",
            ]
        ),
        ({"LLM_BASE_URL": f"http://me:{SECRET}@a/v1"}, "setting LLM_BASE_URL: "),
        ({"LLM_BASE_URL": URL, "LLM_PROTOCOL": "grpc"}, "'openai' or 'anthropic'"),
        ({"LLM_PROTOCOL": "anthropic"}, "LLM_BASE_URL is not"),
        ({"WORKSHOP_EMBEDDING_BASE_URL": URL}, "embedding_model is not"),
        ({"WORKSHOP_DRAFT_MODEL": "one/model", "WORKSHOP_MAIN_MODEL": "other/model"}, "both are called model"),
        ({"WORKSHOP_DRAFT_PROTOCOL": "anthropic"}, "there is no setting WORKSHOP_DRAFT_PROTOCOL"),
        *(
            ({name: key}, f"setting {shown}: Value error, it should be ASCII")
            for name, shown in [
                ("LLM_API_KEY", "LLM_API_KEY"),
                ("OPENAI_API_KEY", "OPENAI_API_KEY"),
                ("ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
                ("WORKSHOP_DRAFT_API_KEY", "draft_api_key"),
                ("WORKSHOP_EMBEDDING_API_KEY", "embedding_api_key"),
            ]
            for key in (f"{SECRET}\n", f"Bearer {SECRET}", f"{SECRET}…")
        ),
    ],
    ids=str,
)
def test_a_wrong_server_is_refused(monkeypatch, variables, line):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as caught:
        read_settings()
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", [*SECRETS, *map(variable_of, SECRETS)])
def test_a_secret_in_a_file_is_told_apart_whatever_it_is_called(tmp_path, name):
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps({name: SECRET, "port": 8000}))
    assert settings_in(file) == ({"port": 8000}, [name])


def test_a_url_with_a_password_in_a_file_is_a_secret(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("DATABASE_URL: postgresql+asyncpg://me:password@db/service")
    assert settings_in(file) == ({}, ["DATABASE_URL"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORKSHOP_ARTIFACT", "models:/tumours", "models:/NAME@champion"),
        ("WORKSHOP_ARTIFACT", "models:/tumours/3", "models:/NAME@champion"),
        ("WORKSHOP_ARTIFACT", "", "at least 1 character"),
        ("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:5000", "no password"),
    ],
)
def test_where_models_are(monkeypatch, name, value, words):
    assert words in refused(monkeypatch, name, value)


@pytest.mark.parametrize("name", ["upscale_delay_s", "downscale_delay_s", "max_replicas"])
@pytest.mark.parametrize("value", ["-1", "NaN", "1e9", '"soon"'])
def test_autoscaling_out_of_bounds(monkeypatch, name, value):
    scaling = f'{{"max_replicas": 2, "{name}": {value}}}'
    line = refused(monkeypatch, "WORKSHOP_DEPLOYMENTS__CLASSIFIER__REPLICAS", scaling)
    assert name in line
