"""The program that lesson 06 freezes: it ends with its block, and with the notebook's kernel."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from fastapi import FastAPI, WebSocket

from workshop.lab import run_app
from workshop.lab.expectations import becomes_true
from workshop.lab.fixtures.lesson_06 import listener

KERNEL = """
import sys, time
from workshop.lab.fixtures.lesson_06 import listener

with listener(sys.argv[1]) as program:
    program.suspend()
    print(program.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def url():
    app = FastAPI()

    @app.websocket("/news")
    async def news(socket: WebSocket):
        await socket.accept()
        await socket.receive()

    with run_app(app) as server:
        yield f"ws://127.0.0.1:{server.port}/news"


def test_it_ends_with_the_block_even_if_it_is_frozen(url):
    with suppress(KeyboardInterrupt), listener(url) as program:
        program.suspend()
        raise KeyboardInterrupt
    assert not program.is_running()


def test_it_does_not_outlive_a_kernel_that_is_killed(url):
    with subprocess.Popen(
        [sys.executable, "-c", KERNEL, url], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as kernel:
        program = psutil.Process(int(kernel.stdout.readline()))
        assert becomes_true(lambda: program.status() == psutil.STATUS_STOPPED, 10)
        os.kill(kernel.pid, signal.SIGKILL)
    assert becomes_true(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, 10)


def test_an_address_where_nobody_answers_is_an_error():
    with pytest.raises(RuntimeError, match="could not connect"), listener("ws://127.0.0.1:1/"):
        pass
