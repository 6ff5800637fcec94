"""Answers from sources, the same in every runtime. In a deployment, a LangChain chain in a replica gives them."""

import pytest

from workshop import corpus

ENTRIES = corpus.entries()[::40]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.questions[0])
def test_the_same_question_gets_the_same_answer_and_sources(service, reference, entry):
    body = {"query": entry.held_out[0], "k": 3}
    answer, expected = (each.post("/v1/rag/query", json=body).json() for each in (service, reference))
    assert answer["sure"]
    assert answer["answer"] == expected["answer"]
    assert [source["text"] for source in answer["sources"]] == [source["text"] for source in expected["sources"]]


def test_its_own_answer_is_among_the_sources(service):
    found = [
        entry.answer in [hit["text"] for hit in service.post("/v1/rag/query", json=ask(entry)).json()["sources"]]
        for entry in ENTRIES
    ]
    assert sum(found) > 0.7 * len(found)


def ask(entry: corpus.Entry) -> dict:
    return {"query": entry.held_out[0], "k": 5}


def test_a_question_without_a_source_is_not_answered(service):
    answer = service.post("/v1/rag/query", json={"query": "Which team won the football cup in Brazil?"}).json()
    assert (answer["sure"], answer["sources"], answer["model"]) == (False, [], None)
