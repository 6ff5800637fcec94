"""The example lesson in CONTRIBUTING.md does what the text says."""

import re
from pathlib import Path

import pytest

from workshop.lab import check
from workshop.lab.build import Lesson, notebook
from workshop.lab.verdicts import Outcome

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r", `(\S+\.py)`:\n\n`+python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
NUMBER = "17"


def file(folder: str) -> str:
    [text] = [text for name, text in FILES.items() if name.startswith(f"{folder}/")]
    return text


@pytest.fixture
def solved(tmp_path):
    source = tmp_path / f"{NUMBER}_example.py"
    source.write_text(file("solutions"))
    return notebook(Lesson(source), solved=True)


@pytest.fixture(scope="module")
def bank():
    exec(compile(file("workshop/lab/exercises"), "the checks of CONTRIBUTING.md", "exec"), {"__name__": "checks"})
    names = {"__name__": "bank"}
    exec(compile(file("tests/lessons/banks"), "the bank of CONTRIBUTING.md", "exec"), names)
    return names["BANK"]


def test_its_bank_has_every_exercise(solved, bank):
    assert [cell.metadata["exercise"] for cell in solved.cells if "exercise" in cell.metadata] == list(bank)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_its_checks_judge_its_bank(bank, number):
    exercise = f"{NUMBER}.{number}"
    for answer in bank[exercise]["right"]:
        assert check(exercise, answer).outcome is Outcome.RIGHT
    for answer, message in bank[exercise]["wrong"]:
        verdict = check(exercise, answer)
        assert verdict.outcome is Outcome.NOT_YET
        assert message in repr(verdict)
