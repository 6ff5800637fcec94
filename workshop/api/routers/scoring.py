"""Predictions in MLflow's scoring protocol, in place of `mlflow models serve`."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, status
from starlette.exceptions import HTTPException

from workshop.api.dependencies import ClassifierDep, limit_rate, requires
from workshop.api.routes import ProtocolRoute
from workshop.api.schemas.scoring import Predictions, ScoringRequest
from workshop.contracts.errors import InvalidInputError
from workshop.contracts.principals import Scope

CONTENT_TYPES = ("application/json", "text/csv")


async def require_scoring_type(content_type: Annotated[str, Header(include_in_schema=False)] = "") -> None:
    """Raise an error with status 415 unless the body is JSON or CSV, in UTF-8.

    Other parameters of the content type belong to MLflow 1.x, whose JSON had other forms.
    """
    kind, *parameters = (part.strip() for part in content_type.lower().split(";"))
    if kind not in CONTENT_TYPES or not {"charset=utf-8"}.issuperset(parameters):
        detail = f"the body should be {' or '.join(CONTENT_TYPES)}, in UTF-8, not {content_type or 'nothing'}"
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, detail)


router = APIRouter(
    tags=["mlflow"],
    route_class=ProtocolRoute,
    dependencies=[Depends(limit_rate), requires(Scope.PREDICT), Depends(require_scoring_type)],
)


@router.post(
    "/invocations",
    summary="Classify a table of tumours",
    openapi_extra={"requestBody": {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def invocations(tumours: ScoringRequest, classifier: ClassifierDep) -> Predictions:
    """The tumours are JSON in one of MLflow's forms, or CSV whose first line has the names of the columns.

    Unlike MLflow, this refuses measurements that are impossible, as `/v1/predict` does, and CSV that is ambiguous: a
    measurement that appears twice, a row that is longer than the first line.
    """
    table = await to_thread.run_sync(tumours.table)  # takes long if it is large
    try:
        scores = await classifier.predict(table.rows)
    except InvalidInputError as error:
        raise table.located(error) from None
    return Predictions(predictions=scores.probabilities.argmax(axis=1).tolist())
