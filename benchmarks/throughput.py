"""Requests per second of POST /v1/predict in every runtime, 32 connections, measured in one run.

The figures depend on the machine and on what else it does; the ratios are what matters. Each runtime is a process of
its own, as it would be in production, and so is the load generator (uvloop on bare connections: a full HTTP client
would be the bottleneck).

    make bench, or: python benchmarks/throughput.py [--seconds 5] [--rounds 3] [--no-serve]
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import IO, Annotated

import httpx
import typer
import uvloop

from workshop.contracts.tumours import FEATURES
from workshop.machine import free_port
from workshop.models.tumours import training_data

CONNECTIONS = 32

RUNTIMES: dict[str, tuple[list[str], dict[str, str]]] = {
    "api": (["api"], {}),
    "api, batching off": (["api"], {"WORKSHOP_BATCHING": "false"}),
    "serve, inline": (["serve", "--placement", "inline"], {}),
    "serve, deployment": (["serve", "--placement", "deployment"], {}),
    "serve, deployment, batching off": (["serve", "--placement", "deployment"], {"WORKSHOP_BATCHING": "false"}),
}


def request_bytes(port: int) -> bytes:
    """One POST of the first row."""
    row = training_data()[0][0].tolist()
    body = json.dumps(dict(zip(FEATURES, row, strict=True)))
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def connection(port: int, request: bytes, until: float) -> int:
    """Send the request over and over on one connection. Returns the number of answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"the service answered {head.splitlines()[0].decode()}")
        answers += 1
    writer.close()
    return answers


def requests_per_second(port: int, seconds: float) -> float:
    """Send requests to the service on all connections, and return the rate of answers."""

    async def run() -> float:
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(connection(port, request_bytes(port), start + seconds) for _ in range(CONNECTIONS))
        )
        return sum(answers) / (time.perf_counter() - start)

    return uvloop.run(run())


@contextmanager
def running(
    arguments: list[str],
    variables: dict[str, str],
    *,
    program: Sequence[str] = ("-m", "workshop"),
    log: IO[bytes] | None = None,
) -> Iterator[int]:
    """The service as a process; yields its port once it is ready.

    Args:
        arguments: of its command line.
        variables: of its environment.
        program: what Python runs.
        log: where its log goes; by default, warnings go to our own standard error.
    """
    port = free_port()
    command = [sys.executable, *program, *arguments, "--port", str(port)]
    # Without a line for each request. benchmarks/middleware.py measures what these cost.
    environment = os.environ | {"WORKSHOP_LOG_LEVEL": "warning", "WORKSHOP_LANGUAGE_MODELS": "false"} | variables
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log) as service:
        try:
            deadline = time.monotonic() + 180
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/readiness").is_success:
                        break
                except httpx.TransportError:
                    if service.poll() is not None or time.monotonic() > deadline:
                        raise
                time.sleep(0.2)
            yield port
        finally:
            service.terminate()


def main(seconds: float = 5, rounds: int = 3, serve: Annotated[bool, typer.Option()] = True) -> None:
    """Print requests per second of each runtime, and the ratio to the first."""
    measured: dict[str, float] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client:
        for name, (arguments, variables) in RUNTIMES.items():
            if arguments[0] == "serve" and not serve:
                continue
            with running(arguments, variables) as port:
                client.submit(requests_per_second, port, 2).result()  # warm up
                rates = [client.submit(requests_per_second, port, seconds).result() for _ in range(rounds)]
            measured[name] = statistics.median(rates)
            ratio = measured[name] / next(iter(measured.values()))
            print(f"{name:34} {measured[name]:7.0f} requests/s   {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
