"""JupyterLab in a real browser, for its test and for the README's screenshot."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from playwright.sync_api import Locator, Page, expect, sync_playwright

from workshop.machine import free_port

ROOT = Path(__file__).parents[1]
TOKEN = "secret"
# Seconds. Generous: a step that works does not wait for its limit.
START_LIMIT = 120
RUN_LIMIT = 300
STOP_LIMIT = 30


@contextmanager
def jupyterlab(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """`make lab` on copies of the notebooks, in an empty folder: running a notebook changes its file.

    Uses the Python environment of this process, and not the user's own JupyterLab settings.
    Yields the address that opens the first lesson.
    """
    for name in ("Makefile", "binder", "notebooks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "artifacts").symlink_to(ROOT / "artifacts")
    port = free_port()
    arguments = f"ARGS=--no-browser --port={port} --ServerApp.token={TOKEN}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with (folder / "log").open("w") as log:
        make = psutil.Popen(
            ["make", "-o", ".venv/.ready", "lab", arguments],
            cwd=folder,
            env={**env, "PATH": path, "JUPYTER_CONFIG_DIR": str(folder / "config")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}/?token={TOKEN}"
            _wait_until_it_answers(url, make, folder / "log")
            yield url
        finally:
            _stop(make)


def _wait_until_it_answers(url: str, make: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.HTTPError as error:
            if make.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}") from error
            time.sleep(0.2)


def _stop(process: psutil.Popen) -> None:
    """End a process, its group and the kernels, which JupyterLab ends itself if it has enough time."""
    if process.poll() is not None:
        return
    family = [process, *process.children(recursive=True)]
    os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, STOP_LIMIT)
    for survivor in alive:
        survivor.kill()
    psutil.wait_procs(alive, STOP_LIMIT)


@contextmanager
def browser_page(chromium: str, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """An empty page of ``width`` by ``height`` pixels in a headless browser."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(1000 * START_LIMIT)
            expect.set_options(timeout=1000 * START_LIMIT)
            yield page
        finally:
            browser.close()


class NotebookPage:
    """A notebook in JupyterLab, driven by mouse and keyboard alone."""

    def __init__(self, page: Page, url: str) -> None:
        """Open the address and wait for the notebook's kernel."""
        self.page = page
        self.cells = page.locator(".jp-CodeCell")
        page.goto(url)
        expect(page.get_by_title("Switch kernel")).to_have_text("Python 3 (ipykernel)")
        # A cell that is run while the kernel is still connecting may be dropped.
        expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")

    def cell(self, code: str) -> Locator:
        """The one code cell that contains this text."""
        return self.cells.filter(has=self.page.locator(".cm-content", has_text=code))

    def run_all(self) -> None:
        """Choose Run All Cells from the menu, and wait for the last one."""
        with self._waits_for(self.cells.last):
            self.page.get_by_role("menubar").get_by_text("Run", exact=True).click()
            self.page.get_by_text("Run All Cells", exact=True).click()

    def run(self, cell: Locator) -> None:
        """Click on a cell, press Shift+Enter, and wait until it has run."""
        with self._waits_for(cell):
            cell.locator(".cm-content").click()
            self.page.keyboard.press("Shift+Enter")

    def write(self, cell: Locator, code: str) -> None:
        """Replace the content of a cell."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(code)

    @contextmanager
    def _waits_for(self, cell: Locator) -> Iterator[None]:
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()
        yield
        expect(prompt).not_to_have_text(before, timeout=1000 * RUN_LIMIT)
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=1000 * RUN_LIMIT)
