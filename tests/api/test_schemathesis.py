"""Requests that Schemathesis generates from the OpenAPI document: no 5xx, and no undocumented response.

A few for each operation, the same in every run. CONTRIBUTING.md shows how to send thousands, to the real models.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.stand_ins import application, draft, main
from workshop.lab.app_server import run_app

KEY = "key-of-ada"


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[object]:
    file = tmp_path_factory.mktemp("schemathesis") / "service.sqlite"
    app = application(file, draft(), main(), api_keys={KEY: "ada"}, wrong_keys_limit="1000000/second")
    with run_app(app) as server:
        config = schemathesis.Config.from_path(Path(__file__).with_name("schemathesis.toml"))
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_responses_match_the_openapi_document(api, mode):
    for found in api.get_all_operations():
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
            case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})

        with suppress(Unsatisfiable):  # an operation without parameters cannot get invalid ones
            answers()
