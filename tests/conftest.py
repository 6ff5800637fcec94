"""What tests of several folders use: the trained models, a browser, a Redis server."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.retriever import built
from workshop.machine import free_port
from workshop.models.tumours import train


def system_tool(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Without any, the test is skipped, or fails where WORKSHOP_REQUIRE_SYSTEM_TOOLS is set.
    """
    for name in names:
        if path := shutil.which(name):
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
