"""Who answers while versions of a model come and go: with classifiers that hang, and a registry that fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.service import ROWS
from workshop.contracts.classifier import Classifier, ModelCard, Scores
from workshop.contracts.errors import (
    InvalidInputError,
    ModelFailedError,
    OverloadedError,
    StartError,
    UnavailableError,
)
from workshop.contracts.metrics import ProcessMetrics, Series
from workshop.contracts.principals import CALLER
from workshop.contracts.registry import VERSION_REQUESTS, ModelVersion, Rollout
from workshop.integration.rollout import RegisteredClassifier
from workshop.models.tumours import train

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (ModelVersion(number, f"memory://{number}") for number in "123")
CARD = train().card
PATIENCE_S = 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class StandIn:
    """A classifier that answers with its version, once it is let go, or fails."""

    card_: ModelCard
    error: Exception | None = None
    probability: float = 0.5
    free: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0

    async def predict(self, rows: np.ndarray) -> Scores:
        self.calls += 1
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return Scores(np.full((len(rows), 2), self.probability), self.card_.classes, self.card_.version)

    async def card(self) -> ModelCard:
        return self.card_


class Registry:
    """A registry in memory, which may fail."""

    def __init__(self) -> None:
        self.current = Rollout(ONE)
        self.error: Exception | None = None
        self.is_read_only = False
        self.withdrawn: list[tuple[str, str]] = []
        self.asked = 0

    def rollout(self) -> Rollout:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.current

    def withdraw(self, number: str, reason: str) -> None:
        if self.error is not None or self.is_read_only:
            raise self.error or UnavailableError("read-only")
        self.withdrawn.append((number, reason))
        self.current = replace(self.current, challenger=None)


class World:
    """A registered classifier with its surroundings."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.models: dict[str, StandIn | Exception] = {}
        for version in (ONE, TWO, THREE):
            self.models[version.number] = StandIn(replace(CARD, version=version.number))
            self.models[version.number].free.set()
        self.opened: list[str] = []
        self.metrics = ProcessMetrics()

    def open(self, version: ModelVersion) -> Classifier:
        self.opened.append(version.number)
        model = self.models[version.number]
        if isinstance(model, Exception):
            raise model
        return model

    @asynccontextmanager
    async def running(self, timeout_s: float = 60.0) -> AsyncIterator[RegisteredClassifier]:
        classifier = RegisteredClassifier(
            self.registry,
            self.open,
            lambda inner: inner,
            self.metrics,
            timeout_s=timeout_s,
            poll_s=0.01,
            max_failures=5,
        )
        classifier.start()
        try:
            yield classifier
        finally:
            await classifier.aclose()

    async def polled(self) -> None:
        """Wait until the classifier has followed the registry once more."""
        await when(lambda seen=self.registry.asked: self.registry.asked >= seen + 2)


