"""Users from the command line, and what they can do then."""

import httpx
import pytest
from typer.testing import CliRunner

from tests.stand_ins import StandInClassifier, database_url
from workshop.api.app import create_app
from workshop.cli import app
from workshop.contracts.errors import StartError
from workshop.contracts.services import Services
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.users import SqlUserStore

PASSWORD = "correct horse battery"


@pytest.fixture
def database(tmp_path, monkeypatch) -> str:
    url = database_url(tmp_path / "service.sqlite")
    monkeypatch.setenv("DATABASE_URL", url)
    return url


def users(*arguments: str, typed: str = "") -> str:
    """What ``python -m workshop users`` prints. Raises what stops it."""
    result = CliRunner().invoke(app, ["users", *arguments], input=typed)
    if isinstance(result.exception, StartError):
        raise result.exception
    return result.output


def twice(password: str) -> str:
    return f"{password}\n{password}\n"


def log_in(database: str, password: str) -> httpx.Response:
    services = Services(StandInClassifier(), SqlCaseStore(database), users=SqlUserStore(database))
    settings = Settings(token_keys={"1": "a key that is long enough for tests, really"}, language_models=False)
    with run_app(create_app(services, settings)) as server:
        return httpx.post(f"{server.url}/v1/auth/token", data={"username": "ada", "password": password})


def test_without_a_key_for_tokens_nobody_can_log_in_yet(database, monkeypatch):
    assert "WORKSHOP_TOKEN_KEYS" in users("add", "ada", typed=twice(PASSWORD))
    monkeypatch.setenv("WORKSHOP_TOKEN_KEYS", '{"1": "a key that is long enough for tests, really"}')
    assert "WORKSHOP_TOKEN_KEYS" not in users("add", "ada", typed=twice(PASSWORD))


def test_a_user_is_added_listed_changed_and_removed(database):
    assert "ada may log in as member." in users("add", "ada", typed=twice(PASSWORD))
    assert log_in(database, PASSWORD).status_code == 200
    assert "ada may log in as viewer." in users("add", "ada", "--role", "viewer", typed=twice("another " + PASSWORD))
    assert users("list") == "ada\tviewer\n"
    assert log_in(database, PASSWORD).status_code == 400
    assert log_in(database, "another " + PASSWORD).json()["scope"] == "cases:read predict"
    assert users("remove", "ada") == "ada may no longer log in.\n"
    assert users("list") == ""
    assert log_in(database, "another " + PASSWORD).status_code == 400


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "anonymous", "ada\n", "../ada", "ada;--"])
def test_a_name_must_be_simple(database, name):
    with pytest.raises(StartError, match="a name should have 1 to 64 letters"):
        users("add", name, typed=twice(PASSWORD))
    assert users("list") == ""


@pytest.mark.parametrize("password", ["short", "a" * 257])
def test_a_password_must_be_long_but_not_endless(database, password):
    with pytest.raises(StartError, match="a password should have 12 to 256 characters") as caught:
        users("add", "ada", typed=twice(password))
    assert password not in str(caught.value)


def test_a_password_is_typed_twice_and_never_shown(database):
    output = users("add", "ada", typed=f"{PASSWORD}\nsomething else\n{twice(PASSWORD)}")
    assert "do not match" in output
    assert PASSWORD not in output


def test_nobody_cannot_be_removed(database):
    with pytest.raises(StartError, match="there is no user eve"):
        users("remove", "eve")


def test_a_database_that_does_not_answer_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", database_url(tmp_path / "no" / "such" / "folder" / "file"))
    with pytest.raises(StartError, match="the database does not answer"):
        users("list")
