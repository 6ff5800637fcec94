"""The service on uvicorn, with a shutdown that ends in time however many signals come."""

import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from workshop.contracts.errors import StartError
from workshop.integration.http_limits import LimitedHttpProtocol
from workshop.integration.reaper import reaper
from workshop.integration.stopping import SIGNALS, begin_stop, end_tasks, is_stopping
from workshop.machine import freeze_loaded_objects

HANG_S = 60
"""A worker that shows no sign of life for this long is replaced. On a busy machine, importing PyTorch takes a while."""
PING_S = 0.1
"""How often to look whether a worker that is to answer has died, and whether the service is to stop."""


def configuration(app: ASGIApp | str, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for the service. The application logs requests, and knows which proxies to trust."""
    return uvicorn.Config(
        app, http=LimitedHttpProtocol, log_config=None, access_log=False, proxy_headers=False, **options
    )


def run(app: ASGIApp, listener: socket.socket, root_path: str = "") -> None:
    """Serve until a signal comes, and stop within ten seconds.

    Args:
        app: the application.
        listener: where clients connect.
        root_path: path prefix that a proxy in front removes.
    """
    Server(configuration(app, root_path=root_path)).run(sockets=[listener])


def run_workers(factory: str, listener: socket.socket, workers: int, root_path: str = "") -> None:
    """The same in several processes, which share the port. One that dies is replaced.

    Args:
        factory: where each worker finds the function that makes its application: ``package.module:function``.
        listener: where clients connect.
        workers: how many processes.
        root_path: path prefix that a proxy in front removes.

    Raises:
        StartError: a worker could not start. All of them have ended, and the worker has said why.
    """
    multiprocess.Process = Worker  # type: ignore[misc]  # uvicorn has no option for it
    options = {"factory": True, "workers": workers, "timeout_worker_healthcheck": HANG_S, "root_path": root_path}
    supervisor = multiprocess.Multiprocess(configuration(factory, **options), [listener])

    def stop(*_: object) -> None:
        begin_stop()
        supervisor.signal_queue.append(signal.SIGTERM)

    for number in SIGNALS:
        signal.signal(number, stop)
    with reaper():  # if this process is killed, so are the workers
        supervisor.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes):
        raise StartError("a worker could not start; the reason is above")


class Worker(multiprocess.Process):
    """A process of ``run_workers``."""

    def start(self) -> None:
        """Start it without SIGINT: Ctrl-C reaches all processes of a terminal, and the parent alone acts on it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        super().start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def ping(self, timeout: float = 5) -> bool:
        """Whether it answers in time, in seconds. Unlike uvicorn's, this does not wait for a process that has died.

        When the service is to stop, it waits for nobody: a process that has just been started may take long to answer.
        """
        deadline = time.monotonic() + timeout
        try:
            self.parent_conn.send(b"ping")
            while not self.parent_conn.poll(PING_S):
                if is_stopping():
                    return True
                if time.monotonic() > deadline or not self.process.is_alive():
                    return False
            self.parent_conn.recv()
        except (OSError, EOFError):
            return False
        return True

    @property
    def server(self) -> uvicorn.Server:
        """Our server instead of uvicorn's."""
        if self._server is None:
            self._server = Server(self.config)
        return self._server

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """What the process does. If it cannot start, another one could not either: that ends the parent, too."""
        try:
            super().target(sockets)
        except Exception as error:
            if self.server.started:
                raise
            if isinstance(error, StartError):
                print(f"workshop: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            sys.exit(STARTUP_FAILURE)


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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        await super().startup(sockets)
        freeze_loaded_objects()

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
