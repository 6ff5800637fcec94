"""Whether it pays to cache predictions, here or in Redis, for requests that repeat and for those that do not.

32 callers ask for the scores of one row each, over and over, in one process. The classifier takes less than a
millisecond; the slow model takes 20 ms for a call of any size, one call at a time, as on a GPU. Behind a handle, each
request first asks which model answers now. All requests are micro-batched, so they share calls without a cache too.

Ratios to the same without a cache matter, not figures: they say what a hit gains, and what a miss loses.

    python benchmarks/caching.py [--seconds 3] [--no-serve]
"""

import asyncio
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from ray import serve

from workshop.contracts.classifier import Classifier, FloatMatrix, Scores
from workshop.deployments.classifier import ClassifierDeployment
from workshop.integration.caching import CachedClassifier
from workshop.integration.calls import Calls
from workshop.integration.classifier import HandleClassifier, InProcessClassifier
from workshop.integration.serve_app import serve_options
from workshop.integration.serve_cluster import serve_cluster
from workshop.integration.services import batched
from workshop.machine import free_port
from workshop.models.tumours import TumourClassifier, train, training_data
from workshop.settings import DeploymentOptions, Settings
from workshop.storage.cache import Cache

CALLERS = 32
CALL_S = 0.02
SETTINGS = Settings(language_models=False, ray_cpus=2)
ROW = training_data()[0][:1]


class SlowModel(TumourClassifier):
    """A call takes the same time for one row as for a thousand, and calls wait for each other."""

    _one_at_a_time = threading.Lock()

    def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        with self._one_at_a_time:
            time.sleep(CALL_S)
        return super().predict(rows)


class SlowDeployment(ClassifierDeployment):
    """The same in a replica."""

    def __init__(self, artifact: Path) -> None:
        self._model = SlowModel.load(artifact)


async def requests_per_second(classifier: Classifier, seconds: float, *, repeat: bool) -> float:
    """Send requests from all callers: the same one, or others each time."""
    start = time.perf_counter()
    factor = 1.0

    async def ask() -> int:
        nonlocal factor
        answers = 0
        while time.perf_counter() < start + seconds:
            factor = np.nextafter(factor, 2.0)
            await classifier.predict(ROW if repeat else ROW * factor)
            answers += 1
        return answers

    answers = await asyncio.gather(*(ask() for _ in range(CALLERS)))
    return sum(answers) / (time.perf_counter() - start)


async def measure(name: str, inner: Classifier, redis_url: str, seconds: float) -> None:
    """Print a row for each place of the cache."""
    plain = batched(inner, SETTINGS)
    await requests_per_second(plain, 1, repeat=True)  # warm up
    without = await requests_per_second(plain, seconds, repeat=True)
    print(f"| {name} | none | {without:.0f} | 1 | 1 |", flush=True)
    for place, url in {"memory": None, "Redis": redis_url}.items():
        async with aclosing(Cache.at(url, SETTINGS.cache_bytes)) as cache:
            cached = CachedClassifier(plain, cache, SETTINGS.predict_timeout_s)
            misses = await requests_per_second(cached, seconds, repeat=False)
            hits = await requests_per_second(cached, seconds, repeat=True)
        print(f"| {name} | {place} | {without:.0f} | {hits / without:.2f} | {misses / without:.2f} |", flush=True)


@contextmanager
def running_redis() -> Iterator[str]:
    """The URL of a Redis that stores nothing on disk."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while b"Ready to accept connections" not in process.stdout.readline():
            assert process.poll() is None
        yield f"redis://127.0.0.1:{port}"
        process.terminate()


def main(seconds: float = 3, serve_too: Annotated[bool, typer.Option("--serve/--no-serve")] = True) -> None:
    """Print a table."""
    with TemporaryDirectory() as folder, running_redis() as redis_url:
        artifact = Path(folder)
        train().save(artifact)
        print("| model | cache | requests/s without | all hits | all misses |\n|---|---|---|---|---|", flush=True)
        for model in (TumourClassifier, SlowModel):
            inner = InProcessClassifier(model.load(artifact))
            asyncio.run(measure(f"{model.__name__}, here", inner, redis_url, seconds))
        if not serve_too:
            return
        with serve_cluster(SETTINGS, host="127.0.0.1", port=free_port()):
            for kind in (ClassifierDeployment, SlowDeployment):
                deployment = serve.deployment(kind).options(name="model", **serve_options(DeploymentOptions()))
                handle = serve.run(deployment.bind(artifact), name="caching", route_prefix=None)
                apart = HandleClassifier(Calls(handle, SETTINGS.predict_timeout_s))
                asyncio.run(measure(f"{kind.__name__}, apart", apart, redis_url, seconds))


if __name__ == "__main__":
    typer.run(main)
