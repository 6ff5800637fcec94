"""The health of the service."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel


class HealthReport(BaseModel):
    """The health of the service and its parts.

    ``missing`` lists the required parts that do not answer: the service must not be used. ``degraded`` lists the parts
    that do not answer but that only some routes need.
    ``agent_initialized`` tells clients of the earlier cascade whether the language models answer.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    version: str
    model_loaded: bool
    agent_initialized: bool
    missing: list[str]
    degraded: list[str]
    uptime_seconds: float
    timestamp: datetime


class Readiness(BaseModel):
    """The service accepts requests. Routes that need a part listed in ``degraded`` respond with a 503."""

    status: Literal["ready", "degraded"]
    degraded: list[str]
