"""How whole notebooks are tested: nbval runs their cells, and these hooks add what it does not check.

A lesson runs as a learner gets it, and then solved in the same kernel, as when a learner who has solved the exercises
runs everything again. Every check must give the expected verdict, and no notebook may leave anything running.
The lessons on Ray share one Ray, which starts slowly.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import psutil
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from workshop.lab.memory import MARKER, PeakMemory

PATIENCE_S = 15.0
VERDICTS = {"notebooks": "not attempted", "solutions": "right"}
"""The verdict of every check, by the notebook's folder."""


@dataclass
class Kernel:
    """A kernel, the ports on which it listens before any cell runs, and the processes that descend from it."""

    process: psutil.Process
    ports: set[int]
    family: PeakMemory


KERNEL = pytest.StashKey[Kernel]()

RAY = """
import json, ray, sys
from ray import serve
from workshop.integration.serve_cluster import ray_cluster
from workshop.settings import Settings

with ray_cluster(Settings(ray_cpus=16, ray_gpus=1, language_models=False)):
    print(ray.get_runtime_context().gcs_address, flush=True)
    for _ in sys.stdin:
        left = ["Serve", *serve.status().applications] if serve.status().proxies else []
        serve.shutdown()
        print(json.dumps([f"{what} on Ray" for what in left]), flush=True)
"""


class SharedRay:
    """A Ray without Serve, in a process of its own: the tests of this process may have another one."""

    def __init__(self) -> None:
        self._errors = TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.address = self._read()
        self.environment = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}
        """The variables of a process that uses it."""

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def clear(self) -> list[str]:
        """Stop what a notebook has left running on it, and return what that was."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return json.loads(self._read())

    def stop(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            self._errors.seek(0)
            raise RuntimeError(f"the Ray of the notebooks does not answer: {self._errors.read()[-3000:]}")
        return line.strip()


SHARED_RAY = pytest.StashKey[SharedRay]()


def shared_ray(config: pytest.Config) -> SharedRay:
    """The shared Ray of this process; the first call starts it, and the next one after its end."""
    if SHARED_RAY not in config.stash or config.stash[SHARED_RAY].has_ended:
        ray = config.stash[SHARED_RAY] = SharedRay()
        config.add_cleanup(ray.stop)
    return config.stash[SHARED_RAY]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Mark the processes of a kernel that nbval starts, and give it the shared Ray if its lesson needs one."""
    if not isinstance(item, IPyNbCell) or KERNEL in item.parent.stash:
        return (yield)
    family = PeakMemory()
    ray = shared_ray(item.config).environment if item.get_closest_marker("ray") else {}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {MARKER: family.marker, **ray}.items():
            environment.setenv(name, value)
        yield
    [process] = family.processes()
    item.parent.stash[KERNEL] = Kernel(process, listening(process), family)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Compare the verdict of a check with the expected one."""
    yield
    if isinstance(item, IPyNbCell) and re.search(r"(?m)^check\(", item.cell.source):
        shown, expected = verdicts(item.test_outputs), [VERDICTS[item.path.parent.name]]
        if shown != expected:
            pytest.fail(f"the verdict is {shown}, and should be {expected}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """At the end of a notebook, look for leftovers, and hand the kernel of the untouched one over to the solved one."""
    if not isinstance(item, IPyNbCell) or (nextitem is not None and nextitem.parent is item.parent):
        return (yield)
    if KERNEL not in item.parent.stash:  # it has not started
        return (yield)
    kernel = item.parent.stash[KERNEL]
    left = leftovers(kernel.family, kernel.process)
    left += [f"a server on port {port}" for port in listening(kernel.process) - kernel.ports]
    if item.get_closest_marker("ray"):
        left += shared_ray(item.config).clear()
    continues = isinstance(nextitem, IPyNbCell) and nextitem.path.name == item.path.name
    if continues:
        hand_over(item.parent, nextitem.parent)
    yield
    if not continues:
        left += leftovers(kernel.family)
    if left:
        pytest.fail(f"{item.path.parent.name}/{item.path.name} leaves behind: {left}", pytrace=False)


def hand_over(untouched: IPyNbFile, solved: IPyNbFile) -> None:
    """Make nbval keep the kernel, rather than stop it and start another one."""
    solved.stash[KERNEL] = untouched.stash[KERNEL]
    solved.kernel, untouched.kernel = untouched.kernel, None
    solved.setup = solved.setup_sanitize_files


def verdicts(outputs: list[dict[str, Any]]) -> list[str]:
    """The outcomes that a cell shows."""
    texts = (output.get("data", {}).get("text/plain", "") for output in outputs)
    return [shown[1] for text in texts if (shown := re.match(r"\d\d\.\d (right|not yet|not attempted)\.", text))]


def listening(process: psutil.Process) -> set[int]:
    """The ports on which the process listens."""
    return {at.laddr.port for at in process.net_connections("tcp") if at.status == psutil.CONN_LISTEN}


def leftovers(family: PeakMemory, *expected: psutil.Process) -> list[str]:
    """The command lines of the family's processes, except the `expected`, that still run after ``PATIENCE_S``."""
    deadline = time.monotonic() + PATIENCE_S
    while alive := [line for process in family.processes() if process not in expected and (line := command(process))]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return alive


def command(process: psutil.Process) -> str:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
    # The resource tracker of `multiprocessing` lives as long as the interpreter that started it.
    return "" if "multiprocessing.resource_tracker" in line else line[:150]
