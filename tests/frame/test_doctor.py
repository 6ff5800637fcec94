"""The doctor on a machine with faults. Each fault is real: a port in use, a lock that does not match."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from workshop.lab.doctor import (
    Finding,
    Report,
    Status,
    check_cores,
    check_disk,
    check_gpu,
    check_language_models,
    check_memory,
    check_model,
    check_packages,
    check_port,
    check_python,
    check_redis,
    check_shared_memory,
    doctor,
)
from workshop.machine import free_port, usable_cores
from workshop.settings import Settings

NO_TOOL = "no-such-program-anywhere"


def program(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]))
    path.chmod(0o755)
    return str(path)


def test_python():
    assert check_python(">=3.11").status is Status.OK
    finding = check_python(">=99")
    assert finding.status is Status.FAILURE
    assert ">=99" in finding.seen
    assert finding.remedy


def test_packages_as_tested(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"psutil=={psutil.__version__}\nno-such-package==1.0 ; sys_platform == 'amiga'\n")
    assert check_packages(lock) == Finding("Packages", Status.OK, "all 1 as tested")


def test_package_of_another_version(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("psutil==0.0.1\n")
    finding = check_packages(lock)
    assert finding.status is Status.WARNING
    assert f"psutil {psutil.__version__} (tested: ==0.0.1)" in finding.seen
    assert "make env" in finding.remedy


def test_missing_packages(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("".join(f"no-such-package-{number}==1.0\n" for number in range(5)))
    finding = check_packages(lock)
    assert finding.status is Status.FAILURE
    assert "no-such-package-0" in finding.seen
    assert "and 2 more" in finding.seen


def test_package_installed_without_its_repository(tmp_path):
    finding = check_packages(tmp_path / "requirements.lock")
    assert finding.status is Status.WARNING
    assert "requirements.lock" in finding.seen


def test_what_language_models_need(tmp_path):
    assert check_language_models(tmp_path).status is Status.OK
    missing = check_language_models(tmp_path / "nowhere")
    assert (missing.status, missing.remedy) == (Status.FAILURE, "Run: make artifacts")
    assert check_language_models(tmp_path, "no_such_package").status is Status.WARNING


def test_model_missing_or_damaged(tmp_path):
    missing = check_model(Settings(artifact=tmp_path))
    assert missing.status is Status.FAILURE
    assert "make artifacts" in missing.remedy
    (tmp_path / "model.skops").write_bytes(b"half a file")
    (tmp_path / "card.json").write_text('{"sha256": "0"}')
    damaged = check_model(Settings(artifact=tmp_path))
    assert damaged.status is Status.FAILURE
    assert "damaged" in damaged.seen


def test_memory():
    assert check_memory(needed=1).status is Status.OK
    assert check_memory(needed=10**18).status is Status.WARNING


def test_shared_memory(tmp_path):
    assert check_shared_memory(1, tmp_path).status is Status.OK
    assert check_shared_memory(10**18, tmp_path).status is Status.WARNING
    assert check_shared_memory(1, tmp_path / "absent").status is Status.OK


def test_cores():
    assert check_cores(needed=1).status is Status.OK
    assert check_cores(needed=100_000).status is Status.WARNING


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_bound_to_one_core_counts_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from workshop.machine import usable_cores; print(usable_cores())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(answer.stdout) <= 1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "25000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.25),
    ],
    ids=["cgroup 2", "cgroup 1"],
)
def test_a_container_quota_counts(tmp_path, files, quota):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == quota


@pytest.mark.parametrize(
    "files",
    [{}, {"cpu.max": "max 100000\n"}, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}],
    ids=["no cgroup", "cgroup 2", "cgroup 1"],
)
def test_no_quota_is_no_limit(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) >= 1


def test_disk(tmp_path):
    assert check_disk((tmp_path,), needed=1).status is Status.OK
    assert check_disk((tmp_path,), needed=10**18).status is Status.FAILURE


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        finding = check_port(listener.getsockname()[1])
    assert finding.status is Status.WARNING
    assert "free port" in finding.remedy


def test_port_of_the_server_that_started_us_is_fine():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = f"from workshop.lab.doctor import check_port; print(check_port({port}).status)"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "ok"


def test_port_just_closed_is_free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))):
            listener.accept()[0].close()  # closed on this side first: the port lingers
    assert check_port(port).status is Status.OK


def test_gpu(tmp_path):
    assert check_gpu(NO_TOOL).status is Status.OK
    answers = program(tmp_path / "answers", "echo First GPU", "echo Second GPU")
    assert check_gpu(answers) == Finding("GPU", Status.OK, "First GPU, Second GPU")
    fails = program(tmp_path / "fails", "echo cannot talk to the driver >&2", "exit 9")
    assert check_gpu(fails).status is Status.WARNING
    hangs = program(tmp_path / "hangs", "exec sleep 60")
    assert check_gpu(hangs, timeout_s=0.2).status is Status.WARNING


def test_redis_is_optional(tmp_path):
    assert check_redis(None, NO_TOOL).status is Status.OK
    assert str(tmp_path) in check_redis(None, program(tmp_path / "redis-server")).seen


def test_redis_that_was_asked_for_must_answer(redis_server):
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    absent = check_redis(url)
    assert absent.status is Status.FAILURE
    assert "secret" not in repr(absent)
    command = [redis_server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "secret"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("Ready to accept connections" in line for line in server.stdout)
            assert check_redis(url) == Finding("Redis", Status.OK, f"127.0.0.1:{port} answers")
        finally:
            server.terminate()
    assert check_redis("redis://127.0.0.1:no-port").status is Status.FAILURE


def test_report_shows_itself():
    report = Report((Finding("Memory", Status.OK, "lots"), Finding("Disk", Status.FAILURE, "<full>", "Delete & go.")))
    text, page = repr(report), report._repr_html_()
    assert "failure" in text
    assert "Delete & go." in text
    assert "one problem to solve" in text
    assert "&lt;full&gt;" in page
    assert "Delete &amp; go." in page
    assert "<full>" not in page


def test_this_machine():
    names = [finding.check for finding in doctor().findings]
    assert {"Python", "Packages", "Trained model", "Memory", "Port 8000", "GPU", "Redis"} <= set(names)


@pytest.mark.parametrize(("redis", "status"), [(None, 0), ("redis://127.0.0.1:{port}", 1)])
@pytest.mark.slow
def test_command_fails_only_on_a_failure(redis, status, artifact):
    env = {**os.environ, "WORKSHOP_ARTIFACT": str(artifact)}
    env.pop("REDIS_URL", None)
    if redis:
        env["REDIS_URL"] = redis.format(port=free_port())
    command = [sys.executable, "-m", "workshop", "doctor"]
    examined = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert examined.returncode == status, examined.stdout + examined.stderr
    assert ("failure" in examined.stdout) == bool(status)
