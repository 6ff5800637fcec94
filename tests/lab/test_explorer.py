"""The sliders, in a real kernel: what a browser sends, and what it gets."""

import ast

import pytest
from jupyter_client.manager import start_new_kernel

CELL = """
from fastapi import FastAPI
from workshop.lab import explore, run_app

app = FastAPI()
asked = []

@app.get("/wait")
async def wait(seconds: float):
    asked.append(seconds)

sliders = explore(run_app(app, name="explored").url, {"waits": "/wait"})
pattern, requests, delay, _ = sliders.children
"""
SECONDS = 300


@pytest.fixture
def kernel():
    """A client of a kernel that has run `CELL`."""
    manager, client = start_new_kernel(startup_timeout=SECONDS)
    client.execute_interactive(CELL, timeout=SECONDS, output_hook=lambda message: None)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def value_of(kernel, expression):
    reply = kernel.execute_interactive(
        "", user_expressions={"it": expression}, timeout=SECONDS, output_hook=lambda message: None
    )
    return ast.literal_eval(reply["content"]["user_expressions"]["it"]["data"]["text/plain"])


def published_for(kernel, message_id):
    """The contents of what the kernel publishes while it handles the message."""
    published = []
    while True:
        message = kernel.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") == message_id:
            published.append(message["content"])
            if message["content"].get("execution_state") == "idle":
                return published


def move(kernel, slider, value):
    """Send what the browser sends when a slider is moved, and return what the kernel publishes."""
    data = {"method": "update", "state": {"value": value}, "buffer_paths": []}
    content = {"comm_id": value_of(kernel, f"{slider}.model_id"), "data": data}
    message = kernel.session.msg("comm_msg", content)
    kernel.shell_channel.send(message)
    return published_for(kernel, message["header"]["msg_id"])


def images(published):
    return [content["data"]["image/png"] for content in published if "image/png" in content.get("data", {})]


def test_moving_a_slider_sends_the_requests_and_draws_them(kernel):
    assert value_of(kernel, "asked") == [0.1] * 10
    assert len(images(move(kernel, "requests", 3))) == 1
    assert value_of(kernel, "asked[10:]") == [0.1] * 3
    assert len(images(move(kernel, "delay", 20))) == 1
    assert value_of(kernel, "asked[13:]") == [0.02] * 3
