"""Version 1 of the API."""

from fastapi import APIRouter, Depends

from workshop.api.dependencies import limit_rate
from workshop.api.routers import activity, cases, chat, generation, model, openai, predictions, queries, rag

LIMITED = [Depends(limit_rate)]

router = APIRouter(prefix="/v1", dependencies=LIMITED)
router.include_router(predictions.router)
router.include_router(model.router)
router.include_router(cases.router)

language_router = APIRouter(prefix="/v1")
"""The routes that need language models."""
language_router.include_router(openai.router, dependencies=LIMITED)
language_router.include_router(generation.router, dependencies=LIMITED)
language_router.include_router(queries.router, dependencies=LIMITED)
language_router.include_router(rag.router, dependencies=LIMITED)
language_router.include_router(activity.router, dependencies=LIMITED)
language_router.include_router(chat.router)  # applies the rate limit to each question
