"""The examples of docs/clients.md, run unchanged against every runtime."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import launched, opened
from tests.conftest import system_tool
from workshop import corpus

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
OTHERS = {"/invocations": "[0, 0, 0, 0, 0]", "/v2/": str(["malignant"] * 5)}
"""What the examples print that ask the classifier, by the path that they call."""
[ANSWER] = [entry.answer for entry in corpus.entries() if "What is Ray Serve?" in entry.questions]


def examples(language: str) -> list[str]:
    found = re.findall(rf"(?s)```{language}\n(.*?)```", TEXT)
    assert found
    return found


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def answers_in(output: str) -> str:
    """The whole answer in what an example prints."""
    lines = [
        line.removeprefix("data: ").removeprefix("chunk ").removeprefix("complete ") for line in output.splitlines()
    ]
    values = [json.loads(line) for line in lines if line.startswith("{")]
    return "".join(value.get("text") or value.get("content") or "" for value in values) or output


@pytest.mark.parametrize("example", examples("bash"))
def test_curl(service, example):
    bash = [system_tool("bash"), "-c", example.replace(ADDRESS, str(service.base_url))]
    assert system_tool("curl")
    assert ANSWER in answers_in(output_of(*bash))


@pytest.mark.parametrize("example", examples("python"))
def test_python(service, example):
    [answer] = [text for path, text in OTHERS.items() if path in example] or [ANSWER]
    assert answer in answers_in(output_of(sys.executable, "-c", example.replace(ADDRESS, str(service.base_url))))


@pytest.mark.parametrize("example", examples("js"))
def test_javascript(service, chromium, example):
    with launched(chromium) as browser, opened(browser) as page:
        printed: list[str] = []
        page.on("console", lambda line: printed.append(line.text))
        page.goto(str(service.base_url))
        page.evaluate(f"async () => {{ {example.replace(ADDRESS, str(service.base_url))} }}")
    assert printed[-1] == ANSWER
