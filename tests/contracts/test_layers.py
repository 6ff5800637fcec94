"""Three teams: each imports its own framework and no other's."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")

RAY = {"ray"}
WEB = {"fastapi", "starlette", "uvicorn"}
SKLEARN = {"sklearn"}
PYTORCH = {"torch", "transformers", "langchain_core"}

# What importing a layer must not bring along, directly or through anything else.
STRANGERS = {
    "workshop.contracts.services": RAY | WEB | SKLEARN,
    "workshop.settings": RAY | WEB | SKLEARN,
    "workshop.api.app": RAY | SKLEARN,
    "workshop.models.tumours": RAY | WEB,
    "workshop.models.language_model": RAY | WEB,
    "workshop.models.retriever": RAY | WEB,
    "workshop.models.rag": RAY | WEB | SKLEARN,
    "workshop.models.cascade": RAY | WEB | SKLEARN | PYTORCH,
    "workshop.storage.cases": RAY | WEB | SKLEARN,
    "workshop.storage.usage": RAY | WEB | SKLEARN,
    "workshop.deployments.classifier": RAY | WEB,
    "workshop.deployments.language_models": RAY | WEB | PYTORCH,
    "workshop.integration.local": RAY | PYTORCH,
    "workshop.integration.serve": PYTORCH,
}


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_contracts_hold():
    assert ", 0 broken" in run(str(LINTER))


@pytest.mark.parametrize("module", STRANGERS)
def test_a_layer_brings_no_other_teams_framework(module):
    imported = run(sys.executable, "-c", f"import sys, {module}; print(*sys.modules)").split()
    assert module in imported
    assert STRANGERS[module].isdisjoint(imported)
