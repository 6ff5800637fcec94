"""The cascade over two stand-in models: who answers, what is shown, what it costs, and that it stops."""

import asyncio
import math
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stand_ins import PROMPT_TOKENS, StandInModel
from workshop.contracts.cascade import Answer, Query, Switch, TextPiece
from workshop.contracts.errors import ModelFailedError, UnavailableError
from workshop.contracts.generator import Message, Prompt, Usage
from workshop.models.cascade import PricedModel, TwoModelCascade, quality

pytestmark = pytest.mark.anyio

QUERY = Query("What is a replica?")
DRAFT_COST, MAIN_COST = 1.0, 10.0
SURE, UNSURE = 0.9, 0.7
DRAFT_WORDS, MAIN_WORDS = ("A", " copy."), ("One", " of", " several", " copies.")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def draft(probability: float = SURE, words: tuple[str, ...] = DRAFT_WORDS, **options) -> StandInModel:
    return StandInModel("draft", words, probability, **options)


def main(**options) -> StandInModel:
    return StandInModel("main", MAIN_WORDS, **options)


def cascade(draft: StandInModel, main: StandInModel, threshold: float = 0.8) -> TwoModelCascade:
    return TwoModelCascade(
        PricedModel(draft, draft.name, DRAFT_COST), PricedModel(main, main.name, MAIN_COST), threshold
    )


async def events_of(cascade: TwoModelCascade, query: Query = QUERY) -> list[TextPiece | Switch | Answer]:
    async with aclosing(cascade.stream(query)) as events:
        return [event async for event in events]


async def answer_of(cascade: TwoModelCascade, query: Query = QUERY) -> Answer:
    *_, answer = await events_of(cascade, query)
    assert isinstance(answer, Answer)
    return answer


async def test_a_draft_that_is_sure_is_the_answer_and_the_main_model_is_not_asked():
    big = main()
    answer = await answer_of(cascade(draft(), big))
    assert (answer.content, answer.model_used) == ("A copy.", "draft")
    assert (answer.cascaded, answer.draft_accepted) == (False, True)
    assert answer.quality == pytest.approx(SURE)
    assert not big.prompts


async def test_a_draft_that_is_unsure_gives_way_to_the_main_model():
    answer = await answer_of(cascade(draft(UNSURE), main()))
    assert (answer.content, answer.model_used) == ("One of several copies.", "main")
    assert (answer.cascaded, answer.draft_accepted) == (True, False)
    assert answer.quality == pytest.approx(UNSURE)


async def test_a_query_can_go_to_the_main_model_directly():
    small = draft()
    answer = await answer_of(cascade(small, main()), Query("What is a replica?", force_direct=True))
    assert answer.model_used == "main"
    assert (answer.quality, answer.cascaded, answer.draft_accepted) == (None, False, False)
    assert not small.prompts


async def test_the_threshold_itself_is_good_enough():
    assert (await answer_of(cascade(draft(0.5), main(), threshold=0.5))).draft_accepted


@pytest.mark.parametrize(("threshold", "accepted"), [(0.0, True), (1.0, False)])
async def test_at_the_ends_of_the_scale_all_drafts_pass_or_none(threshold, accepted):
    assert (await answer_of(cascade(draft(), main(), threshold))).draft_accepted is accepted


async def test_an_empty_draft_is_not_good_enough():
    answer = await answer_of(cascade(draft(words=()), main()))
    assert (answer.quality, answer.model_used) == (0.0, "main")


async def test_both_models_get_the_text_and_the_options_of_the_query():
    small, big = draft(UNSURE), main()
    await answer_of(cascade(small, big), Query("What is a replica?", max_tokens=7, temperature=0.5))
    assert small.prompts == big.prompts == [Prompt((Message("user", "What is a replica?"),), 7, 0.5)]


async def test_an_accepted_draft_costs_its_tokens_and_no_more():
    answer = await answer_of(cascade(draft(), main()))
    assert answer.usage == Usage(PROMPT_TOKENS, 2)
    assert answer.cost == pytest.approx(12 * DRAFT_COST / 1000)


async def test_a_rejected_draft_is_charged_too():
    answer = await answer_of(cascade(draft(UNSURE), main()))
    assert answer.usage == Usage(2 * PROMPT_TOKENS, 2 + 4)
    assert answer.cost == pytest.approx((12 * DRAFT_COST + 14 * MAIN_COST) / 1000)


async def test_the_latency_is_measured():
    assert 0 < (await answer_of(cascade(draft(), main()))).latency_ms < 10_000


