"""The service on uvicorn, with a shutdown that ends in time however many signals come."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from workshop.integration.http_limits import LimitedHttpProtocol
from workshop.integration.stopping import SIGNALS, begin_stop, end_tasks


def run(app: ASGIApp, listener: socket.socket, root_path: str = "") -> None:
    """Serve until a signal comes, and stop within ten seconds.

    Args:
        app: the application.
        listener: where clients connect.
        root_path: path prefix that a proxy in front removes.
    """
    # Without uvicorn's proxy headers: the application knows which proxies to trust.
    config = uvicorn.Config(app, http=LimitedHttpProtocol, root_path=root_path, access_log=False, proxy_headers=False)
    Server(config).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn with a shutdown of our own.

    Its own answers late requests with a 500 in plain text and does not wait for them to end, and a second Ctrl-C leaves
    the application running without a port.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, these handlers stay installed, so that no signal interrupts the end of the process."""
        for number in SIGNALS:
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown. Further signals change nothing."""
        begin_stop()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests, let those under way finish or end them, then close the application."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()  # after the response under way; a WebSocket with 1012
        await end_tasks(lambda: self.server_state.tasks)
        await self.lifespan.shutdown()
