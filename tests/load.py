"""Callers who predict without a pause, and count what they get."""

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.service import RECORD

CLIENTS = 8
ENOUGH = 60
"""Requests to wait for: they have reached every replica."""


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        ended: responses by status, and failed connections under "lost".
        versions: of the models that answered, by caller.
        partial: bodies of responses that are no prediction and no problem document.
    """

    url: str
    ended: Counter[int | str] = field(default_factory=Counter)
    versions: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    partial: list[bytes] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(self._client(f"caller-{number}"))

    async def _client(self, caller: str) -> None:
        headers = {"Authorization": f"Bearer {caller}"}
        async with httpx.AsyncClient(base_url=self.url, timeout=60, headers=headers) as client:
            while not self._stop.is_set():
                try:
                    answer = await client.post("/v1/predict", json=RECORD)
                except httpx.TransportError:
                    self.ended["lost"] += 1
                    await asyncio.sleep(0.05)
                    continue
                self.ended[answer.status_code] += 1
                if not is_whole(answer):
                    self.partial.append(answer.content)
                elif answer.status_code == 200:
                    self.versions[caller].append(answer.json()["model_version"])

    def more(self, count: int = ENOUGH) -> None:
        """Wait until that many more requests have succeeded."""
        before = self.ended[200]
        end = time.monotonic() + 120
        while self.ended[200] < before + count:
            assert time.monotonic() < end, self.ended
            time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()


def is_whole(answer: httpx.Response) -> bool:
    try:
        body = answer.json()
    except json.JSONDecodeError:
        return False
    return body["label"] == "malignant" if answer.status_code == 200 else body["status"] == answer.status_code


@contextmanager
def under_load(url: str) -> Iterator[Load]:
    """Let several callers predict at the same time, again and again, while the block runs."""
    load = Load(url)
    thread = threading.Thread(target=lambda: asyncio.run(load.run()))
    thread.start()
    try:
        load.more()
        yield load
        load.more()
    finally:
        load.stop()
        thread.join()
