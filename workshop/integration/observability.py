"""Sets up what a process tells of itself, before it does anything else: its log and its traces."""

from workshop.logs import set_up_logs
from workshop.settings import Settings


def observe(settings: Settings) -> None:
    """For a process of the service on uvicorn. Replicas of Ray Serve: see ``replica``."""
    set_up_logs(settings.log_format, settings.log_level)
    if settings.exports_traces:
        from workshop.traces import set_up_traces

        set_up_traces()
