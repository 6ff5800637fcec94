"""Makes the README's picture, docs/jupyterlab.png, from lesson 01 as a learner sees it: `python -m docs.screenshot`."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import httpx

from tests.notebook_page import NotebookPage, browser_page, jupyterlab
from workshop.lab.lessons import solution_code

LESSON = "/lab/tree/notebooks/01_async_and_sync.ipynb"
PICTURE = Path(__file__).with_name("jupyterlab.png")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("chromium is not installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        jupyterlab(Path(folder), os.environ) as url,
        browser_page(chromium, height=1290) as page,
    ):
        notebook = NotebookPage(page, str(httpx.URL(url).copy_with(path=LESSON)))
        notebook.run_all()
        exercise, check = notebook.cell("clinic = FastAPI()"), notebook.cell('check("01.1"')
        notebook.write(exercise, solution_code("01.1"))
        notebook.run(exercise)
        notebook.run(check)
        notebook.cell("timeline({name:").locator(".jp-OutputArea").evaluate("picture => picture.scrollIntoView()")
        page.mouse.move(0, 0)
        page.screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
