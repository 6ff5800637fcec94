"""What happens when more is asked than the service can answer: single rows from up to 3000 connections.

Each connection sends its next request as soon as it has an answer, whatever that is: with 3000 of them, many times
more is offered than the service can take. What counts is how many requests per second are answered, in comparison with
32 connections, and how long the accepted ones take.

    make bench, or: python benchmarks/overload.py [--seconds 5] [--no-serve]
"""

from typing import Annotated

import typer
from tools.load import client_process, measure, request_bytes
from tools.services import RUNTIMES, running

from workshop.contracts.tumours import FEATURES
from workshop.models.tumours import training_data

CONNECTIONS = (32, 300, 1000, 3000)


def main(seconds: float = 5, serve: Annotated[bool, typer.Option()] = True) -> None:
    """Print a table with a row for each runtime and number of connections."""
    record = dict(zip(FEATURES, training_data()[0][0].tolist(), strict=True))
    print("| runtime | connections | answered/s | ratio | refused/s | median | 99th percentile |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with client_process() as client:
        for name, (arguments, variables) in RUNTIMES.items():
            if arguments[0] == "serve" and not serve:
                continue
            with running(arguments, variables) as port:
                requests = [request_bytes(port, "/v1/predict", record)]
                client.submit(measure, port, requests, CONNECTIONS[0], 2).result()  # warm up
                best = 0.0
                for connections in CONNECTIONS:
                    job = client.submit(measure, port, requests, connections, seconds, refusals=True)
                    seen = job.result()
                    best = best or seen.rate
                    cells = (name, connections, f"{seen.rate:.0f}", f"{seen.rate / best:.2f}")
                    refused = f"{seen.refused / seen.seconds:.0f}"
                    times = (f"{seen.milliseconds(50):.0f} ms", f"{seen.milliseconds(99):.0f} ms")
                    print(f"| {' | '.join(map(str, (*cells, refused, *times)))} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
