"""Micro-batching, in front of a classifier whose calls wait until the test lets them go."""

import asyncio
from contextvars import ContextVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service import ROWS, every_error
from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import DeadlineExceededError, InvalidInputError, OverloadedError, UnavailableError
from workshop.integration.batching import MicroBatched
from workshop.models.tumours import TumourClassifier, train

pytestmark = pytest.mark.anyio

BAD = -1.0
"""A row with this value is invalid."""

REQUEST: ContextVar[str | None] = ContextVar("REQUEST", default=None)
"""The request that a call belongs to, stored in the context as Serve does."""


def row(value: float) -> FloatMatrix:
    return np.full((1, 30), value)


def rows(count: int, value: float = 0.0) -> FloatMatrix:
    return np.full((count, 30), value)


class Gated:
    """Answers each row with its first value, once ``go`` is set. Records the size of each call, and its request."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.calls: list[int] = []
        self.requests: list[str | None] = []
        self.running = 0
        self.most_running = 0
        self.error: BaseException | None = None

    async def predict(self, rows: FloatMatrix) -> Scores:
        self.calls.append(len(rows))
        self.requests.append(REQUEST.get())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        if (rows == BAD).any():
            raise InvalidInputError("bad", int(np.argwhere(rows == BAD)[0][0]), "mean_area")
        return Scores(rows[:, :2].copy(), ("a", "b"), "1")

    async def card(self) -> ModelCard:
        raise NotImplementedError


def batched(inner, *, max_rows=100, max_waiting_rows=1000, max_calls=1, timeout_s=60.0) -> MicroBatched:
    return MicroBatched(
        inner, max_rows=max_rows, max_waiting_rows=max_waiting_rows, max_calls=max_calls, timeout_s=timeout_s
    )


async def send(classifier: MicroBatched, *requests: FloatMatrix) -> list[asyncio.Task[Scores]]:
    """Start the requests in this order; when this returns, each has arrived."""
    tasks = [asyncio.create_task(classifier.predict(request)) for request in requests]
    await settle()
    return tasks


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def values(scores: Scores) -> list[float]:
    return scores.probabilities[:, 0].tolist()


@pytest.fixture
def inner() -> Gated:
    return Gated()


async def test_a_lone_request_starts_at_once(inner):
    await send(batched(inner), row(1))
    assert inner.calls == [1]


async def test_requests_that_wait_together_share_one_call(inner):
    tasks = await send(batched(inner), *(row(value) for value in range(6)))
    inner.go.set()
    assert [values(await task) for task in tasks] == [[float(value)] for value in range(6)]
    assert inner.calls == [1, 5]


async def test_each_request_gets_its_own_rows_back(inner):
    tasks = await send(batched(inner), rows(2, 1), rows(3, 2), rows(1, 3), rows(4, 4))
    inner.go.set()
    assert [values(await task) for task in tasks] == [[1.0] * 2, [2.0] * 3, [3.0], [4.0] * 4]
    assert inner.calls == [2, 8]


async def test_a_call_has_no_more_rows_than_allowed(inner):
    tasks = await send(batched(inner, max_rows=4), *[rows(1)] + [rows(2)] * 5)
    inner.go.set()
    await asyncio.gather(*tasks)
    assert inner.calls == [1, 4, 4, 2]


async def test_a_larger_request_goes_alone_and_in_its_turn(inner):
    tasks = await send(batched(inner, max_rows=4), rows(1, 1), rows(1, 2), rows(9, 3), rows(1, 4), rows(1, 5))
    inner.go.set()
    assert [len(values(await task)) for task in tasks] == [1, 1, 9, 1, 1]
    assert inner.calls == [1, 1, 9, 2]


async def test_one_row_at_most_means_no_batching(inner):
    tasks = await send(batched(inner, max_rows=1), *[rows(1)] * 4)
    inner.go.set()
    await asyncio.gather(*tasks)
    assert inner.calls == [1, 1, 1, 1]


async def test_several_calls_may_run_at_once_but_no_more_than_allowed(inner):
    tasks = await send(batched(inner, max_rows=1, max_calls=3), *[rows(1)] * 7)
    assert inner.calls == [1, 1, 1]
    inner.go.set()
    await asyncio.gather(*tasks)
    assert len(inner.calls) == 7
    assert inner.most_running == 3


async def test_rows_above_the_limit_are_turned_away_and_the_waiting_ones_are_served(inner):
    classifier = batched(inner, max_waiting_rows=3)
    tasks = await send(classifier, rows(1), rows(2), rows(1))
    with pytest.raises(OverloadedError, match="3 rows are waiting already"):
        await classifier.predict(rows(1))
    inner.go.set()
    await asyncio.gather(*tasks)
    assert len(values(await classifier.predict(rows(3)))) == 3


async def test_a_request_larger_than_the_queue_passes_when_nothing_waits(inner):
    inner.go.set()
    assert len(values(await batched(inner, max_waiting_rows=3).predict(rows(10)))) == 10


@pytest.mark.parametrize("place", ["running", "waiting"])
async def test_a_late_answer_is_a_deadline_error(inner, place):
    classifier = batched(inner, timeout_s=0.05)
    tasks = await send(classifier, rows(1), rows(1))
    with pytest.raises(DeadlineExceededError) as caught:
        await tasks[place == "waiting"]
    assert caught.value.timeout_s == 0.05
    inner.go.set()
    assert len(values(await batched(inner).predict(rows(2)))) == 2


async def test_a_call_that_hangs_does_not_hold_up_the_next_one(inner):
    classifier = batched(inner, timeout_s=0.2)
    [hung] = await send(classifier, row(1))
    with pytest.raises(DeadlineExceededError):
        await hung
    inner.go.set()
    assert (await classifier.predict(row(2))).probabilities[0, 0] == 2
    assert inner.calls == [1, 1]


async def test_a_caller_that_leaves_is_dropped_from_the_queue(inner):
    tasks = await send(batched(inner), row(0), row(1), row(2), row(3))
    tasks[2].cancel()
    await settle()
    inner.go.set()
    assert [values(await tasks[i]) for i in (0, 1, 3)] == [[0.0], [1.0], [3.0]]
    assert tasks[2].cancelled()
    assert inner.calls == [1, 2]


async def test_a_caller_that_leaves_during_the_call_affects_no_other(inner):
    tasks = await send(batched(inner), row(0), row(1), row(2))
    tasks[0].cancel()
    inner.go.set()
    await settle()
    assert [values(await task) for task in tasks[1:]] == [[1.0], [2.0]]


async def test_a_call_does_not_run_in_the_context_of_one_of_its_callers(inner):
    """Serve looks up in the context which request a call belongs to, and cancels the call with that request."""
    REQUEST.set("the first caller's")
    tasks = await send(batched(inner), *[rows(1)] * 3)
    inner.go.set()
    await asyncio.gather(*tasks)
    assert inner.requests == [None, None]


async def test_rows_of_callers_that_have_left_do_not_fill_the_queue(inner):
    classifier = batched(inner, max_waiting_rows=3)
    tasks = await send(classifier, rows(1), rows(3))
    tasks[1].cancel()
    await settle()
    later = await send(classifier, rows(2))
    inner.go.set()
    assert len(values(await later[0])) == 2


async def test_only_the_bad_request_is_invalid_and_the_error_names_its_own_row(inner):
    bad = np.concatenate([rows(2), row(BAD)])
    tasks = await send(batched(inner), row(0), rows(3, 1), bad, row(2))
    inner.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [values(answers[i]) for i in (0, 1, 3)] == [[0.0], [1.0] * 3, [2.0]]
    assert isinstance(answers[2], InvalidInputError)
    assert answers[2].row == 2


@pytest.mark.parametrize("error", [*every_error(), ValueError("a bug")], ids=lambda error: type(error).__name__)
async def test_an_error_reaches_every_request_of_the_call_and_the_next_one_is_served(inner, error):
    classifier = batched(inner)
    inner.error = error
    tasks = await send(classifier, row(0), row(1), row(2))
    inner.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(error)] * 3
    inner.error = None
    assert values(await classifier.predict(row(7))) == [7.0]


POISON = -2.0
"""A row with this value makes the model fail with an error that does not name the row."""


class Picky(Gated):
    """Fails as models do: with an error that names a row, or with one that does not."""

    async def predict(self, rows: FloatMatrix) -> Scores:
        scores = await super().predict(rows)
        if (rows == POISON).any():
            raise ValueError("Input X contains infinity")
        return scores


async def outcomes(tasks: list[asyncio.Task[Scores]]) -> list[object]:
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(answer) if isinstance(answer, Exception) else values(answer)[0] for answer in answers]


async def test_one_bad_request_costs_one_more_call():
    inner = Picky()
    tasks = await send(batched(inner), *(row(value) for value in range(50)), row(BAD), *(row(5) for _ in range(49)))
    inner.go.set()
    assert await outcomes(tasks) == [*map(float, range(50)), InvalidInputError, *[5.0] * 49]
    assert inner.calls == [1, 99, 98]


async def test_named_requests_are_dropped_one_by_one():
    inner = Picky()
    bad = np.concatenate([rows(2), row(BAD), row(BAD)])
    tasks = await send(batched(inner), row(0), rows(3, 1), bad, row(2), row(BAD), row(3))
    inner.go.set()
    assert await outcomes(tasks) == [0.0, 1.0, InvalidInputError, 2.0, InvalidInputError, 3.0]
    assert inner.calls == [1, 10, 6, 5]
    errors = [tasks[i].exception() for i in (2, 4)]
    assert [(error.message, error.row, error.field) for error in errors] == [
        ("bad", 2, "mean_area"),
        ("bad", 0, "mean_area"),
    ]


@pytest.mark.parametrize("n_bad", [1, 3])
async def test_bad_requests_that_no_error_names_are_found_by_bisection(n_bad):
    inner = Picky()
    requests = [row(POISON if 20 <= i < 20 + n_bad else i) for i in range(257)]
    tasks = await send(batched(inner, max_rows=500), *requests)
    inner.go.set()
    assert await outcomes(tasks) == [ValueError if 20 <= i < 20 + n_bad else float(i) for i in range(257)]
    assert len(inner.calls) <= 2 + n_bad * 2 * 8  # log2(256)


async def test_an_error_that_names_a_row_that_was_not_sent_goes_to_every_request():
    inner = Picky()
    inner.error = InvalidInputError("bad", 99, "mean_area")
    tasks = await send(batched(inner), row(0), row(1), row(2))
    inner.go.set()
    assert await outcomes(tasks) == [InvalidInputError] * 3


@pytest.mark.parametrize("error", [UnavailableError("gone"), DeadlineExceededError("late", 1.0)], ids=repr)
async def test_an_unavailable_model_is_not_asked_again_and_again(inner, error):
    inner.error = error
    tasks = await send(batched(inner), *(row(i) for i in range(50)))
    inner.go.set()
    assert await outcomes(tasks) == [type(error)] * 50
    assert inner.calls == [1, 49]


@pytest.mark.parametrize("bad", [BAD, POISON])
async def test_the_rows_of_callers_that_have_left_are_not_predicted_again(bad):
    inner = Picky()
    tasks = await send(batched(inner), row(0), row(1), row(2), row(bad), row(3), row(4))
    inner.go.set()
    await asyncio.sleep(0)
    inner.go.clear()
    await settle()
    for task in (tasks[1], tasks[4], tasks[5]):
        task.cancel()
    await settle()
    inner.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert values(answers[2]) == [2.0]
    assert inner.calls[:2] == [1, 5]
    assert sum(inner.calls[2:]) <= 2 + 1


@given(
    kinds=st.lists(st.sampled_from(["right", "right", "named", "unnamed"]), min_size=1, max_size=40),
    max_rows=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_all_requests_but_the_bad_ones_are_answered(kinds, max_rows):
    value = {"right": 1.0, "named": BAD, "unnamed": POISON}
    outcome = {"right": 1.0, "named": InvalidInputError, "unnamed": ValueError}

    async def ask() -> list[object]:
        inner = Picky()
        tasks = await send(batched(inner, max_rows=max_rows), *(rows(1 + i % 3, value[k]) for i, k in enumerate(kinds)))
        inner.go.set()
        return await outcomes(tasks)

    assert asyncio.run(ask()) == [outcome[kind] for kind in kinds]


class Direct:
    """The real model, called in the next iteration of the event loop, so that requests meet in the queue."""

    model = train()

    async def predict(self, rows: FloatMatrix) -> Scores:
        await asyncio.sleep(0)
        return self.model.predict(rows)

    async def card(self) -> ModelCard:
        return self.model.card


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    max_rows=st.integers(1, 40),
    max_calls=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_any_split_into_requests_gives_the_direct_prediction(sizes, max_rows, max_calls):
    async def ask() -> list[Scores]:
        classifier = batched(Direct(), max_rows=max_rows, max_calls=max_calls)
        parts = np.split(ROWS[: sum(sizes)], np.cumsum(sizes)[:-1])
        return await asyncio.gather(*(classifier.predict(part) for part in parts))

    scores = asyncio.run(ask())
    assert [len(part.probabilities) for part in scores] == sizes
    np.testing.assert_allclose(
        np.concatenate([part.probabilities for part in scores]),
        TumourClassifier.predict(Direct.model, ROWS[: sum(sizes)]).probabilities,
        rtol=0,
        atol=1e-12,
    )
