"""Starts and stops the service on Ray Serve. Nothing is left behind: no process, no port."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

# Ray reads these when it is imported or started. Values that are already set are kept.
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: replicas starve on a busy machine
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # 5 by default, and then the start fails
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "workshop.integration.ingress:server_middleware")
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
from ray._private.accelerators import NvidiaGPUAcceleratorManager
from ray.exceptions import RayError
from ray.serve.context import _get_global_client as get_global_client
from ray.serve.schema import ServeStatus

from workshop.contracts.errors import StartError
from workshop.integration import ingress
from workshop.integration.reaper import reaper
from workshop.integration.serve_app import (
    ALL_ADDRESSES,
    APP_NAME,
    SERVE_LOG,
    TRACES,
    build_application,
    reserved_cpus,
    reserved_gpus,
)
from workshop.integration.stopping import CANCEL_GRACE_S, GRACE_S
from workshop.machine import available_memory, bound_socket, url_of
from workshop.settings import Settings

logger = logging.getLogger(__name__)

RAY_MEMORY = 1_200_000_000
"""Bytes that Ray, Serve and one replica need in addition to the object store; measured, and rounded up."""

LANGUAGE_MEMORY = 1_000_000_000
"""Bytes that the language models that come with the service add: PyTorch, for the most part."""

START_TRIES = 5
"""Ray gives its own processes 15 seconds to start, which no setting changes. A busy machine needs longer."""

START_LOCK = Path(gettempdir()) / f"workshop-ray-start-{os.getuid()}.lock"
"""One Ray starts at a time: several that start together on few cores all miss Ray's limit."""


@contextmanager
def serve_cluster(
    settings: Settings,
    *,
    host: str,
    port: int,
    root_path: str = "",
    show_logs: bool = False,
    joins: bool = False,
    is_fast: bool = False,
) -> Iterator[str]:
    """Ray and Serve, with Serve's proxy at ``http://host:port``, for the length of the block. Yields its URL.

    A small Ray of our own, or the one that ``RAY_ADDRESS`` names. There, the environment of the nodes decides whether
    a proxy has the limits of ``http_limits``. Without them, it buffers headers of any size until they are complete.

    With ``show_logs``, a Ray of our own sends the log lines of all processes to our standard error. Another Ray keeps
    them, as files on its nodes.

    With ``is_fast``, Serve on a Ray of our own runs as ``ingress`` says, and not with its defaults.

    With ``joins``, it may be a Ray where Serve is already running, at an address of its own. What others run on it
    stays, and so does a Serve that is not ours. Without, all that runs on Serve ends with the block.

    Raises:
        StartError: Serve is already running on this Ray, or does not come up; also see ``ray_cluster`` and
            ``sampling_ratio``.
    """
    _set_up_traces(settings)
    with reaper(), ray_cluster(settings, ingress_host=host if is_fast else None, show_logs=show_logs):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        found = serve.status()
        if found.proxies and not joins:
            raise StartError("Serve is already running on this Ray, at another address; `serve shutdown` stops it")
        if not found.proxies:
            with bound_socket(host, port) as free:  # starting Ray took seconds; two Serves would share one port
                port = free.getsockname()[1]
            # HAProxy listens on ``host``.
            inner_host = ingress.LOOPBACK if is_fast and _can_have_haproxy() else host
            options = {"host": inner_host, "port": port, "root_path": root_path}
            try:
                serve.start(http_options=options, logging_config=SERVE_LOG)
            except RayError as error:
                raise StartError.because("Ray Serve does not come up", error, "is this machine too busy?") from error
        try:
            yield _proxy_url() if found.proxies else url_of(host, port)
        finally:
            # A Ray of our own ends with all that runs on it, and a Serve that others could not join belongs to us.
            if os.environ.get("RAY_ADDRESS") and not (joins and _is_in_use(found)):
                serve.shutdown()  # type: ignore[no-untyped-call]


def _is_in_use(found: ServeStatus) -> bool:
    """Whether Serve, which we found like this, is not ours to stop.

    One of us started it if only our applications ran on it: a Serve without any was started by somebody else.
    """
    is_ours = not found.proxies or (found.applications and all(map(_is_ours, found.applications)))
    return not is_ours or bool(serve.status().applications)


def _is_ours(name: str) -> bool:
    return name == APP_NAME or name.startswith(f"{APP_NAME}-")


def _proxy_url() -> str:
    """Where a Serve listens that somebody else has started."""
    client = get_global_client()  # there is no public function that knows the address
    assert client is not None
    details = client.get_serve_details()
    options = details["http_options"]
    host = options["host"]
    if host in {None, ALL_ADDRESSES, "::"}:  # all addresses of its nodes
        host = next(iter(details["proxies"].values()))["node_ip"]
    return url_of(host, options["port"]) + (options["root_path"] or "")


