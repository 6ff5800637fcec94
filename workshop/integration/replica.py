"""What all replicas of the service have in common, whatever runs in them: their log, and garbage collection."""

import logging
from typing import Any

from ray.serve import context as serve_context

from workshop.logs import Fields, LogFormat, log_fields, set_up_logs
from workshop.machine import freeze_loaded_objects


def call_fields() -> Fields:
    """The fields of a line that is logged here: the request id that came with the call, and what was set since."""
    request_id = serve_context._get_serve_request_context().request_id
    return {"request_id": request_id, **log_fields()} if request_id else log_fields()


class _Replica:
    """Sets up its process, and is what it is mixed into.

    Args:
        log_format, log_level: see ``Settings``.
        arguments: of the deployment's class.
    """

    def __init__(self, log_format: LogFormat, log_level: str, *arguments: Any) -> None:
        set_up_logs(log_format, log_level, call_fields)
        # Serve's own lines go into its own files. As text on standard error, they would mix with ours.
        serve_logger = logging.getLogger("ray.serve")
        for handler in serve_logger.handlers[:]:
            if type(handler) is logging.StreamHandler:
                serve_logger.removeHandler(handler)
        # Serve also sets attributes of spans that have ended, in calls that a WebSocket makes at the same time.
        logging.getLogger("opentelemetry.sdk.trace").setLevel(logging.ERROR)
        super().__init__(*arguments)
        freeze_loaded_objects()


def replica_of(kind: type) -> type:
    """A deployment's class, whose replicas set up their process. Its first arguments are those of ``_Replica``."""
    return type(kind.__name__, (_Replica, kind), {"__doc__": kind.__doc__})
