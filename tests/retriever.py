"""What the tests of the retriever and of its users share: one index of corpus and lessons, and questions for it."""

from functools import cache

from workshop import corpus
from workshop.models.retriever import CorpusRetriever
from workshop.settings import LESSONS

HELD_OUT = [(question, entry.answer) for entry in corpus.entries() for question in entry.held_out]
"""Questions that the index has not seen, and the answer that each should find."""


@cache
def built() -> CorpusRetriever:
    """The retriever, built once per test run, since that takes seconds."""
    return CorpusRetriever.build(LESSONS)
