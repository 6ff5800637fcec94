"""Version 1 of the API."""

from fastapi import APIRouter, Depends

from workshop.api.dependencies import limit_rate, requires
from workshop.api.routers import (
    activity,
    cases,
    chat,
    generation,
    model,
    openai,
    prediction_jobs,
    predictions,
    queries,
    rag,
)
from workshop.contracts.principals import Scope

LIMITED = Depends(limit_rate)
MAY_PREDICT, MAY_GENERATE, MAY_READ_USAGE = map(requires, (Scope.PREDICT, Scope.GENERATE, Scope.USAGE_READ))

router = APIRouter(prefix="/v1", dependencies=[LIMITED])
router.include_router(predictions.router, dependencies=[MAY_PREDICT])
router.include_router(model.router, dependencies=[MAY_PREDICT])
router.include_router(cases.router)  # each of its routes requires a scope

jobs_router = APIRouter(prefix="/v1", dependencies=[LIMITED])
"""The routes that need a storage for files."""
jobs_router.include_router(prediction_jobs.router, dependencies=[MAY_PREDICT])

language_router = APIRouter(prefix="/v1")
"""The routes that need language models."""
for each in (openai, generation, queries, rag):
    language_router.include_router(each.router, dependencies=[LIMITED, MAY_GENERATE])
language_router.include_router(activity.router, dependencies=[LIMITED, MAY_READ_USAGE])
language_router.include_router(chat.router, dependencies=[MAY_GENERATE])  # applies the rate limit to each question
