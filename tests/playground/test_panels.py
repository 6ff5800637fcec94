"""Normal use of each panel, on any service with language models: see ``page_url``."""

import re

import pytest
from playwright.sync_api import Page, expect

TOKENS = re.compile(r"\d+ tokens")


def ask(page: Page, panel: str, question: str) -> None:
    """Ask a question in the panel with this name."""
    region = page.get_by_role("region", name=panel, exact=True)
    region.get_by_role("textbox").fill(question)
    region.get_by_role("button", name="Ask").click()


def send_message(page: Page, message: str) -> None:
    """Send a chat message, once the chat is connected and no answer is in progress."""
    page.get_by_label("Message").fill(message)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.keyboard.press("Enter")


@pytest.mark.parametrize("label", ["malignant", "benign"])
def test_an_example_gets_its_label(page, page_url, label):
    page.goto(page_url)
    page.get_by_role("button", name=f"{label} example").click()
    verdict = page.locator("#predict .verdict")
    expect(verdict.locator("strong")).to_have_text(label)
    expect(verdict.get_by_role("definition")).to_have_text([re.compile(r"\d %")] * 2)


def test_changing_a_value_clears_the_prediction(page, page_url):
    page.goto(page_url)
    page.get_by_role("button", name="benign example").click()
    expect(page.locator("#predict .verdict")).to_contain_text("sure")
    page.get_by_label("mean radius, in pixel").fill("100")
    expect(page.locator("#predict .verdict")).to_have_text("No prediction for these values yet.")
    expect(page.locator("#range-mean_radius")).to_contain_text("not in")


@pytest.mark.parametrize(
    ("value", "mistake"),
    [("", "Input should be a valid number"), ("-1", "greater than or equal to 0"), ("1", "must not be smaller than")],
)
def test_a_mistake_is_explained_next_to_its_field(page, page_url, value, mistake):
    page.goto(page_url)
    field = page.get_by_label("worst radius, in pixel")
    field.fill(value)
    page.get_by_role("button", name="Predict").click()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description(re.compile(mistake))
    expect(page.locator("#predict .mistakes p:visible")).to_have_count(1)
    field.fill("30")
    page.keyboard.press("Enter")
    expect(page.locator("#predict .verdict strong")).to_have_text("malignant")
    expect(field).not_to_have_attribute("aria-invalid", "true")


def test_a_model_is_chosen_and_its_answer_is_timed(page, page_url):
    page.goto(page_url)
    models = page.locator("#ask-model option")
    expect(models.nth(1)).to_be_attached()
    page.locator("#ask-model").select_option(index=1)
    ask(page, "Ask one model", "What is a replica?")
    expect(page.locator("#ask [data-fact=first]")).to_have_text(re.compile(r"\d m?s"))
    expect(page.locator("#ask [data-fact=speed]")).to_have_text(re.compile(r"^\d+ tokens/s"))
    expect(page.locator("#ask [data-fact=tokens]")).to_have_text(re.compile(r"\d+ \+ \d+"))
    expect(page.locator("#ask [data-fact=end]")).to_have_text(re.compile("stop|length"))
    expect(page.locator("#ask .answer")).to_have_text(re.compile(r"\w"))
    expect(
        page.get_by_role("region", name="Ask one model", exact=True).get_by_role("button", name="Ask")
    ).to_be_enabled()


def test_the_cascade_shows_which_model_answered_and_the_cost(page, page_url):
    page.goto(page_url)
    ask(page, "Ask the cascade", "What is a replica?")
    outcome = page.locator("#cascade .outcome")
    for name in ("Answered by", "Quality of the draft", "Cost$", "Time"):
        expect(outcome).to_contain_text(name)
    expect(page.locator("#cascade .attempt").last).to_have_text(re.compile(r"\w"))


def test_the_larger_model_can_be_asked_at_once(page, page_url):
    page.goto(page_url)
    page.get_by_label("Ask the larger model at once").check()
    ask(page, "Ask the cascade", "What is a replica?")
    expect(page.locator("#cascade .outcome")).to_contain_text("The larger model was asked at once.")
    expect(page.locator("#cascade .attempt")).to_have_count(1)


@pytest.mark.parametrize("panel", ["Ask one model", "Ask the cascade"])
def test_a_rejected_question_shows_the_reason(page, page_url, panel):
    page.goto(page_url)
    ask(page, panel, "   ")
    region = page.get_by_role("region", name=panel, exact=True)
    expect(region.get_by_role("alert")).to_contain_text("not be blank")
    ask(page, panel, "What is a replica?")
    expect(region.get_by_role("alert")).to_be_hidden()
    expect(region.get_by_role("region")).to_have_text(re.compile(r"\w"))


def test_a_chat_has_several_turns_and_can_be_restarted(page, page_url):
    page.goto(page_url)
    expect(page.locator("#chat .state")).to_have_text("Connected")
    answers = page.locator("#chat .bubble:not(.mine)")
    for n_turns, message in enumerate(("What is a replica?", "And a deployment?"), start=1):
        send_message(page, message)
        expect(answers).to_have_count(n_turns)
        expect(answers.last.locator("small")).to_have_text(TOKENS)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat .divider")).to_have_text("a new conversation")


def test_a_rejected_message_leaves_the_chat_usable(page, page_url):
    page.goto(page_url)
    send_message(page, "   ")
    expect(page.locator("#chat").get_by_role("alert")).to_contain_text("blank")
    send_message(page, "What is a replica?")
    expect(page.locator("#chat .bubble small").last).to_have_text(TOKENS)
    expect(page.locator("#chat .state")).to_have_text("Connected")


def test_the_statistics_are_live(page, page_url):
    page.goto(page_url)
    expect(page.locator("#stats .state")).to_have_text("Live")
    answers = page.locator("[data-stat=total_queries]")
    expect(answers).to_have_text(re.compile(r"\d"))
    before = int(answers.inner_text())
    ask(page, "Ask the cascade", "What is a replica?")
    expect(answers).not_to_have_text(str(before))
    expect(page.locator("[data-stat=queries_by_model] dt").first).to_be_visible()
    expect(page.locator("[data-stat=average_cost]")).to_contain_text("$")


def test_every_link_works(page, page_url):
    page.goto(page_url)
    expect(page.get_by_role("link", name="Metrics")).to_be_visible()
    for link in page.get_by_role("link").all():
        address = link.evaluate("link => link.href")
        assert page.request.get(address).ok, address


@pytest.mark.parametrize("width", [380, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(page, page_url, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(page_url)
    ask(page, "Ask the cascade", "What is a replica?")
    expect(page.locator("#cascade .outcome")).to_contain_text("Answered by")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert abs(_lightness(ink) - _lightness(ground)) > 0.7
    assert (_lightness(ground) < 0.5) == (scheme == "dark")


def _lightness(color: str) -> float:
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 765


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page, page_url):
    page.goto(page_url)
    expect(page.locator("#chat .state")).to_have_text("Connected")
    expect(page.get_by_role("button", name="Predict")).to_be_enabled()
    controls = page.locator("input:visible, select:visible, textarea:visible, button:visible, a:visible")
    for control in controls.all():
        expect(control).to_have_accessible_name(re.compile(r"\w"))
    n_enabled = page.locator(":is(input, select, textarea, button, a):enabled:visible, a:visible").count()
    reached = set()
    for _ in range(n_enabled + 3):  # plus the two answers and the conversation, which can be scrolled by keyboard
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert len(reached) == n_enabled + 3
