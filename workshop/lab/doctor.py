"""Checks this machine for what the workshop needs: `from workshop.lab.doctor import doctor`, then `doctor()`."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from workshop.contracts.errors import StartError
from workshop.lab.verdicts import card
from workshop.machine import available_memory, usable_cores
from workshop.settings import PROJECT, Settings, read_settings

GB = 1_000_000_000
RAY_LESSON_MEMORY = 1_500_000_000
DISK_NEEDED = 1_000_000_000
PORTS = (8000, 8888)


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """The workshop runs; something will be slower or look different."""
    FAILURE = "failure"
    """Some lesson cannot run."""


_MARKS = {Status.OK: ("✓", "#2a9d5c"), Status.WARNING: ("!", "#c8811a"), Status.FAILURE: ("✗", "#d2544f")}


@dataclass(frozen=True)
class Finding:
    """What one check saw, and what to do about it."""

    check: str
    status: Status
    seen: str
    remedy: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """All findings. Shows itself as text in a terminal and as a table in a notebook."""

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.status is Status.FAILURE]

    @property
    def verdict(self) -> str:
        if not self.failures:
            return "This machine is ready."
        problems = "one problem" if len(self.failures) == 1 else f"{len(self.failures)} problems"
        return f"This machine has {problems} to solve first."

    def __repr__(self) -> str:
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.status:<9}{finding.check:<17}{finding.seen}")
            if finding.remedy:
                lines.append(f"{'':<26}{finding.remedy}")
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        worst = next((status for status in reversed(Status) if self._any(status)), Status.OK)
        cell = 'style="text-align:left;vertical-align:top;padding:0 1em 0 0;background:transparent"'
        rows = []
        for finding in self.findings:
            mark, colour = _MARKS[finding.status]
            remedy = f'<div style="opacity:.75">{escape(finding.remedy)}</div>' if finding.remedy else ""
            rows.append(
                f'<tr style="background:transparent">'
                f'<td {cell}><b style="color:{colour}" title="{finding.status}">{mark}</b></td>'
                f"<td {cell}>{escape(finding.check)}</td><td {cell}>{escape(finding.seen)}{remedy}</td></tr>"
            )
        table = f'<table style="border:0;border-collapse:collapse;color:inherit">{"".join(rows)}</table>'
        return card(_MARKS[worst][1], f"<b>{self.verdict}</b>", table)

    def _any(self, status: Status) -> bool:
        return any(finding.status is status for finding in self.findings)


def doctor() -> Report:
    """Check this machine. Takes a few seconds, starts nothing and changes nothing."""
    settings = read_settings()
    return Report(
        (
            check_python(metadata("fastapi-ray-serve-workshop")["Requires-Python"]),
            check_packages(PROJECT / "requirements.lock"),
            check_model(settings),
            check_language_models(settings.retriever_artifact),
            check_memory(),
            check_shared_memory(settings.object_store_mb * 2**20),
            check_cores(),
            check_disk((PROJECT, Path(tempfile.gettempdir()))),
            *(check_port(port) for port in PORTS),
            check_gpu(),
            check_redis(os.environ.get("REDIS_URL")),
        )
    )


def main() -> None:
    """Print the report; exit status 1 if a check failed."""
    report = doctor()
    print(report)
    sys.exit(1 if report.failures else 0)


def check_python(required: str) -> Finding:
    """This Python against a version specifier, such as ``>=3.11``."""
    running = platform.python_version()
    if SpecifierSet(required).contains(running, prereleases=True):
        return Finding("Python", Status.OK, running)
    return Finding("Python", Status.FAILURE, f"{running}; {required} is needed", "Run: make env")


def check_packages(lock: Path) -> Finding:
    """What is installed against what was tested: the pins of a lock file."""
    if not lock.exists():
        return Finding("Packages", Status.WARNING, "not compared: requirements.lock is missing")
    pins = [Requirement(line) for line in lock.read_text().splitlines()]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    missing, different = [], []
    for pin in pins:
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            missing.append(pin.name)
        else:
            if not pin.specifier.contains(installed, prereleases=True):
                different.append(f"{pin.name} {installed} (tested: {pin.specifier})")
    if missing:
        return Finding("Packages", Status.FAILURE, f"missing: {_some(missing)}", "Run: make env")
    if different:
        return Finding("Packages", Status.WARNING, f"other versions than tested: {_some(different)}", "Run: make env")
    return Finding("Packages", Status.OK, f"all {len(pins)} as tested")


def check_model(settings: Settings) -> Finding:
    """The trained classifier: loads it, as the service does at its start."""
    try:  # imported here: there must be a report even without scikit-learn
        from workshop.integration.services import active_location  # noqa: PLC0415
        from workshop.models.tumours import TumourClassifier  # noqa: PLC0415

        model = TumourClassifier.load(active_location(settings))
    except (StartError, ImportError) as error:
        return Finding("Trained model", Status.FAILURE, str(error), "Run: make artifacts")
    return Finding("Trained model", Status.OK, f"{model.card.name} {model.card.version}")


def check_language_models(retriever: Path, package: str = "torch") -> Finding:
    """What the language models need, without loading it: that would take seconds and a quarter of a gigabyte."""
    if find_spec(package) is None:
        remedy = "Run make env where PyTorch's CPU build is available. Lessons 05, 06 and 14 need it."
        return Finding("Language models", Status.WARNING, "PyTorch is not installed", remedy)
    if not retriever.exists():
        return Finding("Language models", Status.FAILURE, f"no retriever in {retriever}", "Run: make artifacts")
    return Finding("Language models", Status.OK, f"with PyTorch {version(package)}")


def check_memory(needed: int = RAY_LESSON_MEMORY) -> Finding:
    """Bytes that can still be allocated, in this container if we are in one."""
    available = available_memory()
    if available >= needed:
        return Finding("Memory", Status.OK, f"{available / GB:.1f} GB free")
    return Finding(
        "Memory",
        Status.WARNING,
        f"{available / GB:.1f} GB free; a lesson with Ray needs {needed / GB:.1f} GB",
        "Close other programs and notebooks before lesson 09.",
    )


def check_shared_memory(needed: int, folder: Path = Path("/dev/shm")) -> Finding:
    """Bytes for Ray's object store."""
    if not folder.exists():
        return Finding("Shared memory", Status.OK, "this system has none to set up")
    free = shutil.disk_usage(folder).free
    seen = f"{free / GB:.2f} GB in {folder}"
    if free >= needed:
        return Finding("Shared memory", Status.OK, seen)
    return Finding("Shared memory", Status.WARNING, seen, "Ray will use the disk instead and warn about it. It works.")


