"""Handles on a real cluster: what happens in a replica reaches the caller as the contract says."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from ray import serve

from tests.service import every_error
from workshop.contracts.errors import DeadlineExceededError, ModelFailedError, OverloadedError, UnavailableError
from workshop.integration.calls import Calls
from workshop.integration.classifier import HandleClassifier

pytestmark = pytest.mark.anyio

SECRET = "SECRET-internals"
PATIENCE_S = 60.0
STARTED = ".started"


def raises_what_it_gets() -> type:
    # A class within a function is pickled by value: a replica cannot import tests.
    class RaisesWhatItGets:
        """Raises an exception that it gets. Given a file, reports its start, and waits until the file is gone.

        Dies when asked for its card.
        """

        def predict(self, rows: object) -> object:
            if isinstance(rows, BaseException):
                raise rows
            if isinstance(rows, Path):
                rows.with_suffix(STARTED).touch()
                while rows.exists():
                    time.sleep(0.05)
            return rows

        def card(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    return RaisesWhatItGets


@pytest.fixture(scope="module")
def handle(cluster):
    deployment = serve.deployment(max_ongoing_requests=1, max_queued_requests=1)(raises_what_it_gets())
    yield serve.run(deployment.bind(), name="raises", route_prefix=None)
    serve.delete("raises")


@pytest.fixture
def classifier(handle) -> HandleClassifier:
    return HandleClassifier(Calls(handle, PATIENCE_S))


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
async def test_an_error_of_the_contract_arrives_whole(classifier, error):
    with pytest.raises(type(error)) as caught:
        await classifier.predict(error)
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("bug", [ValueError(SECRET), KeyError(SECRET), MemoryError(SECRET)], ids=repr)
async def test_any_other_error_is_a_model_failure_and_reveals_no_internals(classifier, bug):
    with pytest.raises(ModelFailedError) as caught:
        await classifier.predict(bug)
    assert SECRET not in str(caught.value)
    assert SECRET in str(caught.value.__cause__)  # for the log


async def test_an_error_that_cannot_be_unpickled_is_a_model_failure_too(classifier):
    class LosesAnArgument(Exception):
        def __init__(self, message: str, code: int) -> None:
            super().__init__(message)

    with pytest.raises(ModelFailedError):
        await classifier.predict(LosesAnArgument(SECRET, 7))


async def test_a_full_queue_is_an_overload_and_queued_calls_are_answered(classifier, tmp_path):
    busy = tmp_path / "busy"
    busy.touch()
    calls = [asyncio.create_task(classifier.predict(busy)) for _ in range(5)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    busy.unlink()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if answer != busy]
    assert 0 < len(refused) < 5
    assert all(isinstance(error, OverloadedError) and error.retry_after_s > 0 for error in refused)


async def test_a_replica_that_dies_is_unavailable_and_its_successor_answers(classifier):
    with pytest.raises(UnavailableError):
        await classifier.card()
    async with asyncio.timeout(60):
        while True:
            try:
                assert await classifier.predict(7) == 7
                return
            except UnavailableError:
                await asyncio.sleep(0.2)


async def test_a_deployment_that_is_gone_is_unavailable(cluster):
    deployment = serve.deployment(raises_what_it_gets())
    handle = serve.run(deployment.bind(), name="short-lived", route_prefix=None)
    classifier = HandleClassifier(Calls(handle, PATIENCE_S))
    assert await classifier.predict(1) == 1
    await asyncio.to_thread(serve.delete, "short-lived")
    with pytest.raises(UnavailableError):
        await classifier.predict(1)


def waits_forever() -> type:
    class WaitsForever:
        """Waits forever, or for the classifier behind it. Its counters are in its card."""

        def __init__(self, behind: HandleClassifier | None = None) -> None:
            self.behind = behind
            self.started = self.cancelled = 0

        async def predict(self, rows: object) -> None:
            if isinstance(rows, BaseException):
                raise rows
            self.started += 1
            try:
                if self.behind is not None:
                    await self.behind.predict(rows)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        async def stream(self, pieces: int) -> AsyncGenerator[int, None]:
            for piece in range(pieces):
                yield piece
            await self.predict(None)

        async def card(self) -> tuple[int, int]:
            return self.started, self.cancelled

    return WaitsForever


@pytest.fixture(scope="module")
def chain(cluster):
    """Handles of two deployments, of which the first calls the second."""
    deployment = serve.deployment(max_ongoing_requests=10)(waits_forever())
    second = deployment.options(name="second").bind()
    first = deployment.options(name="first").bind(HandleClassifier(Calls(second, PATIENCE_S)))
    serve.run(first, name="chain", route_prefix=None)
    yield [serve.get_deployment_handle(name, "chain") for name in ("first", "second")]
    serve.delete("chain")


@pytest.mark.parametrize("method", ["def", "async def"])
async def test_a_call_that_a_replica_cancels_by_itself_is_unavailable(handle, chain, method):
    """Nobody has cancelled the caller: it must get an error, rather than be cancelled too."""
    classifier = HandleClassifier(Calls(handle if method == "def" else chain[1], PATIENCE_S))
    with pytest.raises(UnavailableError):
        await classifier.predict(asyncio.CancelledError())


@pytest.fixture
async def counters(chain) -> Callable:
    """How many calls of the two replicas have started, and how many were cancelled, since the test began."""

    async def look() -> list[tuple[int, int]]:
        return [await HandleClassifier(Calls(handle, PATIENCE_S)).card() for handle in chain]

    before = await look()

    async def since() -> list[tuple[int, int]]:
        return [(now[0] - then[0], now[1] - then[1]) for now, then in zip(await look(), before, strict=True)]

    return since


async def until(counters: Callable, *expected: tuple[int, int]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await counters() != list(expected):
            await asyncio.sleep(0.05)


async def test_a_caller_that_leaves_stops_its_call_and_the_calls_that_it_waits_for(chain, counters):
    first, _ = (HandleClassifier(Calls(handle, PATIENCE_S)) for handle in chain)
    call = asyncio.create_task(first.predict(None))
    await until(counters, (1, 0), (1, 0))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(counters, (1, 1), (1, 1))


async def test_a_call_whose_time_is_up_is_a_deadline_error_and_stops(chain, counters):
    _, second = (HandleClassifier(Calls(handle, 1.0)) for handle in chain)
    with pytest.raises(DeadlineExceededError) as caught:
        await second.predict(None)
    assert caught.value.timeout_s == 1.0
    async with asyncio.timeout(PATIENCE_S):
        while (counts := (await counters())[1])[0] != counts[1]:
            await asyncio.sleep(0.05)


async def test_each_piece_of_a_stream_has_the_whole_timeout(chain, counters):
    _, handle = chain
    stream = Calls(handle, 1.0).stream(waits_forever().stream, 3)
    assert await anext(stream) == 0
    await asyncio.sleep(1.2)
    assert [await anext(stream), await anext(stream)] == [1, 2]
    with pytest.raises(DeadlineExceededError):
        await anext(stream)
    await until(counters, (0, 0), (1, 1))


@pytest.mark.parametrize("leave", ["close", "cancel"])
async def test_a_reader_that_leaves_a_stream_stops_it(chain, counters, leave):
    _, handle = chain
    stream = Calls(handle, PATIENCE_S).stream(waits_forever().stream, 1)
    assert await anext(stream) == 0
    await until(counters, (0, 0), (1, 0))
    if leave == "close":
        await stream.aclose()
    else:
        next_piece = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.1)
        next_piece.cancel()
        with pytest.raises(asyncio.CancelledError):
            await next_piece
    await until(counters, (0, 0), (1, 1))


async def test_a_late_thread_is_abandoned_and_a_late_queued_call_never_starts(handle, tmp_path):
    files = running, queued = tmp_path / "running", tmp_path / "queued"
    for file in files:
        file.touch()
    call = asyncio.create_task(HandleClassifier(Calls(handle, 5.0)).predict(running))
    async with asyncio.timeout(PATIENCE_S):
        while not running.with_suffix(STARTED).exists():
            await asyncio.sleep(0.05)
    for pending in (HandleClassifier(Calls(handle, 0.5)).predict(queued), call):
        with pytest.raises(DeadlineExceededError):
            await pending
    running.unlink()
    assert await HandleClassifier(Calls(handle, PATIENCE_S)).predict(7) == 7
    assert not queued.with_suffix(STARTED).exists()


def dies_once() -> type:
    class DiesOnce:
        """Ends its replica, unless the file shows that another one has ended like this."""

        def predict(self, file: Path) -> str:
            if not file.exists():
                file.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "alive"

        def always(self, file: Path) -> None:
            with file.open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

        async def stream(self, file: Path, *, begins: bool) -> AsyncGenerator[str, None]:
            if begins:
                yield "begun"
            yield self.predict(file)

    return DiesOnce


@pytest.fixture(scope="module")
def mortal(cluster):
    deployment = serve.deployment(num_replicas=2, health_check_period_s=1)(dies_once())
    yield Calls(serve.run(deployment.bind(), name="mortal", route_prefix=None), PATIENCE_S)
    serve.delete("mortal")


async def test_a_call_whose_replica_ends_is_made_again(mortal, tmp_path):
    assert await mortal(dies_once().predict, tmp_path / "file") == "alive"


async def test_a_stream_that_has_not_begun_is_made_again(mortal, tmp_path):
    assert [piece async for piece in mortal.stream(dies_once().stream, tmp_path / "file", begins=False)] == ["alive"]


async def test_a_stream_that_has_begun_fails(mortal, tmp_path):
    pieces = mortal.stream(dies_once().stream, tmp_path / "file", begins=True)
    assert await anext(pieces) == "begun"
    with pytest.raises(UnavailableError):
        await anext(pieces)


async def test_a_call_that_ends_every_replica_is_given_up(mortal, tmp_path):
    with pytest.raises((UnavailableError, DeadlineExceededError)):
        await mortal(dies_once().always, tmp_path / "file")
    assert (tmp_path / "file").read_text()  # Serve itself may repeat a call, too
