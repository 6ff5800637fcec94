"""Whether every answer is recorded under full load, and whether the service's memory stays flat.

Each connection asks for answers of one token, one after another. These are the quickest answers, so the database has
the most to write. Then the service is stopped, and the rows in its database are counted. The exit status is 1 if there
are not as many rows as answers, or if memory has grown by more than a tenth after the first third of the time.

    python benchmarks/usage.py [--seconds 60] [--connections 64] [--no-serve]
"""

import asyncio
import json
import sqlite3
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import uvloop
from throughput import RUNTIMES, running

from workshop.lab.memory import MARKER, MB, PeakMemory

ALLOWED_GROWTH = 1.1


def request_bytes(port: int) -> bytes:
    """One POST."""
    body = json.dumps({"model": "workshop-draft", "prompt": "What is a replica?", "max_tokens": 1})
    head = f"POST /v1/generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def connection(port: int, until: float) -> tuple[int, int]:
    """Ask over and over on one connection. Returns how many requests were answered, and how many were not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = request_bytes(port)
    answered = refused = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        if head.startswith(b"http/1.1 200"):
            answered += 1
        else:
            refused += 1
    writer.close()
    return answered, refused


def load(port: int, connections: int, seconds: float) -> tuple[int, int]:
    """Answers and refusals of all connections together. Answers under way at the end are read."""

    async def run() -> tuple[int, int]:
        end = time.perf_counter() + seconds
        counts = await asyncio.gather(*(connection(port, end) for _ in range(connections)))
        return sum(answered for answered, _ in counts), sum(refused for _, refused in counts)

    return uvloop.run(run())


def measure(name: str, seconds: float, connections: int, folder: Path, client: ProcessPoolExecutor) -> bool:
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
    with TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client:
        names = ["api", "serve, inline", "serve, deployment"] if serve else ["api"]
        passed = [measure(name, seconds, connections, Path(folder), client) for name in names]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    typer.run(main)
