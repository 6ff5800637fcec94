"""The documentation in Chromium: its pages work within their policy, offline."""

import pytest
from playwright.sync_api import expect

LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"
"""ReDoc asks for it, and is refused: nothing comes from elsewhere."""


def test_a_request_can_be_tried_out_in_docs(serve, page):
    page.goto(serve().url + "/docs")
    operation = page.locator("#operations-service-version")
    operation.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("200")


def test_a_user_can_authorize_in_docs(serve, page):
    page.goto(serve().url + "/docs")
    page.get_by_role("button", name="Authorize").first.click()
    expect(page.locator(".dialog-ux")).to_contain_text("Available authorizations")


@pytest.fixture
def refused(browser):
    """A page, and what its policy has refused."""
    context = browser.new_context()
    page = context.new_page()
    lines: list[str] = []
    page.on("pageerror", lambda error: lines.append(str(error)))
    page.on("console", lambda line: lines.append(line.text) if "Content Security Policy" in line.text else None)
    yield page, lines
    context.close()


def test_redoc_shows_and_searches_the_document(serve, refused):
    page, lines = refused
    page.goto(serve().url + "/redoc")
    expect(page.get_by_role("heading", name="Workshop service")).to_be_visible()
    page.get_by_placeholder("Search").fill("tumours")
    expect(page.locator("[data-role='search:results'] li").first).to_be_visible()
    assert [line for line in lines if LOGO not in line] == []
