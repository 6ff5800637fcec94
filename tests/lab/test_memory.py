"""Peak memory of marked processes."""

import subprocess
import sys
import time

from workshop.lab.memory import PeakMemory

HOLDS = "import sys; block = bytearray(200_000_000); print(flush=True); sys.stdin.read()"
"""Holds 200 MB from the line that it prints to the end of its input."""


def test_it_sees_a_process_and_its_orphaned_child():
    # The shell ends at once; its child is adopted by another process but still carries the marker.
    orphan = f"exec 3<&0; {sys.executable} -c '{HOLDS}' <&3 &"
    with PeakMemory(interval=0.05) as memory:
        shell = subprocess.Popen(
            orphan, shell=True, env=memory.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert shell.wait() == 0
        assert shell.stdout.readline() == "\n"
        assert len(memory.processes()) == 1
        while memory.peak_mb < 190:
            time.sleep(0.05)
        shell.communicate()
        while memory.processes():
            time.sleep(0.05)
    assert memory.peak_mb < 300


def test_it_does_not_count_processes_without_the_marker():
    with (
        PeakMemory(interval=0.05) as memory,
        subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout.readline() == b"\n"
        time.sleep(0.2)  # a few measurements
        other.communicate()
    assert memory.peak_mb == 0
