"""What the README says of lessons, settings and folders is so."""

import re
from pathlib import Path

from workshop.lab.build import lessons
from workshop.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_every_lesson_that_exists_is_linked_and_the_others_are_coming():
    table = dict(re.findall(r"^\| (\d\d) \| (.+?) \|", README, re.MULTILINE))
    links = {number: re.search(r"\((notebooks/.+)\)", cell) for number, cell in table.items()}
    linked = {number: ROOT / link[1] for number, link in links.items() if link}
    assert linked == {lesson.number: lesson.untouched for lesson in lessons()}
    assert all("(coming)" in cell for number, cell in table.items() if number not in linked)


def test_every_setting_it_names_has_that_default():
    table = re.findall(r"^\| `WORKSHOP_(\w+)` \| `(.+?)` \|", README, re.MULTILINE)
    assert table
    for name, default in table:
        value = Settings.model_fields[name.lower()].default
        shown = str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)
        assert shown.removesuffix(".0").lower() == default, name


def test_every_file_it_links_to_exists():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_its_tree_is_that_of_the_package():
    package = README.partition("workshop/\n")[2].partition("solutions/")[0]
    shown = set(re.findall(r"^  (\w+(?:/|\.py))", package, re.MULTILINE))
    folders = {f"{path.parent.name}/" for path in (ROOT / "workshop").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "workshop").glob("[!_]*.py")}
    assert shown == folders | modules