def check_cores(needed: int = 2) -> Finding:
    cores = usable_cores()
    if cores >= needed:
        return Finding("Cores", Status.OK, f"{cores:g}")
    return Finding("Cores", Status.WARNING, f"{cores:g}", "Work in parallel will gain less than the lessons show.")


def check_disk(folders: tuple[Path, ...], needed: int = DISK_NEEDED) -> Finding:
    """Bytes free where the workshop and Ray write: the folder with the least counts."""
    folder, usage = min(((folder, shutil.disk_usage(folder)) for folder in folders), key=lambda pair: pair[1].free)
    seen = f"{usage.free / GB:.1f} GB free in {folder}"
    if usage.free < needed:
        return Finding("Disk", Status.FAILURE, f"{seen}; {needed / GB:.1f} GB are needed", "Delete something there.")
    return Finding("Disk", Status.OK, seen)


def check_port(port: int) -> Finding:
    """Whether a server could listen on the port of this machine's loopback address."""
    name = f"Port {port}"
    with socket.socket() as server:
        if os.name == "posix":  # as servers do: ignore connections in TIME_WAIT
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            if _is_ours(port):
                return Finding(name, Status.OK, "used by this JupyterLab")
            return Finding(name, Status.WARNING, "in use by another program", "Lessons pick free ports: nothing to do.")
    return Finding(name, Status.OK, "free")


def _is_ours(port: int) -> bool:
    """Whether a process that started this one, such as JupyterLab, listens on the port."""
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            connections = process.net_connections("tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
                return True
    return False


def check_gpu(nvidia_smi: str = "nvidia-smi", timeout_s: float = 10) -> Finding:
    """The GPUs that NVIDIA's driver reports."""
    command = [nvidia_smi, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    except FileNotFoundError:
        return Finding("GPU", Status.OK, "none: every lesson runs on the CPU")
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", Status.WARNING, f"no answer: {error}", "Lessons run on the CPU until it answers.")
    return Finding("GPU", Status.OK, ", ".join(answer.stdout.splitlines()))


def check_redis(url: str | None, server: str = "redis-server") -> Finding:
    """The Redis of ``REDIS_URL``, which the service would use; without one, whether a server is installed."""
    if url is None:
        path = shutil.which(server)
        return Finding("Redis", Status.OK, path or "none: the service keeps its counts in its own process")
    try:
        parts = urlsplit(url)
        address = parts.hostname or "localhost", parts.port or 6379
        socket.create_connection(address, timeout=2).close()
    except (OSError, ValueError) as error:
        return Finding("Redis", Status.FAILURE, f"REDIS_URL: {error}", "Start it, or unset REDIS_URL.")
    return Finding("Redis", Status.OK, "{}:{} answers".format(*address))


def _some(items: list[str], shown: int = 3) -> str:
    rest = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {rest} more" if rest > 0 else "")


if __name__ == "__main__":
    main()
