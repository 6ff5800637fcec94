"""Requests that Schemathesis generates from the OpenAPI document: no 5xx, and no undocumented response.

A few for each operation, the same in every run. CONTRIBUTING.md shows how to send thousands, to the real models.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.deployed import deployed
from tests.parity.conftest import ON_SERVE
from tests.stand_ins import application, database_url, draft, main
from workshop.contracts.principals import Role
from workshop.integration import users
from workshop.lab.app_server import run_app
from workshop.settings import Settings

PASSWORD = "the engine weaves"
KEYS = {"key-of-a-machine": "machine", "key-of-a-viewer": {"principal": "viewer", "role": "viewer"}}


OPTIONS = {
    "api_keys": KEYS,
    "token_keys": {"1": "signs tokens, and has more than 32 letters"},
    "wrong_keys_limit": "1000000/second",
}


@pytest.fixture(scope="module")
def on_uvicorn(tmp_path_factory) -> Iterator[str]:
    """A service with users and keys, and stand-in models."""
    file = tmp_path_factory.mktemp("schemathesis") / "service.sqlite"
    users.add(Settings(database_url=database_url(file)), "ada", Role.MEMBER, PASSWORD)
    with run_app(application(file, draft(), main(), **OPTIONS)) as server:
        yield server.url


@pytest.fixture(scope="module")
def on_serve(cluster, new_settings) -> Iterator[str]:
    """A service with keys, and the real models."""
    settings = new_settings(**ON_SERVE["serve, language models apart"], **OPTIONS)
    with deployed(settings, name="described", prefix="/described"):
        yield f"{cluster}/described"


def authorization(who: str, url: str) -> dict[str, str]:
    """The header of a caller."""
    if who == "a user":
        form = {"username": "ada", "password": PASSWORD}
        token = httpx.post(f"{url}/v1/auth/token", data=form, timeout=30).raise_for_status().json()["access_token"]
    else:
        token = {"nobody": "", "a machine": "key-of-a-machine", "a viewer": "key-of-a-viewer"}[who]
    return {"Authorization": f"Bearer {token}"}


def check_responses(url: str, who: str, mode: str) -> None:
    """Send a few requests to each operation, and compare the responses with the document."""
    config = schemathesis.Config.from_path(Path(__file__).with_name("schemathesis.toml"))
    caller = authorization(who, url)
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json", config=config).get_all_operations():
        cases = found.ok().as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @given(case=cases)
        @settings(
            max_examples=5,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def answers(case) -> None:
            logs_out = case.path == "/v1/auth/logout"  # which ends the session
            case.call_and_validate(headers=authorization(who, url) if logs_out else caller)

        with suppress(Unsatisfiable):  # an operation without parameters cannot get invalid ones
            answers()


@pytest.mark.parametrize(
    ("who", "mode"),
    [
        ("a machine", "positive"),
        ("a machine", "negative"),
        ("nobody", "positive"),
        ("a viewer", "positive"),
        ("a user", "positive"),
    ],
)
def test_responses_match_the_openapi_document(on_uvicorn, who, mode):
    check_responses(on_uvicorn, who, mode)


@pytest.mark.ray
@pytest.mark.parametrize("who", ["a machine", "nobody"])
def test_responses_match_the_openapi_document_on_serve(on_serve, who):
    check_responses(on_serve, who, "positive")
