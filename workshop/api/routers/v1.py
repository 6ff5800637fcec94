"""Version 1 of the API."""

from fastapi import APIRouter

from workshop.api.routers import activity, cases, chat, model, openai, predictions, queries, rag

router = APIRouter(prefix="/v1")
router.include_router(predictions.router)
router.include_router(model.router)
router.include_router(cases.router)

language_router = APIRouter(prefix="/v1")
"""The routes that need language models."""
language_router.include_router(openai.router)
language_router.include_router(chat.router)
language_router.include_router(queries.router)
language_router.include_router(rag.router)
language_router.include_router(activity.router)
