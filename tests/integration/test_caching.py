"""The same request to the same model is computed once, and no model answers for another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import DeadlineExceededError, InvalidInputError
from workshop.integration.caching import CachedClassifier
from workshop.storage.cache import Cache, RedisStore

pytestmark = pytest.mark.anyio

CARD = ModelCard("model", "1", 0.5, 0.5, ("no", "yes"), "yes", (), "checksum")
NEW_VERSION = replace(CARD, version="2")
SAME_VERSION = replace(CARD, sha256="another")


@dataclass
class Model:
    """Answers with its rows' first two columns, once ``go`` is set. Counts the rows and the cards it was asked for."""

    now: ModelCard = CARD
    rows: list[FloatMatrix] = field(default_factory=list)
    cards: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.go.set()

    async def predict(self, rows: FloatMatrix) -> Scores:
        self.rows.append(rows)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return Scores(rows[:, :2].copy(), self.now.classes, self.now.version, self.now.sha256)

    async def card(self) -> ModelCard:
        self.cards += 1
        await asyncio.sleep(0)
        return self.now

    async def until_called(self, times: int = 1) -> None:
        async with asyncio.timeout(60):
            while len(self.rows) < times:
                await asyncio.sleep(0.01)


@pytest.fixture
async def model() -> Model:
    return Model()


@pytest.fixture(params=["memory", "redis"])
async def cache(request) -> AsyncIterator[Cache]:
    url = request.getfixturevalue("redis")[0] if request.param == "redis" else None
    async with aclosing(Cache.at(url, 2**20)) as cache:
        yield cache


@pytest.fixture
def classifier(model, cache) -> CachedClassifier:
    return CachedClassifier(model, cache, timeout_s=60)


def rows(*values: float) -> FloatMatrix:
    """One row for each value, of three columns."""
    return np.repeat([[value] for value in values], 3, axis=1)


async def test_the_same_rows_are_computed_once(classifier, model):
    first, second = [await classifier.predict(rows(1.0, 2.0)) for _ in range(2)]
    np.testing.assert_array_equal(first.probabilities, [[1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(second.probabilities, first.probabilities)
    assert (second.classes, second.model_version, second.model_sha256) == (CARD.classes, "1", "checksum")
    assert len(model.rows) == 1
    assert await classifier.card() == CARD


async def test_fifty_equal_requests_at_once_are_one_computation_even_if_the_first_leaves(classifier, model):
    model.go.clear()
    calls = [asyncio.create_task(classifier.predict(rows(1.0))) for _ in range(50)]
    await model.until_called()
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    model.go.set()
    for scores in await asyncio.gather(*calls[1:]):
        np.testing.assert_array_equal(scores.probabilities, [[1.0, 1.0]])
    assert len(model.rows) == 1
    assert model.cards < 50  # they share the call for the card, too


@pytest.mark.parametrize("new", [NEW_VERSION, SAME_VERSION], ids=["new version", "same version"])
async def test_another_model_never_answers_with_what_the_old_one_has_computed(classifier, model, new):
    await classifier.predict(rows(1.0))
    model.now = new
    scores = await classifier.predict(rows(1.0))
    assert (scores.model_version, scores.model_sha256) == (new.version, new.sha256)
    assert len(model.rows) == 2
    model.now = CARD  # rolled back: its own answers are still there
    assert (await classifier.predict(rows(1.0))).model_version == "1"
    assert len(model.rows) == 2


@pytest.mark.parametrize("new", [NEW_VERSION, SAME_VERSION], ids=["new version", "same version"])
async def test_an_answer_of_a_model_that_came_in_between_is_passed_on_and_not_kept(classifier, model, new):
    model.go.clear()
    calls = [asyncio.create_task(classifier.predict(rows(1.0))) for _ in range(2)]
    await model.until_called()
    model.now = new
    model.go.set()
    for scores in await asyncio.gather(*calls):
        assert (scores.model_version, scores.model_sha256) == (new.version, new.sha256)
    model.now = CARD
    assert (await classifier.predict(rows(1.0))).model_sha256 == CARD.sha256
    assert len(model.rows) == 2


async def test_a_model_without_a_checksum_is_asked_each_time(classifier, model):
    model.now = replace(CARD, sha256="")
    for _ in range(2):
        await classifier.predict(rows(1.0))
    assert len(model.rows) == 2


async def test_an_error_is_not_kept(classifier, model):
    model.error = InvalidInputError("bad", 0, "mean_area")
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="bad"):
            await classifier.predict(rows(np.nan))
    assert len(model.rows) == 2
    model.error = None
    assert len((await classifier.predict(rows(1.0))).probabilities) == 1


async def test_what_a_caller_does_to_an_answer_changes_nobody_elses(classifier):
    for _ in range(3):
        scores = await classifier.predict(rows(1.0))
        np.testing.assert_array_equal(scores.probabilities, [[1.0, 1.0]])
        scores.probabilities[:] = 7.0


DIFFERENT = {
    "0.0 and -0.0": (rows(0.0), rows(-0.0)),
    "the next number": (rows(1.0), rows(np.nextafter(1.0, 2.0))),
    "denormal": (rows(0.0), rows(5e-324)),
    "one row of six, two of three": (np.ones((1, 6)), np.ones((2, 3))),
    "once, twice": (rows(1.0), rows(1.0, 1.0)),
    "another order": (rows(1.0, 2.0), rows(2.0, 1.0)),
    "transposed": (np.arange(9.0).reshape(3, 3), np.arange(9.0).reshape(3, 3).T),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
async def test_other_rows_have_another_answer(classifier, model, one, other):
    for asked in (one, other):
        np.testing.assert_array_equal((await classifier.predict(asked)).probabilities, asked[:, :2])
    assert len(model.rows) == 2


SAME = {
    "another order in memory": (np.arange(9.0).reshape(3, 3), np.asfortranarray(np.arange(9.0).reshape(3, 3))),
    "whole numbers": (rows(1.0), rows(1).astype(np.int64)),
    "true": (rows(1.0), rows(1).astype(bool)),
    "NaN": (rows(np.nan), rows(np.nan)),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
async def test_the_same_numbers_in_another_form_have_the_same_answer(classifier, model, one, other):
    answers = [(await classifier.predict(asked)).probabilities for asked in (one, other)]
    np.testing.assert_array_equal(*answers)
    assert len(model.rows) == 1


COLLIDING = [("a", "b:c"), ("a:b", "c"), ('a", "b', "c"), ("a", 'b", "c'), ("ab", "c"), ("", "abc"), ("ä", "b\0c")]


async def test_names_with_separators_are_not_mixed_up(classifier, model):
    for name, version in COLLIDING:
        model.now = replace(CARD, name=name, version=version)
        assert (await classifier.predict(rows(1.0))).model_version == version
    assert len(model.rows) == len(COLLIDING)


async def test_more_rows_than_the_cache_has_room_for(classifier, model):
    huge = np.random.default_rng(0).random((100_000, 30))
    for _ in range(2):
        np.testing.assert_array_equal((await classifier.predict(huge)).probabilities, huge[:, :2])


async def test_the_time_limit_includes_the_wait_for_another_process(redis, model):
    url, _ = redis

    class Claimed(RedisStore):
        async def claim(self, keys):
            return {}, ()  # another process computes all of them, and never ends

    async with aclosing(Cache(Claimed(url))) as cache:
        with pytest.raises(DeadlineExceededError):
            await CachedClassifier(model, cache, timeout_s=0.1).predict(rows(1.0))
    assert model.rows == []
