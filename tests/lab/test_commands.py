"""`run_command`: real processes on real ports."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from fastapi import FastAPI

from workshop.lab import commands, progress, run_app, run_command, stop_all
from workshop.lab.running import running

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
    write_app(tmp_path, "first")
    first = run_command("uvicorn small_app:app --port {port}", name="t", folder=tmp_path)
    write_app(tmp_path, "second")  # of another length: bytecode is cached by second and length
    with run_command("uvicorn small_app:app --port {port}", name="t", folder=tmp_path) as second:
        assert httpx.get(second.url).json() == "second"
        with pytest.raises(httpx.ConnectError):
            httpx.get(first.url)


@pytest.fixture
def no_other_servers() -> Iterator[None]:
    """Other tests of this process may have servers, which must survive."""
    others = running.copy()
    running.clear()
    yield
    running.update(others)


def test_stop_all_stops_commands_and_apps(tmp_path, no_other_servers):
    write_app(tmp_path)
    command = run_command("uvicorn small_app:app --port {port}", name="t", folder=tmp_path)
    app = run_app(FastAPI(), name="a")
    stop_all()
    for url in (command.url, app.url):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
    stop_all()  # a second time does nothing


def test_a_command_that_ends_says_what_it_printed(tmp_path):
    with pytest.raises(RuntimeError, match=r"uvicorn ended with exit status 3\. .*\n(.*\n)*.*nothing_there"):
        run_command("uvicorn nothing_there:app --port {port}", name="t", folder=tmp_path)


def test_output_right_before_the_end_is_not_lost_in_a_buffer(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (tmp_path / "ends_hard.py").write_text("import os\nprint('out of paper')\nos._exit(3)\n")
    with pytest.raises(RuntimeError, match=r"ends_hard ended with exit status 3\. It printed:\nout of paper"):
        run_command("ends_hard", name="t", folder=tmp_path)


def test_a_command_that_does_not_answer_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "START_LIMIT_S", 0.5)
    (tmp_path / "mute.py").write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(RuntimeError, match=r"mute did not answer within 0 s. It printed:\n\(nothing\)"):
        run_command("mute", name="t", folder=tmp_path)


def test_a_server_may_answer_before_it_is_ready(tmp_path):
    (tmp_path / "slow_app.py").write_text(
        "from fastapi import FastAPI, Response\n"
        "app, statuses = FastAPI(), iter([503, 404, 200, 201])\n"
        "@app.get('/ready')\n"
        "def answer(): return Response(status_code=next(statuses))\n"
    )
    with run_command("uvicorn slow_app:app --port {port}", name="t", folder=tmp_path, ready="/ready") as command:
        assert httpx.get(command.url + "/ready").status_code == 201


def test_while_it_starts_its_last_line_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setattr(progress, "REFRESH_S", 0.01)
    write_app(tmp_path)
    go_on = tmp_path / "go_on"
    (tmp_path / "slow_start.py").write_text(
        "import pathlib, sys, time, uvicorn\n"
        "print('Loading the models')\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)\n"
        "uvicorn.run('small_app:app', port=int(sys.argv[1]))\n"
    )
    with ThreadPoolExecutor(1) as thread:
        start = thread.submit(run_command, "slow_start {port}", name="t", folder=tmp_path)
        shown = ""
        while not re.search(r"Waiting for slow_start: \d+ s\. Loading the models", shown):
            assert not start.done()
            shown += capsys.readouterr().out
        go_on.touch()
        with start.result() as command:
            assert httpx.get(command.url).json() == "hello"
            capsys.readouterr()
            assert "Loading the models" in command.output
    assert capsys.readouterr().out == ""
