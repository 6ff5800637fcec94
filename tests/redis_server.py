"""A real Redis server."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_redis(program: str, port: int, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL of an empty Redis, and its process."""
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while b"Ready to accept connections" not in process.stdout.readline():
            assert process.poll() is None
        try:
            yield f"redis://127.0.0.1:{port}", process
        finally:
            process.kill()  # it may be stopped, and would not hear a SIGTERM
