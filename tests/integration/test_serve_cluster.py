"""How Ray is started."""

import os
import subprocess
import sys

import httpx
import pytest

from tests.notebooks import SharedRay
from workshop.machine import free_port

pytestmark = pytest.mark.slow

FLAKY = """
import psutil, ray
from workshop.integration import serve_cluster
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
with serve_cluster.serve_cluster(Settings(language_models=False), host="127.0.0.1", port=free_port()):
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    print(len(tries), names.count("gcs_server"), names.count("raylet"))
"""


def run(*, failures: int, starts: bool) -> subprocess.CompletedProcess[str]:
    """Start a Ray whose first attempts fail, either after its processes have come up or before."""
    script = FLAKY.format(failures=failures, starts=starts)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.ray(own=True)
def test_a_ray_that_times_out_is_started_again_without_leftovers():
    done = run(failures=1, starts=True)
    assert done.stdout.split() == ["2", "1", "1"], done.stderr


def test_a_ray_that_never_comes_up_is_a_one_line_error():
    done = run(failures=99, starts=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "StartError: Ray does not come up: The current node timed out during startup"
    )


SERVED = """
import sys
from ray import serve
from workshop.integration.serve_cluster import serve_cluster
from workshop.settings import Settings

@serve.deployment
class Hello:
    def __call__(self) -> str:
        return "hello"

with serve_cluster(Settings(), host="127.0.0.1", port=int(sys.argv[1])):
    serve.run(Hello.bind(), name="hello")
    print("serves", flush=True)
    sys.stdin.read()
"""


@pytest.mark.ray(own=True)
def test_a_ray_that_is_already_running_is_used_and_left_as_it_was():
    def serves(port: int, **environment: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = os.environ | ray.environment | environment
        return subprocess.Popen([sys.executable, "-c", SERVED, str(port)], text=True, env=environment, **pipes)

    ray, port = SharedRay(), free_port()
    try:
        with serves(port, RAY_AUTH_MODE="disabled", RAY_NUM_REDIS_GET_RETRIES="1") as without_token:
            assert f"StartError: cannot connect to RAY_ADDRESS={ray.address}" in without_token.communicate()[1]
        with serves(port) as first:
            assert first.stdout.readline() == "serves\n"
            with serves(free_port()) as second:
                assert "StartError: Serve is already running on this Ray" in second.communicate()[1]
            assert httpx.get(f"http://127.0.0.1:{port}").text == "hello"
            first.kill()
        # A driver that exits normally leaves nothing behind, as every notebook on Ray shows.
        assert ray.clear() == ["Serve on Ray", "hello on Ray"]
        assert ray.clear() == []
    finally:
        ray.stop()
