"""The deployment of the chain as a plain class, with stand-ins for what it calls."""

import pytest

from tests.language import StandInModel, StandInRetriever
from workshop.deployments.rag import RagDeployment


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_it_answers_from_what_it_is_given():
    answer = await RagDeployment(StandInRetriever(), StandInModel(), "stand-in", 0.5).answer("Is it so?", 3)
    assert answer.text == "It is so."
