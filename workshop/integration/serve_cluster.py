"""Starts and stops the service on Ray Serve. Nothing is left behind: no process, no port."""

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

# Ray reads these when it is imported or started. Values that are already set are kept.
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: replicas starve on a busy machine
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "workshop.integration.http_limits:proxy_middleware")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
# Log lines of replicas reach this process's standard error as they are: see ``show_logs``.
os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
# For the uvicorn in Serve's proxy, which would trust every caller on this machine. The application has its own list.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")

import ray
from filelock import FileLock
from ray import serve

from workshop.contracts.errors import StartError
from workshop.integration.reaper import reaper
from workshop.integration.serve_app import APP_NAME, build_application, reserved_cpus
from workshop.integration.stopping import CANCEL_GRACE_S, GRACE_S
from workshop.machine import available_memory, bound_socket
from workshop.settings import Settings

logger = logging.getLogger(__name__)

RAY_MEMORY = 1_000_000_000
"""Bytes that Ray, Serve and one replica need in addition to the object store; measured, and rounded up."""

LANGUAGE_MEMORY = 1_000_000_000
"""Bytes that the language models that come with the service add: PyTorch, for the most part."""

START_TRIES = 5
"""Ray gives its own processes 15 seconds to start, which no setting changes. A busy machine needs longer."""

START_LOCK = Path(tempfile.gettempdir()) / f"workshop-ray-start-{os.getuid()}.lock"
"""One Ray starts at a time: several that start together on few cores all miss Ray's limit."""


@contextmanager
def serve_cluster(
    settings: Settings, *, host: str, port: int, root_path: str = "", show_logs: bool = False
) -> Iterator[None]:
    """Ray and Serve, with Serve's proxy at ``http://host:port``, for the length of the block.

    A small Ray of our own, or the one that ``RAY_ADDRESS`` names. Whether a proxy has the limits of ``http_limits``
    depends on the environment of its node. Without them, it buffers headers of any size until they are complete.

    With ``show_logs``, a Ray of our own sends the log lines of all processes to our standard error. Another Ray keeps
    them, as files on its nodes.

    Raises:
        StartError: Serve is already running on this Ray; also see ``ray_cluster`` and ``sampling_ratio``.
    """
    _set_up_traces(settings)
    with reaper(), ray_cluster(settings, show_logs=show_logs):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if serve.status().proxies:
            raise StartError("Serve is already running on this Ray, at another address; `serve shutdown` stops it")
        bound_socket(host, port).close()  # starting Ray took seconds; two Serves would share one port
        serve.start(
            http_options={"host": host, "port": port, "root_path": root_path},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        try:
            yield
        finally:
            if os.environ.get("RAY_ADDRESS"):  # a Ray of our own ends with all that runs on it
                serve.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def running_service(settings: Settings, *, host: str, port: int, root_path: str = "") -> Iterator[None]:
    """The service at ``http://host:port`` for the length of the block.

    Raises:
        StartError: see the message; nothing is left running.
    """
    with serve_cluster(settings, host=host, port=port, root_path=root_path, show_logs=True):
        try:
            serve.run(build_application(settings), name=APP_NAME)
            try:
                yield
            finally:
                _end_requests()
        except RuntimeError as error:
            raise StartError(f"Ray Serve could not start the service: {error}") from error
        finally:
            serve.delete(APP_NAME)


def _set_up_traces(settings: Settings) -> None:
    """Make every process of Serve export its spans.

    By variables, since Serve does not pass ``tracing_config`` on to its proxies. Its sampler is its own, so we hand it
    the standard ratio.
    """
    if settings.exports_traces:
        from workshop.traces import sampling_ratio, span_processors

        os.environ["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"] = (
            f"{span_processors.__module__}:{span_processors.__name__}"
        )
        os.environ["RAY_SERVE_TRACING_SAMPLING_RATIO"] = str(sampling_ratio())


def _end_requests() -> None:
    """Let the requests under way finish, or end them, while there are replicas to answer them."""
    try:
        ended = serve.get_app_handle(APP_NAME).broadcast("end_requests")
        ended.results(timeout_s=GRACE_S + 2 * CANCEL_GRACE_S)
    except Exception as error:  # whatever a broken cluster raises: the stop goes on
        logger.warning("cannot end the requests under way: %s", error)


@contextmanager
def ray_cluster(settings: Settings, *, show_logs: bool = False) -> Iterator[None]:
    """Ray for the length of the block: one of our own, or the one that ``RAY_ADDRESS`` names, which goes on.

    Raises:
        StartError: there is too little memory, Ray does not come up however often it is tried, or ``RAY_ADDRESS``
            cannot be reached.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    for tries_left in reversed(range(START_TRIES)):
        # In a thread, so that signals wait until Ray is up: a half-started Ray leaves processes behind. Ray's processes
        # inherit the blocked SIGINT. Linux ends them when the thread that started them ends, so the thread stays.
        with ThreadPoolExecutor(
            1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT})
        ) as thread:
            start = thread.submit(_start_ray, settings, show_logs)
            try:
                try:
                    start.result()
                except StartError:
                    raise
                except Exception as error:  # Ray raises nothing more specific
                    if tries_left:
                        continue
                    raise StartError.because("Ray does not come up", error) from error
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has installed a handler that aborts
                yield
                return
            finally:
                wait([start])
                ray.shutdown()
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Ray has restored the system's


def _start_ray(settings: Settings, show_logs: bool) -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=False)
        except ConnectionError as error:
            remedy = "set RAY_AUTH_MODE=token if that Ray requires a token, or unset RAY_ADDRESS to start a new Ray"
            raise StartError(f"cannot connect to RAY_ADDRESS={address}; {remedy}") from error
    else:
        with FileLock(START_LOCK):
            _start_our_ray(settings, show_logs)


def _start_our_ray(settings: Settings, show_logs: bool) -> None:
    store = settings.object_store_mb * 2**20
    needed, available = RAY_MEMORY + store, available_memory()
    remedy = "stop other programs, or run: python -m workshop api"
    if settings.local_models:
        needed += LANGUAGE_MEMORY
        remedy = f"set WORKSHOP_LANGUAGE_MODELS=false, {remedy}"
    if available < needed:
        raise StartError(f"Ray needs {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; {remedy}")
    ray.init(
        address="local",
        num_cpus=settings.ray_cpus or reserved_cpus(settings),
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=show_logs,
        logging_level=logging.ERROR,
    )
