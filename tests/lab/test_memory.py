"""Peak memory of marked processes."""

import subprocess
import sys
import time

from workshop.lab.memory import PeakMemory

HOLDS = "block = bytearray(200_000_000); import time; time.sleep(1.5)"


def test_it_sees_a_process_and_its_orphaned_child():
    # The shell ends at once; its child is adopted by another process but still carries the marker.
    with PeakMemory(interval=0.05) as memory:
        subprocess.run(f"{sys.executable} -c '{HOLDS}' &", shell=True, env=memory.env, check=True)
        time.sleep(1)
        assert len(memory.processes()) == 1
        time.sleep(1.5)
    assert memory.processes() == []
    assert 190 < memory.peak_mb < 300


def test_it_does_not_count_processes_without_the_marker():
    with PeakMemory(interval=0.05) as memory:
        other = subprocess.Popen([sys.executable, "-c", HOLDS])
        time.sleep(0.5)
        other.kill()
        other.wait()
    assert memory.peak_mb == 0
