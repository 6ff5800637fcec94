"""The current time, and the uptime of the service."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The current time in UTC, with its time zone."""
    return datetime.now(UTC)


class Clock:
    """Measures the time since it was created."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def uptime_s(self) -> float:
        """Seconds since the clock was created."""
        return time.monotonic() - self._started
