"""Make each lesson's two notebooks from its one source: `python -m workshop.lab.build [--execute | --check] [NN …]`.

solutions/NN_name.py     the source, in jupytext's percent format
notebooks/NN_name.ipynb  the lesson, its solutions taken out, without outputs
solutions/NN_name.ipynb  the lesson solved; `--execute` runs it and stores the outputs

In an exercise cell the solution is marked. The commented lines after `# starter` take its place in the lesson:

    # %% exercise="01.1"
    def double(number):
        # solution (about 1 line)
        return 2 * number
        # starter
        # return ...
        # end
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

from workshop.lab.memory import PeakMemory

ROOT = Path(__file__).parents[2]
CELL_LIMIT = 300  # seconds
WIDGET = "application/vnd.jupyter.widget-view+json"
MARK = re.compile(r"(?P<indent> *)# (?P<word>solution \((?P<size>[^)]+)\)|starter|end)")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class SourceError(Exception):
    """A lesson source that cannot be built; names file and line."""


@dataclass(frozen=True)
class Lesson:
    """A lesson's source and the two notebooks made from it."""

    source: Path

    @property
    def number(self) -> str:
        return self.source.name[:2]

    @property
    def solved(self) -> Path:
        return self.source.with_suffix(".ipynb")

    @property
    def untouched(self) -> Path:
        return self.source.parents[1] / "notebooks" / self.solved.name


def lessons(root: Path = ROOT) -> list[Lesson]:
    return [Lesson(path) for path in sorted((root / "solutions").glob("[0-9][0-9]_*.py"))]


def build(lesson: Lesson) -> dict[Path, str]:
    """The text of both notebooks. The solved one keeps the outputs of cells that have not changed."""
    untouched, solved = notebook(lesson, solved=False), notebook(lesson, solved=True)
    if lesson.solved.exists():
        _keep_outputs(nbformat.reads(lesson.solved.read_text(), as_version=4), solved)  # type: ignore[no-untyped-call]
    return {lesson.untouched: _text(untouched), lesson.solved: _text(solved)}


def notebook(lesson: Lesson, *, solved: bool) -> Any:
    """The lesson as a notebook, without outputs. Raises SourceError."""
    text = lesson.source.read_text()
    made = _parse(pick(text, solved=solved, file=lesson.source.name))
    made.metadata = METADATA | {"workshop": made.metadata.get("workshop", {})}
    measured = _measured(lesson)
    seen: Counter[str] = Counter()
    for cell, marked in zip(made.cells, _parse(text).cells, strict=True):
        cell.id = _cell_id(lesson, marked.source, seen)
        cell.metadata.pop("lines_to_next_cell", None)
        if cell.cell_type == "markdown":
            for placeholder, value in measured.items():
                cell.source = cell.source.replace(placeholder, value)
        else:
            cell.source = re.sub(r"(?m)^# (?=[%!])", "", cell.source)
            if solved and re.search(
                r"(?m)^check\(", cell.source
            ):  # nbval then holds the verdict to the stored one: right
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "nbval-check-output"]
    return made


def pick(text: str, *, solved: bool, file: str) -> str:
    """The source text with each marked block replaced by its answer (`solved`) or its starter. Raises SourceError."""
    picked: list[str] = []
    part = "code"  # then "solution", "starter" and again "code"
    indent, opened = "", 0
    in_exercise = False
    for number, line in enumerate(text.splitlines(), start=1):
        mark = MARK.fullmatch(line.rstrip())
        if line.startswith("# %%") and not line.startswith("# %%%"):
            if part != "code":
                raise SourceError(f"{file}:{opened}: `# solution` without `# end`")
            in_exercise = 'exercise="' in line
        if mark is None:
            if part == "code" or (part == "solution" and solved):
                picked.append(line)
            elif part == "starter" and not solved:
                picked.append(_uncommented(line, indent, f"{file}:{number}"))
            continue
        word = mark["word"].partition(" ")[0]
        if not in_exercise:
            raise SourceError(f"{file}:{number}: `# {word}` outside an exercise cell")
        if (part, word) not in {("code", "solution"), ("solution", "starter"), ("starter", "end")}:
            raise SourceError(f"{file}:{number}: `# {word}` is out of order: solution, starter, end")
        if word == "solution":
            indent, opened = mark["indent"], number
            if not solved:
                picked.append(f"{indent}# your code ({mark['size']})")
        part = "code" if word == "end" else word
    if part != "code":
        raise SourceError(f"{file}:{opened}: `# solution` without `# end`")
    return "\n".join(picked) + "\n"


