"""What the README says about lessons, settings, commands and folders is true."""

import re
from pathlib import Path

import pytest

from workshop.cli import app
from workshop.lab.build import lessons
from workshop.settings import Deployments, Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
TREE = README.partition("## How the code is laid out")[2].split("```")[1]


def test_every_lesson_that_exists_is_linked_and_the_others_are_coming():
    table = dict(re.findall(r"^\| (\d\d) \| (.+?) \|", README, re.MULTILINE))
    links = {number: re.search(r"\((notebooks/.+)\)", cell) for number, cell in table.items()}
    linked = {number: ROOT / link[1] for number, link in links.items() if link}
    assert linked == {lesson.number: lesson.untouched for lesson in lessons()}
    assert all("(coming)" in cell for number, cell in table.items() if number not in linked)


SETTINGS = {
    str(field.validation_alias or f"WORKSHOP_{name.upper()}"): field.default
    for name, field in Settings.model_fields.items()
}
"""The default of each setting, by its environment variable."""
NOT_OURS = {"RAY_ADDRESS"}
IN_WORDS = {
    "WORKSHOP_DRAFT_MODEL",
    "WORKSHOP_MAIN_MODEL",
    "DATABASE_URL",
    "WORKSHOP_FILES_URL",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_ARTIFACTS_DESTINATION",
}
"""Their defaults are paths of this machine."""


def table_of_settings() -> dict[str, str]:
    """What the README says is the default, by environment variable."""
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \| (.+?) \|", README, re.MULTILINE)
    return {variable: default for variables, default in rows for variable in re.findall(r"`(\w+)`", variables)}


def test_every_setting_is_in_its_table_and_no_other():
    assert set(table_of_settings()) == set(SETTINGS) | NOT_OURS


@pytest.mark.parametrize("variable", sorted(SETTINGS))
def test_a_settings_default_is_as_its_table_says(variable):
    default, shown = SETTINGS[variable], table_of_settings()[variable]
    if variable in IN_WORDS:
        assert not shown.startswith(("none", "`"))
    elif shown.startswith("none"):
        assert default in (None, {}, (), frozenset(), Deployments())
    else:
        text = str(default).removeprefix(f"{ROOT}/").removesuffix(".0").lower()
        assert shown == f"`{text}`"


def test_the_number_of_notebooks_is_right():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    numbers = {word: number for number, word in enumerate(words.split(), start=1)}
    counted = [numbers[word] for word in re.findall(r"(\w+) notebooks\b", README) if word in numbers]
    assert set(counted) <= {len(lessons())}


def test_every_file_it_links_to_exists():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_its_tree_is_that_of_the_package():
    package = TREE.partition("workshop/\n")[2].partition("solutions/")[0]
    shown = set(re.findall(r"^  (\w+(?:/|\.py))", package, re.MULTILINE))
    folders = {f"{path.parent.name}/" for path in (ROOT / "workshop").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "workshop").glob("[!_]*.py")}
    assert shown == folders | modules


def test_its_tree_has_every_folder_of_the_project(project_files):
    tops = {path.relative_to(ROOT).parts for path in project_files}
    folders = {f"{parts[0]}/" for parts in tops if len(parts) > 1 and not parts[0].startswith(".")}
    assert set(re.findall(r"^(\w+/)", TREE, re.MULTILINE)) == folders


def test_its_tree_has_every_command():
    shown = re.search(r"python -m workshop ([a-z-]+(?: \| [a-z-]+)*)", TREE)
    assert shown is not None
    commands = {command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    assert set(shown[1].split(" | ")) == commands | groups
