"""What `tests.notebooks` finds in notebooks that nbval alone would let pass."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests import notebooks

notebooks.PATIENCE_S = 0.2

def pytest_configure(config):
    config.pluginmanager.register(notebooks)
"""
CHECK = """
class check:
    def __init__(self, exercise, verdict):
        self.verdict = verdict
    def __repr__(self):
        return self.verdict
"""
SOUND = CHECK, 'check("99.1", "99.1 not attempted. Go on.")'
SOLVED = CHECK, 'check("99.1", "99.1 right. Well done.")'


FAULTS = {
    'import subprocess; subprocess.Popen(["sleep", "60"])': "leaves behind: ['sleep 60']",
    'import socket; listener = socket.create_server(("127.0.0.1", 0))': "leaves behind: ['a server on port ",
    SOLVED[1]: "the verdict is ['right'], and should be ['not attempted']",
    'check("99.1", "") and None': "the verdict is [], and should be ['not attempted']",
    "1 / 0": "ZeroDivisionError",
}
LESSONS = [
    ((*SOUND, "first = 1"), ("assert first == 1", *SOLVED)),
    *(((*SOUND, cell), SOLVED) for cell in FAULTS),
]
"""The cells of each lesson, untouched and solved."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[tuple[str, str], str]:
    """What pytest reports for each cell."""
    folder = tmp_path_factory.mktemp("lessons")
    (folder / "conftest.py").write_text(CONFTEST)
    for number, lesson in enumerate(LESSONS):
        for name, cells in zip(("notebooks", "solutions"), lesson, strict=True):
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
            place = folder / str(number) / name / f"lesson_{number}.ipynb"
            place.parent.mkdir(parents=True)
            nbformat.write(notebook, place)
    report = folder / "report.xml"
    options = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-c", os.devnull, f"--junitxml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", *options, "--rootdir", folder, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        check=False,
    )
    cases = ElementTree.parse(report).iter("testcase")
    return {(case.get("classname"), case.get("name")): "".join(case.itertext()) for case in cases}


def test_the_solved_lesson_runs_in_the_kernel_of_the_untouched_one(reports):
    assert [reports["0.solutions.lesson_0.ipynb", f"Cell {number}"] for number in range(3)] == [""] * 3


@pytest.mark.parametrize("number", range(1, len(LESSONS)))
def test_a_fault_in_the_untouched_lesson_is_reported(reports, number):
    assert list(FAULTS.values())[number - 1] in reports[f"{number}.notebooks.lesson_{number}.ipynb", "Cell 2"]
