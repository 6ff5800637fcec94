"""What several folders use: models, a browser, Redis, PostgreSQL, a Ray cluster."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.postgresql import PostgreSQL, running_postgresql
from tests.redis_server import running_redis
from workshop.machine import free_port

# The defaults are ten and five seconds, in which a busy machine may not complete a handshake or answer a request.
connect.__kwdefaults__["open_timeout"] = 60
for phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, 60)

# Debian keeps PostgreSQL's programs out of the PATH.
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), *glob("/usr/lib/postgresql/*/bin")])


def system_tool(*names: str) -> str:
    """The path of the first of these programs that is installed.

    If none is, the test is skipped, or fails if REQUIRE_SYSTEM_TOOLS is set.
    """
    for name in names:
        if path := shutil.which(name, path=PLACES):
            return path
    reason = f"{names[0]} is not installed"
    if os.environ.get("REQUIRE_SYSTEM_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium that Playwright can drive."""
    return system_tool("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def redis_server() -> str:
    """The path of the Redis server."""
    return system_tool("redis-server")


@pytest.fixture
def redis(redis_server, tmp_path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL of an empty Redis, and its process."""
    with running_redis(redis_server, free_port(), tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that the tests share; none of them stops it."""
    with running_postgresql(system_tool("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The URL of Ray Serve's proxy. All tests of this process share one cluster, which starts slowly."""
    from workshop.integration.serve_cluster import serve_cluster
    from workshop.settings import Settings

    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # as in a notebook
    settings = Settings(ray_cpus=12, ray_gpus=1, language_models=False)
    with serve_cluster(settings, host="127.0.0.1", port=0, is_fast=True) as url:
        yield url


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Path:
    """The saved tumour classifier."""
    from workshop.models.tumours import train

    folder = tmp_path_factory.mktemp("artifact")
    train().save(folder)
    return folder


@pytest.fixture(scope="session")
def retriever_artifact(tmp_path_factory) -> Path:
    """The saved retriever of the corpus and the lessons."""
    from tests.retriever import built

    folder = tmp_path_factory.mktemp("retriever")
    built().save(folder)
    return folder
