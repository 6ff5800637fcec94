"""The retriever deployment as a plain class."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.retriever import HELD_OUT, built, embed, search
from workshop.contracts.classifier import FloatMatrix
from workshop.deployments.retriever import RetrieverDeployment
from workshop.models.retriever import ComputedEmbedding
from workshop.models.tumours import ArtifactError

QUESTION, _ = HELD_OUT[0]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_it_does_what_the_retriever_does(retriever_artifact):
    deployment = RetrieverDeployment(retriever_artifact)
    assert await deployment.card() == built().card
    assert await deployment.search(QUESTION, 3) == search(built(), QUESTION, 3)
    np.testing.assert_allclose(await deployment.embed([QUESTION]), embed(built(), [QUESTION]), rtol=0, atol=1e-12)


def test_without_an_artifact_it_does_not_start(tmp_path):
    with pytest.raises(ArtifactError, match="python -m workshop train"):
        RetrieverDeployment(tmp_path / "nothing")


class Another(ComputedEmbedding):
    name = "another-model"

    def _compute(self, texts: Sequence[str]) -> FloatMatrix:
        return np.ones((len(texts), 1))


def test_with_an_embedding_other_than_the_artifacts_it_does_not_start(retriever_artifact):
    with pytest.raises(ArtifactError, match="made with tfidf-svd, not another-model"):
        RetrieverDeployment(retriever_artifact, Another)
