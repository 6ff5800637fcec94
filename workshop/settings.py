"""Every setting of the service, in one object, read from the environment once at the start."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT = Path(__file__).resolve().parents[1]


class Placement(StrEnum):
    """Where a model runs when the service runs on Ray Serve."""

    INLINE = "inline"
    """In the process of each API replica: best for a small CPU model."""

    DEPLOYMENT = "deployment"
    """In replicas of its own, behind a handle: best for a large or GPU model."""


class Settings(BaseSettings):
    """Each comes from the environment variable ``WORKSHOP_<NAME>``, or a bare name where that is the custom."""

    model_config = SettingsConfigDict(env_prefix="WORKSHOP_", frozen=True, validate_by_name=True)

    artifact: Path = PROJECT / "artifacts" / "tumour-classifier"
    database_url: Annotated[str, Field(validation_alias="DATABASE_URL")] = (
        f"sqlite+aiosqlite:///{PROJECT}/artifacts/service.sqlite"
    )

    max_body_bytes: Annotated[int, Gt(0)] = 4 * 2**20
    predict_timeout_s: Annotated[float, Gt(0)] = 10.0

    batching: bool = True
    """Predict requests that wait together in one call."""
    batch_max_rows: Annotated[int, Ge(1)] = 1024
    queue_max_rows: Annotated[int, Ge(1)] = 16384
    """Rows that may wait in one process; above it, requests are turned away with a 503."""

    placement: Placement = Placement.INLINE
    api_replicas: Annotated[int, Ge(1)] = 1
    classifier_replicas: Annotated[int, Ge(1)] = 1
    ray_cpus: Annotated[int, Ge(1)] = 4
    """Logical CPUs of our own Ray: how many replicas it places, not how many cores they may use."""
    object_store_mb: Annotated[int, Ge(75)] = 75
    """Ray's shared memory. Requests here are small: Ray's minimum is enough."""
