"""What the tests of the retriever and of its users share: one index of corpus and lessons, and questions for it."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from workshop import corpus
from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.retriever import Hit
from workshop.models.retriever import CorpusRetriever, normalized
from workshop.settings import LESSONS

HELD_OUT = [(question, entry.answer) for entry in corpus.entries() for question in entry.held_out]
"""Questions that the index has not seen, and the answer that each should find."""


Result = TypeVar("Result")


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """The result, also where an event loop is running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@cache
def built() -> CorpusRetriever:
    """The retriever, built once per test run, since that takes seconds."""
    return finish(CorpusRetriever.build(LESSONS))


def embed(index: CorpusRetriever, texts: Sequence[str]) -> FloatMatrix:
    """As ``Retriever.embed``, without a cache."""
    return normalized(finish(index.project(texts)))


def search(index: CorpusRetriever, text: str, k: int) -> list[Hit]:
    """As ``Retriever.search``, without a cache."""
    return index.nearest(finish(index.project([text])), k)
