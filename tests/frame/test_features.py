"""docs/features.md names tests and lessons that exist, for every feature, and tests of every runtime."""

import ast
import re
from pathlib import Path

import pytest

from workshop.lab.build import lessons

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    row: (re.findall(r"`([^`]+)`", tests), re.findall(r"\d\d", numbers))
    for row, tests, numbers in re.findall(
        r"^\| ([A-Z]\d+) \| [^|]+ \| ([^|]+) \|([^|]*)\|$", (ROOT / "docs/features.md").read_text(), re.MULTILINE
    )
}
"""Row: its tests, each a file or a test in a file below ``tests/``; the numbers of its lessons."""


def series(letter: str, last: int, width: int = 1) -> set[str]:
    return {f"{letter}{number:0{width}}" for number in range(1, last + 1)}


def test_no_feature_is_missing():
    service = series("F", 22, width=2) | series("M", 10) | series("C", 8) | series("G", 6) | {"G9"}
    assert set(ROWS) >= series("P", 4) | service


@pytest.mark.parametrize("row", ROWS)
def test_its_tests_exist(row):
    tests, _ = ROWS[row]
    assert tests
    for test in tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert not name or name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] in "FMCG"])
def test_it_is_tested_in_every_runtime(row):
    tests, _ = ROWS[row]
    assert any(test.startswith(("parity/", "cli/", "integration/")) for test in tests)


@pytest.mark.parametrize("row", ROWS)
def test_its_lessons_exist(row):
    _, numbers = ROWS[row]
    assert set(numbers) <= {lesson.number for lesson in lessons()}
