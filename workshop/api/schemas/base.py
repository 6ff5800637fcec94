"""Base classes and types for the schemas of requests."""

from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

MAX_UNKNOWN_NAMES = 10
"""How many unknown names are reported. Each is a separate error, and explaining thousands would take too long."""


def _integral_float_to_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


AcceptIntegralFloat = BeforeValidator(_integral_float_to_int)
"""Converts ``10.0`` to an integer, since JSON Schema counts it as one."""

Integer = Annotated[int, AcceptIntegralFloat]


class ClosedModel(BaseModel):
    """A JSON object in which unknown names are errors."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _limit_unknown_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields) + MAX_UNKNOWN_NAMES:
            return data
        known = {name: data[name] for name in cls.model_fields if name in data}
        unknown = (name for name in data if name not in known)
        return known | {name: data[name] for name in islice(unknown, MAX_UNKNOWN_NAMES)}


class StrictModel(ClosedModel):
    """The same, without type conversion: "12" is a string, not a number."""

    model_config = ConfigDict(strict=True)
