"""What all schemas of requests share."""

from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

MAX_UNKNOWN = 10
"""An unknown name is an error of its own, and each takes time to explain: of very many, so many are named."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
"""Makes an integer of ``10.0``: it is one, as JSON Schema defines it."""

Integer = Annotated[int, Whole]


class ClosedModel(BaseModel):
    """JSON in which a misspelt name is a mistake."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_most_unknown(cls, data: Any) -> Any:
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields) + MAX_UNKNOWN:
            return data
        known = {name: data[name] for name in cls.model_fields if name in data}
        return known | {name: data[name] for name in islice((name for name in data if name not in known), MAX_UNKNOWN)}


class StrictModel(ClosedModel):
    """The same, and "12" is text and not a number."""

    model_config = ConfigDict(strict=True)
