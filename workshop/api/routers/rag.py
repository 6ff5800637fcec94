"""Answers from sources."""

import time

from fastapi import APIRouter, BackgroundTasks, Depends

from workshop.api.budget import AccountDep
from workshop.api.dependencies import PricesDep, RagDep, require_json
from workshop.api.schemas.rag import RagQuestion, RagReply

router = APIRouter(prefix="/rag", tags=["rag"])


@router.post("/query", dependencies=[Depends(require_json)])
async def query_sources(
    question: RagQuestion, rag: RagDep, prices: PricesDep, account: AccountDep, background: BackgroundTasks
) -> RagReply:
    """Answer a question from the passages that are nearest to it, or say that none is near enough."""
    start = time.perf_counter()
    answer = await rag.answer(question.query, question.k)
    if answer.model is not None:
        cost = answer.usage.total_tokens * prices[answer.model] / 1000
        latency_ms = 1000 * (time.perf_counter() - start)
        background.add_task(
            account.charge, account.record(answer.model, answer.usage, cost=cost, latency_ms=latency_ms)
        )
    return RagReply.of(answer)
