"""A caller that stops waiting for a replica stops its work: real models behind handles, and their counters."""

import asyncio
from collections.abc import Coroutine

import pytest
from ray import serve

from tests.leaving import HOT_QUESTION, LONG, Watch
from tests.service import until
from workshop import corpus
from workshop.api.streams import last_item
from workshop.contracts.generator import Message, Prompt
from workshop.integration.calls import Calls
from workshop.integration.generator import HandleGenerator
from workshop.integration.rag import HandleQuestionAnswerer
from workshop.integration.serve_app import APP_NAME

MODEL = "workshop-main"
PATIENCE_S = 60.0

pytestmark = pytest.mark.parametrize(
    "running", [pytest.param("serve, language models apart", marks=pytest.mark.ray)], indirect=True
)


def complete() -> Coroutine:
    handle = serve.get_deployment_handle("language-models", APP_NAME)
    prompt = Prompt((Message("user", HOT_QUESTION),), **LONG)
    return HandleGenerator(Calls(handle, PATIENCE_S), MODEL).complete(prompt)


def answer_from_sources() -> Coroutine:
    """Its replica waits for a replica of the language models: a chain of two handles."""
    handle = serve.get_deployment_handle("rag", APP_NAME)
    return last_item(HandleQuestionAnswerer(Calls(handle, PATIENCE_S)).stream(corpus.entries()[0].questions[0], 3))


@pytest.mark.parametrize("call", [complete, answer_from_sources])
def test_cancelling_a_call_stops_the_model_at_the_end_of_the_chain(service, call):
    watch = Watch(service, MODEL).look()
    cancelled = watch.total("cancelled")

    async def start_and_cancel() -> None:
        task = asyncio.create_task(call())
        await asyncio.wait([task], timeout=0.1)
        task.cancel()
        await asyncio.wait([task])

    def tried() -> Watch:  # an answer may end before it is cancelled, or not have begun
        asyncio.run(start_and_cancel())
        return watch.look()

    until(tried, lambda seen: seen.total("cancelled") > cancelled, PATIENCE_S)
    assert watch.total("cancelled") > cancelled
    assert until(watch.look, lambda seen: seen.total("running") == 0).total("running") == 0
