"""`run_app`: a real port, real requests."""

import asyncio
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from workshop.lab.app_server import STOP_LIMIT, run_app

pytestmark = pytest.mark.slow


def app_that_says(text: str, **options) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/")
    def say():
        return text

    return app


def test_it_serves_and_stops():
    with run_app(app_that_says("hello")) as server:
        assert httpx.get(server.url).json() == "hello"
        assert "running" in repr(server)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)
    server.stop()
    assert "stopped" in repr(server)


def test_a_second_server_of_the_same_name_replaces_the_first():
    first = run_app(app_that_says("one"), name="demo")
    second = run_app(app_that_says("two"), port=first.port, name="demo")
    assert httpx.get(second.url).json() == "two"
    assert "stopped" in repr(first)
    second.stop()


def test_servers_without_a_name_run_side_by_side():
    with run_app(app_that_says("one")) as first, run_app(app_that_says("two")) as second:
        assert [httpx.get(server.url).json() for server in (first, second)] == ["one", "two"]


def test_a_taken_port_gives_a_one_line_error():
    with run_app(app_that_says("one")) as server, pytest.raises(OSError, match=f"Port {server.port} is taken"):
        run_app(app_that_says("two"), port=server.port)


def test_the_error_of_a_failed_start_is_raised_to_the_caller(caplog):
    @asynccontextmanager
    async def lifespan(app):
        raise FileNotFoundError("model.skops")
        yield

    with pytest.raises(FileNotFoundError, match=r"model\.skops"):
        run_app(app_that_says("x", lifespan=lifespan), name="broken")
    assert "Traceback" not in caplog.text


def test_the_lifespan_starts_and_ends():
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        seen.append("start")
        yield
        seen.append("end")

    with run_app(app_that_says("x", lifespan=lifespan)):
        assert seen == ["start"]
    assert seen == ["start", "end"]


def test_it_works_inside_a_running_event_loop():
    async def notebook():
        with run_app(app_that_says("hello")) as server:
            async with httpx.AsyncClient() as client:
                return (await client.get(server.url)).json()

    assert asyncio.run(notebook()) == "hello"


def test_an_app_has_time_to_close_what_it_holds():
    closed = []

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        await asyncio.sleep(STOP_LIMIT + 0.1)  # models on a busy machine may take this long
        closed.append(True)

    run_app(FastAPI(lifespan=lifespan)).stop()
    assert closed


def test_stopping_cuts_an_endless_stream_and_a_blocked_loop():
    app = FastAPI()

    @app.get("/stream")
    async def stream():
        async def ticks():
            while True:
                yield b"tick"
                await asyncio.sleep(0.01)

        return StreamingResponse(ticks())

    @app.get("/block")
    async def block():
        while True:
            time.sleep(0.01)  # noqa: ASYNC251

    server = run_app(app)
    with httpx.stream("GET", f"{server.url}/stream") as response:
        assert next(response.iter_bytes()).startswith(b"tick")
        server.stop()
    assert not server.thread.is_alive()

    server = run_app(app)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{server.url}/block", timeout=0.3)
    server.stop()
    assert not server.thread.is_alive()


def test_options_reach_uvicorn():
    with run_app(app_that_says("x"), root_path="/proxy/1") as server:
        assert httpx.get(f"{server.url}/openapi.json").json()["servers"] == [{"url": "/proxy/1"}]


def test_a_process_ends_with_its_servers_running():
    program = "from fastapi import FastAPI; from workshop.lab import run_app; run_app(FastAPI()); print('up')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("up\n", "")
