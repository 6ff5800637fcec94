"""Answers from sources."""

from fastapi import APIRouter, Depends

from workshop.api.budget import AccountDep
from workshop.api.dependencies import require_json
from workshop.api.routes import JsonRoute
from workshop.api.schemas.rag import RagQuestion, RagReply
from workshop.api.streams import last_item
from workshop.contracts.rag import RagAnswer

router = APIRouter(prefix="/rag", tags=["rag"], route_class=JsonRoute)


@router.post("/query", summary="Ask a question about the sources", dependencies=[Depends(require_json)])
async def query_sources(question: RagQuestion, account: AccountDep) -> RagReply:
    """A model answers from the passages nearest to the question. If none is near enough, no model is asked."""
    answer = await last_item(account.ask_sources(question.query, question.k))
    assert isinstance(answer, RagAnswer)
    return RagReply.of(answer)
