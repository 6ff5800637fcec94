"""The API on uvicorn, with stand-in models behind it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stand_ins import Service, StandInModel, application, draft, main
from workshop.api import health
from workshop.lab.app_server import run_app


@pytest.fixture(autouse=True)
def fresh_health(monkeypatch) -> None:
    """What a test breaks or mends shows at its next look at the service's health."""
    monkeypatch.setattr(health, "FRESH_S", 0.0)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "service.sqlite"


@pytest.fixture
def serve(file):
    @contextmanager
    def serve(small: StandInModel | None = None, big: StandInModel | None = None, **options: Any) -> Iterator[Service]:
        small, big = small or draft(), big or main()
        app = application(file, small, big, **options)
        with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
            yield Service(client, server, small, big, file)

    return serve
