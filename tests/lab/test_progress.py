"""The line that a notebook shows while it waits."""

import nbformat
from nbclient import NotebookClient

CELL = """
import time
from workshop.lab import progress
progress.PATIENCE_S, progress.REFRESH_S = 0, 0.01
asked = []
with progress.waiting_for("the kettle", lambda: f"seen {len(asked)}: {asked.append(1)}"):
    while len(asked) < 3:
        time.sleep(0.01)
len(asked) >= 3
"""


def test_a_notebook_shows_progress_and_then_removes_it():
    shown = []

    class Watched(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "stream":
                shown.append(msg["content"]["text"])
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    Watched(notebook).execute()
    assert any("Waiting for the kettle: 0 s. seen" in text for text in shown)
    [output] = notebook.cells[0].outputs
    assert output.data == {"text/plain": "True"}
