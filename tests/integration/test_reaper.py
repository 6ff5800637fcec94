"""The descendants of a process end with it, even when it is killed."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.service import until

PROGRAM = """
import subprocess, sys
from workshop.integration.reaper import reaper

child = subprocess.Popen(["sleep", "600"], start_new_session=True)
parent = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
with reaper():
    parent.stdin.close()  # its child is an orphan now
    print(child.pid, int(parent.stdout.readline()), flush=True)
    parent.wait()
    print("orphaned", flush=True)
    sys.stdin.readline()
print("the block has ended", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def started() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """The program, and the processes that it has started."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout
        family = [psutil.Process(int(pid)) for pid in program.stdout.readline().split()]
        assert program.stdout.readline() == "orphaned\n"
        yield program, family
        program.kill()
        for process in family:
            if process.is_running():
                process.kill()


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_process_that_is_killed(started, number):
    program, family = started
    assert alive(family) == family
    program.send_signal(number)
    assert until(lambda: alive(family), lambda left: not left) == []


def test_after_the_block_nothing_is_reaped(started):
    program, family = started
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "the block has ended\n"
    assert [child.pid for child in psutil.Process(program.pid).children()] == [family[0].pid]
    program.kill()
    program.wait()
    assert alive(family) == family
