"""Peak memory of a learner who runs a lesson in JupyterLab: JupyterLab, the kernel, Ray and all that they start.

The figure is the proportional set size (PSS), sampled while a real browser runs the solved lesson from top to bottom.
The browser itself is not counted: with Binder it is on the learner's own machine.

    make bench, or: python benchmarks/learner_memory.py --lesson 09
"""

import shutil
import sys
import tempfile
from pathlib import Path

import typer

from tests.notebook_page import ROOT, NotebookPage, browser_page, jupyterlab
from workshop.lab.memory import PeakMemory

LIMIT_MB = 2000


def main(lesson: str = "09") -> None:
    """Print the peak; exit status 1 if it is above 2 GB, Binder's limit."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed; on Debian: apt install chromium")
    [solved] = (ROOT / "solutions").glob(f"{lesson}_*.ipynb")
    with (
        tempfile.TemporaryDirectory() as folder,
        PeakMemory() as memory,
        jupyterlab(Path(folder), memory.env) as url,
        browser_page(chromium) as page,
    ):
        shutil.copy(solved, Path(folder) / "notebooks")
        notebook = NotebookPage(page, url.replace("/?", f"/lab/tree/notebooks/{solved.name}?"))
        before = memory.peak_mb
        notebook.run_all()
    print(f"lesson {lesson}: peak {memory.peak_mb} MB, of which {before} MB before the first cell")
    sys.exit(memory.peak_mb > LIMIT_MB)


if __name__ == "__main__":
    typer.run(main)
