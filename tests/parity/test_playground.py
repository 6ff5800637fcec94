"""The playground in Chromium with the real models, in every runtime. `tests/playground` tests the details."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser import launched, opened


@pytest.fixture
def page(service, chromium):  # the service first: it cannot be deployed while Playwright's event loop runs
    with launched(chromium) as browser, opened(browser) as page:
        page.goto(str(service.base_url))
        yield page


def ask(page, panel: str, question: str):
    region = page.get_by_role("region", name=panel, exact=True)
    region.get_by_role("textbox").fill(question)
    region.get_by_role("button", name="Ask").click()


def test_every_panel_works(page):
    page.get_by_role("button", name="malignant example").click()
    expect(page.locator("#predict .verdict strong")).to_have_text("malignant")

    ask(page, "Ask one model", "What is a replica?")
    expect(page.locator("#ask [data-fact=end]")).to_have_text("stop")
    expect(page.locator("#ask .answer")).to_have_text(re.compile("replica"))

    ask(page, "Ask the cascade", "What is a replica?")
    expect(page.locator("#cascade .outcome")).to_contain_text("Answered by")
    expect(page.locator("#cascade .attempt").last).to_have_text(re.compile("replica"))

    for n_turns in (1, 2):
        page.get_by_label("Message").fill("What is a replica?")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        page.keyboard.press("Enter")
        expect(page.locator("#chat .bubble:not(.mine) small")).to_have_count(n_turns)
        expect(page.locator("#chat .bubble:not(.mine) small").last).to_have_text(re.compile(r"\d+ tokens"))

    expect(page.locator("[data-stat=total_queries]")).to_have_text(re.compile(r"[1-9]"))
