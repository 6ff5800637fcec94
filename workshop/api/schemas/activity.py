"""What the language models are doing."""

from pydantic import BaseModel, ConfigDict


class ModelActivity(BaseModel):
    """What one replica of a model has done since it started."""

    model_config = ConfigDict(from_attributes=True)

    process: int
    running: int
    completed: int
    cancelled: int
    generated_tokens: int
