"""The time, and how long the service has been up."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The time in UTC, with its zone."""
    return datetime.now(UTC)


class Clock:
    """Measures the time since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def uptime_s(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started
