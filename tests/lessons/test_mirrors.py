"""A cell that shows code from the package shows the package's current code."""

import ast
import difflib
import importlib.util
from pathlib import Path

import pytest

from tests.made import made
from workshop.lab.build import lessons

SHOWN = [
    pytest.param(lesson.number, mirror, cell.source, id=f"{lesson.number}-{mirror}")
    for lesson in lessons()
    for cell in made(lesson, solved=True).cells
    for mirror in cell.metadata.get("mirrors", "").split()
]


@pytest.mark.parametrize(("number", "mirror", "source"), SHOWN)
def test_the_cell_shows_the_packages_code(number, mirror, source):
    module, _, name = mirror.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    ours = code_of(Path(spec.origin).read_text(), name)
    shown = code_of(source, name, anywhere=True)
    difference = "\n".join(difflib.unified_diff(ours, shown, module, f"lesson {number}", lineterm=""))
    assert not difference, f"{name} in lesson {number} differs from {module}:\n{difference}"


def code_of(source: str, name: str, *, anywhere: bool = False) -> list[str]:
    """The lines of the object `name` (dots go into classes), without comments and docstrings.

    With `anywhere`, the last part of the name is enough: a cell may show a method on its own.
    """
    tree: ast.AST = ast.parse(source)
    parts = name.split(".")
    if anywhere and find(tree, parts[0]) is None:
        parts = parts[-1:]
    for part in parts:
        found = find(tree, part)
        assert found is not None, f"{name} is not in:\n{source}"
        tree = found
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).splitlines()


def find(tree: ast.AST, name: str) -> ast.AST | None:
    """The last statement in the body of `tree` that defines `name`, since a later one replaces an earlier one."""
    return next((node for node in reversed(getattr(tree, "body", [])) if name in names(node)), None)


def names(node: ast.AST) -> list[str]:
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def test_docstrings_comments_and_layout_do_not_count():
    ours = (
        'X = 1\nclass A:\n    """Doc."""\n    def go(self) -> int:\n        """Doc."""\n'
        "        return (1 +\n 2)  # three\n"
    )
    assert code_of(ours, "A") == code_of("import os\nclass A:\n    def go(self) -> int:\n        return 1 + 2\n", "A")
    assert code_of(ours, "A.go") == code_of("def go(self) -> int:\n    return 1 + 2", "A.go", anywhere=True)
    assert code_of(ours, "A.go") != code_of("def go(self) -> int:\n    return 1 + 3", "A.go", anywhere=True)
    assert code_of(ours, "X") == code_of("X = (1)", "X")
