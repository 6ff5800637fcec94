"""Where to batch requests for a classifier in replicas of its own: at the callers, in the replicas, or nowhere.

32 callers ask for the scores of one row each, over and over, through a handle. In production, each process of the API
has a batcher of its own, so the callers are spread over one batcher, then over four. There are two models: the
classifier, which takes less time than the hop, and one that takes 20 ms for a call of any size, one call at a time, as
on a GPU.

In a replica, Serve's decorator collects a batch for 2 or for 20 milliseconds before it waits for the model.
The last rows show how many replicas Serve runs after a minute of this load, if one to three are allowed.

    python benchmarks/batching.py [--seconds 3]
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from ray import serve

from workshop.contracts.classifier import FloatMatrix, Scores
from workshop.deployments.classifier import ClassifierDeployment
from workshop.integration.batching import MicroBatched
from workshop.integration.calls import Calls
from workshop.integration.classifier import HandleClassifier
from workshop.integration.serve_app import serve_options
from workshop.integration.serve_cluster import serve_cluster
from workshop.machine import free_port
from workshop.models.tumours import training_data
from workshop.settings import Autoscaling, DeploymentOptions, Settings

CALLERS = 32
MAX_ROWS = 1024
CALL_S = 0.02
SCALING_S = 60
APP = "batching"
IN_REPLICAS = {"replicas, 2 ms": 0.002, "replicas, 20 ms": 0.02}
PLACES = ("nowhere", "callers", *IN_REPLICAS)


class SlowDeployment(ClassifierDeployment):
    """A call takes the same time for one row as for a thousand, and calls wait for each other."""

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self._one_at_a_time = threading.Lock()

    def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``."""
        with self._one_at_a_time:
            time.sleep(CALL_S)
        return super().predict(rows)


class InReplica:
    """Batches in the replica, with Serve's decorator.

    Args:
        kind: the class that predicts a batch.
        wait_s: how long a batch is collected.
        artifact: see ``ClassifierDeployment``.
    """

    def __init__(self, kind: type[ClassifierDeployment], wait_s: float, artifact: Path) -> None:
        self._inner = kind(artifact)
        self.predict.set_batch_wait_timeout_s(wait_s)

    @serve.batch(max_batch_size=MAX_ROWS)
    async def predict(self, requests: list[FloatMatrix]) -> list[Scores]:
        """See ``Classifier.predict``."""
        scores = await asyncio.to_thread(self._inner.predict, np.concatenate(requests))
        return [scores] * len(requests)  # nobody reads them here


def started(kind: type[ClassifierDeployment], place: str, options: DeploymentOptions, settings: Settings) -> Any:
    """A handle of the model's deployment."""
    batches, arguments = (InReplica, (kind, IN_REPLICAS[place])) if place in IN_REPLICAS else (kind, ())
    deployment = serve.deployment(batches).options(name="model", **serve_options(options))
    return serve.run(deployment.bind(*arguments, settings.artifact), name=APP, route_prefix=None)


def callers_of(handle: Any, place: str, apis: int, max_calls: int) -> list[Callable[[FloatMatrix], Awaitable[Scores]]]:
    """For each process of the API, what its requests call."""
    remote = HandleClassifier(Calls(handle, timeout_s=60))
    if place != "callers":
        return [remote.predict] * apis
    limits = {"max_rows": MAX_ROWS, "max_waiting_rows": 10**6, "max_calls": max_calls, "timeout_s": 60}
    return [MicroBatched(remote, **limits).predict for _ in range(apis)]


async def rows_per_second(predicts: list[Callable[[FloatMatrix], Awaitable[Scores]]], seconds: float) -> float:
    """Send requests to the model from all callers, and return the rate of answers."""
    row = training_data()[0][:1]
    start = time.perf_counter()

    async def ask(predict: Callable[[FloatMatrix], Awaitable[Scores]]) -> int:
        answers = 0
        while time.perf_counter() < start + seconds:
            await predict(row)
            answers += 1
        return answers

    answers = await asyncio.gather(*(ask(predicts[number % len(predicts)]) for number in range(CALLERS)))
    return sum(answers) / (time.perf_counter() - start)


async def measure(seconds: float, settings: Settings) -> None:
    """Print all figures."""
    for kind in (ClassifierDeployment, SlowDeployment):
        for replicas in (1, 2):
            for place in PLACES:
                options = DeploymentOptions(replicas=replicas)
                handle = started(kind, place, options, settings)
                for apis in (1, 4):
                    predicts = callers_of(handle, place, apis, options.max_calls)
                    await rows_per_second(predicts, 1)  # warm up
                    rate = await rows_per_second(predicts, seconds)
                    print(
                        f"{kind.__name__:20} {replicas} replicas  {apis} batchers  at {place:15} {rate:6.0f} rows/s",
                        flush=True,
                    )
                serve.delete(APP)
    for place in PLACES:
        options = DeploymentOptions(replicas=Autoscaling(max_replicas=3))
        handle = started(SlowDeployment, place, options, settings)
        await rows_per_second(callers_of(handle, place, 1, options.max_calls), SCALING_S)
        running = serve.status().applications[APP].deployments["model"].replica_states
        print(f"{'autoscaling':45} at {place:15} {running.get('RUNNING', 0):6} replicas", flush=True)
        serve.delete(APP)


def main(seconds: float = 3) -> None:
    """Start Ray, and measure."""
    settings = Settings(language_models=False, ray_cpus=4)
    with serve_cluster(settings, host="127.0.0.1", port=free_port()):
        asyncio.run(measure(seconds, settings))


if __name__ == "__main__":
    typer.run(main)
