"""Answers that are stopped, interrupted or rejected, with models that the tests control."""

import json

import pytest
from playwright.sync_api import Page, expect

from tests.playground.conftest import Service
from tests.playground.proxy import prefix_proxy
from tests.playground.test_panels import ask, send_message
from workshop.contracts.errors import ModelFailedError, UnavailableError

MODEL, CASCADE = "Ask one model", "Ask the cascade"
TIMEOUT_S = 30
INCOMPLETE = "The connection was lost: the answer is incomplete."
KEY = "key-of-ada"


def region(page: Page, panel: str):
    return page.get_by_role("region", name=panel, exact=True)


def start_endless_answer(page: Page, panel: str, service: Service, url: str) -> None:
    """Ask for an answer that does not end, and wait until part of it is shown."""
    service.draft.endless = True
    page.goto(url)
    ask(page, panel, "What is a replica?")
    expect(region(page, panel).get_by_role("region")).to_contain_text("A draft.A draft.")


@pytest.mark.parametrize("panel", [MODEL, CASCADE])
def test_stop_ends_the_answer_and_the_model(page, serve, panel):
    service = serve()
    start_endless_answer(page, panel, service, service.url)
    region(page, panel).get_by_role("button", name="Stop").click()
    assert service.draft.over.wait(TIMEOUT_S)
    expect(region(page, panel).get_by_text("stopped")).to_be_visible()
    expect(region(page, panel).get_by_role("region")).to_contain_text("A draft.")
    service.draft.endless = False
    ask(page, panel, "What is a replica?")
    expect(region(page, panel).get_by_role("region")).to_contain_text("A draft.")
    expect(region(page, panel).get_by_role("button", name="Ask")).to_be_enabled()


@pytest.mark.parametrize("panel", [MODEL, CASCADE])
def test_a_failure_during_an_answer_is_shown(page, serve, panel):
    service = serve()
    service.draft.error = ModelFailedError("the model has no more to say")
    page.goto(service.url)
    ask(page, panel, "What is a replica?")
    expect(region(page, panel).get_by_role("alert")).to_have_text("the model has no more to say")
    expect(region(page, panel).get_by_role("region")).to_contain_text("A draft.")
    expect(region(page, panel).get_by_role("button", name="Ask")).to_be_enabled()


@pytest.mark.parametrize("panel", [MODEL, CASCADE])
def test_an_error_before_the_first_token_is_shown(page, serve, panel):
    service = serve()
    service.draft.words, service.draft.error = (), UnavailableError("the model is being replaced")
    page.goto(service.url)
    ask(page, panel, "What is a replica?")
    expect(region(page, panel).get_by_role("alert")).to_have_text("the model is being replaced")


@pytest.mark.parametrize("panel", [MODEL, CASCADE])
def test_an_answer_whose_connection_breaks_is_shown_as_incomplete(page, serve, panel):
    service = serve()
    with prefix_proxy(service.url) as url:
        start_endless_answer(page, panel, service, url)
    expect(region(page, panel).get_by_role("alert")).to_have_text(INCOMPLETE)
    ask(page, panel, "What is a replica?")
    expect(region(page, panel).get_by_role("alert")).to_have_text("The service does not answer.")
    expect(page.locator("#stats .state")).to_have_text("No answer")


@pytest.mark.parametrize("panel", [MODEL, CASCADE])
def test_an_answer_interrupted_by_a_shutdown_says_so(page, serve, panel):
    service = serve()
    start_endless_answer(page, panel, service, service.url)
    service.server.stop()
    expect(region(page, panel).get_by_role("alert")).to_contain_text("the service is shutting down")


def test_a_draft_that_is_not_good_enough_is_struck_through(page, serve):
    page.goto(serve().url)
    ask(page, CASCADE, "What is a replica?")
    draft, main = (page.locator("#cascade .attempt").nth(index) for index in range(2))
    expect(draft.locator("del")).to_have_text("A draft.")
    expect(draft).to_contain_text("not good enough: quality 0.50, wanted 0.80")
    expect(main).to_have_text("mainThe whole answer.")
    expect(page.locator("#cascade .outcome")).to_contain_text("Answered bymain")


def test_a_good_draft_is_the_answer(page, serve):
    service = serve()
    service.draft.probability = 0.9
    page.goto(service.url)
    ask(page, CASCADE, "What is a replica?")
    expect(page.locator("#cascade .outcome")).to_contain_text("The draft was good enough.")
    expect(page.locator("#cascade .attempt")).to_have_text(["draftA draft."])
    expect(page.locator("#cascade del")).to_have_count(0)


def test_a_finished_answer_is_not_asked_for_again(page, serve):
    """An EventSource that is not closed reconnects after three seconds."""
    service = serve()
    page.goto(service.url)
    ask(page, CASCADE, "What is a replica?")
    expect(page.locator("#cascade .outcome")).to_contain_text("Answered by")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(3):  # the statistics are polled every two seconds
        page.wait_for_event("requestfinished")
    assert {url.rpartition("/v1/")[2] for url in asked} == {"stats"}


def test_markup_from_a_model_is_shown_as_text(page, serve):
    service = serve()
    said = "<img src=x onerror=alert(1)> & <b>bold</b>"
    service.draft.words, service.draft.probability = (said,), 0.9
    page.goto(service.url)
    for panel in (MODEL, CASCADE):
        ask(page, panel, said)
        expect(region(page, panel).get_by_role("region")).to_contain_text(said)
    page.locator("#chat-model").select_option("draft")
    send_message(page, said)
    expect(page.locator("#chat .bubble").first).to_contain_text(said)
    expect(page.locator("#chat .bubble").last).to_contain_text(said)
    expect(page.locator("main img, main b")).to_have_count(0)


