"""One Ray cluster for the whole test run: it starts slowly."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from ray import serve

from workshop.integration.cluster import serve_cluster
from workshop.integration.serve import APP_NAME, build_application
from workshop.machine import free_port
from workshop.settings import Settings

_urls: list[str] = []


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The URL of Serve's proxy. Each conftest that imports this shares the cluster; who comes first starts it."""
    if ray.is_initialized():
        yield _urls[-1]
        return
    port = free_port()
    with serve_cluster(Settings(ray_cpus=8, language_models=False), host="127.0.0.1", port=port):
        _urls.append(f"http://127.0.0.1:{port}")
        yield _urls[-1]


@contextmanager
def deployed(settings: Settings) -> Iterator[None]:
    """The service on the cluster, at ``/``."""
    serve.run(build_application(settings), name=APP_NAME)
    try:
        yield
    finally:
        serve.delete(APP_NAME)