async def test_a_stream_shows_the_draft_then_the_switch_then_the_main_answer():
    events = await events_of(cascade(draft(UNSURE), main()))
    shown = [(event.model, event.text) for event in events if isinstance(event, TextPiece)]
    assert shown == [*(("draft", word) for word in DRAFT_WORDS), *(("main", word) for word in MAIN_WORDS)]
    switch = events[len(DRAFT_WORDS)]
    assert isinstance(switch, Switch)
    assert (switch.from_model, switch.to_model, switch.threshold) == ("draft", "main", 0.8)
    assert switch.quality == pytest.approx(UNSURE)
    assert isinstance(events[-1], Answer)


async def test_the_first_piece_is_there_before_the_draft_is_complete():
    small = draft(endless=True)
    async with aclosing(cascade(small, main()).stream(QUERY)) as events:
        assert (await anext(events)).text == "A"
        assert small.running == 1


async def test_each_event_says_what_the_answer_has_taken_so_far():
    events = await events_of(cascade(draft(UNSURE), main()))
    taken = [event.so_far.usage for event in events[:-1]]
    drafted = [Usage(PROMPT_TOKENS, n) for n in (1, 2, 2)]
    assert taken == [*drafted, *(Usage(2 * PROMPT_TOKENS, 2 + n) for n in range(1, 5))]
    costs = [event.so_far.cost for event in events[:-1]]
    assert costs == sorted(costs)
    assert events[-2].so_far.content == "One of several copies."


@pytest.mark.parametrize("force_direct", [False, True])
async def test_closing_the_stream_stops_the_model(force_direct):
    small, big = draft(endless=True), main(endless=True)
    events = cascade(small, big).stream(Query("What is a replica?", force_direct=force_direct))
    await anext(events)
    await events.aclose()
    asked = big if force_direct else small
    assert (asked.running, asked.cancelled) == (0, 1)


async def test_cancelling_an_answer_stops_the_model():
    small = draft(endless=True)
    asking = asyncio.create_task(answer_of(cascade(small, main())))
    while not small.generated_tokens:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (small.running, small.cancelled) == (0, 1)


@pytest.mark.parametrize("probability", [SURE, UNSURE])
async def test_no_model_runs_on_after_a_whole_answer(probability):
    small, big = draft(probability), main()
    await answer_of(cascade(small, big))
    assert (small.running, big.running, small.cancelled, big.cancelled) == (0, 0, 0, 0)


@pytest.mark.parametrize("fails", ["draft", "main"])
async def test_a_models_error_is_the_cascades_error(fails):
    error = UnavailableError("gone")
    small, big = draft(UNSURE, error=error if fails == "draft" else None), main(error=error)
    with pytest.raises(UnavailableError, match="gone"):
        await answer_of(cascade(small, big))


async def test_an_answer_without_an_end_is_a_failure_of_the_model():
    class Breaking(StandInModel):
        async def stream(self, prompt):
            async for chunk in super().stream(prompt):
                if chunk.finish_reason is None:
                    yield chunk

    with pytest.raises(ModelFailedError, match="ended unexpectedly"):
        await answer_of(cascade(Breaking(), main()))


async def test_many_queries_at_once_do_not_mix():
    shared = cascade(draft(UNSURE), main())
    answers = await asyncio.gather(*(answer_of(shared) for _ in range(20)))
    assert {(answer.content, answer.usage) for answer in answers} == {
        ("One of several copies.", Usage(2 * PROMPT_TOKENS, 6))
    }


PROBABILITIES = st.lists(st.floats(0.001, 1), min_size=1)


@given(PROBABILITIES)
def test_quality_lies_between_the_least_and_the_greatest_probability(probabilities):
    score = quality([math.log(p) for p in probabilities])
    assert min(probabilities) * (1 - 1e-9) <= score <= max(probabilities) * (1 + 1e-9)


@given(PROBABILITIES, st.integers(1, 5))
def test_quality_does_not_depend_on_the_length_of_the_answer(probabilities, times):
    logprobs = [math.log(p) for p in probabilities]
    assert quality(logprobs * times) == pytest.approx(quality(logprobs))


@pytest.mark.parametrize(
    ("logprobs", "score"),
    [([], 0.0), ([0.0], 1.0), ([1e-7], 1.0), ([-math.inf, 0.0], 0.0), ([math.log(0.25), math.log(1.0)], 0.5)],
)
def test_quality_of_known_answers(logprobs, score):
    assert quality(logprobs) == pytest.approx(score)
