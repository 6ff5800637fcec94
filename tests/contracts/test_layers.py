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

# What these modules must not import, directly or indirectly. Each line takes a process and some seconds.
FORBIDDEN = {
    "settings contracts.services models.rag storage.cases storage.usage": RAY | WEB | SKLEARN,
    "models.cascade": RAY | WEB | SKLEARN | PYTORCH,
    "models.tumours models.retriever models.language_model deployments.classifier": RAY | WEB,
    "deployments.language_models": RAY | WEB | PYTORCH,
    "api.app": RAY | SKLEARN,
    "integration.services": RAY | PYTORCH,
    "integration.serve_app": PYTORCH,
}


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_import_contracts_hold():
    assert ", 0 broken" in run(str(LINTER))


@pytest.mark.slow
@pytest.mark.parametrize("modules", FORBIDDEN)
def test_importing_a_layer_imports_no_other_teams_framework(modules):
    names = [f"workshop.{name}" for name in modules.split()]
    imported = run(sys.executable, "-c", f"import sys, {', '.join(names)}; print(*sys.modules)").split()
    assert set(names) <= set(imported)
    assert FORBIDDEN[modules].isdisjoint(imported)
