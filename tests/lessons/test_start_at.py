"""`start_at` brings a latecomer to every exercise of every lesson."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.made import made
from tests.notebooks import shared_ray

TIMEOUT_S = 500


@pytest.fixture
def kernel_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Gives the kernel the shared Ray if its lesson needs one."""
    if not request.node.get_closest_marker("ray"):
        yield
        return
    ray = shared_ray(request.config)
    for name, value in ray.environment.items():
        monkeypatch.setenv(name, value)
    yield
    ray.clear()


def test_the_last_exercise_is_reached_and_so_all_before_it_are(lesson, exercise_ids, kernel_environment):
    last = exercise_ids[-1]
    cells = [cell for cell in made(lesson, solved=True).cells if cell.cell_type == "code"]
    [start] = [number for number, cell in enumerate(cells) if cell.metadata.get("exercise") == last]
    [end] = [number for number, cell in enumerate(cells) if f'check("{last}"' in cell.source]
    sources = [
        f'from workshop.lab import check, start_at; await start_at("{last}")',
        *(cell.source for cell in cells[start : end + 1]),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": lesson.source.parent}}).execute()
    assert notebook.cells[0].outputs[0].text.startswith(f"Ready for exercise {last}")
    assert notebook.cells[-1].outputs[-1].data["text/plain"].startswith(f"{last} right.")