async def when(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def version(classifier: Classifier, caller: str = "ada") -> str:
    CALLER.set(caller)
    return (await classifier.predict(ROWS[:2])).model_version


async def test_a_challenger_that_hangs_is_withdrawn_and_the_champion_answers():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    world.models["2"].free.clear()
    async with world.running(timeout_s=0.05) as classifier:
        await when(lambda: "2" in world.opened)
        await world.polled()
        answers = [await version(classifier) for _ in range(10)]
        await when(lambda: bool(world.registry.withdrawn))
    assert set(answers) == {"1"}
    assert world.registry.withdrawn == [("2", "6 of its last 6 requests failed")]
    assert world.models["2"].calls == 6


@pytest.mark.parametrize(
    "fault",
    [
        ModelFailedError("x"),
        UnavailableError("x"),
        OverloadedError("x"),
        ValueError("x"),
        float("nan"),
        float("inf"),
        replace(CARD, classes=("a", "b", "c")),
    ],
)
async def test_whatever_the_challenger_does_the_champion_answers(fault):
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    if isinstance(fault, float):
        world.models["2"].probability = fault
    elif isinstance(fault, ModelCard):
        world.models["2"].card_ = fault
    else:
        world.models["2"].error = fault
    async with world.running() as classifier:
        await world.polled()
        assert {await version(classifier) for _ in range(10)} == {"1"}
        await when(lambda: bool(world.registry.withdrawn))
    totals = await world.metrics.totals()
    assert totals[Series.of(VERSION_REQUESTS, version="2", outcome="failed")] == 6
    assert totals[Series.of(VERSION_REQUESTS, version="1", outcome="answered")] == 10


@pytest.mark.parametrize(
    ("error", "champions", "raised"),
    [
        (InvalidInputError("x", 0, "mean_radius"), None, InvalidInputError),
        (ValueError("x"), InvalidInputError("x", 0, "mean_radius"), InvalidInputError),
        (UnavailableError("x"), UnavailableError("y"), UnavailableError),
        (OverloadedError("x"), OverloadedError("y"), OverloadedError),
    ],
)
async def test_what_is_not_its_fault_does_not_count_against_the_challenger(error, champions, raised):
    """The input is wrong, or the champion cannot answer either."""
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    world.models["1"].error = champions
    world.models["2"].error = error
    async with world.running() as classifier:
        await world.polled()
        for _ in range(20):
            with pytest.raises(raised):
                await version(classifier)
        await world.polled()
    assert world.registry.withdrawn == []


async def test_a_withdrawal_that_cannot_be_written_holds_here_and_keeps_nothing_else_back(caplog):
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    world.registry.is_read_only = True
    world.models["2"].error = ModelFailedError("x")
    async with world.running() as classifier:
        await world.polled()
        for _ in range(6):
            await version(classifier)
        await world.polled()
        assert await version(classifier) == "1"
        assert world.models["2"].calls == 6
        world.registry.current = Rollout(THREE, TWO, 1.0)
        await world.polled()
        assert await version(classifier) == "3"
        assert len([line for line in caplog.messages if "cannot follow" in line]) == 1
        world.registry.is_read_only = False
        await when(lambda: bool(world.registry.withdrawn))
    assert world.opened == ["1", "2", "3"]


async def test_a_champion_that_fails_can_be_replaced():
    world = World()
    world.models["1"].error = UnavailableError("its files are gone")
    async with world.running() as classifier:
        world.models["1"].card = None  # it has no card either
        world.registry.current = Rollout(TWO)
        await world.polled()
        assert await version(classifier) == "2"


async def test_the_champion_is_never_on_trial():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    async with world.running() as classifier:
        await world.polled()
        assert await version(classifier) == "2"
        world.registry.current = Rollout(ONE, ONE, 1.0)
        await world.polled()
        assert await version(classifier) == "1"
        world.models["1"].error = ModelFailedError("x")
        with pytest.raises(ModelFailedError):
            await version(classifier)
        await world.polled()
    assert world.models["1"].calls == 2
    assert world.registry.withdrawn == []


async def test_a_few_failures_among_many_requests_are_borne():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    async with world.running() as classifier:
        await world.polled()
        for n in range(1000):
            world.models["2"].error = ModelFailedError("x") if n % 25 == 0 else None
            assert await version(classifier) == ("1" if n % 25 == 0 else "2")
    assert world.registry.withdrawn == []


async def test_a_registry_that_is_gone_changes_nothing_and_a_withdrawal_is_made_up_for(caplog):
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    async with world.running() as classifier:
        await when(lambda: "2" in world.opened)
        await world.polled()
        world.registry.error = UnavailableError("gone")
        await world.polled()
        assert await version(classifier) == "2"
        world.models["2"].error = ModelFailedError("x")
        assert {await version(classifier) for _ in range(10)} == {"1"}
        assert world.models["2"].calls == 7
        assert len([line for line in caplog.messages if "cannot follow" in line]) == 1
        world.registry.error = None
        await when(lambda: bool(world.registry.withdrawn))
        world.registry.current = Rollout(THREE)
        await when(lambda: "3" in world.opened)
        await world.polled()
        assert await version(classifier) == "3"


async def test_a_version_that_was_withdrawn_may_be_tried_again():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    world.models["2"].error = ModelFailedError("x")
    async with world.running() as classifier:
        await world.polled()
        for _ in range(6):
            await version(classifier)
        await when(lambda: bool(world.registry.withdrawn))
        world.models["2"].error = None
        world.registry.current = Rollout(ONE, TWO, 1.0)
        await world.polled()
        assert await version(classifier) == "2"


async def test_a_challenger_that_is_activated_goes_on_running():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 0.5)
    async with world.running() as classifier:
        await world.polled()
        world.registry.current = Rollout(TWO)
        await world.polled()
        assert await version(classifier) == "2"
        assert (await classifier.card()).version == "2"
    assert world.opened == ["1", "2"]


@pytest.mark.parametrize("error", [StartError("damaged"), ImportError("of a newer library")])
async def test_a_version_that_cannot_take_the_champions_place_waits_until_it_can(error, caplog):
    world = World()
    good, world.models["2"] = world.models["2"], error
    world.registry.current = Rollout(ONE, THREE, 1.0)
    async with world.running() as classifier:
        await world.polled()
        assert await version(classifier) == "3"
        world.registry.current = Rollout(TWO)
        await world.polled()
        await world.polled()
        assert await version(classifier) == "1"  # and the trial has ended
        assert len([line for line in caplog.messages if "cannot use version 2" in line]) == 1
        world.models["2"] = good
        await when(lambda: isinstance(world.models["2"], StandIn) and classifier._champion.version == TWO)
        assert await version(classifier) == "2"


async def test_a_version_that_cannot_be_loaded_is_tried_again_less_and_less_often():
    world = World()
    world.models["2"] = StartError("damaged")
    async with world.running():
        world.registry.current = Rollout(TWO)
        await when(lambda: world.registry.asked >= 100)
    assert 3 <= world.opened.count("2") <= 10


async def test_a_share_is_of_the_callers_and_each_keeps_its_version():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 0.2)
    callers = [f"caller-{n}" for n in range(1000)]
    async with world.running() as classifier:
        await world.polled()
        few = {caller for caller in callers if await version(classifier, caller) == "2"}
        assert 150 < len(few) < 250
        assert few == {caller for caller in callers if await version(classifier, caller) == "2"}
        world.registry.current = Rollout(ONE, TWO, 0.5)
        await world.polled()
        assert few < {caller for caller in callers if await version(classifier, caller) == "2"}


async def test_a_call_under_way_ends_with_its_version():
    world = World()
    world.models["1"].free.clear()
    async with world.running() as classifier:
        call = asyncio.create_task(version(classifier))
        await when(lambda: world.models["1"].calls == 1)
        world.registry.current = Rollout(TWO)
        await when(lambda: "2" in world.opened)
        await world.polled()
        assert await version(classifier) == "2"
        world.models["1"].free.set()
        assert await call == "1"


async def test_files_are_always_the_champions():
    world = World()
    world.registry.current = Rollout(ONE, TWO, 1.0)
    async with world.running() as classifier:
        await world.polled()
        assert await version(classifier) == "2"
        assert await version(classifier.champion) == "1"
        world.registry.current = Rollout(THREE, TWO, 1.0)
        await world.polled()
        assert await version(classifier.champion) == "3"


async def test_without_a_champion_it_does_not_start():
    world = World()
    world.registry.error = UnavailableError("gone")
    with pytest.raises(StartError, match="gone"):
        async with world.running():
            pass
