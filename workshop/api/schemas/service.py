"""What the service says of its state."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel


class HealthReport(BaseModel):
    """How the service is.

    ``missing`` names the parts that do not answer and without which it must not be used, ``degraded`` those that do not
    answer and that only some routes need.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    version: str
    model_loaded: bool
    missing: list[str]
    degraded: list[str]
    uptime_seconds: float
    timestamp: datetime


class Readiness(BaseModel):
    """The service takes requests. Routes that need a part named in ``degraded`` answer with a 503."""

    status: Literal["ready", "degraded"]
    degraded: list[str]