def test_a_chat_answer_can_be_stopped_and_the_next_question_asked(page, serve):
    service = serve()
    service.main.endless = True
    page.goto(service.url)
    send_message(page, "What is a replica?")
    answers = page.locator("#chat .bubble:not(.mine)")
    expect(answers).to_contain_text("The whole answer.")
    region(page, "Chat").get_by_role("button", name="Stop").click()
    expect(answers.locator("small")).to_contain_text("stopped")
    assert service.main.over.wait(TIMEOUT_S)
    service.main.endless = False
    send_message(page, "And a deployment?")
    expect(answers.last.locator("small")).to_have_text("3 tokens")


def test_a_chat_whose_model_fails_says_so_and_continues(page, serve):
    service = serve()
    service.main.error = ModelFailedError("the model has no more to say")
    page.goto(service.url)
    send_message(page, "What is a replica?")
    expect(page.locator("#chat").get_by_role("alert")).to_have_text("the model has no more to say")
    expect(page.locator("#chat .bubble small")).to_have_text("no answer")
    service.main.error = None
    send_message(page, "And a deployment?")
    expect(page.locator("#chat .bubble small").last).to_have_text("3 tokens")


def test_a_chat_reconnects_when_the_service_is_back(page, serve):
    service = serve()
    service.main.endless = True
    page.goto(service.url)
    send_message(page, "What is a replica?")
    expect(page.locator("#chat .bubble").last).to_contain_text("The whole")
    service.server.stop()
    expect(page.locator("#chat .state")).to_contain_text("Not connected")
    expect(page.locator("#chat .bubble small")).to_contain_text("incomplete")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    serve(port=service.server.port)
    expect(page.locator("#chat .state")).to_have_text("Connected")
    expect(page.locator("#chat .divider")).to_have_text("a new conversation")
    send_message(page, "Are you there?")
    expect(page.locator("#chat .bubble small").last).to_have_text("3 tokens")


def test_a_closed_chat_can_be_reconnected_manually(page, serve):
    service = serve(api_keys={KEY: "ada"})
    page.goto(service.url)
    enter_key(page, KEY)
    expect(page.locator("#chat .state")).to_have_text("Connected")
    enter_key(page, "another")
    expect(page.locator("#chat .state")).to_have_text("Closed")
    expect(page.locator("#chat").get_by_role("alert")).to_contain_text("this request requires a valid API key or token")
    page.get_by_role("button", name="Connect now").click()
    expect(page.locator("#chat .state")).to_have_text("Closed")


def enter_key(page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Tab")


def test_with_a_key_everything_works_on_a_service_that_requires_one(page, serve):
    page.goto(serve(api_keys={KEY: "ada"}).url)
    for place in ("#language-notice", "#predict [role=alert]"):
        expect(page.locator(place)).to_contain_text("this request requires a valid API key or token")
    enter_key(page, KEY)
    expect(page.locator("#chat .state")).to_have_text("Connected")
    for panel in (MODEL, CASCADE):
        ask(page, panel, "What is a replica?")
        expect(region(page, panel).get_by_role("region")).to_contain_text("A draft.")
        expect(region(page, panel).get_by_role("alert")).to_be_hidden()
    expect(page.locator("#cascade .outcome")).to_contain_text("Answered bymain")


def test_the_statistics_are_not_polled_while_the_page_is_hidden(page, serve):
    page.clock.install()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/v1/stats") else None)
    page.goto(serve().url)
    expect(page.locator("#stats .state")).to_have_text("Live")

    def look(hidden: str) -> None:
        page.evaluate(f"Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}})")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    look("true")
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_request("**/v1/stats"):
        look("false")


def test_without_language_models_the_page_says_so_and_still_classifies(page, serve):
    page.goto(serve(language=False).url)
    expect(page.get_by_text("This service runs without language models")).to_be_visible()
    page.get_by_role("button", name="benign example").click()
    expect(page.locator("#predict .verdict strong")).to_have_text("benign")
    expect(page.get_by_role("region")).to_have_count(1)
    expect(page.get_by_role("link")).to_have_text(["API docs", "Reference"])


def test_events_are_read_correctly_wherever_the_chunks_end(page, serve):
    stream = (
        ': ping\r\n\r\nevent: chunk\r\ndata: {"text": "größer"}\r\n\r\n'
        "data: a\ndata:b\n\nid: 7\rdata\r\rdata: an event without an end"
    )
    page.goto(serve().url)
    read = page.evaluate(
        """async (stream) => {
            const { readEvents } = await import("./events.js");
            const bytes = new TextEncoder().encode(stream);
            const body = (chunks) => new ReadableStream({
                start(controller) { chunks.forEach((chunk) => controller.enqueue(chunk)); controller.close(); },
            });
            const results = new Set();
            for (let at = 0; at <= bytes.length; at += 1) {
                const events = [];
                for await (const event of readEvents(body([bytes.slice(0, at), bytes.slice(at)]))) events.push(event);
                results.add(JSON.stringify(events));
            }
            return [...results];
        }""",
        stream,
    )
    [events] = map(json.loads, read)
    assert events == [
        {"type": "chunk", "data": '{"text": "größer"}'},
        {"type": "message", "data": "a\nb"},
        {"type": "message", "data": ""},
    ]
