"""Everything that the project's documents mention exists: files, commands, modules."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from workshop.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {path.name: path.read_text() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
HOMES = [ROOT, ROOT / "workshop", ROOT / "tests"]
"""Where a path in a document may start."""
MADE = (".venv/", "artifacts/")
EXAMPLE = re.compile(r"NN|\bx\.py|lesson_17|17_shared_state")
"""The lesson that CONTRIBUTING.md shows how to write, and placeholders."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_exists(document):
    paths = re.findall(r"`(\.?\w[\w./-]*(?:/|\.(?:py|md|toml|lock|json|ipynb|png|yml)))`", DOCUMENTS[document])
    wanted = [path for path in paths if not path.startswith(MADE) and not EXAMPLE.search(path)]
    assert [path for path in wanted if not any((home / path).exists() for home in HOMES)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_exists(document):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", DOCUMENTS[document], re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_exists(document):
    commands = {command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"-m workshop ([a-z-]+)", DOCUMENTS[document])) <= commands
    modules = set(re.findall(r"-m ((?:workshop|docs)(?:\.\w+)+)", DOCUMENTS[document]))
    assert [module for module in modules if find_spec(module) is None] == []


def test_only_the_doctor_command_imports_the_lab():
    """As CONTRIBUTING.md says."""
    assert "only `workshop/cli.py` imports it, for `doctor`" in DOCUMENTS["CONTRIBUTING.md"]
    importers = set()
    for path in (ROOT / "workshop").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("workshop.lab") for name in names):
                importers.add(path.relative_to(ROOT / "workshop"))
    assert {path for path in importers if path.parts[0] != "lab"} == {Path("cli.py")}
