"""Counters of the language models."""

from pydantic import BaseModel, ConfigDict


class ModelActivity(BaseModel):
    """Counters of one replica of a model since it started."""

    model_config = ConfigDict(from_attributes=True)

    process: int
    running: int
    completed: int
    cancelled: int
    generated_tokens: int
