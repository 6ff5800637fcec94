"""A learner's first minutes, in JupyterLab and a real browser."""

from playwright.sync_api import expect

from tests.notebook_page import NotebookPage, browser_page, jupyterlab
from workshop.lab.memory import PeakMemory


def test_run_all_then_solve_an_exercise(chromium, tmp_path):
    with PeakMemory() as memory, jupyterlab(tmp_path, memory.env) as url, browser_page(chromium) as page:
        notebook = NotebookPage(page, url)
        expect(page.get_by_role("heading", name="00 Start here")).to_be_visible()
        notebook.run_all()
        for exercise in ("00.1", "00.2", "00.3"):
            verdict = notebook.cell(f'check("{exercise}"').locator(".jp-OutputArea")
            expect(verdict).to_contain_text(f"{exercise} Not attempted.")

        answer = notebook.cell("malignant = ...")
        check = notebook.cell('check("00.1"')
        for code, outcome in (("malignant = 100", "Not yet. There are more."), ("malignant = 212", "Right.")):
            notebook.write(answer, code)
            answer = notebook.cell(code)
            notebook.run(answer)
            notebook.run(check)
            expect(check.locator(".jp-OutputArea")).to_contain_text(f"00.1 {outcome}")
    assert memory.processes() == []
