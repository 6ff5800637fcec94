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
def no_health_cache(monkeypatch) -> None:
    """Health checks are not cached, so a test sees at once what it breaks or repairs."""
    monkeypatch.setattr(health, "CACHE_S", 0.0)


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
