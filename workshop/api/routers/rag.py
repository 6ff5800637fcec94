"""Answers from sources."""

import time

from fastapi import APIRouter, BackgroundTasks, Depends

from workshop.api.budget import AccountDep
from workshop.api.dependencies import RagDep, require_json
from workshop.api.routes import JsonRoute
from workshop.api.schemas.rag import RagQuestion, RagReply

router = APIRouter(prefix="/rag", tags=["rag"], route_class=JsonRoute)


@router.post("/query", summary="Ask the sources", dependencies=[Depends(require_json)])
async def query_sources(
    question: RagQuestion, rag: RagDep, account: AccountDep, background: BackgroundTasks
) -> RagReply:
    """A model answers from the passages that are nearest to the question, unless none is near enough."""
    start = time.perf_counter()
    answer = await rag.answer(question.query, question.k)
    if answer.model is not None:
        background.add_task(account.charge, account.record_of(answer.model, answer.usage, start))
    return RagReply.of(answer)
