"""Run All on a lesson that nobody has touched, twice in one kernel; and the verdicts of the solved one."""

import re
import time
from collections.abc import Iterator

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from workshop.lab.memory import PeakMemory

CELL_LIMIT = 300  # seconds


def verdicts(made) -> dict[str, str]:
    """Each exercise's outcome, as its check cell showed it."""
    found = {}
    for cell in made.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/plain", "")
            if match := re.match(r"(\d\d\.\d) (right|not yet|not attempted|could not check)\.", text):
                found[match[1]] = match[2]
    return found


def listening(process: psutil.Process) -> set[int]:
    """The ports on which the process listens."""
    return {at.laddr.port for at in process.net_connections("tcp") if at.status == psutil.CONN_LISTEN}


@pytest.fixture
def untouched(lesson) -> Iterator[tuple[NotebookClient, PeakMemory]]:
    """The exercise notebook with a kernel of its own, and what watches the kernel's processes."""
    client = NotebookClient(
        nbformat.read(lesson.untouched, as_version=4),
        timeout=CELL_LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(lesson.untouched.parent)}},
    )
    memory = PeakMemory()
    with client.setup_kernel(env=memory.env):
        yield client, memory
    assert leftovers(memory) == [], "processes outlive the kernel"


def leftovers(memory: PeakMemory, *expected: psutil.Process, patience: float = 15.0) -> list[str]:
    """The command lines of the watched processes that are still there when patience ends, but for the `expected`."""
    deadline = time.monotonic() + patience
    while alive := [line for process in memory.processes() if process not in expected and (line := command(process))]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return alive


def command(process: psutil.Process) -> str:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
    # Python's own helper of `multiprocessing` lives as long as the interpreter that started it.
    return "" if "multiprocessing.resource_tracker" in line else line[:150]


def test_run_all_on_the_untouched_notebook(untouched, exercise_ids):
    client, memory = untouched
    wait_until_ready(client)
    (kernel,) = memory.processes()
    ports = listening(kernel)
    for _ in range(2):
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        assert verdicts(client.nb) == dict.fromkeys(exercise_ids, "not attempted")
        assert leftovers(memory, kernel) == [], "the lesson leaves processes behind"
        assert listening(kernel) == ports, "the lesson leaves a server behind"


def wait_until_ready(client: NotebookClient) -> None:
    client.execute_cell(nbformat.v4.new_code_cell("None"), 0)


def test_the_lessons_own_solutions_are_right(lesson, exercise_ids):
    """The stored verdicts; nbval runs the solved notebook and compares its check cells with them."""
    assert verdicts(nbformat.read(lesson.solved, as_version=4)) == dict.fromkeys(exercise_ids, "right")
