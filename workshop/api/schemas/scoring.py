"""MLflow's scoring protocol, for a model whose signature names its columns (``mlflow.pyfunc.scoring_server``)."""

from collections.abc import Callable
from io import StringIO
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from workshop.api.errors import mistakes
from workshop.api.schemas.base import ClosedModel
from workshop.api.schemas.tumours import EXAMPLE
from workshop.api.tables import Table, from_columns, from_csv, from_lists, from_records
from workshop.contracts.tumours import FEATURES


class SplitFrame(ClosedModel):
    """A pandas DataFrame, as `to_dict(orient="split")` makes it. The index is ignored."""

    columns: Annotated[list[str], Field(fail_fast=True)]
    data: Annotated[list[list[Any]], Field(fail_fast=True)]
    index: list[Any] | None = None


class ScoringRequest(BaseModel):
    """Tumours in exactly one of four forms.

    `inputs` and `instances` are the same: objects with the measurements by name, lists of the 30 measurements in the
    order of the features, or one object with a list for each measurement. Columns that are not features, and other
    members such as `params`, are ignored.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"dataframe_records": [EXAMPLE]}]})

    dataframe_split: SplitFrame | None = None
    dataframe_records: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    inputs: list[Any] | dict[str, Any] | None = None
    instances: list[Any] | dict[str, Any] | None = None
    _csv: bytes | None = PrivateAttr(None)

    @model_validator(mode="wrap")
    @classmethod
    def _accept_csv(cls, body: Any, validate: Callable[[Any], Self]) -> Self:
        """FastAPI passes a body that is not JSON on as it is."""
        if not isinstance(body, bytes):
            return validate(body)
        request = cls()
        request._csv = body
        return request

    def table(self) -> Table:
        """The rows.

        Raises:
            RequestValidationError: they are in no form or in several, or something is wrong with them.
        """
        if self._csv is not None:
            return from_csv(StringIO(_decoded(self._csv), newline=""))
        if len(self.model_fields_set) == 1:
            if self.dataframe_split is not None:
                return from_lists(self.dataframe_split.columns, self.dataframe_split.data)
            if self.dataframe_records is not None:
                return from_records(self.dataframe_records)
            tensor = self.inputs if self.inputs is not None else self.instances
            if isinstance(tensor, dict):
                return from_columns(tensor)
            if tensor is not None:
                return _from_list(tensor)
        forms = ", ".join(type(self).model_fields)
        raise mistakes(("body", "one_form", f"There should be exactly one of: {forms}"))


class Predictions(BaseModel):
    """The index of the predicted class of each row: 0 is malignant, 1 is benign."""

    predictions: list[int]


def _from_list(items: list[Any]) -> Table:
    if all(isinstance(item, dict) for item in items):
        return from_records(items)
    if all(isinstance(item, list) for item in items):
        return from_lists(FEATURES, items)
    raise mistakes(("body", "row_type", "The rows should all be objects, or all lists of numbers"))


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise mistakes(("body", "unicode", f"Input should be UTF-8: {error.reason} at byte {error.start}")) from None
