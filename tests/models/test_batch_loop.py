"""Many answers at once, some of which break the loop that all share."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import aclosing

import pytest
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from workshop import corpus
from workshop.contracts.errors import ModelFailedError, PromptTooLongError
from workshop.contracts.generator import Message, Prompt
from workshop.models import language_model
from workshop.models.language_model import LanguageModel
from workshop.settings import WEIGHTS

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

QUESTIONS = [entry.questions[0] for entry in corpus.entries()]
BREAKING = 1e-40
"""A temperature that ends a loop, unless it is taken as 0."""
SAMPLED = {"temperature": 1.0, "top_p": 0.001}
"""Makes the sampling loop take the most probable tokens."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def model():
    model = LanguageModel.load(str(WEIGHTS / "workshop-draft"))
    yield model
    await model.aclose()


@pytest.fixture
def breakable(model, monkeypatch) -> LanguageModel:
    """The model without the guard against tiny temperatures."""
    monkeypatch.setattr(language_model, "MIN_TEMPERATURE", 1e-300)
    return model


def prompt_for(question: str = QUESTIONS[0], **options) -> Prompt:
    return Prompt((Message("user", question),), **options)


def loops() -> set[threading.Thread]:
    """The threads of the loops in this process."""
    return {thread for thread in threading.enumerate() if "_run_generation_loop" in thread.name}


def caches() -> weakref.WeakSet[PagedAttentionCache]:
    """The caches that loops in this process hold."""
    return weakref.WeakSet(kept for kept in gc.get_objects() if type(kept) is PagedAttentionCache)


@pytest.fixture(scope="module", autouse=True)
def earlier() -> tuple[set[threading.Thread], weakref.WeakSet[PagedAttentionCache]]:
    """The loops and caches of models that other test files have left open in this process."""
    return loops(), caches()


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-40}, {"temperature": 5e-324}, {"temperature": 1e-3}, {"temperature": 2.0, "top_p": 1e-30}],
    ids=str,
)
async def test_a_tiny_temperature_counts_as_zero_and_affects_no_others(model, options):
    cold, *others = await asyncio.gather(
        model.complete(prompt_for(**options)),
        *(model.complete(prompt_for(question, **SAMPLED)) for question in QUESTIONS[:3]),
    )
    assert cold.text == (await model.complete(prompt_for())).text
    assert all(other.finish_reason for other in others)


@pytest.mark.parametrize("options", [{"temperature": 1e308}, {"temperature": 2.0, "top_p": 5e-324}], ids=str)
async def test_extreme_numbers_get_an_answer(model, options):
    assert (await model.complete(prompt_for(max_tokens=8, **options))).usage.completion_tokens > 0


async def test_only_the_request_that_breaks_the_loop_fails(breakable):
    expected = [(await breakable.complete(prompt_for(question))).text for question in QUESTIONS[:6]]
    calls = [breakable.complete(prompt_for(question, **SAMPLED)) for question in QUESTIONS[:6]]
    breaking = [breakable.complete(prompt_for(temperature=BREAKING)) for _ in range(2)]
    answers = await asyncio.gather(*calls[:3], breaking[0], *calls[3:], breaking[1], return_exceptions=True)
    assert [type(answers[i]) for i in (3, 7)] == [ModelFailedError] * 2
    del answers[7], answers[3]
    assert [answer.text for answer in answers] == expected


async def test_a_stream_under_way_continues_where_it_was(breakable):
    whole = await breakable.complete(prompt_for())
    async with aclosing(breakable.stream(prompt_for(**SAMPLED))) as chunks:
        pieces = [await anext(chunks)]
        with pytest.raises(ModelFailedError):
            await breakable.complete(prompt_for(temperature=BREAKING))
        pieces += [chunk async for chunk in chunks]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].usage == whole.usage
    assert sum(len(piece.tokens) for piece in pieces) == whole.usage.completion_tokens


async def test_broken_loops_leak_no_memory_and_no_threads(breakable, earlier):
    for _ in range(6):
        answers = await asyncio.gather(
            breakable.complete(prompt_for(max_tokens=20, **SAMPLED)),
            breakable.complete(prompt_for(temperature=BREAKING)),
            return_exceptions=True,
        )
        assert [type(answer).__name__ for answer in answers] == ["Completion", "ModelFailedError"]
        assert len(caches() - earlier[1]) <= 2, "a loop has ended, but its cache is still in memory"
    await breakable.complete(prompt_for(max_tokens=2, **SAMPLED))
    assert len(loops() - earlier[0]) <= 2  # one that samples, one that does not


async def test_a_request_cancelled_while_it_waits_to_continue_alone_delays_no_others(breakable):
    waiting = [asyncio.create_task(breakable.complete(prompt_for(question, **SAMPLED))) for question in QUESTIONS[:4]]
    breaking = asyncio.create_task(breakable.complete(prompt_for(temperature=BREAKING)))
    await until(lambda: breakable._loops._alone.locked() or breaking.done())
    waiting[2].cancel()
    answers = await asyncio.gather(*waiting, breaking, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == [
        "Completion",
        "Completion",
        "CancelledError",
        "Completion",
        "ModelFailedError",
    ]


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"temperature": BREAKING}], ids=str)
async def test_closing_ends_what_is_under_way(breakable, options, earlier):
    await breakable.aclose()
    calls = [asyncio.create_task(breakable.complete(prompt_for(question, **options))) for question in QUESTIONS[:8]]
    await until(lambda: breakable._running + sum(call.done() for call in calls) == len(calls))  # all have begun
    await breakable.aclose()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    ends = {type(answer).__name__ for answer in answers}
    assert ends <= {"Completion", "UnavailableError", "ModelFailedError"}
    assert ("ModelFailedError" in ends) <= (options.get("temperature") == BREAKING)
    assert not loops() - earlier[0]


