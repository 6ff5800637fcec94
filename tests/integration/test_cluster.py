"""How Ray is started."""

import subprocess
import sys

import pytest

FLAKY = """
import psutil, ray
from workshop.integration import cluster
from workshop.machine import free_port
from workshop.settings import Settings

real_init, tries = ray.init, []

def init(**options):
    tries.append(options)
    if {starts}:
        real_init(**options)
    if len(tries) <= {failures}:
        raise Exception("The current node timed out during startup.\\nThis could happen because of many things.")

ray.init = init
with cluster.serve_cluster(Settings(language_models=False), host="127.0.0.1", port=free_port()):
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    print(len(tries), names.count("gcs_server"), names.count("raylet"))
"""


def run(*, failures: int, starts: bool) -> subprocess.CompletedProcess[str]:
    """Start a Ray of which the first tries fail, whether or not its processes have come up by then."""
    script = FLAKY.format(failures=failures, starts=starts)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.ray
def test_a_ray_that_is_late_is_started_again_and_nothing_is_left_of_it():
    done = run(failures=1, starts=True)
    assert done.stdout.split() == ["2", "1", "1"], done.stderr


def test_a_ray_that_never_comes_up_is_one_line():
    done = run(failures=99, starts=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "StartError: Ray does not come up: The current node timed out during startup."
    )
