"""How the tests are spread over processes, and what several folders use: models, a browser, Redis, PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell

from tests import notebooks
from tests.postgresql import PostgreSQL, running_postgresql
from workshop.machine import available_memory, free_port, usable_cores

MEMORY_OF_A_WORKER = 4 * 10**9
"""Bytes that a process of the test run may need, with a Ray cluster and the language models in it."""

SLOW = {
    "ray": "starts a Ray cluster, or shares the one of its process",
    "browser": "starts Chromium",
    "notebook": "runs a whole notebook",
}
"""Markers of tests that `make check` leaves out. They are set here, by what a test asks for."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(notebooks)
    for name, meaning in SLOW.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_xdist_auto_num_workers() -> int:
    """One process for each core, because each starts servers beside it; fewer where memory is short."""
    return max(1, min(int(usable_cores()), available_memory() // MEMORY_OF_A_WORKER))


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker, and before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, let them start first, and say which belong into one process."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "cluster" in fixtures or (isinstance(item, IPyNbCell) and item.parent.nb.metadata.workshop.get("ray")):
            item.add_marker("ray")
        if "chromium" in fixtures:
            item.add_marker("browser")
        if isinstance(item, IPyNbCell):
            item.add_marker("notebook")
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in SLOW])


def group_of(item: pytest.Item) -> str:
    """Tests of one group run in one process, one after the other, and share what their fixtures start."""
    if "run" in getattr(item, "fixturenames", ()):
        return item.nodeid  # a command line, which shares nothing
    if item.get_closest_marker("ray") and not isinstance(item, IPyNbCell):
        return f"ray {item.path.parent.name}"
    return item.path.name


# Debian keeps PostgreSQL's programs out of the PATH.
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), *glob("/usr/lib/postgresql/*/bin")])


def system_tool(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Without any, the test is skipped, or fails where REQUIRE_SYSTEM_TOOLS is set.
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
def cluster() -> Iterator[str]:
    """The URL of the proxy of Ray Serve, on one cluster for all tests of this process: it starts slowly."""
    from workshop.integration.cluster import serve_cluster
    from workshop.settings import Settings

    port = free_port()
    with serve_cluster(Settings(ray_cpus=8, language_models=False), host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Path:
    """The saved tumour classifier."""
    from workshop.models.tumours import train

    folder = tmp_path_factory.mktemp("artifact")
    train().save(folder)
    return folder


@pytest.fixture(scope="session")
def retriever_artifact(tmp_path_factory) -> Path:
    """The saved retriever, of corpus and lessons."""
    from tests.retriever import built

    folder = tmp_path_factory.mktemp("retriever")
    built().save(folder)
    return folder
