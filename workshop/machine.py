"""Memory, cores and ports of this machine, or of the container that this process runs in."""

import gc
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil

from workshop.contracts.errors import StartError

# Control groups, versions 2 and 1: the limit, what is used, and the part of it that is cache and can be given back.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be allocated: of the machine, or of the container when that allows less."""
    available = int(psutil.virtual_memory().available)
    for limit, used, statistics, cache in _CGROUPS:
        with suppress(OSError, ValueError):  # no such version, or "max": no limit
            allowed, taken = (int((cgroup / name).read_text()) for name in (limit, used))
            counts = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
            available = min(available, allowed - taken + int(counts.get(cache, 0)))
    return available


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use: the machine's, its affinity or its container's quota, whichever is least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_quotas(cgroup)])


def freeze_loaded_objects() -> None:
    """Exempt all that this process has loaded so far from garbage collection. For a process that serves until it ends.

    Libraries and models are hundreds of thousands of objects, which a full collection would look through every few
    hundred requests: all other requests wait for 0.3 s meanwhile.
    """
    gc.collect()
    gc.freeze()


def _quotas(cgroup: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):  # version 2; "max", which is not a number: no quota
        quota, period = (cgroup / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with suppress(OSError):  # version 1; -1: no quota
        quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)


def open_file_limit() -> int:
    """How many files and connections a process may have open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def free_port() -> int:
    """A TCP port that nothing on this machine's loopback address listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to a TCP port, which no client can reach before ``listen``. Port 0 picks a free one.

    Raises:
        StartError: a server listens on the port, or the address does not belong to this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections in TIME_WAIT
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; try --port 0") from error
    return bound


def url_of(host: str, port: int) -> str:
    """The address of an HTTP server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listen(bound: socket.socket) -> None:
    """Let clients connect.

    Raises:
        StartError: another program was faster: on Linux, several may bind a port, and the first to listen gets it.
    """
    try:
        bound.listen()
    except OSError as error:
        host, port, *_ = bound.getsockname()
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; try --port 0") from error
