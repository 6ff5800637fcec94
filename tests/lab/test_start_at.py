"""`start_at` in a real kernel."""

import asyncio
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from workshop.lab import build, lessons, start_at

EXAMPLE = Path(__file__).parent / "example" / "solutions" / "90_example.py"


@pytest.fixture
def solutions(tmp_path: Path) -> Path:
    (tmp_path / "solutions").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "solutions")
    build.main(["--root", str(tmp_path)])
    return tmp_path / "solutions"


def outputs(solutions: Path, *cells: str) -> list[str]:
    """The text that each cell shows, run in a new kernel."""
    start = (
        "from pathlib import Path; from workshop.lab import lessons, start_at; "
        f"lessons.SOLUTIONS = Path({str(solutions)!r})"
    )
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (start, *cells)])
    NotebookClient(made, timeout=60, allow_errors=True).execute()
    return [
        "".join(output.get("text") or "\n".join(output.get("traceback", [])) for output in cell.outputs)
        for cell in made.cells[1:]
    ]


def test_it_runs_what_comes_before_and_says_so_in_one_line(solutions):
    ran, used = outputs(
        solutions, 'await start_at("90.2")', "print(greeting, loud, await shout('x'), 'limit' in globals())"
    )
    assert ran.startswith("Ready for exercise 90.2: ran 4 cells of lesson 90 in ")
    assert ran.count("\n") == 1
    assert used == "hello HELLO X False\n"


def test_a_second_call_and_an_earlier_point(solutions):
    again, earlier = outputs(solutions, 'await start_at("90.2"); await start_at("90.2")', 'await start_at("90.1")')
    assert again.count("Ready") == 2
    assert "ran 1 cell of" in earlier


def test_an_unknown_exercise_lists_those_of_the_lesson(solutions):
    shown, lesson = outputs(solutions, 'await start_at("90.7")', 'await start_at("91.1")')
    assert shown == "Lesson 90 has no exercise '90.7'. It has: 90.1, 90.2."
    assert lesson == "There is no lesson '91'. There are: 90."


def test_a_failing_cell_is_shown_with_its_source(solutions):
    notebook = solutions / "90_example.ipynb"
    notebook.write_text(notebook.read_text().replace("loud = await shout(greeting)", "loud = await shout(7)"))
    (shown,) = outputs(solutions, 'await start_at("90.2")')
    assert shown.startswith("Cell 3 of lesson 90 failed: AttributeError: 'int' object has no attribute 'upper'")
    assert "    loud = await shout(7)" in shown


def test_outside_a_notebook():
    with pytest.raises(lessons.LessonError, match="inside a notebook"):
        asyncio.run(start_at("90.1"))


def test_solution_code(solutions, monkeypatch):
    monkeypatch.setattr(lessons, "SOLUTIONS", solutions)
    assert lessons.solution_code("90.2") == "limit = 10"
    with pytest.raises(lessons.LessonError, match=r"no exercise '90.9'"):
        lessons.solution_code("90.9")
