"""Classifiers that are loaded when they are first asked for."""

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator

import pytest

from tests.service import ROWS
from workshop.contracts.errors import UnavailableError
from workshop.models import loaded
from workshop.models.loaded import LOADS_AT_ONCE, LoadedClassifiers
from workshop.models.tumours import TumourClassifier

pytestmark = pytest.mark.anyio


class Asked(list[str]):
    """The locations that were loaded. Those that end in "hangs" wait for ``ends``."""

    def __init__(self) -> None:
        self.ends = threading.Event()


@pytest.fixture
def asked(monkeypatch) -> Iterator[Asked]:
    asked = Asked()
    load = TumourClassifier.load

    def noted(location: str) -> TumourClassifier:
        asked.append(location)
        if location.endswith("hangs"):
            asked.ends.wait()
        return load(location)

    monkeypatch.setattr(loaded.TumourClassifier, "load", noted)
    yield asked
    asked.ends.set()


async def test_many_who_ask_share_one_load(asked, artifact):
    models = LoadedClassifiers()
    first, *others = await asyncio.gather(*(models.get(str(artifact)) for _ in range(50)))
    assert all(model is first for model in others)
    assert len(first.predict(ROWS).probabilities) == len(ROWS)
    assert await models.get(str(artifact)) is first
    assert asked == [str(artifact)]


async def test_one_that_nobody_keeps_is_released_and_loaded_again(asked, artifact, tmp_path, caplog):
    place = tmp_path / "model"
    place.symlink_to(artifact)
    caplog.set_level(logging.INFO, loaded.__name__)
    models = LoadedClassifiers()
    kept = await models.get(str(place))
    await models.get(str(place))
    assert len(asked) == 1
    del kept
    await asyncio.sleep(0)  # the event loop still holds the last result
    gc.collect()
    await models.get(str(place))
    assert len(asked) == 2
    lines = [line.split(" in ")[0] for line in caplog.messages if str(place) in line]
    assert lines[:3] == ["loaded the model", "released the model", "loaded the model"]


async def test_one_that_is_missing_fails_for_all_who_ask_and_is_tried_again(asked, artifact, tmp_path, caplog):
    place = tmp_path / "model"
    models = LoadedClassifiers()
    failed = await asyncio.gather(*(models.get(str(place)) for _ in range(10)), return_exceptions=True)
    assert {(type(error), str(error)) for error in failed} == {(UnavailableError, "the model cannot be loaded")}
    assert str(place) in caplog.text
    assert asked == [str(place)]
    place.symlink_to(artifact)
    assert await models.get(str(place))


async def test_a_caller_that_gives_up_does_not_end_the_load_for_others(artifact):
    models = LoadedClassifiers()
    first, second = (asyncio.create_task(models.get(str(artifact))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled()


async def test_what_is_loaded_too_late_is_there_for_the_next_who_asks(asked, artifact):
    place = artifact.with_name("slow hangs")
    place.symlink_to(artifact)
    models = LoadedClassifiers()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await models.get(str(place))
    asked.ends.set()
    while not models._loading[str(place)].done():
        await asyncio.sleep(0.01)
    gc.collect()
    assert await models.get(str(place))
    assert asked == [str(place)]
    place.unlink()


async def test_a_load_that_hangs_delays_no_other(asked, artifact):
    models = LoadedClassifiers()
    hanging = [asyncio.create_task(models.get(f"{number} hangs")) for number in range(LOADS_AT_ONCE - 1)]
    while len(asked) < len(hanging):
        await asyncio.sleep(0.01)
    assert await models.get(str(artifact))
    for task in hanging:
        task.cancel()


async def test_a_model_in_use_is_there_while_all_threads_hang(asked, artifact):
    models = LoadedClassifiers()
    kept = await models.get(str(artifact))
    hanging = [asyncio.create_task(models.get(f"{number} hangs")) for number in range(2 * LOADS_AT_ONCE)]
    while len(asked) < 1 + LOADS_AT_ONCE:
        await asyncio.sleep(0.01)
    assert await models.get(str(artifact)) is kept
    for task in hanging:
        task.cancel()
