"""A reverse proxy in front of the playground."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

from anyio.from_thread import start_blocking_portal

PREFIX = "/behind/a/proxy"


@contextmanager
def prefix_proxy(url: str) -> Iterator[str]:
    """Where the service at ``url`` is found behind a reverse proxy, which removes ``PREFIX``.

    It passes everything on as it comes, WebSockets too. At the end of the block, its connections break.
    """
    host, port = url.removeprefix("http://").split(":")

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, rest = head.split(b" ", 2)
            assert path.startswith(PREFIX.encode())
            if b"\r\nupgrade:" not in rest.lower():  # one request for each connection: only the first is rewritten
                rest = rest.replace(b"keep-alive", b"close")
            up_reader, up_writer = await asyncio.open_connection(host, port)
            with closing(up_writer):
                up_writer.write(b" ".join((method, path.removeprefix(PREFIX.encode()), rest)))
                there = asyncio.create_task(_pass_on(reader, up_writer))
                await _pass_on(up_reader, writer)
                there.cancel()

    # In a thread of its own: Playwright keeps a loop running in this one.
    with start_blocking_portal() as portal:
        server = portal.call(asyncio.start_server, serve_one, "127.0.0.1")
        yield "http://{}:{}{}/".format(*server.sockets[0].getsockname(), PREFIX)
        portal.call(server.close)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(2**16):
        writer.write(piece)
        await writer.drain()
