"""What Serve does with a deployment, live: its replicas, its requests under way and waiting, its batches."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import httpx
import matplotlib.pyplot as plt
import ray
from IPython.display import HTML, display
from matplotlib.figure import Figure
from prometheus_client.parser import text_string_to_metric_families
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

LOOK_EVERY_S = 0.5
"""Serve itself says how many requests there are about once a second: see ``start_serve``."""
LONGEST_BAR = 60
_QUEUED, _SENT = "ray_serve_deployment_queued_queries", "ray_serve_num_ongoing_requests_at_replicas"
_UNDER_WAY = "ray_serve_replica_processing_queries"
_REQUESTS, _BATCHES = "ray_serve_deployment_request_counter_total", "ray_serve_actual_batch_size_count"
_ROW = "<tr><th style='text-align: left'>{}</th><td style='text-align: left'>{}</td></tr>"


@dataclass(frozen=True, slots=True)
class Look:
    """A deployment at one moment.

    Attributes:
        at_s: seconds since the panel was opened.
        replicas: how many there are, by state: ``RUNNING``, ``STARTING`` and so on.
        under_way: requests that replicas are working on.
        waiting: requests that wait at their callers for a replica.
        batch_size: requests per batch of ``@serve.batch``, since the panel was opened; None without batches.
    """

    at_s: float
    replicas: Mapping[str, int]
    under_way: int
    waiting: int
    batch_size: float | None

    def _repr_html_(self) -> str:
        rows = {
            "replicas": ", ".join(f"{count} {state.lower()}" for state, count in self.replicas.items()) or "none",
            "under way": f"{self.under_way} {'▮' * min(self.under_way, LONGEST_BAR)}",
            "waiting": f"{self.waiting} {'▯' * min(self.waiting, LONGEST_BAR)}",
        }
        if self.batch_size is not None:
            rows["requests per batch"] = f"{self.batch_size:.1f}"
        shown = "".join(_ROW.format(name, escape(text)) for name, text in rows.items())
        return f"<table><caption>after {self.at_s:.0f} s</caption>{shown}</table>"


@dataclass(frozen=True)
class Panel:
    """What was seen of a deployment so far."""

    looks: list[Look] = field(default_factory=list)

    def picture(self) -> Figure:
        """Replicas, and requests under way and waiting, over time."""
        times = [look.at_s for look in self.looks]
        figure, (above, below) = plt.subplots(
            2, 1, sharex=True, figsize=(8, 4), height_ratios=[1, 2], layout="constrained"
        )
        above.step(times, [look.replicas.get("RUNNING", 0) for look in self.looks], where="post")
        above.set(ylabel="replicas", ylim=(0, None))
        above.locator_params(axis="y", integer=True)
        below.plot(times, [look.under_way for look in self.looks], label="under way")
        below.plot(times, [look.waiting for look in self.looks], label="waiting")
        below.set(xlabel="seconds", ylabel="requests", xlim=(0, None), ylim=(0, None))
        below.legend(frameon=False)
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
        plt.close(figure)  # shown once: by the cell that ends with it
        return figure


@contextmanager
def watch_serve(deployment: str, app: str) -> Iterator[Panel]:
    """Show a deployment while the block runs, and keep what was seen.

    Args:
        deployment: its name.
        app: the name of its application.
    """
    panel, done = Panel(), threading.Event()
    shown = display(HTML(""), display_id=True)  # type: ignore[no-untyped-call]
    began, before = time.perf_counter(), _samples(deployment, app)

    def watch() -> None:
        while not done.wait(LOOK_EVERY_S):
            panel.looks.append(_look(deployment, app, began, before))
            if shown is not None:  # outside of IPython, nothing can be shown
                shown.update(panel.looks[-1])

    watcher = threading.Thread(target=watch, name="panel", daemon=True)
    watcher.start()
    try:
        yield panel
    finally:
        done.set()
        watcher.join()


def _look(deployment: str, app: str, began: float, before: Mapping[str, float]) -> Look:
    samples = _samples(deployment, app)
    requests, batches = (samples[name] - before[name] for name in (_REQUESTS, _BATCHES))
    return Look(
        at_s=time.perf_counter() - began,
        replicas=replica_states(deployment, app),
        under_way=round(samples[_UNDER_WAY]),
        # Of those that were sent to a replica, it may have no room for some.
        waiting=max(0, round(samples[_QUEUED] + samples[_SENT] - samples[_UNDER_WAY])),
        batch_size=requests / batches if requests and batches else None,
    )


def replica_states(deployment: str, app: str) -> Mapping[str, int]:
    """How many replicas of a deployment there are, by state: ``RUNNING``, ``STARTING`` and so on.

    Unlike ``serve.status``, it may run beside ``serve.run`` in another thread. Together, one of those two fails.
    """
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    details: Any = ray.get(controller.get_serve_instance_details.remote())
    found = details["applications"].get(app, {}).get("deployments", {}).get(deployment, {}).get("replicas", ())
    return Counter(replica["state"].value for replica in found)


def _samples(deployment: str, app: str) -> Mapping[str, float]:
    """Serve's metrics of a deployment by name, each summed over all processes that report it."""
    found: defaultdict[str, float] = defaultdict(float)
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        lines = httpx.get(url, trust_env=False).text.splitlines()
        wanted = [line for line in lines if line.startswith((_QUEUED, _SENT, _UNDER_WAY, _REQUESTS, _BATCHES))]
        for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
            for sample in family.samples:
                if (sample.labels.get("application"), sample.labels.get("deployment")) == (app, deployment):
                    found[sample.name] += sample.value
    return found
