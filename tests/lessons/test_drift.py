"""The notebooks are up to date with their sources, and have been run."""

from pathlib import Path

import nbformat

from workshop.lab.build import ROOT, drifted, lessons


def test_the_notebooks_come_from_the_source(lesson):
    assert drifted(lesson) == [], "run python -m workshop.lab.build"


def test_the_stored_outputs_are_of_this_source(lesson):
    solved = nbformat.read(lesson.solved, as_version=4)
    stale = [cell.source for cell in solved.cells if cell.cell_type == "code" and cell.execution_count is None]
    assert stale == [], f"run python -m workshop.lab.build --execute {lesson.number}"


def test_the_outputs_name_no_path_of_a_machine(lesson):
    text = lesson.solved.read_text()
    assert str(ROOT) not in text
    assert str(Path.home()) + "/" not in text


def test_every_notebook_has_a_source():
    made = {path.name for folder in ("notebooks", "solutions") for path in (ROOT / folder).glob("*.ipynb")}
    assert made == {lesson.solved.name for lesson in lessons()}
