"""Cases: stored measurements that can be predicted, corrected and erased. Each belongs to the caller who stored it."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response, status

from workshop.api.dependencies import CasesDep, ClassifierDep, PrincipalDep, require_json, requires
from workshop.api.routes import JsonRoute
from workshop.api.schemas.tumours import CaseContent, Prediction, StoredCase, to_rows
from workshop.contracts.principals import Scope

MAY_READ, MAY_WRITE = requires(Scope.CASES_READ), requires(Scope.CASES_WRITE)
IS_JSON = Depends(require_json)

router = APIRouter(prefix="/cases", tags=["cases"], route_class=JsonRoute)


async def get_owner(principal: PrincipalDep) -> str | None:
    """Whose cases exist for the caller; None for everyone's."""
    return None if Scope.CASES_ALL in principal.scopes else principal.id


OwnerDep = Annotated[str | None, Depends(get_owner)]


@router.post("", summary="Store a case", status_code=status.HTTP_201_CREATED, dependencies=[MAY_WRITE, IS_JSON])
async def create_case(
    content: CaseContent, cases: CasesDep, principal: PrincipalDep, request: Request, response: Response
) -> StoredCase:
    """Store the measurements of a tumour. The `Location` header is the path of the new case."""
    case = await cases.add(principal.id, content.measurements.values(), content.diagnosis)
    response.headers["Location"] = request.url_for("get_case", case_id=str(case.id)).path
    return StoredCase.of(case)


@router.get("", summary="List the newest cases", dependencies=[MAY_READ])
async def list_cases(
    cases: CasesDep, owner: OwnerDep, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[StoredCase]:
    """The newest cases first, at most 100."""
    return [StoredCase.of(case) for case in await cases.newest(limit, owner)]


@router.get("/{case_id}", summary="Get a case", dependencies=[MAY_READ])
async def get_case(case_id: UUID, cases: CasesDep, owner: OwnerDep) -> StoredCase:
    """The measurements, and the diagnosis once it is confirmed."""
    return StoredCase.of(await cases.get(case_id, owner))


@router.put("/{case_id}", summary="Correct a case", dependencies=[MAY_WRITE, IS_JSON])
async def replace_case(case_id: UUID, content: CaseContent, cases: CasesDep, owner: OwnerDep) -> StoredCase:
    """Replace the measurements, or add the confirmed diagnosis."""
    return StoredCase.of(await cases.replace(case_id, owner, content.measurements.values(), content.diagnosis))


@router.delete("/{case_id}", summary="Erase a case", status_code=status.HTTP_204_NO_CONTENT, dependencies=[MAY_WRITE])
async def delete_case(case_id: UUID, cases: CasesDep, owner: OwnerDep) -> None:
    """Erase a case permanently."""
    await cases.delete(case_id, owner)


@router.get("/{case_id}/prediction", summary="Classify a case", dependencies=[MAY_READ, requires(Scope.PREDICT)])
async def predict_case(case_id: UUID, cases: CasesDep, owner: OwnerDep, classifier: ClassifierDep) -> Prediction:
    """The current model's prediction for a stored case."""
    case = StoredCase.of(await cases.get(case_id, owner))
    return Prediction.of_one(await classifier.predict(to_rows([case.measurements])))
