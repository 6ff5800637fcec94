"""Server commands beside a notebook."""

import httpx
import psutil
import pytest

from workshop.lab import run_command

APP = "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/')\ndef answer(): return {answer!r}\n"


def write_app(folder, answer="hello"):
    (folder / "small_app.py").write_text(APP.replace("{answer!r}", repr(answer)))


def test_a_command_runs_until_it_is_stopped(tmp_path):
    write_app(tmp_path)
    with run_command("uvicorn small_app:app --port {port} --workers 2", name="t", folder=tmp_path) as command:
        assert httpx.get(command.url).json() == "hello"
        processes = command.processes
        assert len(processes) >= 3  # the supervisor and its workers
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    with pytest.raises(httpx.ConnectError):
        httpx.get(command.url)
    command.stop()  # a second time does nothing


def test_the_same_name_replaces_what_runs(tmp_path):
    write_app(tmp_path, 1)
    first = run_command("uvicorn small_app:app --port {port}", name="t", folder=tmp_path)
    write_app(tmp_path, 2)
    with run_command("uvicorn small_app:app --port {port}", name="t", folder=tmp_path) as second:
        assert httpx.get(second.url).json() == 2
        with pytest.raises(httpx.ConnectError):
            httpx.get(first.url)


def test_a_command_that_ends_says_what_it_printed(tmp_path):
    with pytest.raises(RuntimeError, match="nothing_there"):
        run_command("uvicorn nothing_there:app --port {port}", name="t", folder=tmp_path)
