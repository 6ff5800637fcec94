"""One small Ray Serve for a notebook."""

import atexit
import logging
import os
from contextlib import ExitStack

from workshop.integration.serve_cluster import serve_cluster
from workshop.lab.progress import waiting_for
from workshop.settings import Settings

_running = ExitStack()
_url: str | None = None


def start_serve() -> str:
    """Start Ray and Serve with settings that save memory, unless they are running.

    Returns the address of Serve's HTTP proxy, such as ``http://127.0.0.1:43210``.
    """
    global _url  # noqa: PLW0603
    if _url is None:
        # More logical CPUs than cores: the replicas of the lessons mostly wait.
        # And a GPU, whether there is one or not: a model that finds none runs on the CPU.
        settings = Settings(ray_cpus=16, ray_gpus=1, language_models=False)
        os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # for ``watch_serve``; by default ten seconds
        with waiting_for("Ray and Serve"):
            _url = _running.enter_context(serve_cluster(settings, host="127.0.0.1", port=0))
        # Serve warns each time that a replica is slow to say how busy it is. On a small machine they all are.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return _url


@atexit.register
def stop_serve() -> None:
    """Stop what ``start_serve`` started. A second call does nothing."""
    global _url  # noqa: PLW0603
    _running.close()
    _url = None
