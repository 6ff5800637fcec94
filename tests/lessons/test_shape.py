"""The shape that every lesson has: its parts, and small cells."""

import io
import json
import re
import statistics
import symtable
import tokenize
from collections.abc import Iterator

from IPython.core.inputtransformer2 import TransformerManager

from tests.made import made
from workshop.lab.lessons import Cell, code_cells

LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENCODING}
LAYOUT |= {tokenize.ENDMARKER}
MAX_CODE_CELLS = 90
MEMORY_LIMIT_MB = 1800  # of Binder's 2 GB; Jupyter itself takes the rest


def prose(lesson) -> list[str]:
    return [cell.source for cell in made(lesson, solved=False).cells if cell.cell_type == "markdown"]


def code(lesson) -> list[str]:
    return [cell.source for cell in made(lesson, solved=True).cells if cell.cell_type == "code"]


def lines_of_code(source: str) -> int:
    """The number of lines with code. Blank lines and comments do not count; a docstring counts as one line."""
    if source.startswith("%%"):
        source = source.partition("\n")[2]
    source = re.sub(r"(?m)^([%!].*)$", "pass", source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type not in LAYOUT})


def section(lesson, heading: str) -> str:
    """The text under a `## ` heading, up to the next one."""
    parts = re.split(r"(?m)^## ", "\n".join(prose(lesson)))
    found = [part for part in parts if part.startswith(f"{heading}\n")]
    assert len(found) == 1, f"one `## {heading}` is needed"
    return found[0]


def test_it_has_title_figures_and_map(lesson):
    first = prose(lesson)[0]
    assert first.startswith(f"# {lesson.number} ")
    assert "(not measured)" not in first, f"run python -m workshop.lab.build --execute {lesson.number}"
    assert "{{ minutes }}" in lesson.source.read_text()
    assert "{{ memory }}" in lesson.source.read_text()
    assert f'service_map("{lesson.number}")' in "\n".join(code(lesson))


def test_it_closes_with_quiz_and_recap(lesson):
    assert 3 <= section(lesson, "Quiz").count("<details>") <= 5
    assert section(lesson, "Recap")


def test_it_has_three_to_five_exercises_each_with_a_check(lesson, exercise_ids):
    fewest = 2 if lesson.number == "00" else 3
    assert fewest <= len(exercise_ids) <= 5
    assert exercise_ids == [f"{lesson.number}.{number}" for number in range(1, len(exercise_ids) + 1)]
    for exercise in exercise_ids:
        assert re.search(rf'(?m)^check\("{exercise}", ', "\n".join(code(lesson)))


def test_serve_is_imported_where_it_is_started(lesson):
    """So a later cell that is run first after a restart raises a NameError, and does not start Ray on port 8000."""
    for source in code(lesson):
        if "from ray import serve" in source and not source.startswith("%%writefile"):
            assert "start_serve()" in source


def test_code_cells_are_small(lesson):
    sizes = sorted(lines_of_code(source) for source in code(lesson))
    assert statistics.median(sizes) <= 3, sizes
    assert sizes[int(0.9 * (len(sizes) - 1))] <= 10, sizes


def test_it_is_no_longer_than_an_hour_allows(lesson):
    assert len(code(lesson)) <= MAX_CODE_CELLS
    minutes = re.search(r"Allow (\d+) minutes, exercises included", prose(lesson)[0])
    assert minutes is not None
    assert int(minutes[1]) <= 75


def test_its_first_cell_says_how_to_come_in_late(lesson, exercise_ids):
    late = re.search(r"`await start_at\(\"(\d\d\.\d)\"\)` runs\s+what exercise \d builds on", prose(lesson)[0])
    assert late is not None
    assert late[1] in exercise_ids


def test_no_cell_depends_on_one_that_start_at_leaves_out(lesson):
    """A learner who continues after `start_at` runs all cells from that exercise on, but not those before it."""
    assert list(missed(code_cells(lesson.number))) == []


def missed(cells) -> Iterator[str]:
    """The names that a cell uses although `start_at` may have left out the cell that binds them."""
    bound_in = {}
    exercise = 0  # the number of exercises so far
    for cell in cells:
        exercise += cell.exercise is not None
        bound, used = names(cell.source)
        for name in sorted(used & bound_in.keys()):
            binder, exercise_of_binder = bound_in[name]
            if not binder.needed and (cell.needed or exercise != exercise_of_binder):
                yield f"cell {cell.number} uses {name} of cell {binder.number}"
        bound_in |= dict.fromkeys(bound, (cell, exercise))


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell binds, and those that it uses and does not bind."""
    source = TransformerManager().transform_cell(source)
    module = symtable.symtable(source, "cell", "exec")
    bound = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    tables, used = [module], set()
    for table in tables:
        tables += table.get_children()
        used |= {name.get_name() for name in table.get_symbols() if table is module or name.is_global()}
    return bound, used - bound


def test_prose_is_short(lesson):
    between = [len(text.split()) for text in prose(lesson)[1:] if "## Quiz" not in text and "## Recap" not in text]
    assert statistics.median(between) <= 45, sorted(between)


def test_it_fits_into_the_memory_of_binder(lesson):
    measured = json.loads((lesson.source.parent / "measured.json").read_text())
    assert measured[lesson.number]["peak_memory_mb"] <= MEMORY_LIMIT_MB


def test_a_missed_name_is_found():
    def cell(number, source, *, exercise=None, needed=True):
        return Cell(number, source, exercise, may_raise=False, needed=needed)

    cells = [
        cell(1, "records = load()", needed=False),
        cell(2, "def show():\n    return [records for kept in records]", needed=False),
        cell(3, "print(records)"),
        cell(4, "", exercise="90.1"),
        cell(5, "records", needed=False),
        cell(6, "kept, records = 1, await show()"),
        cell(7, "records"),
    ]
    assert list(missed(cells)) == [
        "cell 3 uses records of cell 1",
        "cell 5 uses records of cell 1",
        "cell 6 uses show of cell 2",
    ]


def test_lines_of_code():
    assert lines_of_code("# a comment\n\nx = 1\n\n\ndef f():\n    # why\n    return (1 +\n            2)\n") == 4
    assert lines_of_code("%%time\n!ls\nawait x") == 2
