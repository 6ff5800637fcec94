"""What the middleware costs: requests per second of POST /v1/predict with all of it, and without any, on uvicorn.

All of it: request id, limits, timing, disconnects, metrics, and a line in the log for each request, written to a file.
Rounds of both alternate, since the speed of a machine changes with what else it does. The ratio is the result.

    python benchmarks/middleware.py [--seconds 5] [--rounds 5]
"""

import statistics
import sys
from tempfile import TemporaryFile

import typer
from tools.load import client_process, measure, request_bytes
from tools.services import running

from workshop.api.schemas.tumours import EXAMPLE

CONNECTIONS = 32
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
        running(["api"], {}, program=[sys.executable, "-c", BARE]) as bare_port,
        client_process() as client,
    ):
        ports = {"with": port, "without": bare_port}
        requests = {name: [request_bytes(each, "/v1/predict", EXAMPLE)] for name, each in ports.items()}
        for name, each in ports.items():
            client.submit(measure, each, requests[name], CONNECTIONS, 2).result()  # warm up
        for _ in range(rounds):
            for name, each in ports.items():
                measured = client.submit(measure, each, requests[name], CONNECTIONS, seconds).result()
                rates[name].append(measured.rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name:8} {rate:7.0f} requests/s")
    print(f"ratio    {medians['with'] / medians['without']:7.2f}")


if __name__ == "__main__":
    typer.run(main)
