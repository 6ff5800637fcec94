"""What the middleware costs: requests per second of POST /v1/predict with all of it, and without any, on uvicorn.

All of it: request id, limits, timing, disconnects, metrics, and a line in the log for each request, written to a file.
Rounds of both alternate, since the speed of a machine changes with what else it does. The ratio is the result.

    python benchmarks/middleware.py [--seconds 5] [--rounds 5]
"""

import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tempfile import TemporaryFile

import typer
from throughput import requests_per_second, running

BARE = """
from fastapi import FastAPI

FastAPI.add_middleware = lambda *_, **__: None
from workshop.cli import main

main()
"""


def main(seconds: float = 5, rounds: int = 5) -> None:
    """Print requests per second of both, and their ratio."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    with (
        TemporaryFile() as log,
        running(["api"], {"WORKSHOP_LOG_LEVEL": "info"}, log=log) as port,
        running(["api"], {}, program=["-c", BARE]) as bare_port,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client,
    ):
        ports = {"with": port, "without": bare_port}
        for each in ports.values():
            client.submit(requests_per_second, each, 2).result()  # warm up
        for _ in range(rounds):
            for name, each in ports.items():
                rates[name].append(client.submit(requests_per_second, each, seconds).result())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name:8} {rate:7.0f} requests/s")
    print(f"ratio    {medians['with'] / medians['without']:7.2f}")


if __name__ == "__main__":
    typer.run(main)
