"""Predictions for measurements in the request."""

from fastapi import APIRouter, Depends

from workshop.api.dependencies import ClassifierDep, require_json
from workshop.api.routes import JsonRoute
from workshop.api.schemas.tumours import Batch, BatchPrediction, Measurements, Prediction, to_rows

router = APIRouter(tags=["predictions"], route_class=JsonRoute, dependencies=[Depends(require_json)])


@router.post("/predict")
async def predict(measurements: Measurements, classifier: ClassifierDep) -> Prediction:
    """Tell whether one tumour is malignant or benign."""
    return Prediction.of_one(await classifier.predict(to_rows([measurements])))


@router.post("/batch-predict")
async def batch_predict(batch: Batch, classifier: ClassifierDep) -> BatchPrediction:
    """Tell for 1 to 1000 tumours at once."""
    return BatchPrediction.of(await classifier.predict(to_rows(batch.records)))
