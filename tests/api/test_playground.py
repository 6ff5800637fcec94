"""The playground's files over HTTP. What the page does with them is tested in a browser, in tests/playground."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pytest

from tests.stand_ins import StandInClassifier
from workshop.api.app import create_app
from workshop.api.routers.playground import STATIC
from workshop.contracts.services import Services
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore

FILES = sorted(path.name for path in STATIC.iterdir())
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[httpx.Client]:
    store = SqlCaseStore(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('database')}/service.sqlite")
    app = create_app(Services(StandInClassifier(), store), Settings())
    with run_app(app) as server, httpx.Client(base_url=server.url) as client:
        yield client


def test_the_root_is_the_page(client):
    assert client.get("/").text == (STATIC / "index.html").read_text()


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_its_type_and_a_policy_that_allows_only_this_service(client, name):
    answer = client.get(f"/{name}")
    assert answer.headers["Content-Type"] == TYPES[name.rpartition(".")[2]]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    sources = {rule: allowed for rule, allowed in policy.items() if rule.endswith("-src")}
    assert set(sources.values()) == {"'none'", "'self'"}


def test_a_browser_caches_a_file_and_revalidates_it(client):
    first = client.get("/playground.js")
    again = client.get("/playground.js", headers={"If-None-Match": first.headers["ETag"]})
    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/nothing", "/nothing.js", "/v1/nothing", "/../app.py", "/%2e%2e/app.py"])
def test_a_missing_file_is_a_problem_document(client, path):
    answer = client.get(path, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_the_page_hides_no_route_of_the_service(client):
    assert client.post("/v1/nothing").status_code == 404
    assert client.put("/v1/predict").status_code == 405
    assert client.get("/v1/cases/").status_code == 307
    assert client.get("/openapi.json").json()["info"]["title"]
    assert "/" not in client.get("/openapi.json").json()["paths"]


class Links(HTMLParser):
    """Collects the URLs that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value or "" for name, value in attrs if name in ("href", "src")}


def test_every_url_is_relative_so_that_a_proxy_may_add_a_prefix():
    parser = Links()
    parser.feed((STATIC / "index.html").read_text())
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js"))
    addresses = parser.found | set(re.findall(r'from "(?:\./)?([^"]+)"', scripts))
    assert {"playground.js", "playground.css", "docs", "service.js"} <= addresses
    assert not [address for address in addresses if re.match(r"/|\w+:", address)]
    assert not re.findall(r"""["'`](?:/|https?:|wss?:)""", scripts)


def test_every_file_that_the_page_uses_exists():
    text = "".join(path.read_text() for path in STATIC.iterdir())
    assert set(re.findall(r'"(?:\./)?(\w+\.(?:js|css|svg))"', text)) | {"index.html"} == set(FILES)
