"""Run a server's command line beside the notebook."""

import atexit
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil

from workshop.machine import free_port

START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0

_running: dict[str, "Command"] = {}


def run_command(command: str, *, name: str, folder: str | Path | None = None) -> "Command":
    """Start a server by its command line and return once it accepts requests.

    A server that was started under the same name is stopped first, so a cell can run twice.

    Args:
        command: such as ``"uvicorn my_app:app --port {port}"``; ``{port}`` becomes a free port.
        name: of this server.
        folder: to run it in.

    Raises:
        RuntimeError: it ended, or did not answer in time; with what it printed.
    """
    if name in _running:
        _running[name].stop()
    _running[name] = started = Command(command, folder)
    started.wait_until_it_answers()
    return started


class Command(AbstractContextManager["Command"]):
    """A running command. ``url`` is where it answers; ``stop()``, or the end of a ``with`` block, ends it."""

    def __init__(self, command: str, folder: str | Path | None) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the command runs
        program, *arguments = shlex.split(command.format(port=port))
        self._process = subprocess.Popen(
            # The programs of this Python, whatever PATH says.
            [sys.executable, "-m", program, *arguments],
            cwd=folder,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    @property
    def processes(self) -> list[psutil.Process]:
        """The command's process and all that it started."""
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    @property
    def output(self) -> str:
        """What it has printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def wait_until_it_answers(self) -> None:
        """Return once any HTTP answer comes."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                httpx.get(self.url, trust_env=False)
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return
        self.stop()
        raise RuntimeError(f"The command gave no answer. It printed:\n{self.output}")

    def stop(self) -> None:
        """End the command and all that it started. A second call does nothing."""
        if self._process.poll() is not None:
            return
        processes = self.processes
        self._process.terminate()
        _, alive = psutil.wait_procs(processes, STOP_LIMIT_S)
        for process in alive:
            process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()


@atexit.register
def _stop_all() -> None:
    for command in _running.values():
        command.stop()
