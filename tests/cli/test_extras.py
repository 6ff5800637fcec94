"""Without the optional dependencies: the classifier alone works, and what is missing is named."""

import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.service import RECORD

pytestmark = pytest.mark.slow

EXTRAS = ("serve", "language", "redis")
PARTS = {"opentelemetry.sdk", "opentelemetry.exporter", "mlflow"}
"""The extras "telemetry" and "registry": modules that several distributions share."""
BLOCK = """
import sys

class NotInstalled:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {modules!r} or name in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NotInstalled)
"""
NEEDED_BY_OTHERS = {"threadpoolctl", "tqdm"}
"""scikit-learn and skops depend on them."""


@pytest.fixture
def without_extras(tmp_path) -> Iterator[dict[str, str]]:
    """Environment variables for a process that cannot import the optional dependencies."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = {canonicalize_name(Requirement(text).name) for extra in EXTRAS for text in extras[extra]}
    modules = {
        module
        for module, distributions in packages_distributions().items()
        if {canonicalize_name(name) for name in distributions} <= optional - NEEDED_BY_OTHERS
    }
    assert {"ray", "torch", "redis", "faiss"} <= modules
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(modules=modules | PARTS))
    return {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}


def test_the_classifier_alone_needs_no_extras(run, without_extras):
    started = run("api", "--port", "0", **without_extras)
    answer = httpx.post(started.url() + "/v1/predict", json=RECORD)
    assert answer.status_code == 200, answer.text
    assert started.interrupt() == 0


@pytest.mark.parametrize(
    ("command", "settings", "line"),
    [
        ("serve", {}, "workshop: this needs ray"),
        ("api", {"WORKSHOP_LANGUAGE_MODELS": "true"}, "workshop: this needs torch"),
        ("api", {"REDIS_URL": "redis://127.0.0.1"}, "workshop: this needs redis"),
        ("api", {"WORKSHOP_ARTIFACT": "models:/tumours@champion"}, "workshop: this needs mlflow"),
        ("api", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "workshop: this needs opentelemetry"),
    ],
)
def test_what_is_missing_is_named_in_one_line(run, without_extras, command, settings, line):
    started = run(command, "--port", "0", **without_extras, **settings)
    assert started.wait() == 1
    assert started.err.splitlines()[-1].startswith(line)
    assert "Traceback" not in started.err
