"""The service as a process of gunicorn: ``gunicorn -k workshop.integration.gunicorn_worker.Worker``.

Gunicorn's own ASGI worker has neither our limits on connections nor our shutdown, and uvicorn's worker is deprecated.
"""

import os
import signal
import socket
import sys

from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from workshop import environment
from workshop.contracts.errors import StartError
from workshop.integration.preflight import check_access, check_shared_limits
from workshop.integration.uvicorn_server import Server, configuration
from workshop.settings import read_settings


class Worker(base.Worker):  # type: ignore[misc]  # gunicorn has no types
    """Runs our uvicorn on gunicorn's sockets."""

    def init_signals(self) -> None:
        """Leave them to uvicorn, except the one that reopens log files."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self.handle_usr1)

    def load_wsgi(self) -> None:
        """Make the application. If that fails, gunicorn ends."""
        try:
            environment.load()
            settings = read_settings()
            check_shared_limits(settings, self.cfg.workers)
            for each in self.sockets:
                if each.sock.family != socket.AF_UNIX:
                    check_access(settings, each.sock.getsockname()[0])
            super().load_wsgi()
        except StartError as error:
            self.log.error("workshop: %s", error)
            sys.exit(Arbiter.APP_LOAD_ERROR)

    def run(self) -> None:
        """Serve until a signal comes."""

        async def notify() -> None:
            self.notify()
            server.should_exit |= os.getppid() != self.ppid  # gunicorn was killed

        server = Server(configuration(self.wsgi, callback_notify=notify, timeout_notify=1))
        server.run(sockets=[each.sock for each in self.sockets])
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
