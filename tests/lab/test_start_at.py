"""`start_at` in a real kernel."""

import asyncio
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from workshop.lab import build, lessons, start_at

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parent / "example" / "solutions" / "90_example.py"


@pytest.fixture
def solutions(tmp_path: Path) -> Path:
    (tmp_path / "solutions").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "solutions")
    build.main(["--root", str(tmp_path)])
    return tmp_path / "solutions"


class Client(NotebookClient):
    """Keeps everything that was printed, even if it was cleared later."""

    def __init__(self, notebook, **options) -> None:
        super().__init__(notebook, **options)
        self.printed: list[str] = []

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            self.printed.append(msg["content"]["text"])
        return super().process_message(msg, cell, cell_index)


def run(solutions: Path, *cells: str) -> Client:
    """Run the cells in a new kernel, which finds the lessons in this folder."""
    start = (
        "from pathlib import Path; from workshop.lab import lessons, progress, start_at; "
        f"lessons.SOLUTIONS = Path({str(solutions)!r})"
    )
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (start, *cells)])
    client = Client(made, timeout=60, allow_errors=True)
    client.execute()
    return client


def outputs(solutions: Path, *cells: str) -> list[str]:
    """Run the cells in a new kernel. Return the text that each one shows in the end."""
    made = run(solutions, *cells).nb
    return [
        "".join(output.get("text") or "\n".join(output.get("traceback", [])) for output in cell.outputs)
        for cell in made.cells[1:]
    ]


def test_it_runs_the_cells_before_and_says_so_in_one_line(solutions):
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


def replace_the_third_cell(solutions: Path, *lines: str, metadata: dict[str, bool] | None = None) -> None:
    file = solutions / "90_example.ipynb"
    notebook = nbformat.read(file, as_version=4)
    notebook.cells[3].source = "\n".join(lines)
    notebook.cells[3].metadata |= metadata or {}
    nbformat.write(notebook, file)


def test_a_cell_is_compiled_without_the_future_features_of_the_lab(solutions):
    replace_the_third_cell(solutions, "def typed(x: int): ...", 'assert typed.__annotations__["x"] is int')
    (shown,) = outputs(solutions, 'await start_at("90.2")')
    assert shown.startswith("Ready for exercise 90.2")


def test_checks_do_not_run(solutions):
    replace_the_third_cell(solutions, 'check("90.1", 1 / 0)')
    (shown,) = outputs(solutions, 'await start_at("90.2")')
    assert shown.startswith("Ready for exercise 90.2: ran 3 cells of lesson 90 in ")


def test_a_cell_that_no_exercise_builds_on_does_not_run(solutions):
    replace_the_third_cell(solutions, "1 / 0", metadata={"start_at": False})
    (shown,) = outputs(solutions, 'await start_at("90.2")')
    assert shown.startswith("Ready for exercise 90.2: ran 3 cells of lesson 90 in ")


def test_sliders_do_no_harm(solutions):
    sliders = "made = ipywidgets.interactive(lambda n: display(n) or print(n), n=(0, 3)); display(made)"
    replace_the_third_cell(solutions, "import ipywidgets", sliders)
    shown, value = outputs(solutions, 'await start_at("90.2")', "print(made.children[0].value)")
    assert shown.startswith("Ready for exercise 90.2")
    assert shown.count("\n") == 1
    assert value == "1\n"


def test_a_slow_cell_is_named_while_it_runs(solutions):
    replace_the_third_cell(solutions, "import time", "print('quiet')", "time.sleep(2)")
    client = run(solutions, 'progress.PATIENCE_S, progress.REFRESH_S = 0, 0.1; await start_at("90.2")')
    [output] = client.nb.cells[1].outputs
    assert output.text.startswith("Ready for exercise 90.2")
    assert "Waiting for exercise 90.2: 1 s. Cell 3 of 4: time.sleep(2)" in "".join(client.printed)
    assert "quiet" not in "".join(client.printed)


def test_a_failing_cell_is_shown_with_its_source(solutions):
    replace_the_third_cell(solutions, "# copy the text first", "loud = await shout(7)", "loud")
    (shown,) = outputs(solutions, 'await start_at("90.2")')
    assert shown.startswith("Cell 3 of lesson 90 failed: AttributeError: 'int' object has no attribute 'upper'")
    assert "    loud = await shout(7)" in shown


def test_it_is_refused_outside_a_notebook():
    with pytest.raises(lessons.LessonError, match="inside a notebook"):
        asyncio.run(start_at("90.1"))


def test_solution_code(solutions, monkeypatch):
    monkeypatch.setattr(lessons, "SOLUTIONS", solutions)
    assert lessons.solution_code("90.2") == "limit = 10"
    with pytest.raises(lessons.LessonError, match=r"no exercise '90.9'"):
        lessons.solution_code("90.9")
