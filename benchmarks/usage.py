"""Whether every answer is recorded under full load, and whether the service's memory stays flat.

Each connection asks for answers of one token, one after another. These are the quickest answers, so the database has
the most to write. Then the service is stopped, and the rows in its database are counted. The exit status is 1 if there
are not as many rows as answers, or if memory has grown by more than a tenth after the first third of the time.

    python benchmarks/usage.py [--seconds 60] [--connections 64] [--no-serve]
"""

import sqlite3
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from tools.load import client_process, measure, request_bytes
from tools.services import RUNTIMES, running

from workshop.lab.memory import MARKER, MB, PeakMemory

ALLOWED_GROWTH = 1.1


def load(port: int, connections: int, seconds: float) -> tuple[int, int]:
    """How many requests were answered, and how many were refused."""
    content = {"model": "workshop-draft", "prompt": "What is a replica?", "max_tokens": 1}
    requests = [request_bytes(port, "/v1/generate", content)]
    measured = measure(port, requests, connections, seconds, refusals=True)
    return len(measured.latencies), measured.refused


def counted(name: str, seconds: float, connections: int, folder: Path, client: ProcessPoolExecutor) -> bool:
    """Print a row for the runtime. Returns whether the rows and the memory are as they should be."""
    file = folder / f"{name}.sqlite"
    variables = {"WORKSHOP_LANGUAGE_MODELS": "true", "DATABASE_URL": f"sqlite+aiosqlite:///{file}"}
    arguments, runtime_variables = RUNTIMES[name]
    memory, megabytes = PeakMemory(), list[float]()
    with running(arguments, runtime_variables | variables | {MARKER: memory.marker}) as port:
        warm_up, _ = client.submit(load, port, connections, 5).result()
        loading = client.submit(load, port, connections, seconds)
        while not loading.done():
            megabytes.append(memory.now / MB)
            time.sleep(seconds / 30)
        answered, refused = loading.result()
    with closing(sqlite3.connect(file)) as database:
        [[rows]] = database.execute("SELECT count(*) FROM usage")
    first_third, *later = megabytes[len(megabytes) // 3 :]
    over_time = " ".join(f"{figure:.0f}" for figure in megabytes[:: max(1, len(megabytes) // 6)])
    answers = warm_up + answered
    print(f"| {name} | {answers} | {rows} | {refused} | {answered / seconds:.0f} | {over_time} |", flush=True)
    return rows == answers and max(later) <= ALLOWED_GROWTH * first_third


def main(seconds: float = 60, connections: int = 64, serve: Annotated[bool, typer.Option()] = True) -> None:
    """Print a table of the runtimes."""
    print("| runtime | answers | rows | refused | answers/s | MB over time |")
    print("|---|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as folder, client_process() as client:
        names = ["api", "serve, inline", "serve, deployment"] if serve else ["api"]
        passed = [counted(name, seconds, connections, Path(folder), client) for name in names]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    typer.run(main)
