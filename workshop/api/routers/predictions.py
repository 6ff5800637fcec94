"""Predictions for measurements sent with the request."""

from fastapi import APIRouter, Depends

from workshop.api.dependencies import ClassifierDep, require_json
from workshop.api.routes import JsonRoute
from workshop.api.schemas.tumours import Batch, BatchPrediction, Measurements, Prediction, to_rows

router = APIRouter(tags=["predictions"], route_class=JsonRoute, dependencies=[Depends(require_json)])


@router.post("/predict", summary="Classify one tumour")
async def predict(measurements: Measurements, classifier: ClassifierDep) -> Prediction:
    """Classify a tumour as malignant or benign from the 30 measurements of its cell nuclei."""
    return Prediction.of_one(await classifier.predict(to_rows([measurements])))


@router.post("/batch-predict", summary="Classify several tumours")
async def batch_predict(batch: Batch, classifier: ClassifierDep) -> BatchPrediction:
    """Classify 1 to 1000 tumours at once. One impossible row fails the whole batch; the error names the row."""
    return BatchPrediction.of(await classifier.predict(to_rows(batch.records)))
