"""The deployment of the chain as a plain class, with stand-ins for what it calls."""

import pytest

from tests.language import StandInModel, StandInRetriever
from workshop.deployments.rag import RagDeployment
from workshop.models.rag import UNSURE


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize(("threshold", "text"), [(1.0, "It is so."), (1.1, UNSURE.text)])
async def test_it_answers_from_what_it_is_given(threshold, text):
    answer = await RagDeployment(StandInRetriever(), StandInModel(), "stand-in", threshold).answer("Is it so?", 3)
    assert answer.text == text
