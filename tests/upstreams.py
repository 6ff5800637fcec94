"""A server in the place of OpenAI's or Anthropic's. It answers as a test wants, and records what it is asked."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers

from workshop.lab.app_server import run_app

Answer = Callable[[], Response]


@dataclass
class Upstream:
    """Answers the first POST with the first of ``answers`` and so on, all others with the last one.

    Attributes:
        models: the answer to every GET.
        asked: the bodies of the POSTs.
        paths, headers, ports: of each.
        at_work: set when ``holding`` has sent all it has to send, and when ``pausing`` waits.
        gone: set when its reader has left.
        resumed: set by the test, so that ``pausing`` goes on.
    """

    answers: list[Answer]
    models: Answer
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    at_work: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    resumed: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Self]:
        """On a port, for the length of the block."""
        app = FastAPI()

        @app.post("/{path:path}")
        async def post(request: Request) -> Response:
            self.asked.append(await request.json())
            self.paths.append(request.url.path)
            self.headers.append(request.headers)
            self.ports.append(request.client.port)
            return self.answers[min(len(self.asked), len(self.answers)) - 1]()

        @app.get("/{path:path}")
        async def get(request: Request) -> Response:
            self.paths.append(request.url.path)
            self.headers.append(request.headers)
            return self.models()

        with run_app(app) as server:
            self.url = server.url
            yield self

    def holding(self, *events: bytes, comments: bool = False) -> Answer:
        """Send these, then nothing more (or only comments)."""

        async def body() -> AsyncGenerator[bytes, None]:
            try:
                for event in events:
                    yield event
                self.at_work.set()
                while comments:
                    yield b": still here\n\n"
                    await asyncio.sleep(0.02)
                await asyncio.Event().wait()
            finally:
                self.gone.set()

        return lambda: StreamingResponse(body(), media_type="text/event-stream")

    def pausing(self, *events: bytes) -> Answer:
        """Send the first of these, and the others when the test says so."""

        async def body() -> AsyncGenerator[bytes, None]:
            yield events[0]
            self.at_work.set()
            await asyncio.to_thread(self.resumed.wait)
            for event in events[1:]:
                yield event

        return lambda: StreamingResponse(body(), media_type="text/event-stream")

    async def is_gone(self) -> bool:
        return await asyncio.to_thread(self.gone.wait, 10)


def streaming(*events: bytes) -> Answer:
    """Server-sent events."""
    return lambda: Response(b"".join(events), media_type="text/event-stream")


def breaking(*events: bytes) -> Answer:
    """The same, and then the connection breaks."""

    async def body() -> AsyncGenerator[bytes, None]:
        for event in events:
            yield event
        raise RuntimeError("the server crashes")

    return lambda: StreamingResponse(body(), media_type="text/event-stream")


def silent() -> Response:
    """Headers, and no body ever."""

    async def never() -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b""

    return StreamingResponse(never())


def failing(status: int, headers: dict[str, str] | None = None, **error: object) -> Answer:
    """An error in the form that OpenAI and Anthropic share."""
    return lambda: JSONResponse({"type": "error", "error": {"message": "no"} | error}, status, headers)


def openai_events(text: str, logprob: float, prompt_tokens: int, completion_tokens: int) -> list[bytes]:
    """An answer of one token in OpenAI's protocol."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    choice["logprobs"] = {"content": [{"token": text, "logprob": logprob}]}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return [f"data: {json.dumps(event)}\n\n".encode() for event in ({"choices": [choice], "usage": usage},)]


def anthropic_events(*texts: str, prompt_tokens: int, completion_tokens: int) -> list[bytes]:
    """An answer in Anthropic's protocol, with an event for each piece of text; the last event is its end."""
    usage = {"input_tokens": prompt_tokens, "output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"content": [], "usage": usage}}]
    for text in texts:
        delta = {"type": "text_delta", "text": text}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": completion_tokens},
        }
    )
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def vector(text: str, dimensions: int = 64) -> list[float]:
    """How often each letter occurs; of no particular length."""
    counts = np.bincount([ord(letter) % dimensions for letter in text], minlength=dimensions)
    return [float(count) for count in counts]


def listed(*vectors: Sequence[float]) -> Response:
    """Embeddings in OpenAI's protocol, the last one first: what counts is the index."""
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return JSONResponse({"object": "list", "data": data[::-1], "model": "letters", "usage": {"total_tokens": 1}})


def embedding_all(upstream: Upstream, dimensions: int = 64) -> Answer:
    """The vectors of the texts that were asked for."""
    return lambda: listed(*(vector(text, dimensions) for text in upstream.asked[-1]["input"]))
