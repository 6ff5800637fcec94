"""The service beside its peers: the same classifier behind plain FastAPI, LitServe, BentoML, MLflow and Ray Serve.

Measured in one run: single rows from 1 to 128 connections, and batches of 10 and of 1000 rows from 8. The figures
depend on the machine and on what else it does; the ratios to plain FastAPI with one worker are what matters. Each
runtime is started once a round, in an order that turns round, and the table shows the medians of the rounds.

Each peer runs at the best of the settings that we tried on two cores; its file in benchmarks/apps/ says which and why.
Its environment is made from its lock in build/peers/. To renew a lock, with the classifier's packages as they are here:

    grep -E '^(numpy|scikit-learn|scipy|skops|fastapi|uvicorn|pydantic)==' requirements.lock | \
      uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate \
      --no-header --constraint - benchmarks/apps/litserve_app.py -o benchmarks/apps/litserve.lock

The load generator takes part of a core from all of them.

    make bench, or: python benchmarks/peers.py [--seconds 1.5] [--rounds 3] [--no-serve] [--only api --only LitServe]
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import httpx
import matplotlib.pyplot as plt
import numpy as np
import skops.io
import typer
from tools.load import client_process, measure, request_bytes
from tools.services import RUNTIMES, WORKSHOP, running

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.tumours import FEATURES
from workshop.models.tumours import training_data

ROOT = Path(__file__).resolve().parents[1]
APPS = ROOT / "benchmarks" / "apps"
PEERS = ROOT / "build" / "peers"
RESULTS = ROOT / "build" / "benchmarks"
ARTIFACT = ROOT / "artifacts" / "tumour-classifier"
MLFLOW_MODEL = PEERS / "mlflow-model"

ROWS = np.resize(training_data()[0], (1000, len(FEATURES)))
RECORDS = [dict(zip(FEATURES, row, strict=True)) for row in ROWS.tolist()]
WARM_UP_S = 1.5

Record = dict[str, float]


@dataclass(frozen=True)
class Protocol:
    """How a runtime is asked for one row and for many, and where the probabilities are in its answers."""

    path: str
    batch_path: str
    one: Callable[[Record], object] = lambda record: record
    many: Callable[[list[Record]], object] = lambda records: records
    of_one: Callable[[Any], list[float]] = lambda answer: answer
    of_many: Callable[[Any], list[list[float]]] = lambda answer: answer


PLAIN = Protocol("/predict", "/predict-batch")
CONSTANT = Protocol("/constant", "/constant-batch")
MLFLOW = Protocol(
    "/invocations",
    "/invocations",
    one=lambda record: {"dataframe_records": [record]},
    many=lambda records: {"dataframe_records": records},
    of_one=lambda answer: answer["predictions"][0],
    of_many=itemgetter("predictions"),
)
OURS = Protocol(
    "/v1/predict",
    "/v1/batch-predict",
    many=lambda records: {"records": records},
    of_one=lambda answer: list(answer["probabilities"].values()),
    of_many=lambda answer: [list(each["probabilities"].values()) for each in answer["predictions"]],
)


@dataclass(frozen=True)
class Runtime:
    """What is compared.

    Args:
        program: how it is started.
        protocol: how it is asked.
        ready: a path that answers once it is ready.
        variables: of its environment.
        prepare: called once, before it is first started.
        by_default: whether it is measured if it is not named.
    """

    program: Sequence[str]
    protocol: Protocol
    ready: str
    variables: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    by_default: bool = True


def peer_environment(name: str) -> None:
    """Make the peer's environment, unless it has been made from this lock."""
    lock, folder = APPS / f"{name}.lock", PEERS / name
    made_from = folder / "made-from.lock"
    if made_from.exists() and made_from.read_bytes() == lock.read_bytes():
        return
    uv = [sys.executable, "-m", "uv"]
    subprocess.run(
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        check=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    subprocess.run(
        [*uv, "pip", "sync", "--quiet", "--python", str(folder / "bin" / "python"), str(lock)],
        check=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    shutil.copy(lock, made_from)


def mlflow_model() -> None:
    """Save the classifier in MLflow's format."""
    shutil.rmtree(MLFLOW_MODEL, ignore_errors=True)
    MLFLOW_MODEL.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(APPS / "mlflow_model.py"), str(MLFLOW_MODEL)]
    subprocess.run(command, env=os.environ | {"WORKSHOP_ARTIFACT": str(ARTIFACT)}, check=True)


def plain(protocol: Protocol, workers: int) -> Runtime:
    """Plain FastAPI."""
    options = ["--log-level", "warning", "--no-access-log", "--workers", str(workers)]
    program = [sys.executable, "-m", "uvicorn", "--app-dir", str(APPS), *options, "fastapi_app:app"]
    return Runtime(program, protocol, "/docs")


def ours(name: str, *options: str, batching: bool = True) -> Runtime:
    """The workshop's service."""
    arguments, variables = RUNTIMES[name]
    program = [*WORKSHOP, *arguments, *options]
    added = {} if batching else {"WORKSHOP_BATCHING": "false"}
    return Runtime(program, OURS, "/readiness", variables | added, by_default=batching)


def with_first(folder: Path) -> dict[str, str]:
    """Programs are found in this folder before others."""
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


BASELINE = "FastAPI"
COMPARED = {
    BASELINE: plain(PLAIN, 1),
    "FastAPI, 2 workers": plain(PLAIN, 2),
    "FastAPI without a model, 2 workers": plain(CONSTANT, 2),
    "LitServe": Runtime(
        [str(PEERS / "litserve" / "bin" / "python"), str(APPS / "litserve_app.py")],
        PLAIN,
        "/health",
        prepare=lambda: peer_environment("litserve"),
    ),
    "BentoML": Runtime(
        [*(str(PEERS / "bentoml" / "bin" / "bentoml"), "serve", "--working-dir", str(APPS), "--host", "127.0.0.1"),
         "bentoml_app:Tumours"],
        PLAIN,
        "/readyz",
        {"BENTOML_DO_NOT_TRACK": "true"} | with_first(PEERS / "bentoml" / "bin"),
        prepare=lambda: peer_environment("bentoml"),
    ),
    "MLflow": Runtime(
        # Two workers: nothing else can be set. It makes a data frame of each request, and checks its columns.
        [*(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(MLFLOW_MODEL), "--env-manager"),
         *("local", "--host", "127.0.0.1", "--workers", "2")],
        MLFLOW,
        "/ping",
        # It starts uvicorn by its name. scikit-learn warns at each request that it was fitted without names.
        {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning", "PYTHONWARNINGS": "ignore"}
        | {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        | with_first(Path(sys.executable).parent),
        prepare=mlflow_model,
    ),
    "api": ours("api"),
    "api, 2 workers": ours("api", "--workers", "2"),
    "api, batching off": ours("api", batching=False),
    "serve, inline": ours("serve, inline"),
    "serve, deployment": ours("serve, deployment"),
    "serve, deployment, batching off": ours("serve, deployment", batching=False),
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """So many connections, each of which sends requests of so many rows."""

    connections: int
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.connections} | {self.rows}"

    def requests(self, port: int, protocol: Protocol) -> list[bytes]:
        """What the connections send in turn."""
        if self.rows == 1:
            return [request_bytes(port, protocol.path, protocol.one(record)) for record in RECORDS]
        return [request_bytes(port, protocol.batch_path, protocol.many(RECORDS[: self.rows]))]


SINGLE_ROWS = [Load(connections) for connections in (1, 8, 32, 128)]
BATCHES = [Load(8, rows) for rows in (10, 1000)]
LOADS = SINGLE_ROWS + BATCHES


@dataclass(frozen=True)
class Figures:
    """Rows per second, and the latency of a request."""

    rows_per_second: float
    median_ms: float
    p99_ms: float

    @classmethod
    def middle(cls, rounds: Sequence["Figures"]) -> "Figures":
        """The median of each figure."""
        return cls(*(statistics.median(getattr(each, name) for each in rounds) for name in cls.__annotations__))


def check(port: int, protocol: Protocol, expected: FloatMatrix) -> None:
    """Compare the answers for one row and for many with those of the pipeline."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

        def answer(path: str, content: object) -> Any:
            return client.post(path, json=content).raise_for_status().json()

        one = protocol.of_one(answer(protocol.path, protocol.one(RECORDS[0])))
        many = protocol.of_many(answer(protocol.batch_path, protocol.many(RECORDS)))
    if not (np.allclose(one, expected[0]) and np.allclose(many, expected)):
        raise RuntimeError("the answers are not the probabilities of the pipeline")


def figures_of(
    runtime: Runtime, expected: FloatMatrix, seconds: float, client: ProcessPoolExecutor
) -> dict[Load, Figures]:
    """Start the runtime, check its answers, and measure it under each load."""
    variables = {"WORKSHOP_ARTIFACT": str(ARTIFACT)} | runtime.variables
    measured = {}
    with running([], variables, program=runtime.program, ready=runtime.ready) as port:
        if runtime.protocol is not CONSTANT:
            check(port, runtime.protocol, expected)
        client.submit(measure, port, Load(32).requests(port, runtime.protocol), 32, WARM_UP_S).result()
        for load in LOADS:
            requests = load.requests(port, runtime.protocol)
            seen = client.submit(measure, port, requests, load.connections, seconds).result()
            measured[load] = Figures(load.rows * seen.rate, seen.milliseconds(50), seen.milliseconds(99))
    return measured


def table(medians: Mapping[str, Mapping[Load, Figures]]) -> str:
    """In Markdown."""
    baseline = medians[BASELINE if BASELINE in medians else next(iter(medians))]
    heads = ("connections", "rows each", "runtime", "rows/s", "ratio", "median", "99th percentile")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for load in LOADS:
        for name, figures in medians.items():
            seen = figures[load]
            ratio = seen.rows_per_second / baseline[load].rows_per_second
            times = f"{seen.median_ms:.1f} ms | {seen.p99_ms:.1f} ms"
            lines.append(f"| {load} | {name} | {seen.rows_per_second:.0f} | {ratio:.2f} | {times} |")
    return "\n".join(lines) + "\n"


def plot(medians: Mapping[str, Mapping[Load, Figures]], file: Path) -> None:
    """Throughput of single rows by connections, and of 8 connections by rows in a request."""
    figure, panels = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    by_connections, by_rows = panels
    for number, (name, figures) in enumerate(medians.items()):
        look = {"marker": "o", "color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "label": name}
        for panel, loads, x in (
            (by_connections, SINGLE_ROWS, [load.connections for load in SINGLE_ROWS]),
            (by_rows, [Load(8), *BATCHES], [1, *(load.rows for load in BATCHES)]),
        ):
            panel.plot(x, [figures[load].rows_per_second for load in loads], **look)
    by_connections.set_xscale("log", base=2)
    by_connections.set_xticks([load.connections for load in SINGLE_ROWS], [load.connections for load in SINGLE_ROWS])
    by_connections.set(title="One row in a request", xlabel="connections", ylabel="requests/s", yscale="log")
    by_rows.set(title="8 connections", xlabel="rows in a request", ylabel="rows/s", xscale="log", yscale="log")
    by_connections.legend(fontsize="small")
    figure.savefig(file, dpi=120)


def main(
    seconds: float = 1.5,
    rounds: int = 3,
    serve: Annotated[bool, typer.Option()] = True,
    only: Annotated[list[str] | None, typer.Option(help=f"Any of: {'; '.join(COMPARED)}.")] = None,
) -> None:
    """Print a table, and write it and a plot to build/benchmarks/."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the service that runs ends too
    if unknown := set(only or ()) - set(COMPARED):
        sys.exit(f"there is no {sorted(unknown)[0]!r}; there are: {'; '.join(COMPARED)}")
    expected = skops.io.load(ARTIFACT / "model.skops").predict_proba(ROWS)
    chosen = {}
    for name, runtime in COMPARED.items():
        if (name in only if only else runtime.by_default) and (serve or not name.startswith("serve")):
            try:
                runtime.prepare()
            except (subprocess.CalledProcessError, OSError) as error:
                reason = str(getattr(error, "stderr", None) or error).splitlines()[0]
                print(f"{name} is left out, since it cannot be installed: {reason}", file=sys.stderr)
            else:
                chosen[name] = runtime
    measured: dict[str, list[dict[Load, Figures]]] = {name: [] for name in chosen}
    with client_process() as client:
        for turn in range(rounds):
            for name in list(chosen)[:: 1 if turn % 2 == 0 else -1]:
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                measured[name].append(figures_of(chosen[name], expected, seconds, client))
    medians = {
        name: {load: Figures.middle([each[load] for each in of_rounds]) for load in LOADS}
        for name, of_rounds in measured.items()
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    print(text := table(medians))
    (RESULTS / "peers.md").write_text(text)
    plot(medians, RESULTS / "peers.png")


if __name__ == "__main__":
    typer.run(main)
