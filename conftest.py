"""How the tests are spread over processes: those in `tests`, and the notebooks, which nbval runs."""

import os
from collections.abc import Generator

import pytest
from nbval.plugin import IPyNbCell

from workshop.machine import available_memory, usable_cores

pytest_plugins = ["tests.notebooks"]

MEMORY_OF_A_WORKER = 4 * 10**9
"""Bytes that a process of the test run may need, with a Ray cluster and the language models in it."""

SLOW = {
    "ray": "uses the Ray cluster of its process; with own=True, starts a Ray of its own",
    "browser": "starts Chromium",
    "notebook": "runs a whole notebook",
    "slow": "takes many seconds, or belongs to a file whose tests do",
}
"""Markers of tests that `make check` leaves out. They are set here, from what a test uses, but `slow` in the files."""


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in SLOW.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    # No test uses TLS. Otherwise each HTTP client would load the system's certificates: 30 ms, thousands of times.
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = os.devnull
    os.environ["PYTHON_DOTENV_DISABLED"] = "true"  # a developer's .env is not for the tests
    os.environ["LAB_TRIES_FILE"] = os.devnull  # answers in tests do not count as the learner's tries


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, because many tests wait; fewer if memory is short."""
    return max(1, min(int(usable_cores()) + 1, available_memory() // MEMORY_OF_A_WORKER))


@pytest.hookimpl(wrapper=True)  # in between, pytest selects by marker, and xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Mark the slow tests, start them first, and decide which run in one process, in which order."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "cluster" in fixtures or (isinstance(item, IPyNbCell) and item.parent.nb.metadata.workshop.get("ray")):
            item.add_marker("ray")
        if "chromium" in fixtures:
            item.add_marker("browser")
        if isinstance(item, IPyNbCell):
            item.add_marker("notebook")
        if "parity" in item.path.parts:  # each starts the whole service
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    yield
    items.sort(key=order_of)


def group_of(item: pytest.Item) -> str:
    """Tests of one group run in one process, one after the other, and share what their fixtures start."""
    if item.get_closest_marker("ray"):  # two groups, so at most two start at a time: more exceed Ray's time limit
        has_other_ray = starts_ray(item) or item.get_closest_marker("notebook")
        return "other Rays" if has_other_ray else "Ray of the tests"
    if not {"run", "bank", "kernel_environment"}.isdisjoint(getattr(item, "fixturenames", ())):
        return item.nodeid  # a command line, the answers to an exercise, or a kernel, which share nothing
    return item.path.name


def starts_ray(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("ray")
    return marker is not None and marker.kwargs.get("own", False)


def order_of(item: pytest.Item) -> list[object]:
    """Slow tests come first; of those on Ray, the ones that start their own; a lesson's notebooks together."""
    is_quick = {name: item.get_closest_marker(name) is None for name in SLOW}
    lesson = item.path.name if isinstance(item, IPyNbCell) else ""
    # On Ray, the browser does not count: pytest has already put the tests of one service together.
    return [
        is_quick["ray"],
        not starts_ray(item),
        is_quick["ray"] and is_quick["browser"],
        is_quick["notebook"],
        is_quick["slow"],
        lesson,
    ]
