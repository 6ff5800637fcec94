"""The classifier deployment: as a plain class, and in a replica behind a handle. No HTTP, no web framework."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ray import serve

from tests.service import ROWS
from workshop.contracts.errors import InvalidInputError
from workshop.deployments.classifier import ClassifierDeployment
from workshop.models.tumours import ArtifactError, TumourClassifier, train

MODEL = train()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    MODEL.save(folder)
    return folder


@pytest.fixture(scope="module")
def handle(cluster, artifact):
    # Within a function, so that it is pickled by value: a replica cannot import tests.
    class Observed(ClassifierDeployment):
        """Returns what its process has imported."""

        def imported(self) -> set[str]:
            return set(sys.modules)

    class Front:
        """The application's ingress, which would be an HTTP server."""

        def __init__(self, classifier: object) -> None:
            pass

    application = serve.deployment(Front).bind(serve.deployment(Observed).bind(artifact))
    serve.run(application, name="classifier-alone", route_prefix=None)
    yield serve.get_deployment_handle("Observed", "classifier-alone")
    serve.delete("classifier-alone")


def test_the_class_is_plain_python(artifact):
    deployment = ClassifierDeployment(artifact)
    np.testing.assert_array_equal(deployment.predict(ROWS).probabilities, MODEL.predict(ROWS).probabilities)
    assert deployment.card() == TumourClassifier.load(artifact).card


def test_without_a_model_it_does_not_start(tmp_path):
    with pytest.raises(ArtifactError, match="python -m workshop train"):
        ClassifierDeployment(tmp_path / "nothing")


def test_a_replica_answers_as_the_class_does(handle, artifact):
    scores = handle.predict.remote(ROWS).result(timeout_s=60)
    np.testing.assert_allclose(scores.probabilities, MODEL.predict(ROWS).probabilities, rtol=0, atol=1e-12)
    assert (scores.classes, scores.model_version) == (MODEL.card.classes, MODEL.card.version)
    assert handle.card.remote().result(timeout_s=60) == TumourClassifier.load(artifact).card


def test_an_impossible_row_is_the_contracts_error(handle):
    rows = ROWS[:2].copy()
    rows[1, 20] = 0
    with pytest.raises(InvalidInputError) as caught:
        handle.predict.remote(rows).result(timeout_s=60)
    assert (caught.value.row, caught.value.field) == (1, "worst_radius")


def test_a_replica_does_not_import_the_api(handle):
    imported = handle.imported.remote().result(timeout_s=60)
    assert "workshop.deployments.classifier" in imported
    assert not [name for name in imported if name.startswith(("workshop.api", "workshop.integration"))]