async def test_requests_of_several_event_loops_share_a_batch_and_all_get_their_tokens_at_once(model, earlier):
    all_ready = threading.Barrier(3)

    async def count_chunks(question: str) -> int:
        return len([chunk async for chunk in model.stream(prompt_for(question))])

    def count_in_a_new_loop(question: str) -> int:
        all_ready.wait(20)
        return asyncio.run(count_chunks(question))

    await model.aclose()
    counts = await asyncio.gather(*(asyncio.to_thread(count_in_a_new_loop, QUESTIONS[0]) for _ in range(3)))
    assert min(counts) > max(counts) / 2, counts
    assert len(loops() - earlier[0]) == 1


async def test_two_hundred_at_once_of_which_half_are_cancelled(model):
    before = await model.activity()
    calls = [
        asyncio.create_task(
            model.complete(prompt_for(QUESTIONS[i % len(QUESTIONS)], max_tokens=12, temperature=i % 3 / 2))
        )
        for i in range(200)
    ]
    for i, call in enumerate(calls[::2]):
        if i % 10 == 0:
            await asyncio.sleep(0)  # some are cancelled in the queue, some in the prefill, some later
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert all(answer.usage.completion_tokens <= 12 for answer in answers[1::2])
    activity = await model.activity()
    assert (activity.running, activity.completed - before.completed) == (0, 100)


async def test_a_request_cancelled_before_its_first_token_stops_the_model(model):
    await model.aclose()
    before = await model.activity()
    stream = model.stream(prompt_for("word " * 500, max_tokens=400, temperature=2.0))
    first = asyncio.create_task(anext(stream))
    await until(lambda: model._loops._loops)
    first.cancel()
    await asyncio.wait([first])
    assert (await model.complete(prompt_for(max_tokens=1))).usage.completion_tokens == 1
    await asyncio.sleep(0.2)
    assert (await model.activity()).generated_tokens - before.generated_tokens < 50


async def test_a_prompt_may_fill_the_context_except_for_one_token(model):
    length = (await model.card()).context_length
    marks = (await model.complete(prompt_for("a", max_tokens=1))).usage.prompt_tokens - 1
    full = await model.complete(prompt_for(" a" * (length - 1 - marks)))
    assert (full.usage.prompt_tokens, full.usage.completion_tokens) == (length - 1, 1)
    with pytest.raises(PromptTooLongError):
        await model.complete(prompt_for(" a" * (length - marks)))


@pytest.mark.parametrize("content", ["", " ", "\n\n", "\0", "a\0b", "\u202e", "🦜" * 20, "\x1b[0m"], ids=ascii)
async def test_odd_texts_get_an_answer(model, content):
    assert (await model.complete(prompt_for(content, max_tokens=2))).usage.completion_tokens in (1, 2)


async def test_a_prompt_is_encoded_without_blocking_the_event_loop(model, monkeypatch):
    go, encode = threading.Event(), model._template.encode

    def waits(messages):
        assert go.wait(30), "nothing else ran meanwhile"
        return encode(messages)

    monkeypatch.setattr(model._template, "encode", waits)
    call = asyncio.create_task(model.complete(prompt_for(max_tokens=1)))
    await asyncio.sleep(0.01)
    go.set()
    assert (await call).usage.completion_tokens == 1


async def test_very_long_texts_are_encoded_while_other_code_runs(model):
    """A thread alone is not enough: one that held the interpreter's lock would block the event loop all the same."""
    messages = [Message("user", "word " * 20_000)] * 40
    start = last = time.perf_counter()
    call = asyncio.create_task(asyncio.to_thread(model._template.encode, messages))
    longest = 0.0
    while not call.done():
        await asyncio.sleep(0.001)
        last, before = time.perf_counter(), last
        longest = max(longest, last - before)
    assert longest < (last - start) / 3


async def test_a_prompt_that_cannot_fit_is_refused_without_encoding_it(model, monkeypatch):
    monkeypatch.setattr(model._template, "encode", None)
    with pytest.raises(PromptTooLongError, match="at least") as caught:
        await model.complete(prompt_for("word " * 100_000))
    assert caught.value.prompt_tokens > caught.value.context_length


async def test_a_model_that_is_closed_leaks_no_memory(breakable, earlier):
    with pytest.raises(ModelFailedError):
        await breakable.complete(prompt_for(temperature=BREAKING))
    await breakable.aclose()
    gc.collect()
    assert not caches() - earlier[1]


async def test_answers_that_find_no_room_in_the_cache_wait_for_it(model):
    small = LanguageModel.load(str(WEIGHTS / "workshop-draft"), cache_tokens=96)
    try:
        assert (await small.card()).context_length == 96
        expected = [await model.complete(prompt_for(question)) for question in QUESTIONS[:8]]
        answers = await asyncio.gather(*(small.complete(prompt_for(question)) for question in QUESTIONS[:8]))
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        with pytest.raises(PromptTooLongError):
            await small.complete(prompt_for("why " * 96))
    finally:
        await small.aclose()