@contextmanager
def running_service(
    settings: Settings, *, host: str, port: int, root_path: str = "", name: str = APP_NAME
) -> Iterator[str]:
    """The service at ``http://host:port`` for the length of the block. Yields its URL.

    On a Ray where Serve is already running, it is one application among others, at the address of that Serve.

    Args:
        settings: of the service.
        host, port, root_path: where Serve listens, unless it is already running.
        name: of the application. If it is not ``APP_NAME``, the service is at ``/name`` of that address.

    Raises:
        StartError: see the message; nothing of ours is left running.
    """
    with serve_cluster(
        settings, host=host, port=port, root_path=root_path, show_logs=True, joins=True, is_fast=True
    ) as url:
        prefix = "/" if name == APP_NAME else f"/{name}"
        application = name if name == APP_NAME else f"{APP_NAME}-{name}"
        if application in serve.status().applications:
            raise StartError(f"the service already runs on this Ray as {name!r}; choose another --name")
        _warn_of_missing_cpus(settings)
        try:
            serve.run(build_application(settings), name=application, route_prefix=prefix)
            try:
                yield url + prefix.rstrip("/")
            finally:
                _end_requests(application)
        except RuntimeError as error:
            raise StartError(f"Ray Serve could not start the service: {error}") from error
        finally:
            serve.delete(application)


def _warn_of_missing_cpus(settings: Settings) -> None:
    needed = reserved_cpus(settings)
    free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if free < needed:
        logger.warning("the service reserves up to %d CPUs, and %g are free on this Ray: it may wait", needed, free)


def _set_up_traces(settings: Settings) -> None:
    """Make every process of Serve export its spans.

    By variables, since Serve does not pass ``tracing_config`` on to its proxies. Its sampler is its own, so we hand it
    the standard ratio.
    """
    if settings.exports_traces:
        from workshop.traces import sampling_ratio, span_processors

        os.environ[TRACES] = f"{span_processors.__module__}:{span_processors.__name__}"
        os.environ["RAY_SERVE_TRACING_SAMPLING_RATIO"] = str(sampling_ratio())


def _end_requests(application: str) -> None:
    """Let the requests under way finish, or end them, while there are replicas to answer them."""
    try:
        ended = serve.get_app_handle(application).broadcast("end_requests")
        ended.results(timeout_s=GRACE_S + 2 * CANCEL_GRACE_S)
    except Exception as error:  # whatever a broken cluster raises: the stop goes on
        logger.warning("cannot end the requests under way: %s", error)


@contextmanager
def ray_cluster(settings: Settings, *, ingress_host: str | None = None, show_logs: bool = False) -> Iterator[None]:
    """Ray for the length of the block: one of our own, or the one that ``RAY_ADDRESS`` names, which goes on.

    With an ``ingress_host``, Serve on a Ray of our own runs as ``ingress`` says, and listens there.

    Raises:
        StartError: there is too little memory, Ray does not come up however often it is tried, or ``RAY_ADDRESS``
            cannot be reached.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    for tries_left in reversed(range(START_TRIES)):
        # In a thread, so that signals wait until Ray is up: a half-started Ray leaves processes behind. Ray's processes
        # inherit the blocked SIGINT. Linux ends them when the thread that started them ends, so the thread stays.
        with (
            TemporaryDirectory(prefix="serve-", dir="/tmp") as folder,  # not deeper: paths of sockets must be short
            ThreadPoolExecutor(
                1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT})
            ) as thread,
        ):
            start = thread.submit(_start_ray, settings, ingress_host, Path(folder), show_logs)
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


def _start_ray(settings: Settings, ingress_host: str | None, folder: Path, show_logs: bool) -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=False)
        except ConnectionError as error:
            remedy = "set RAY_AUTH_MODE=token if that Ray requires a token, or unset RAY_ADDRESS to start a new Ray"
            raise StartError(f"cannot connect to RAY_ADDRESS={address}; {remedy}") from error
    else:
        variables = {}
        if ingress_host is not None and _can_have_haproxy():
            variables = ingress.variables(folder, ingress_host, settings.max_websockets)
        with FileLock(START_LOCK), _environment(variables):
            _start_our_ray(settings, show_logs)


def _can_have_haproxy() -> bool:
    return not os.environ.get("RAY_ADDRESS") and ingress.is_wanted()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables for the processes that start within the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


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
        num_gpus=_logical_gpus(settings),
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=show_logs,
        logging_level=logging.ERROR,
    )


def _logical_gpus(settings: Settings) -> int | None:
    """None for those of this machine."""
    reserved = reserved_gpus(settings)
    if settings.ray_gpus or not reserved or NvidiaGPUAcceleratorManager.get_current_node_num_accelerators():
        return settings.ray_gpus
    logger.warning("this machine has no GPU: the deployments that reserve one run on the CPU")
    return reserved
