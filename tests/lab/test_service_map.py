"""The map of the service."""

from xml.etree import ElementTree

import pytest

from workshop.lab import build, service_map
from workshop.lab.service_map import LAST_LESSON, PARTS

LESSONS = [f"{number:02}" for number in range(LAST_LESSON + 1)]


@pytest.mark.parametrize("lesson", LESSONS)
def test_it_draws_every_part_once(lesson):
    drawing = ElementTree.fromstring(service_map(lesson)._repr_html_())
    texts = [element.text for element in drawing.iter("text")]
    for part in PARTS:
        assert texts.count(part.name) == 1


@pytest.mark.parametrize("lesson", [lesson.number for lesson in build.lessons()])
def test_every_lesson_that_exists_builds_a_part(lesson):
    assert "this lesson: nothing" not in repr(service_map(lesson))


def test_the_text_says_the_same():
    assert repr(service_map("02")) == (
        "built: client, HTTP server\n"
        "this lesson: contracts\n"
        "later: middleware, routers, in-process, handle, deployment, model, streaming, WebSockets, logs, metrics, "
        "auth, limits, dependencies, errors, two runtimes, replicas, GPU, registry, cascade, RAG"
    )
    assert repr(service_map("16")).endswith("this lesson: nothing\nlater: nothing")


def test_an_unknown_lesson():
    with pytest.raises(LookupError, match="no lesson '17'"):
        service_map("17")
