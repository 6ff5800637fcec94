"""One small Ray Serve for a notebook."""

import atexit
import logging
from contextlib import ExitStack

from workshop.integration.serve_cluster import serve_cluster
from workshop.lab.progress import waiting_for
from workshop.machine import free_port
from workshop.settings import Settings

_running = ExitStack()
_url: str | None = None


def start_serve() -> str:
    """Start Ray and Serve with settings that save memory, unless they are running.

    Returns the address of Serve's HTTP proxy, such as ``http://127.0.0.1:43210``.
    """
    global _url  # noqa: PLW0603
    if _url is None:
        port = free_port()
        # More logical CPUs than cores: the replicas of the lessons mostly wait.
        settings = Settings(ray_cpus=16, language_models=False)
        with waiting_for("Ray and Serve"):
            _running.enter_context(serve_cluster(settings, host="127.0.0.1", port=port))
        # Serve warns each time that a replica is slow to say how busy it is. On a small machine they all are.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        _url = f"http://127.0.0.1:{port}"
    return _url


@atexit.register
def stop_serve() -> None:
    """Stop what ``start_serve`` started. A second call does nothing."""
    global _url  # noqa: PLW0603
    _running.close()
    _url = None
