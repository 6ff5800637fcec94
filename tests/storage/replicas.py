"""Several processes that use a database at the same moment: ``python -m tests.storage.replicas URL PROCESSES``.

Prints how many times each of them ran the first migration.
"""

import asyncio
import logging
import multiprocessing
import sys
from typing import Any

import alembic.command  # noqa: F401  so that all processes start at the same moment

from workshop.storage.cases import SqlCaseStore


def add_a_case(url: str, barrier: Any, ran: Any) -> None:
    """Wait for all processes, and add a case."""
    records: list[logging.LogRecord] = []
    watch = logging.Handler()
    watch.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("alembic").addHandler(watch)
    logging.getLogger("alembic").setLevel(logging.INFO)
    barrier.wait()
    asyncio.run(SqlCaseStore(url).add("ada", (1.0,), None))
    ran.put(sum("Running upgrade  -> 0001" in record.getMessage() for record in records))


def main(url: str, count: int) -> None:
    context = multiprocessing.get_context("fork")  # there are no threads here yet
    barrier, ran = context.Barrier(count), context.Queue()
    processes = [context.Process(target=add_a_case, args=(url, barrier, ran)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a process failed")
    print(*sorted(ran.get() for _ in processes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
