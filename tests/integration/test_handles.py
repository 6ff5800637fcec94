"""Handles on a real cluster: what happens in a replica arrives as the contract says, and as nothing else."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from ray import serve

from tests.service import every_error
from workshop.contracts.errors import ModelFailedError, OverloadedError, UnavailableError
from workshop.integration.handles import HandleClassifier

pytestmark = pytest.mark.anyio

SECRET = "SECRET-internals"


def raises_what_it_gets() -> type:
    # A class within a function is pickled by value: a replica cannot import tests.
    class RaisesWhatItGets:
        """Raises its input, or waits while its input is a file that exists. Dies when asked for its card."""

        def predict(self, rows: object) -> object:
            if isinstance(rows, BaseException):
                raise rows
            while isinstance(rows, Path) and rows.exists():
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
    return HandleClassifier(handle)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
async def test_an_error_of_the_contract_arrives_whole(classifier, error):
    with pytest.raises(type(error)) as caught:
        await classifier.predict(error)
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("bug", [ValueError(SECRET), KeyError(SECRET), MemoryError(SECRET)], ids=repr)
async def test_any_other_error_is_a_failed_model_and_names_no_internals(classifier, bug):
    with pytest.raises(ModelFailedError) as caught:
        await classifier.predict(bug)
    assert SECRET not in str(caught.value)
    assert SECRET in str(caught.value.__cause__)  # for the log


async def test_an_error_that_does_not_survive_the_way_is_a_failed_model_too(classifier):
    class LosesAnArgument(Exception):
        def __init__(self, message: str, code: int) -> None:
            super().__init__(message)

    with pytest.raises(ModelFailedError):
        await classifier.predict(LosesAnArgument(SECRET, 7))


async def test_a_full_queue_is_overload_and_those_within_are_served(classifier, tmp_path):
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
    classifier = HandleClassifier(serve.run(deployment.bind(), name="short-lived", route_prefix=None))
    assert await classifier.predict(1) == 1
    await asyncio.to_thread(serve.delete, "short-lived")
    with pytest.raises(UnavailableError):
        await classifier.predict(1)
