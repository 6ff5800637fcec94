"""Time to first token and tokens per second of streamed chat answers in every runtime, measured in one run.

1 to 64 readers at a time, each on a connection of its own, ask the questions of the corpus one after another. As in
``peers.py``, the service and its readers run in separate processes, the readers use bare connections, and the
ratios matter more than the figures.

    make bench, or: python benchmarks/streams.py [--seconds 20] [--model workshop-main] [--no-serve]
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
import uvloop
from tools.load import client_process, request_bytes
from tools.services import RUNTIMES, running

from workshop.corpus import entries

READERS = (1, 4, 16, 64)
PLACE = "serve, deployment"
ROOM = {"WORKSHOP_DEPLOYMENTS__LANGUAGE_MODELS__MAX_ONGOING_REQUESTS": "8"}
FULL = {f"{PLACE}, 8 at a time": (RUNTIMES[PLACE][0], RUNTIMES[PLACE][1] | ROOM)}
"""A replica that is full with eight streams: the others wait until Serve's router finds room for them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader saw of one answer: seconds until its text began, and its length in tokens."""

    first_token_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What all readers saw within ``seconds``."""

    answers: list[Answer]
    seconds: float

    def row(self, *cells: object) -> str:
        """A row of the table, which starts with these cells."""
        median, p95 = 1000 * np.percentile([answer.first_token_s for answer in self.answers], (50, 95))
        rate = sum(answer.tokens for answer in self.answers) / self.seconds
        return f"| {' | '.join(map(str, cells))} | {median:.0f} ms | {p95:.0f} ms | {rate:.0f} |"


def measure(port: int, model: str, readers: int, seconds: float) -> Measured:
    """Ask for this many seconds. Answers under way at the end are read to their end."""
    questions = [question for entry in entries() for question in entry.questions]
    # Each reader has different questions, as far as there are enough.
    shares = [cycle(islice(questions, number, None, readers)) for number in range(readers)]

    async def run() -> Measured:
        start = time.perf_counter()
        answers = await asyncio.gather(*(connection(port, model, share, start + seconds) for share in shares))
        return Measured([answer for reader in answers for answer in reader], time.perf_counter() - start)

    return uvloop.run(run())


async def connection(port: int, model: str, questions: Iterator[str], until: float) -> list[Answer]:
    """Ask one question after another on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    while time.perf_counter() < until:
        question = next(questions)
        start = time.perf_counter()
        writer.write(request_bytes(port, "/v1/chat/completions", content_of(model, question)))
        first_token_s = tokens = None
        try:
            async for event in events(reader):
                if first_token_s is None and any(choice["delta"].get("content") for choice in event["choices"]):
                    first_token_s = time.perf_counter() - start
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise RuntimeError(f"the answer to {question!r} did not end") from error
            # Another HAProxy has taken over, as it does when the replicas change.
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        if first_token_s is None or tokens is None:
            raise RuntimeError(f"the answer to {question!r} has no text or did not end")
        answers.append(Answer(first_token_s, tokens))
    writer.close()
    return answers


def content_of(model: str, question: str) -> dict[str, object]:
    """The JSON of a request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event in the next response."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.lower().startswith(b"http/1.1 200"):
        raise RuntimeError(f"the service answered {head.splitlines()[0].decode()}")
    text = b""
    while size := int(await reader.readline(), 16):  # chunked: the length in hexadecimal, the bytes, an empty line
        text += (await reader.readexactly(size + 2))[:-2]
        *lines, text = text.split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):  # neither a comment nor [DONE]
                yield json.loads(line.removeprefix(b"data: "))
    await reader.readline()


def main(seconds: float = 20, model: str = "workshop-main", serve: Annotated[bool, typer.Option()] = True) -> None:
    """Print a table with a row for each runtime and number of readers."""
    print("| runtime | streams | first token, median | first token, 95th percentile | tokens/s |")
    print("|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as folder, client_process() as client:
        variables = {
            "WORKSHOP_LANGUAGE_MODELS": "true",
            "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/usage.sqlite",  # each answer leaves a record
        }
        for name, (arguments, runtime_variables) in (RUNTIMES | FULL).items():
            if arguments[0] == "serve" and not serve:
                continue
            with running(arguments, runtime_variables | variables) as port:
                client.submit(measure, port, model, 1, 2).result()  # warm up
                for readers in READERS:
                    measured = client.submit(measure, port, model, readers, seconds).result()
                    print(measured.row(name, readers), flush=True)


if __name__ == "__main__":
    typer.run(main)
