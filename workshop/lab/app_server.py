"""Run an ASGI app on a real port beside the notebook."""

from __future__ import annotations

import ctypes
import socket
import threading
from contextlib import AbstractContextManager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.lab.progress import START_LIMIT_S, waiting_for
from workshop.lab.running import running

STOP_LIMIT = 3.0  # seconds; an app that has not begun to close by then blocks the event loop
CLOSE_LIMIT = 30.0  # seconds; how long the app may take to close what it holds

_named: dict[str, Server] = {}


def run_app(app: ASGIApp, port: int = 0, name: str | None = None, **options: Any) -> Server:
    """Serve `app` with uvicorn in a background thread and return once it answers.

    `port` 0 picks a free one. A server with the same `name` is stopped first, so a notebook cell can run
    twice. `options` go to `uvicorn.Config` (for example `root_path`).
    Raises the app's own error if it fails to start, and OSError if `port` is taken.
    """
    if name is not None and name in _named:
        _named[name].stop()
    server = Server(app, port, name, options)
    if name is not None:
        _named[name] = server
    return server


class Server(AbstractContextManager["Server"]):
    """A running app. `url` is its address; `stop()`, or the end of a `with` block, ends it."""

    def __init__(self, app: ASGIApp, port: int, name: str | None, options: dict[str, Any]) -> None:
        self.name = name
        listener = _listen(port)
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._watch = _LifespanWatch(app)
        # log_config: uvicorn's logging settings are global, and a notebook may run other servers.
        # proxy_headers: no proxy is in front, and a caller must not choose its own address.
        settings: dict[str, Any] = {"log_config": None, "access_log": False, "proxy_headers": False}
        settings |= {"timeout_graceful_shutdown": 1} | options
        self._uvicorn = uvicorn.Server(uvicorn.Config(self._watch, **settings))
        self.thread = threading.Thread(
            target=self._serve, args=(listener,), name=f"server-{name or self.port}", daemon=True
        )
        self.thread.start()
        with waiting_for("the app"):
            self._wait_until_started()
        running.add(self)

    def stop(self) -> None:
        """Stop serving and free the port. A second call does nothing."""
        running.discard(self)
        if self.name is not None and _named.get(self.name) is self:
            del _named[self.name]
        self._uvicorn.should_exit = True
        if self._watch.closes.wait(STOP_LIMIT):
            self.thread.join(CLOSE_LIMIT)
        if self.thread.is_alive():  # the app blocks the event loop
            self._uvicorn.force_exit = True
            interrupt(self.thread)
            self.thread.join(STOP_LIMIT)

    def _serve(self, listener: socket.socket) -> None:
        try:
            self._uvicorn.run(sockets=[listener])
        except SystemExit:  # how uvicorn says that the app did not start
            pass
        except _Interrupted:
            pass
        finally:
            self._watch.closes.set()
            listener.close()

    def _wait_until_started(self) -> None:
        waited = 0.0
        while not self._uvicorn.started:
            self.thread.join(0.01)
            waited += 0.01
            if not self.thread.is_alive():
                raise self._watch.error or RuntimeError("The app stopped while it was starting.")
            if waited > START_LIMIT_S:
                self.stop()
                raise TimeoutError(f"The app did not start within {START_LIMIT_S:.0f} s.")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self in running else "stopped"
        return f"<Server {self.name or ''} {self.url} {state}>".replace("  ", " ")


class _LifespanWatch:
    """Keeps the error of a failed start, which uvicorn only logs. Knows when the app closes what it holds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.error: BaseException | None = None
        self.closes = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.closes.set()
            return message

        async def quiet_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                message = {"type": message["type"]}  # the traceback goes to the caller, not to the log
            await send(message)

        try:
            await self.app(scope, watched_receive, quiet_send)
        except BaseException as error:
            self.error = error
            raise


class _Interrupted(BaseException):
    """Raised inside a thread that must end. Not an Exception, so that an `except Exception` lets it through."""


def interrupt(thread: threading.Thread) -> None:
    """Raise inside `thread` at its next Python instruction. A thread blocked in C ends only after it returns."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Interrupted))


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"Port {port} is taken. Port 0 picks a free one.") from error
    return listener
