"""What this machine, or the container around us, has."""

import socket
from pathlib import Path

import psutil

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int:
    """Bytes that can still be allocated: of the machine, or of the container when that allows less."""
    available = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        if limit.exists() and (allowed := limit.read_text().strip()) != "max":
            available = min(available, int(allowed) - int(used.read_text()))
    return available


def free_port() -> int:
    """A TCP port that nothing on this machine's loopback address listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
