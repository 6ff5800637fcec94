"""Runs the command line as a user does, and finds every process that a run leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

MARK = "TEST_RUN_MARK"
START_S, STOP_S = 300, 120  # generous: the machine may be busy with other tests


WORKSHOP = ("-m", "workshop")


class Run:
    """``python -m workshop ...`` in its own process group, as if in its own terminal.

    Args:
        folder: where its output is stored.
        arguments: the command and its options.
        program: what Python runs; for tests that change a constant first.
        environment: variables, in addition to those of this process.
    """

    def __init__(self, folder: Path, *arguments: str, program: Sequence[str] = WORKSHOP, **environment: str) -> None:
        self._mark = uuid4().hex
        self._out, self._err = folder / "out", folder / "err"
        self._family: set[psutil.Process] = set()
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            env={**os.environ, **environment, MARK: self._mark},
            stdout=self._out.open("wb"),
            stderr=self._err.open("wb"),
            start_new_session=True,
        )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def url(self) -> str:
        """The URL that it prints, once it serves."""
        end = time.monotonic() + START_S
        while not (found := re.search(r"http://[\w.]+:\d+[/\w-]*", self.out)):
            assert self.process.poll() is None, self.err
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.1)
        return found[0]

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(START_S)

    def interrupt(self) -> int:
        """Ctrl-C: the terminal signals every process in the group."""
        self.processes()
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_S)

    def send(self, number: signal.Signals) -> int:
        """Signal the one process that the user started."""
        self.processes()
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def processes(self) -> set[psutil.Process]:
        """All its descendants that still run, even if they have another parent by now."""
        # By the mark that they inherit, and by their parents: a process that sets its title overwrites its environment.
        with suppress(psutil.NoSuchProcess):
            self._family |= {psutil.Process(self.process.pid)}
            self._family |= set(psutil.Process(self.process.pid).children(recursive=True))
        self._family |= {process for process in psutil.process_iter() if self._is_marked(process)}
        return {process for process in self._family if _runs(process)}

    def _is_marked(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return process.environ().get(MARK) == self._mark
        return False

    def kill(self) -> None:
        """Kill whatever is left of it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def leftovers(self) -> set[psutil.Process]:
        """The processes that still run a while after the end."""
        end = time.monotonic() + 15
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        return left


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def environment_of(artifact: Path, folder: Path) -> dict[str, str]:
    """Settings of a service with a database and files of its own."""
    return {
        "WORKSHOP_ARTIFACT": str(artifact),
        "WORKSHOP_LANGUAGE_MODELS": "false",
        "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/service.sqlite",
        "WORKSHOP_FILES_URL": f"file://{folder}/files",
    }


@pytest.fixture
def run(tmp_path, artifact) -> Iterator[Callable[..., Run]]:
    """Starts a command with a model and a database of its own; whatever is left of it is killed after the test."""
    runs = []

    def run(*arguments: str, program: Sequence[str] = WORKSHOP, **environment: str) -> Run:
        environment = environment_of(artifact, tmp_path) | environment
        runs.append(Run(tmp_path, *arguments, program=program, **environment))
        return runs[-1]

    yield run
    for each in runs:
        each.kill()
