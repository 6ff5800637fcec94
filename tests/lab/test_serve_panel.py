"""The panel that shows what Serve does with a deployment."""

import asyncio

import pytest
from ray import serve

from workshop.lab.serve_panel import Look, Panel, watch_serve

pytestmark = pytest.mark.anyio

PATIENCE_S = 120
"""Ray reports the metrics of the tests' cluster every ten seconds."""


class Slow:
    async def answer(self, number: int) -> int:
        await asyncio.sleep(0.2)
        return number


class Together:
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=1)
    async def answer(self, numbers: list[int]) -> list[int]:
        return numbers


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def deploy(cluster):
    names = []

    def deploy(kind: type, name: str, **options):
        names.append(name)
        return serve.run(serve.deployment(kind).options(**options).bind(), name=name, route_prefix=None)

    yield deploy
    for name in names:
        serve.delete(name)


async def seen(panel: Panel, handle, callers: int, wanted) -> Look:
    """Let callers ask again and again until the panel has seen what is wanted."""

    async def ask() -> None:
        while True:
            await handle.answer.remote(1)

    tasks = [asyncio.create_task(ask()) for _ in range(callers)]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not any(map(wanted, panel.looks)):
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"seen: {panel.looks}")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(filter(wanted, panel.looks))


@pytest.mark.slow
async def test_it_counts_replicas_and_requests_under_way_and_waiting(deploy):
    handle = deploy(Slow, "panel", num_replicas=2, max_ongoing_requests=2)
    with watch_serve("Slow", "panel") as panel:
        look = await seen(panel, handle, 10, lambda look: (look.under_way, look.waiting) == (4, 6))
    assert look.replicas == {"RUNNING": 2}
    assert look.batch_size is None
    assert [each.at_s for each in panel.looks] == sorted(each.at_s for each in panel.looks)
    above, below = panel.picture().axes
    assert len(above.lines[0].get_xdata()) == len(panel.looks)
    assert {line.get_label() for line in below.lines} == {"under way", "waiting"}
    number = len(panel.looks)
    await asyncio.sleep(1)
    assert len(panel.looks) == number  # it looks no longer


@pytest.mark.slow
async def test_it_counts_requests_per_batch(deploy):
    handle = deploy(Together, "batches", max_ongoing_requests=8)
    with watch_serve("Together", "batches") as panel:
        look = await seen(panel, handle, 4, lambda look: look.batch_size == pytest.approx(4, abs=0.5))
    assert look.replicas == {"RUNNING": 1}


def test_a_look_is_shown_as_a_table():
    look = Look(1.2, {"RUNNING": 1, "STARTING": 2}, under_way=3, waiting=10**9, batch_size=2.5)
    page = look._repr_html_()
    for text in ("after 1 s", "1 running, 2 starting", "3 ▮▮▮", "1000000000 ▯", "2.5"):
        assert text in page
    assert len(page) < 1000
    assert "none" in Look(0.0, {}, 0, 0, None)._repr_html_()


def test_the_picture_of_nothing():
    assert Panel().picture().axes
