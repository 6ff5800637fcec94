"""What tests of several folders use: the trained models, a browser, a Redis server, a PostgreSQL server."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

from tests.postgresql import PostgreSQL, running_postgresql
from tests.retriever import built
from workshop.machine import free_port
from workshop.models.tumours import train

# Debian keeps PostgreSQL's programs out of the PATH.
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), *glob("/usr/lib/postgresql/*/bin")])


def system_tool(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Without any, the test is skipped, or fails where WORKSHOP_REQUIRE_SYSTEM_TOOLS is set.
    """
    for name in names:
        if path := shutil.which(name, path=PLACES):
            return path
    reason = f"{names[0]} is not installed"
    if os.environ.get("WORKSHOP_REQUIRE_SYSTEM_TOOLS"):
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
    """The URL of a Redis that holds nothing, and its process."""
    port = free_port()
    command = [redis_server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while b"Ready to accept connections" not in process.stdout.readline():
            assert process.poll() is None
        yield f"redis://127.0.0.1:{port}", process
        process.terminate()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server for databases of tests; no test stops it."""
    with running_postgresql(system_tool("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Path:
    """The saved tumour classifier."""
    folder = tmp_path_factory.mktemp("artifact")
    train().save(folder)
    return folder


@pytest.fixture(scope="session")
def retriever_artifact(tmp_path_factory) -> Path:
    """The saved retriever, of corpus and lessons."""
    folder = tmp_path_factory.mktemp("retriever")
    built().save(folder)
    return folder
