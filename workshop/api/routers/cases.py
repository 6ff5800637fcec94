"""Cases: stored measurements that can be predicted, corrected and erased."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response, status

from workshop.api.dependencies import CasesDep, ClassifierDep, require_json
from workshop.api.routes import JsonRoute
from workshop.api.schemas.tumours import CaseContent, Prediction, StoredCase, to_rows
from workshop.contracts.cases import Case

router = APIRouter(prefix="/cases", tags=["cases"], route_class=JsonRoute)


@router.post("", summary="Store a case", status_code=status.HTTP_201_CREATED, dependencies=[Depends(require_json)])
async def create_case(content: CaseContent, cases: CasesDep, request: Request, response: Response) -> StoredCase:
    """Store the measurements of a tumour. The `Location` header is the path of the new case."""
    case = await cases.add(content.measurements.values(), content.diagnosis)
    response.headers["Location"] = request.url_for("get_case", case_id=str(case.id)).path
    return StoredCase.of(case)


@router.get("", summary="List the newest cases")
async def list_cases(cases: CasesDep, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> list[StoredCase]:
    """The newest cases first, at most 100."""
    return [StoredCase.of(case) for case in await cases.newest(limit)]


@router.get("/{case_id}", summary="Get a case")
async def get_case(case_id: UUID, cases: CasesDep) -> StoredCase:
    """The measurements, and the diagnosis once it is confirmed."""
    return StoredCase.of(await cases.get(case_id))


@router.put("/{case_id}", summary="Correct a case", dependencies=[Depends(require_json)])
async def replace_case(case_id: UUID, content: CaseContent, cases: CasesDep) -> StoredCase:
    """Replace the measurements, or add the confirmed diagnosis."""
    case = Case(case_id, content.measurements.values(), content.diagnosis)
    await cases.replace(case)
    return StoredCase.of(case)


@router.delete("/{case_id}", summary="Erase a case", status_code=status.HTTP_204_NO_CONTENT)
async def delete_case(case_id: UUID, cases: CasesDep) -> None:
    """Erase a case permanently."""
    await cases.delete(case_id)


@router.get("/{case_id}/prediction", summary="Classify a case")
async def predict_case(case_id: UUID, cases: CasesDep, classifier: ClassifierDep) -> Prediction:
    """The current model's prediction for a stored case."""
    case = StoredCase.of(await cases.get(case_id))
    return Prediction.of_one(await classifier.predict(to_rows([case.measurements])))
