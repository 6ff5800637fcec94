"""Load on a service: many connections, each of which sends one request after another.

uvloop and bare connections, in a process of its own: a full HTTP client in the benchmark's process would be the
bottleneck.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from multiprocessing import get_context
from typing import cast

import numpy as np
import uvloop
from httptools import HttpResponseParser
from numpy.typing import NDArray

ANSWER_S = 60


@dataclass(frozen=True)
class Measured:
    """What all connections saw within ``seconds``: the time of each answer with status 200, and how many had others."""

    latencies: list[float]
    refused: int
    seconds: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def milliseconds(self, percentile: float) -> float:
        """This percentile of the latencies."""
        return float(self._milliseconds[int(percentile / 100 * (len(self._milliseconds) - 1))])

    @cached_property
    def _milliseconds(self) -> NDArray[np.float64]:
        return np.sort(1000 * np.array(self.latencies))


def request_bytes(port: int, path: str, content: object) -> bytes:
    """One POST of JSON."""
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def client_process() -> ProcessPoolExecutor:
    """The process that runs ``measure``."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def measure(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, *, refusals: bool = False
) -> Measured:
    """Send requests for this many seconds. Answers under way at the end are awaited, and count.

    Args:
        port: on 127.0.0.1.
        requests: sent in turn, over and over.
        connections: each has one request under way.
        seconds: after these, no request is sent.
        refusals: whether an answer may have another status than 200.

    Raises:
        RuntimeError: an answer has another status, or the service closed a connection.
        TimeoutError: an answer took a minute.
    """

    async def run() -> Measured:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        turns = cycle(requests)
        clients = [_Connection(port, turns, start + seconds, loop.create_future()) for _ in range(connections)]
        async with asyncio.timeout(seconds + ANSWER_S):
            for client in clients:
                await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
            await asyncio.gather(*(client.done for client in clients))
        elapsed = time.perf_counter() - start
        refused = [status for client in clients for status in client.refused]
        if refused and not refusals:
            raise RuntimeError(f"{len(refused)} answers have not status 200, the first {refused[0]}")
        return Measured([each for client in clients for each in client.latencies], len(refused), elapsed)

    return uvloop.run(run())


class _Connection(asyncio.Protocol):
    """Sends a request, waits for the answer, and sends the next: a coroutine would take half as long again."""

    def __init__(self, port: int, requests: Iterator[bytes], until: float, done: asyncio.Future[None]) -> None:
        self.latencies: list[float] = []
        self.refused: list[int] = []
        self.done = done
        self._port, self._requests, self._until = port, requests, until
        self._returning: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._is_asked_to_leave = False
        self._parser = HttpResponseParser(self)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:  # the parser calls it
        now = time.perf_counter()
        if (status := self._parser.get_status_code()) == 200:
            self.latencies.append(now - self._sent)
        else:
            self.refused.append(status)
        if now < self._until:
            self._is_asked_to_leave = not self._parser.should_keep_alive()  # by an HAProxy that another replaces
            if not self._is_asked_to_leave:
                self._send()
        else:
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_asked_to_leave:
            loop = asyncio.get_running_loop()
            self._returning = loop.create_task(loop.create_connection(lambda: self, "127.0.0.1", self._port))
        elif not self.done.done():
            self.done.set_exception(RuntimeError(f"the service closed the connection: {error}"))

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))
