"""A real Chromium."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

LIMIT_MS = 60_000
"""Generous: what a test waits for happens quickly or never."""


@contextmanager
def launched(chromium: str) -> Iterator[Browser]:
    """The browser. While it is open, this thread has a running event loop: no other may run in it."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser) -> Iterator[Page]:
    """An empty page. Fails at the end if one of its scripts has failed or has violated the page's policy."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(LIMIT_MS)
    expect.set_options(timeout=LIMIT_MS)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda line: failures.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    context.close()
    assert not failures
