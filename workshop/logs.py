"""The service's logs: one line for each event, as text or JSON, with the request that it belongs to.

Everything else uses ``logging`` as usual. This needs no library: a formatter of a few lines does it, for our lines and
for those of other libraries.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from opentelemetry import trace

Fields = Mapping[str, str]

_fields: ContextVar[Fields] = ContextVar("log_fields", default={})  # noqa: B039  # never changed, only replaced

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""The attributes of every record. All others are the ``extra`` of a call, or private to a library such as Ray."""
_CONTROL_CHARACTERS = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160))}
WRITE_LINES = 10
"""The most lines that are written at once: a pipe takes 4 kB in one piece, without lines of other processes in it."""
_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each line


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


def log_fields() -> Fields:
    """The fields of each line that is logged from here."""
    return _fields.get()


def set_log_fields(**fields: str) -> None:
    """Set the fields of each line that is logged from here on: by this task, and by tasks and threads that it starts.

    Any earlier fields are gone: they belong to the previous request of the connection.
    """
    _fields.set(fields)


def add_log_fields(**fields: str) -> None:
    """Add fields to those of the lines that are logged from here on."""
    _fields.set({**_fields.get(), **fields})


def default_format() -> LogFormat:
    """Text on a terminal, JSON elsewhere: in a file or a container."""
    return LogFormat.TEXT if sys.stderr.isatty() else LogFormat.JSON


def set_up_logs(log_format: LogFormat | None, level: str, fields: Callable[[], Fields] = log_fields) -> None:
    """Write the log to standard error. Called once in each process of the service, never by a library or a test.

    Only our own lines are shown at ``level``, those of libraries from warnings on: what some of them log at lower
    levels contains headers with keys, or URLs with queries.

    Args:
        log_format: how a line looks; None for ``default_format``.
        level: the lowest level of our own lines.
        fields: returns the fields of the current request.
    """
    # Not sys.stderr: Ray Serve may replace it, in a replica, by a logger.
    handler = _Handler(sys.__stderr__)
    formatter = _JsonFormatter if (log_format or default_format()) is LogFormat.JSON else _TextFormatter
    handler.setFormatter(formatter(fields))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logging.getLogger("workshop").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # its command line may have given them handlers
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # we log requests ourselves
        logger.setLevel(logging.NOTSET)


class _Handler(logging.StreamHandler[Any]):
    """Writes the lines of one turn of an event loop together: a write costs more than a line, if requests are many.

    Outside of an event loop, it writes each line at once.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, or have it written soon."""
        try:
            self._lines.append(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)
            return
        with suppress(RuntimeError):  # there is no event loop
            loop = asyncio.get_running_loop()
            if len(self._lines) < WRITE_LINES:
                loop.call_soon(self.flush)
                return
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait. They are lost if the disk is full, or nobody reads them any more."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            if lines and self.stream:
                self.stream.write("".join(lines))
            super().flush()
        except (OSError, ValueError):
            pass
        finally:
            self.release()


class _JsonFormatter(logging.Formatter):
    """A line is a JSON object. ``extra`` of the call becomes members of it."""

    def __init__(self, fields: Callable[[], Fields]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
            **self._fields(),
            **_trace(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class _TextFormatter(logging.Formatter):
    """A line for people. A traceback follows on lines of its own."""

    def __init__(self, fields: Callable[[], Fields]) -> None:
        super().__init__()
        self._fields = fields

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escapes what could pass for another line: a message may contain what a caller has sent."""
        message = record.message.strip().translate(_CONTROL_CHARACTERS)
        fields = " ".join(f"{name}={value}" for name, value in {**self._fields(), **_trace()}.items())
        line = f"{_time(record)} {record.levelname:7} {record.name}: {message}"
        return f"{line} [{fields.translate(_CONTROL_CHARACTERS)}]" if fields else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace() -> Fields:
    """The trace that the line belongs to. Nothing without tracing."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
