"""Find a lesson's solution notebook, and run it up to a point."""

from __future__ import annotations

import ast
import inspect
import json
import linecache
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from IPython import get_ipython
from IPython.core.displaypub import CapturingDisplayPublisher

from workshop.lab.progress import waiting_for

SOLUTIONS = Path(__file__).parents[2] / "solutions"


class LessonError(Exception):
    """No such lesson or exercise, or a cell that failed. IPython shows the message without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


@dataclass(frozen=True)
class Cell:
    """A code cell of a solution notebook. `number` counts the lesson's code cells from 1."""

    number: int
    source: str
    exercise: str | None
    may_raise: bool
    needed: bool
    """Whether later exercises need what the cell does. Most cells that only measure or show are not."""


async def start_at(exercise_id: str) -> None:
    """Run the lesson's solution up to the point just before exercise "NN.n", in this notebook's namespace.

    Use it with `await`. Checks do not run, nor do cells that the source marks `start_at=false`. What the others print
    or draw is not shown. While they run, a line says which cell it is.
    Raises LessonError outside IPython, for an unknown exercise, and when a cell fails.
    """
    shell = _shell()
    lesson = exercise_id.partition(".")[0]
    cells = code_cells(lesson)
    known = [cell.exercise for cell in cells if cell.exercise]
    if exercise_id not in known:
        raise LessonError(f"Lesson {lesson} has no exercise {exercise_id!r}. It has: {', '.join(known)}.")
    before = cells[: [cell.exercise for cell in cells].index(exercise_id)]
    before = [cell for cell in before if cell.needed]
    running = ""
    started = time.perf_counter()
    with waiting_for(f"exercise {exercise_id}", lambda: running):
        for number, cell in enumerate(before, start=1):
            running = f"Cell {number} of {len(before)}: {_last_line(cell.source)}"
            await _run(shell, lesson, cell)
    seconds = time.perf_counter() - started
    cells_ran = "1 cell" if len(before) == 1 else f"{len(before)} cells"
    print(f"Ready for exercise {exercise_id}: ran {cells_ran} of lesson {lesson} in {seconds:.1f} s.")


def solution_code(exercise_id: str) -> str:
    """The source of the solved exercise cell. Raises LessonError if there is none."""
    lesson = exercise_id.partition(".")[0]
    for cell in code_cells(lesson):
        if cell.exercise == exercise_id:
            return cell.source
    raise LessonError(f"Lesson {lesson} has no exercise {exercise_id!r}.")


def code_cells(lesson: str) -> list[Cell]:
    """The code cells of the solution notebook of lesson "NN". Raises LessonError if there is none."""
    notebooks = {path.name[:2]: path for path in sorted(SOLUTIONS.glob("[0-9][0-9]_*.ipynb"))}
    if lesson not in notebooks:
        raise LessonError(f"There is no lesson {lesson!r}. There are: {', '.join(notebooks) or 'none'}.")
    cells = [cell for cell in json.loads(notebooks[lesson].read_text())["cells"] if cell["cell_type"] == "code"]
    return [
        Cell(
            number=number,
            source=source,
            exercise=cell["metadata"].get("exercise"),
            may_raise="raises-exception" in cell["metadata"].get("tags", []),
            needed=cell["metadata"].get("start_at", True) and not source.startswith("check("),
        )
        for number, cell in enumerate(cells, start=1)
        for source in ["".join(cell["source"])]
    ]


async def _run(shell: Any, lesson: str, cell: Cell) -> None:
    file = f"<lesson {lesson} cell {cell.number}>"
    source = shell.transform_cell(cell.source)
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        with _silenced(shell):
            # dont_inherit: the cell does not get this module's `from __future__ import annotations`.
            code = compile(source, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            result = eval(code, shell.user_ns)
            if inspect.iscoroutine(result):
                await result
    except (Exception, SystemExit) as error:
        if not cell.may_raise:
            text = "\n".join(f"    {line}" for line in cell.source.splitlines())
            raise LessonError(
                f"Cell {cell.number} of lesson {lesson} failed: {type(error).__name__}: {error}\n\n{text}"
            ) from error
    finally:
        if "matplotlib.pyplot" in sys.modules:  # or the figures would all be drawn under the caller's cell
            sys.modules["matplotlib.pyplot"].close("all")


class _NoDisplay(CapturingDisplayPublisher):
    """Shows nothing of what a cell displays."""

    def set_parent(self, parent: dict[str, Any]) -> None:
        """Does nothing. A widget calls it: in a notebook, a publisher is told which cell it works for."""


@contextmanager
def _silenced(shell: Any) -> Iterator[None]:
    publisher = shell.display_pub
    shell.display_pub = _NoDisplay()  # type: ignore[no-untyped-call]
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        shell.display_pub = publisher


def _last_line(source: str) -> str:
    *_, line = source.strip().splitlines() or [""]
    return line.strip()[:80]


def _shell() -> Any:
    shell = get_ipython()
    if shell is None:
        raise LessonError('start_at works inside a notebook: `await start_at("04.3")`.')
    return shell
