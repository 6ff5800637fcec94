"""The retriever deployment as a plain class."""

import numpy as np
import pytest

from tests.retriever import HELD_OUT, built
from workshop.deployments.retriever import RetrieverDeployment
from workshop.models.tumours import ArtifactError

QUESTION, _ = HELD_OUT[0]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_it_does_what_the_retriever_does(retriever_artifact):
    deployment = RetrieverDeployment(retriever_artifact)
    assert await deployment.card() == built().card
    assert await deployment.search(QUESTION, 3) == built().search(QUESTION, 3)
    np.testing.assert_allclose(await deployment.embed([QUESTION]), built().embed([QUESTION]), rtol=0, atol=1e-12)


def test_without_an_artifact_it_does_not_start(tmp_path):
    with pytest.raises(ArtifactError, match="python -m workshop train"):
        RetrieverDeployment(tmp_path / "nothing")


def test_with_an_embedding_other_than_the_artifacts_it_does_not_start(retriever_artifact):
    with pytest.raises(ArtifactError, match="made with tfidf-svd, not another-model"):
        RetrieverDeployment(retriever_artifact, "somewhere/another-model")