def execute(lesson: Lesson) -> None:
    """Run the solved notebook, store its outputs, and record its minutes and peak memory in measured.json."""
    made = notebook(lesson, solved=True)
    client = NotebookClient(
        made,
        timeout=CELL_LIMIT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(lesson.source.parent)}},
    )
    started = time.perf_counter()
    with PeakMemory() as memory:
        client.execute(env=memory.env)
    minutes = (time.perf_counter() - started) / 60
    _record(lesson, {"minutes": round(minutes, 2), "peak_memory_mb": memory.peak_mb})
    for output in (output for cell in made.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop(WIDGET, None)  # its state is not stored; the plain text beside it is
    lesson.solved.write_text(_hide_paths(_text(made)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workshop.lab.build", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lessons; all if none is given")
    parser.add_argument("--execute", action="store_true", help="run the solutions and store their outputs")
    parser.add_argument("--check", action="store_true", help="write nothing; name each file that has drifted")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    chosen = [lesson for lesson in lessons(options.root) if lesson.number in (options.numbers or lesson.number)]
    if options.check:
        stale = [path for lesson in chosen for path in drifted(lesson)]
        for path in stale:
            print(f"{path.relative_to(options.root)} has drifted from its source: run python -m workshop.lab.build")
        return 1 if stale else 0
    for lesson in chosen:
        if options.execute:
            print(f"running {lesson.solved.name}", flush=True)
            execute(lesson)
        for path, text in build(lesson).items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return 0


def drifted(lesson: Lesson) -> list[Path]:
    """The lesson's notebooks that are missing or not what `build` makes."""
    return [path for path, text in build(lesson).items() if not path.exists() or path.read_text() != text]


def _parse(text: str) -> Any:
    # jupytext's own treatment of magics would turn a comment such as "# copy the list" into code.
    return jupytext.reads(text, {"extension": ".py", "format_name": "percent", "comment_magics": False})


def _uncommented(line: str, indent: str, where: str) -> str:
    match = re.fullmatch(rf"{indent}#(?: (?P<code>.*))?", line.rstrip())
    if match is None:
        raise SourceError(f"{where}: a starter line must begin with {indent + '# '!r}")
    return f"{indent}{match['code'] or ''}".rstrip()


def _cell_id(lesson: Lesson, source: str, seen: Counter[str]) -> str:
    """An id that depends on the cell's own text only, so that an edit changes no other cell's id."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:10]
    seen[digest] += 1
    return f"{lesson.number}-{digest}" + (f"-{seen[digest]}" if seen[digest] > 1 else "")


def _keep_outputs(old: Any, new: Any) -> None:
    ran = {(cell.id, cell.source): cell for cell in old.cells if cell.cell_type == "code"}
    for cell in new.cells:
        if (cell.id, cell.source) in ran:
            before = ran[cell.id, cell.source]
            cell.outputs, cell.execution_count = before.outputs, before.execution_count


def _measured(lesson: Lesson) -> dict[str, str]:
    """The placeholders that a lesson's text may hold, with what they stand for."""
    file = lesson.source.parent / "measured.json"
    figures = json.loads(file.read_text()).get(lesson.number) if file.exists() else None
    if figures is None:
        return {"{{ minutes }}": "(not measured)", "{{ memory }}": "(not measured)"}
    minutes = math.ceil(figures["minutes"])
    return {
        "{{ minutes }}": "1 minute" if minutes == 1 else f"{minutes} minutes",
        "{{ memory }}": f"{math.ceil(figures['peak_memory_mb'] / 50) * 50} MB",
    }


def _record(lesson: Lesson, figures: dict[str, float]) -> None:
    file = lesson.source.parent / "measured.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {lesson.number: figures}, indent=1, sort_keys=True) + "\n")


def _text(made: Any) -> str:
    text: str = nbformat.writes(made, version=4)  # type: ignore[no-untyped-call]
    return text if text.endswith("\n") else text + "\n"


def _hide_paths(text: str) -> str:
    """Outputs name files of the machine that ran them, in warnings and tracebacks: keep what follows the root."""
    for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix), Path.home()):
        text = text.replace(f"{path}/", "")
    return text.replace(str(ROOT), ".")


if __name__ == "__main__":
    sys.exit(main())
