"""Seconds of a scrape of the metrics, with ten and with a million stored queries, on SQLite.

The ratio is what matters: a scrape must not take longer because the service has answered more. For comparison, the same
for `/v1/stats`, which adds up all stored queries.

    python benchmarks/scrape.py [--rounds 50]
"""

import asyncio
import sqlite3
import statistics
import time
from contextlib import closing
from itertools import islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import typer
from tools.services import running

from workshop.storage.usage import SqlUsageStore

QUERIES = (10, 1_000_000)
QUESTION = {"query": "What is a replica?", "max_tokens": 1}
INSERT = """
    INSERT INTO usage
      (endpoint, principal, model, prompt_tokens, completion_tokens, cost, latency_ms, cascaded, draft_accepted, at)
    VALUES ('/v1/query', 'ada', ?, 10, 20, 0.001, 40.0, true, true, ?)
"""


def fill(file: Path, queries: int) -> None:
    """Store this many queries in a new database."""

    async def create_tables() -> None:
        store = SqlUsageStore(f"sqlite+aiosqlite:///{file}")
        await store.ready()
        await store.aclose()

    asyncio.run(create_tables())
    rows = islice(repeat(("workshop-draft", "2026-01-01 00:00:00")), queries)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(INSERT, rows)


def median_ms(client: httpx.Client, path: str, rounds: int) -> float:
    """The median time of a request in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        client.get(path).raise_for_status()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main(rounds: int = 50) -> None:
    """Print a table."""
    print("| stored queries | /metrics | /v1/stats |")
    print("|---|---|---|", flush=True)
    for queries in QUERIES:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "service.sqlite"
            fill(file, queries)
            variables = {"DATABASE_URL": f"sqlite+aiosqlite:///{file}", "WORKSHOP_LANGUAGE_MODELS": "true"}
            with running(["api"], variables) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                client.post("/v1/query", json=QUESTION, timeout=60).raise_for_status()
                scrape = median_ms(client, "/metrics", rounds)
                stats = median_ms(client, "/v1/stats", max(3, rounds // 10))
            print(f"| {queries} | {scrape:.1f} ms | {stats:.1f} ms |", flush=True)


if __name__ == "__main__":
    typer.run(main)
