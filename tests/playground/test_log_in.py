"""Users who log in to the playground, in a real browser."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect

from tests.playground.proxy import PREFIX, prefix_proxy
from tests.stand_ins import StandInModel, database_url, language_services
from workshop.api.app import create_app
from workshop.api.passwords import Passwords
from workshop.contracts.principals import Role
from workshop.contracts.services import Services
from workshop.contracts.users import User
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore
from workshop.storage.users import SqlUserStore

PASSWORD = "the engine weaves"


@pytest.fixture
def cookies() -> dict[str, str]:
    """The cookies that the service has received last, by path."""
    return {}


@pytest.fixture
def app(classifier, tmp_path, cookies) -> FastAPI:
    """A service with one user, ada."""
    file = tmp_path / "users.sqlite"

    async def add_user() -> None:
        store = SqlUserStore(database_url(file))
        await store.put(User("ada", Role.MEMBER, await Passwords().hash(PASSWORD)))
        await store.aclose()

    with ThreadPoolExecutor(1) as thread:  # Playwright runs an event loop in this one
        thread.submit(asyncio.run, add_user()).result()
    draft, main = StandInModel("draft", ("A", " draft.")), StandInModel("main", ("An", " answer."))
    services = Services(
        classifier,
        SqlCaseStore(database_url(file)),
        language_services(file, draft, main),
        SqlUserStore(database_url(file)),
    )
    settings = Settings(token_keys={"1": "a key that is long enough for tests, really"})
    app = create_app(services, settings)

    @app.middleware("http")
    async def record(request, call_next):
        cookies[request.url.path] = request.headers.get("Cookie", "")
        return await call_next(request)

    return app


@pytest.fixture
def url(app) -> Iterator[str]:
    with run_app(app) as server:
        yield server.url


def log_in(page, password: str = PASSWORD) -> None:
    page.get_by_label("or name").fill("ada")
    page.get_by_label("and password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_a_user_logs_in_uses_everything_and_logs_out(page, url):
    page.goto(url)
    expect(page.locator("#language-notice")).to_contain_text("requires a valid API key or token")
    log_in(page)
    expect(page.locator("#logged-in")).to_contain_text("Logged in as ada")
    expect(page.locator("#chat .state")).to_have_text("Connected")
    cascade = page.locator("#cascade")
    cascade.get_by_role("button", name="Ask").click()
    expect(cascade.locator(".answer")).to_contain_text("A draft.")
    page.get_by_role("button", name="Malignant example").click()
    expect(page.locator("#predict .verdict")).not_to_be_empty()
    assert page.evaluate("document.cookie") == ""
    page.reload()
    expect(page.locator("#logged-in")).to_contain_text("Logged in as ada")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("or name")).to_be_visible()
    expect(page.locator("#chat .state")).to_have_text("Closed")
    page.reload()
    expect(page.locator("#language-notice")).to_contain_text("requires a valid API key or token")


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_user_logs_in_to_the_documentation(page, app, prefix):
    with (
        run_app(app, root_path=prefix) as server,
        prefix_proxy(server.url) if prefix else nullcontext(f"{server.url}/") as url,
    ):
        page.goto(f"{url}docs")
        page.get_by_role("button", name="Authorize").first.click()
        form = page.locator(".auth-container").filter(has_text="Users, who log in with a password")
        form.locator("#oauth_username").fill("ada")
        form.locator("#oauth_password").fill(PASSWORD)
        with page.expect_response("**/v1/auth/token") as issued:
            form.get_by_role("button", name="Apply given OAuth2 credentials").click()
        assert issued.value.status == 200
        expect(page.get_by_role("heading", name="Authorized", exact=True)).to_be_visible()
        page.get_by_role("button", name="Close").last.click()
        operation = page.locator("#operations-auth-show_me")
        operation.click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table")).to_contain_text('"principal": "ada"')


def test_a_wrong_password_is_said(page, url):
    page.goto(url)
    log_in(page, "something else")
    expect(page.get_by_role("form", name="Log in").get_by_role("alert")).to_have_text(
        "the name or the password is wrong"
    )
    expect(page.get_by_label("and password")).to_have_value("")
    log_in(page)
    expect(page.locator("#logged-in")).to_contain_text("Logged in as ada")


def test_a_page_of_another_service_on_this_machine_cannot_use_the_log_in(page, url, cookies):
    """It has the same site, so the browser sends the cookie along: the service itself must refuse."""
    page.goto(url)
    log_in(page)
    expect(page.locator("#logged-in")).to_contain_text("ada")
    log_out = f"{url}/v1/auth/logout"
    with run_app(FastAPI()) as other, page.expect_response(log_out) as sent:
        page.goto(f"{other.url}/openapi.json")
        page.evaluate("url => fetch(url, {method: 'POST', credentials: 'include', mode: 'no-cors'})", log_out)
    assert sent.value.status == 401
    assert "workshop_session" in cookies["/v1/auth/logout"]
    page.goto(url)
    expect(page.locator("#logged-in")).to_contain_text("ada")
