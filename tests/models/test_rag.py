"""Answers from sources: the chain, the chat model in it, and when it says that it does not know."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from tests.retriever import HELD_OUT, built, search
from tests.stand_ins import PROMPT_TOKENS, StandInModel
from workshop.contracts.errors import ModelFailedError, PromptTooLongError
from workshop.contracts.generator import Chunk, Message, Prompt, Usage
from workshop.contracts.rag import RagAnswer, RagEvent, RagProgress
from workshop.contracts.retriever import Hit, Passage
from workshop.models.rag import MAX_TOKENS, UNSURE, GeneratorChatModel, Rag
from workshop.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

THRESHOLD = Settings.model_fields["rag_threshold"].default
HITS = [Hit(Passage(f"id-{i}", "a_topic", f"Source {i} says {{this}}."), 0.9 - i / 10) for i in range(5)]
OFF_TOPIC = """\
How do I get red wine out of a white shirt?
Who was the first person on the moon?
What is the boiling point of water in Fahrenheit?
How long does it take to fly from London to New York?
Which vitamins are in a carrot?
How do I teach a dog to sit?
What is the tallest building in the world?
When did the Roman Empire fall?
How do I make sourdough bread?
Who composed the Four Seasons?
What does a heart surgeon do all day?
How can I fall asleep faster?
Which team won the last football championship?
Why do cats purr?
How do I plant roses?
What is the currency of Switzerland?
How many bones does a human have?
Can you write me a poem about autumn?
What is the best way to cook rice?
Where does chocolate come from?
How do I fix a leaking tap?
What is a leap year?
Who discovered penicillin?
How far is the sun?
How do I get rid of ants in the kitchen?
What is inflation?
How old is the pyramid of Giza?
Which wood is best for a bookshelf?
What do hedgehogs eat?
How do I learn to swim as an adult?
What is the difference between a violin and a viola?
Is it going to rain at the weekend?
How do I say thank you in Portuguese?
Why is the sea salty?
Which bus goes to the airport?
What is the offside rule?
How do I cut my own hair?
When should I prune an apple tree?
What causes an earthquake?
How much does an elephant weigh?
""".splitlines()


@dataclass
class FixedRetriever:
    """Finds the same passages for every question."""

    hits: list[Hit]

    async def search(self, text: str, k: int) -> list[Hit]:
        return self.hits[:k]


class SmallModel(StandInModel):
    """Says how many sources it was given, in a context that ends after ``sources`` of them.

    If ``sources`` ends in .5, one more source fits into the prompt, but then the answer is cut short.
    """

    def __init__(self, sources: float) -> None:
        super().__init__()
        self._sources = sources

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.prompts.append(prompt)
        given = prompt.messages[0].content.count("\n[")
        if given >= self._sources + 1:
            raise PromptTooLongError("too long", 1000 * given, 1000)
        yield Chunk(f"{given} sources", (), "length" if given > self._sources else "stop", usage=Usage(given, 2))


def rag(model: StandInModel, hits: list[Hit] = HITS, threshold: float = THRESHOLD) -> Rag:
    return Rag(FixedRetriever(hits), model, model.name, threshold)


async def answer(rag: Rag, question: str, k: int) -> RagAnswer:
    """What a stream ends with."""
    *_, answer = [event async for event in rag.stream(question, k)]
    return answer


def chat(model: StandInModel, **options) -> GeneratorChatModel:
    return GeneratorChatModel(generator=model, model_name=model.name, **options)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_model_gets_the_sources_and_the_question():
    model = StandInModel()
    await answer(rag(model), "Is it {so}?", 2)
    system = "Answer from these sources.\n[1] Source 0 says {this}.\n[2] Source 1 says {this}."
    turns = (Message("system", system), Message("user", "Is it {so}?"))
    assert model.prompts == [Prompt(turns, max_tokens=MAX_TOKENS)]


async def test_the_answer_names_its_sources_its_model_and_what_it_took():
    reply = await answer(rag(StandInModel()), "Is it so?", 3)
    assert (reply.text, reply.model, reply.sure) == ("It is so.", "stand-in", True)
    assert reply.sources == tuple(HITS[:3])
    assert reply.usage == Usage(PROMPT_TOKENS, 3)


@pytest.mark.parametrize("hits", [[], [replace(HITS[0], score=0.49)]], ids=["nothing found", "nothing near"])
async def test_without_a_relevant_source_it_is_unsure_and_no_model_is_asked(hits):
    model = StandInModel()
    assert await answer(rag(model, hits, threshold=0.5), "Is it so?", 3) == UNSURE
    assert model.prompts == []


async def test_a_source_at_the_threshold_is_relevant():
    assert (await answer(rag(StandInModel(), [replace(HITS[0], score=0.5)], threshold=0.5), "Is it so?", 3)).sure


def test_the_threshold_tells_held_out_questions_from_others():
    """The other questions were not used to choose it."""
    best = [search(built(), question, 1)[0].score for question, _ in HELD_OUT]
    others = [hits[0].score if (hits := search(built(), question, 1)) else 0.0 for question in OFF_TOPIC]
    assert sum(score >= THRESHOLD for score in best) / len(best) > 0.95
    assert sum(score < THRESHOLD for score in others) / len(others) > 0.85


@pytest.mark.parametrize("room", [1, 3, 5])
async def test_sources_that_the_model_has_no_room_for_are_left_out(room):
    reply = await answer(rag(SmallModel(room)), "Is it so?", 5)
    assert (reply.text, reply.sources) == (f"{room} sources", tuple(HITS[:room]))


async def test_an_answer_that_is_cut_short_is_asked_for_again_with_fewer_sources_and_both_are_charged():
    reply = await answer(rag(SmallModel(2.5)), "Is it so?", 5)
    assert (reply.text, reply.usage) == ("2 sources", Usage(3 + 2, 2 + 2))


async def test_a_question_that_leaves_no_room_for_a_single_source_is_too_long():
    with pytest.raises(PromptTooLongError) as caught:
        await answer(rag(SmallModel(0)), "Is it so?", 5)
    assert caught.value.prompt_tokens == 1000


async def test_an_answer_without_an_end_is_a_failure_of_the_model():
    class Breaking(StandInModel):
        async def stream(self, prompt):
            async for chunk in super().stream(prompt):
                if chunk.finish_reason is None:
                    yield chunk

    with pytest.raises(ModelFailedError, match="ended unexpectedly"):
        await answer(rag(Breaking()), "Is it so?", 3)


async def test_the_models_error_arrives_as_it_is():
    with pytest.raises(ModelFailedError, match="it broke"):
        await answer(rag(StandInModel(error=ModelFailedError("it broke"))), "Is it so?", 3)


async def test_cancelling_an_answer_from_sources_stops_the_model():
    model = StandInModel(endless=True)
    answering = asyncio.create_task(answer(rag(model), "Is it so?", 3))
    while not model.running:
        await asyncio.sleep(0)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert (model.running, model.cancelled) == (0, 1)


def unique(events: list[RagEvent]) -> list[RagEvent]:
    return list(dict.fromkeys(events))


async def test_each_event_says_what_the_answer_has_taken_so_far():
    *progress, whole = [event async for event in rag(StandInModel()).stream("Is it so?", 3)]
    assert unique(progress) == [RagProgress("stand-in", Usage(PROMPT_TOKENS, n)) for n in (1, 2, 3)]
    *progress, whole = [event async for event in rag(SmallModel(2.5)).stream("Is it so?", 5)]
    assert unique(progress) == [RagProgress("stand-in", Usage(3, 2)), RagProgress("stand-in", Usage(3 + 2, 2 + 2))]
    assert whole.usage == progress[-1].usage


@pytest.mark.parametrize("n_events", [1, 3])
async def test_closing_a_stream_of_events_stops_the_model(n_events):
    model = StandInModel(endless=True)
    async with aclosing(rag(model).stream("Is it so?", 3)) as events:
        for _ in range(n_events):
            await anext(events)
    assert await asyncio.to_thread(model.over.wait, 10)
    assert (model.running, model.cancelled) == (0, 1)


async def test_the_chat_model_says_what_the_answer_took_and_why_it_ended():
    message = await chat(StandInModel()).ainvoke("Is it so?")
    assert message.content == "It is so."
    assert message.usage_metadata == {"input_tokens": PROMPT_TOKENS, "output_tokens": 3, "total_tokens": 13}
    assert message.response_metadata | {"model_name": "stand-in", "finish_reason": "stop"} == message.response_metadata


async def test_the_chat_model_streams_the_same():
    pieces = [piece async for piece in chat(StandInModel()).astream("Is it so?")]
    assert [piece.content for piece in pieces if piece.content] == ["It", " is", " so."]
    whole = sum(pieces[1:], start=pieces[0])
    message = await chat(StandInModel()).ainvoke("Is it so?")
    assert (whole.content, whole.usage_metadata) == (message.content, message.usage_metadata)
    assert whole.response_metadata["finish_reason"] == "stop"


async def test_closing_a_stream_of_the_chat_model_stops_the_model():
    model = StandInModel(endless=True)
    async with aclosing(chat(model).astream("Is it so?")) as pieces:
        async for _ in pieces:
            break
    assert await asyncio.to_thread(model.over.wait, 10)
    assert model.cancelled == 1


async def test_the_chat_model_passes_on_roles_limits_and_stop_texts():
    model = StandInModel()
    turns = [SystemMessage("Be brief."), HumanMessage("Is it?"), AIMessage("Yes."), HumanMessage("Really?")]
    await chat(model, max_tokens=9, top_p=0.8).bind(stop=["."], temperature=0.5).ainvoke(turns)
    roles = ("system", "user", "assistant", "user")
    messages = tuple(Message(role, turn.text) for role, turn in zip(roles, turns, strict=True))
    assert model.prompts == [Prompt(messages, max_tokens=9, temperature=0.5, top_p=0.8, stop=(".",))]


def test_the_chat_model_refuses_calls_that_would_block():
    with pytest.raises(NotImplementedError, match="ainvoke"):
        chat(StandInModel()).invoke("Is it so?")


ANSWER_OR_INVOKE = """
import asyncio, sys
from langchain_core.tracers.langchain import wait_for_all_tracers
from tests.models.test_rag import StandInModel, answer, chat, rag
ask = {"rag": lambda: answer(rag(StandInModel()), "Is it so?", 3), "chat": lambda: chat(StandInModel()).ainvoke("So?")}
asyncio.run(ask[sys.argv[1]]())
wait_for_all_tracers()
"""


@pytest.mark.parametrize(("ask", "is_traced"), [("rag", False), ("chat", True)])
def test_no_question_goes_to_langsmith_whatever_the_environment_says(ask, is_traced):
    """The bare chat model, which obeys the environment, shows that this test would notice such a request."""
    requests = []

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.send_error(401)  # an error that clients do not retry

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        Thread(target=server.serve_forever).start()
        tracing = {
            "NO_PROXY": "*",
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_API_KEY": "key",
            "LANGSMITH_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }
        subprocess.run([sys.executable, "-c", ANSWER_OR_INVOKE, ask], env=os.environ | tracing, check=True)
        server.shutdown()
    assert bool(requests) is is_traced
