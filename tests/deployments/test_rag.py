"""The deployment of the chain as a plain class, with stand-ins for what it calls."""

import pytest

from tests.stand_ins import StandInModel, StandInRetriever
from workshop.contracts.rag import RagAnswer
from workshop.deployments.rag import RagDeployment


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_it_answers_from_what_it_is_given():
    events = RagDeployment(StandInRetriever(), StandInModel(), "stand-in", 0.5).stream("Is it so?", 3)
    *_, answer = [event async for event in events]
    assert isinstance(answer, RagAnswer)
    assert answer.text == "It is so."
