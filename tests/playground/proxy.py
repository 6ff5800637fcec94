"""A reverse proxy in front of the playground."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

from anyio.from_thread import start_blocking_portal

PREFIX = "/behind/a/proxy"


@contextmanager
def prefix_proxy(url: str) -> Iterator[str]:
    """The URL of the service at ``url`` behind a reverse proxy that removes ``PREFIX``.

    The proxy forwards all data immediately, WebSockets too. Its connections break at the end of the block.
    """
    host, port = url.removeprefix("http://").split(":")

    async def handle_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, rest = head.split(b" ", 2)
            assert path.startswith(PREFIX.encode())
            if b"\r\nupgrade:" not in rest.lower():  # one request per connection, since only the first is rewritten
                rest = rest.replace(b"keep-alive", b"close")
            up_reader, up_writer = await asyncio.open_connection(host, port)
            with closing(up_writer):
                up_writer.write(b" ".join((method, path.removeprefix(PREFIX.encode()), rest)))
                forwarding = asyncio.create_task(_forward(reader, up_writer))
                await _forward(up_reader, writer)
                forwarding.cancel()

    # In a separate thread, because Playwright runs an event loop in this one.
    with start_blocking_portal() as portal:
        server = portal.call(asyncio.start_server, handle_connection, "127.0.0.1")
        yield "http://{}:{}{}/".format(*server.sockets[0].getsockname(), PREFIX)
        portal.call(server.close)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(2**16):
        writer.write(piece)
        await writer.drain()
