"""The files around the package: commands, lock, Binder, and what must not be in any of them."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workshop.machine import free_port

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
TORCH_LOCK = (ROOT / "torch.lock").read_text().splitlines()
PINS = [Requirement(line) for line in LOCK]
TORCH_PINS = [Requirement(line) for line in TORCH_LOCK]
PEER_LOCKS = {path.stem: path.read_text().splitlines() for path in (ROOT / "benchmarks" / "apps").glob("*.lock")}


# The lock


def test_every_line_of_the_lock_is_one_exact_pin():
    for line, pin in zip(LOCK + TORCH_LOCK, PINS + TORCH_PINS, strict=True):
        assert not pin.url, line
        assert [specifier.operator for specifier in pin.specifier] == ["=="], line


@pytest.mark.parametrize("peer", ["bentoml", "litserve"])
def test_a_peer_is_measured_with_the_same_classifier(peer):
    """Its lock is one of exact pins, too, and those of the packages that run the classifier are ours."""
    pins = [Requirement(line) for line in PEER_LOCKS[peer]]
    assert [pin for pin in pins if pin.url or [each.operator for each in pin.specifier] != ["=="]] == []
    of_the_classifier = {"numpy", "pydantic", "scikit-learn", "scipy", "skops"}
    assert {str(pin) for pin in pins if pin.name in of_the_classifier} == {
        str(pin) for pin in PINS if pin.name in of_the_classifier
    }


def test_the_lock_matches_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    locked = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS + TORCH_PINS}
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_linux_without_a_gpu_never_gets_cuda(machine):
    linux = {**default_environment(), "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    on_linux = {**linux, "platform_machine": machine}
    names = [pin.name for pin in PINS if pin.marker is None or pin.marker.evaluate(on_linux)]
    assert [name for name in names if re.match(r"nvidia-|cuda|triton|torch$", name)] == []


def test_nothing_in_the_lock_asks_for_pytorch():
    """Binder's pip installs what the lock's packages require: it would fetch the build with CUDA."""
    asking = [
        pin.name
        for pin in PINS
        for need in requires_of(pin.name)
        if need.name == "torch" and not (need.marker and "extra" in str(need.marker))
    ]
    assert asking == []


def requires_of(name: str) -> list[Requirement]:
    """What a package requires, or nothing if it is for another system and so not installed."""
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def test_notebook_is_pinned_beside_jupyterlab():
    assert {"notebook", "jupyterlab"} <= {pin.name for pin in PINS}


# Binder


def test_binder_has_the_same_environment():
    ours, binders = ROOT / "environment.yml", ROOT / "binder" / "environment.yml"
    assert not binders.is_symlink()
    assert ours.read_bytes() == binders.read_bytes()


@pytest.mark.parametrize("folder", [ROOT, ROOT / "binder"], ids=["root", "binder"])
def test_environment_is_python_and_the_lock(folder):
    dependencies = yaml.safe_load((folder / "environment.yml").read_text())["dependencies"]
    assert dependencies == ["python=3.11", "pip", {"pip": ["-r requirements.lock"]}]
    # As in pip: a path is relative to the file that contains it.
    file = folder / "requirements.lock"
    while (line := file.read_text().splitlines()[0]).startswith("-r "):
        file = file.parent / line.removeprefix("-r ")
    assert file.resolve() == ROOT / "requirements.lock"


@pytest.mark.parametrize("script", ["binder/postBuild", "binder/install_torch", ".ci/run"])
def test_scripts_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_license_is_the_whole_apache_license():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text
    assert text.rstrip().endswith("limitations under the License.")


# The commands


def make(*arguments: str, folder: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**inherited, **env}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """The Makefile and the files that it depends on, in a folder with a space in its name."""
    folder = tmp_path / "a copy"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "torch.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def environment(copy):
    """What a finished `make env` leaves behind, as far as make can see."""
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (copy / ".venv" / ".ready").write_text(f"{copy}\n")
    return copy


def test_make_alone_lists_every_command():
    commands = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands is not None
    listed = re.findall(r"^make (\w+)", make().stdout, re.MULTILINE)
    assert set(listed) == set(commands[1].split()) - {"new-venv"}


def up_to_date(folder: Path) -> bool:
    return make("--question", "env", folder=folder).returncode == 0


def test_a_finished_environment_is_left_alone(environment):
    assert up_to_date(environment)


@pytest.mark.parametrize("name", ["requirements.lock", "torch.lock", "pyproject.toml"])
def test_a_changed_list_of_packages_is_installed(environment, name):
    later = time.time() + 60
    os.utime(environment / name, (later, later))
    assert not up_to_date(environment)
    assert "venv --clear" not in make("--dry-run", "env", folder=environment).stdout  # it is updated in place


def test_an_unfinished_environment_is_made_again(environment):
    (environment / ".venv" / ".ready").unlink()
    assert "venv --clear" in make("--dry-run", "env", folder=environment).stdout


def test_an_environment_that_was_moved_is_made_again(environment):
    moved = environment.rename(environment.with_name("moved"))
    assert "venv --clear" in make("--dry-run", "env", folder=moved).stdout


def test_an_environment_that_lost_its_python_is_made_again(environment):
    (environment / ".venv" / "bin" / "python").unlink()
    (environment / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    assert "venv --clear" in make("--dry-run", "env", folder=environment).stdout


def interpreter(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def test_an_old_python_gives_a_one_line_error(copy, tmp_path):
    old = interpreter(tmp_path / "old-python", "exit 1")
    result = make("new-venv", f"PYTHON={old}", folder=copy)
    assert result.returncode != 0
    assert result.stderr.startswith("Python 3.11 or newer is needed")


def test_a_python_without_venv_gives_a_clear_error(copy, tmp_path):
    bare = interpreter(tmp_path / "bare-python", 'case "$2" in *ensurepip*) exit 1;; esac', "exit 0")
    result = make("new-venv", f"PYTHON={bare}", folder=copy)
    assert result.returncode != 0
    assert "apt install python3-venv" in result.stderr.splitlines()[0]


def test_a_newer_python_is_found_beside_an_old_python3(copy, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    interpreter(programs / "python3", "exit 1")
    interpreter(programs / "python3.13", "exit 1")
    interpreter(programs / "python3.12", f'exec "{sys.executable}" "$@"')
    result = make("new-venv", folder=copy, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert (copy / ".venv" / "bin" / "pip").exists()


# JupyterLab


@contextmanager
def lab(port: int, log: Path) -> Iterator[None]:
    """`make lab` on the environment that runs this test."""
    done = ["-o", ".venv/.ready", "-o", "artifacts/tumour-classifier/card.json"]
    command = ["make", *done, "lab", f"ARGS=--no-browser --port={port} --ServerApp.token=secret"]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(server.pid, 15)
            server.wait()


@pytest.mark.slow
def test_lab_opens_at_the_first_lesson_without_a_pop_up(tmp_path):
    port, log = free_port(), tmp_path / "log"
    with lab(port, log), httpx.Client(base_url=f"http://127.0.0.1:{port}", params={"token": "secret"}) as client:
        deadline = time.monotonic() + 120
        while True:
            try:
                client.get("/api/status").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        assert client.get("/").headers["location"].startswith("/lab/tree/notebooks/00_start_here.ipynb")
        assert {"notebooks", "Makefile"} <= {item["name"] for item in client.get("/api/contents/").json()["content"]}
        news = client.get("/lab/api/settings/@jupyterlab/apputils-extension:notification").json()
        assert news["schema"]["properties"]["fetchNews"]["default"] == "false"
        assert news["schema"]["properties"]["checkForUpdates"]["default"] is False


# What no file may contain


# In two parts, so that this file does not contain them.
REGISTRIES = [f"{name}.{end}" for name, end in [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"),
              ("npmjs", "com"), ("anaconda", "org"), ("anaconda", "com"), ("pytorch", "org/whl")]]  # fmt: skip
MACHINE_PATHS = [f"/{folder}/" for folder in ("work", "root")]


@pytest.mark.parametrize("text", [*REGISTRIES, *MACHINE_PATHS])
def test_no_file_contains_a_registry_or_a_path_of_one_machine(project_files, text):
    assert [str(path.relative_to(ROOT)) for path in project_files if text.encode() in path.read_bytes()] == []


# What does not belong here

AT_THE_ROOT = {
    ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "conftest.py", "environment.yml",
    "pyproject.toml", "requirements.lock", "torch.lock",
    ".ci", "benchmarks", "binder", "docs", "notebooks", "solutions", "tests", "workshop",
}  # fmt: skip
LEFTOVERS = re.compile(
    r"\.(whl|egg|gz|zip|tar|sqlite3?|sqlite-\w+|db|log|pyc|pkl|skops|orig|rej|swp)$|\.ipynb_checkpoints/"
)
LARGE = 500_000  # bytes; a solved notebook with its pictures is smaller
WEIGHTS = {f"workshop/models/weights/workshop-{name}/model.safetensors" for name in ("draft", "main")}


def test_the_root_holds_nothing_else(project_files):
    assert {path.relative_to(ROOT).parts[0] for path in project_files} == AT_THE_ROOT


def test_nothing_is_left_over_from_building_and_running(project_files):
    names = [str(path.relative_to(ROOT)) for path in project_files]
    assert [name for name in names if LEFTOVERS.search(name)] == []


def test_the_weights_alone_are_large(project_files):
    large = {str(path.relative_to(ROOT)) for path in project_files if path.stat().st_size > LARGE}
    assert large <= WEIGHTS


# The test run


def test_the_tests_of_a_group_stay_in_one_process(request):
    """Checked by the name that xdist gives a grouped test. Without groups, each process would start its own Ray."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("the tests run in one process")
    assert request.node.nodeid.endswith("@test_frame.py")
