"""Services to measure, each a process of its own, as in production."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import httpx
import psutil

from workshop.machine import free_port

WORKSHOP = (sys.executable, "-m", "workshop")

RUNTIMES: dict[str, tuple[list[str], dict[str, str]]] = {
    "api": (["api"], {}),
    "serve, inline": (["serve", "--placement", "inline"], {}),
    "serve, deployment": (["serve", "--placement", "deployment"], {}),
}
"""The command lines of the workshop's service, and the variables of its environment."""

START_S = 180
STOP_S = 30


@contextmanager
def running(
    arguments: Sequence[str],
    variables: dict[str, str],
    *,
    program: Sequence[str] = WORKSHOP,
    ready: str = "/readiness",
    log: IO[bytes] | int | None = None,
) -> Iterator[int]:
    """The service as a process; yields its port once it is ready. In the end, no process of it is left.

    Args:
        arguments: of its command line; ``--port`` is added.
        variables: of its environment.
        program: what is run.
        ready: a path that answers a GET with success once the service is ready.
        log: where its log goes; by default, warnings go to our own standard error.
    """
    port = free_port()
    # Without a line for each request. benchmarks/middleware.py measures what these cost.
    environment = os.environ | {"WORKSHOP_LOG_LEVEL": "warning", "WORKSHOP_LANGUAGE_MODELS": "false"} | variables
    service = subprocess.Popen(
        [*program, *arguments, "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
    )
    try:
        _wait_until_ready(service, f"http://127.0.0.1:{port}{ready}")
        yield port
    finally:
        _stop(service)


def _wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            if service.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _stop(service: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end what is left of it after a while."""
    processes: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        processes = psutil.Process(service.pid).children(recursive=True)
    service.terminate()
    with suppress(subprocess.TimeoutExpired):
        service.wait(STOP_S)
    _, left = psutil.wait_procs(processes, STOP_S / 3)
    for process in left:  # in a session of their own, or stuck
        with suppress(psutil.NoSuchProcess):
            process.kill()
    with suppress(ProcessLookupError):
        os.killpg(service.pid, signal.SIGKILL)
    service.wait()
