"""Version 1 of the API."""

from fastapi import APIRouter

from workshop.api.routers import cases, model, predictions

router = APIRouter(prefix="/v1")
router.include_router(predictions.router)
router.include_router(model.router)
router.include_router(cases.router)
