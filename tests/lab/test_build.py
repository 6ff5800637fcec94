"""The builder: what it makes of a source, when it refuses, and what it keeps."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest

from workshop.lab.build import Lesson, SourceError, build, drifted, main, notebook, pick

EXAMPLE = Path(__file__).parent / "example" / "solutions" / "90_example.py"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "solutions").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "solutions")
    return tmp_path


@pytest.fixture
def lesson(root: Path) -> Lesson:
    return Lesson(root / "solutions" / EXAMPLE.name)


def sources(lesson: Lesson, *, solved: bool) -> list[str]:
    return [cell.source for cell in notebook(lesson, solved=solved).cells]


def test_the_lesson_has_the_starter_in_place_of_the_solution(lesson):
    assert sources(lesson, solved=False)[2] == (
        "async def shout(text):\n    # your code (about 2 lines)\n    await asyncio.sleep(0)\n\n    return ..."
    )
    assert sources(lesson, solved=False)[5] == "# your code (about 1 line)\nlimit = ..."


def test_the_solved_lesson_has_the_answer_and_no_marks(lesson):
    assert sources(lesson, solved=True)[2] == (
        "async def shout(text):\n    await asyncio.sleep(0)\n    return text.upper()"
    )
    assert sources(lesson, solved=True)[5] == "limit = 10"


def test_comments_stay_comments_and_magics_become_magics(lesson):
    assert sources(lesson, solved=True)[3].startswith("# copy the text first\n")
    assert sources(lesson, solved=True)[6].startswith("%time sum(range(10))\n")


def test_metadata(lesson):
    made = notebook(lesson, solved=False)
    assert made.metadata.workshop == {"ray": True}
    assert made.metadata.kernelspec.name == "python3"
    assert made.cells[2].metadata == {"exercise": "90.1"}
    assert made.cells[4].metadata == {"tags": ["raises-exception"]}
    nbformat.validate(made)


def test_cells_have_the_same_ids_in_both_notebooks_and_after_a_change_elsewhere(lesson):
    before = [cell.id for cell in notebook(lesson, solved=False).cells]
    assert before == [cell.id for cell in notebook(lesson, solved=True).cells]
    text = lesson.source.read_text()
    lesson.source.write_text(text.replace('greeting = "hello"', 'greeting = "hi"') + "\n# %%\nlimit\n")
    after = [cell.id for cell in notebook(lesson, solved=False).cells]
    assert [new == old for new, old in zip(after, before, strict=False)] == [True, False, *[True] * 5]


def test_equal_cells_have_different_ids(lesson):
    lesson.source.write_text("# %%\nx = 1\n\n# %%\nx = 1\n")
    assert len({cell.id for cell in notebook(lesson, solved=True).cells}) == 2


def test_a_build_is_repeatable_and_drift_is_named(root, lesson, capsys):
    assert main(["--root", str(root), "--check"]) == 1
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--check"]) == 0
    assert build(lesson) == {path: path.read_text() for path in (lesson.untouched, lesson.solved)}
    capsys.readouterr()
    lesson.untouched.write_text(lesson.untouched.read_text().replace("greeting", "greetings"))
    assert main(["--root", str(root), "--check"]) == 1
    assert "notebooks/90_example.ipynb has drifted" in capsys.readouterr().out
    assert drifted(lesson) == [lesson.untouched]


def test_execute_stores_outputs_and_measures(root, lesson):
    assert main(["--root", str(root), "--execute", "90"]) == 0
    measured = json.loads((root / "solutions" / "measured.json").read_text())
    assert measured["90"]["peak_memory_mb"] > 20
    solved = json.loads(lesson.solved.read_text())
    assert "Runs in 1 minute, " in "".join(solved["cells"][0]["source"])
    assert "Braces such as {minutes} stay." in "".join(solved["cells"][0]["source"])
    assert solved["cells"][3]["outputs"][0]["data"]["text/plain"] == ["'HELLO'"]
    untouched = json.loads(lesson.untouched.read_text())
    assert not any(cell.get("outputs") for cell in untouched["cells"])
    assert main(["--root", str(root), "--check"]) == 0

    # The outputs stay with the cells whose source did not change.
    lesson.source.write_text(lesson.source.read_text().replace('"printed"', '"written"'))
    assert main(["--root", str(root)]) == 0
    rebuilt = json.loads(lesson.solved.read_text())
    assert rebuilt["cells"][3]["outputs"] == solved["cells"][3]["outputs"]
    assert rebuilt["cells"][6]["outputs"] == []


def test_stored_outputs_name_no_path_of_this_machine(lesson):
    lesson.source.write_text("# %%\nimport workshop\n\nworkshop.__file__\n")
    main(["--root", str(lesson.source.parents[1]), "--execute"])
    assert "workshop/__init__.py" in lesson.solved.read_text()
    assert str(Path(__file__).parents[2]) not in lesson.solved.read_text()


def exercise(*lines: str) -> str:
    return "\n".join(['# %% exercise="90.1"', *lines, ""])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (exercise("# solution (about 1 line)", "x = 1", "# end"), "a.py:4: `# end` is out of order"),
        (exercise("# starter", "# x = ...", "# end"), "a.py:2: `# starter` is out of order"),
        (exercise("# solution (about 1 line)", "x = 1", "# starter", "x = ..."), "a.py:5: a starter line must begin"),
        (exercise("# solution (about 1 line)", "x = 1", "# starter", "# x = ..."), "a.py:2: `# solution` without"),
        (exercise("# solution (about 1 line)", "x = 1", "# %%", "y = 2"), "a.py:2: `# solution` without"),
        ("# %%\n# solution (about 1 line)\nx = 1\n# starter\n# end\n", "a.py:2: `# solution` outside an exercise cell"),
    ],
)
def test_a_malformed_block_names_file_and_line(text, message):
    with pytest.raises(SourceError, match=message.replace("(", r"\(")):
        pick(text, solved=False, file="a.py")


def test_a_cell_can_hold_several_blocks():
    block = ["# solution (about 1 line)", "x = 1", "# starter", "# x = ...", "# end"]
    assert pick(exercise(*block, "y = 0", *block), solved=True, file="").splitlines()[1:] == ["x = 1", "y = 0", "x = 1"]
