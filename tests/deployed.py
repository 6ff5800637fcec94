"""The service on the test run's Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from workshop.integration.serve_app import APP_NAME, build_application
from workshop.settings import Settings


@contextmanager
def deployed(settings: Settings, name: str = APP_NAME, prefix: str = "/") -> Iterator[None]:
    """The service on the cluster, below a prefix."""
    serve.run(build_application(settings), name=name, route_prefix=prefix)
    try:
        yield
    finally:
        serve.delete(name)
