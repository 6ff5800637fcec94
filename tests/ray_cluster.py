"""The service on the test run's Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from workshop.integration.serve import APP_NAME, build_application
from workshop.settings import Settings


@contextmanager
def deployed(settings: Settings) -> Iterator[None]:
    """The service on the cluster, at ``/``."""
    serve.run(build_application(settings), name=APP_NAME)
    try:
        yield
    finally:
        serve.delete(APP_NAME)
