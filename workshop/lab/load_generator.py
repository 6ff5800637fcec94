"""Send many requests and keep a record of each."""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, as its sender saw it.

    Attributes:
        number: 0 for the first one sent.
        start: when it was sent, in seconds after the load began.
        end: when its answer was complete, on the same clock.
        status: HTTP status, or None if no answer came.
        worked_s: seconds that the application says it took (header ``X-Process-Time``), or None.
        error: why no answer came, or why it broke off, else "".
        body: the part of the answer that arrived.
        arrivals: when each piece of the body arrived, on the same clock.
    """

    number: int
    start: float
    end: float
    status: int | None
    worked_s: float | None = None
    error: str = ""
    body: bytes = b""
    arrivals: tuple[float, ...] = ()

    @property
    def ms(self) -> float:
        """Milliseconds from sending the request to its complete answer."""
        return 1000 * (self.end - self.start)

    @property
    def first_ms(self) -> float:
        """Milliseconds from sending the request to the first piece of the body; NaN if there was none."""
        return 1000 * (self.arrivals[0] - self.start) if self.arrivals else math.nan


class Records(list[RequestRecord]):
    """The records of one load, in the order of sending."""

    @property
    def total_ms(self) -> float:
        """Milliseconds from the first request to the last answer."""
        return 1000 * max(record.end for record in self)

    @property
    def median_ms(self) -> float:
        """The median request's milliseconds."""
        return statistics.median(record.ms for record in self)

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return 1000 * len(self) / self.total_ms

    def __repr__(self) -> str:
        statuses = ", ".join(sorted({f"{record.status or ''} {record.error}".strip() for record in self}))
        count = f"{len(self)} request{'s' if len(self) > 1 else ''}"
        return f"{count} in {self.total_ms:.0f} ms (median {self.median_ms:.0f} ms, status {statuses})"


def load(
    url: str,
    requests: int = 10,
    *,
    concurrency: int | None = None,
    method: str = "GET",
    json: Any = None,
    timeout_s: float = 60,
) -> Records:
    """Send the same request many times to one address, each on its own connection, like separate users.

    Args:
        url: the address.
        requests: the number of requests.
        concurrency: how many are sent at the same time. None: all of them; 1: one after the other.
        method: the HTTP method.
        json: the body, if any.
        timeout_s: the seconds after which a request counts as unanswered.
    """

    async def send_all() -> Records:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits, timeout=timeout_s, trust_env=False) as client:
            free = asyncio.Semaphore(concurrency or requests)
            began = time.perf_counter()

            def clock() -> float:
                return time.perf_counter() - began

            async def send(number: int) -> RequestRecord:
                status, worked_s, error = None, None, ""
                pieces: list[bytes] = []
                arrivals: list[float] = []
                async with free:
                    start = clock()
                    try:
                        async with client.stream(method, url, json=json) as response:
                            status = response.status_code
                            if worked := response.headers.get("X-Process-Time"):
                                worked_s = float(worked)
                            async for piece in response.aiter_bytes():
                                arrivals.append(clock())
                                pieces.append(piece)
                    except httpx.HTTPError as broken:
                        error = type(broken).__name__
                    return RequestRecord(
                        number, start, clock(), status, worked_s, error, b"".join(pieces), tuple(arrivals)
                    )

            return Records(await asyncio.gather(*(send(number) for number in range(requests))))

    return run_async(send_all)


def in_parallel(*calls: Callable[[], T]) -> list[T]:
    """Call functions at the same time, each in a thread, and return their results in the same order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def run_async(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread of its own, since the notebook's event loop is busy running the cell."""
    [result] = in_parallel(lambda: asyncio.run(make()))
    return result
