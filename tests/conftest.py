"""System tools that some tests use: a browser and a Redis server."""

import os
import shutil

import pytest


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
