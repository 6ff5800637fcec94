"""The servers that run beside the notebook."""

import atexit
from typing import Protocol


class Server(Protocol):
    """What `run_app` and `run_command` return."""

    def stop(self) -> None: ...


running: set[Server] = set()


@atexit.register
def stop_all() -> None:
    """Stop every server that `run_app` and `run_command` have started and that is still running."""
    for server in list(running):
        server.stop()
