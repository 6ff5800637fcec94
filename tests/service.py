"""What the tests of the service share: the data, and short names for requests."""

import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np

from workshop.contracts import errors
from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.errors import ServiceError
from workshop.contracts.tumours import FEATURES
from workshop.models.tumours import training_data

Record = dict[str, float]
Item = TypeVar("Item")
Result = TypeVar("Result")

ROWS, _ = training_data()
"""All 569 rows, shape (569, 30)."""


def record(row: FloatMatrix) -> Record:
    """One row in the form that the API expects."""
    return dict(zip(FEATURES, row.tolist(), strict=True))


RECORDS = [record(row) for row in ROWS]
RECORD = RECORDS[0]
JSON_LINES = {"Accept": "application/jsonl"}
RATE_LIMIT = 30
"""How many requests to ``/v1/generate`` a principal may send to each replica per minute."""
IMPOSSIBLE = RECORD | {"worst_radius": 1.0}
"""Each number alone is valid, but the worst radius is smaller than the mean."""


def with_literal(name: str, literal: str) -> bytes:
    """``RECORD`` as JSON text, with any text in place of one number."""
    return json.dumps(RECORD | {name: "HERE"}).replace('"HERE"', literal).encode()


def probabilities(answer: httpx.Response) -> FloatMatrix:
    """The probabilities in a response of ``/v1/predict`` or ``/v1/batch-predict``, shape (n, 2)."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return np.array([list(label["probabilities"].values()) for label in body.get("predictions", [body])])


def concurrently(call: Callable[[Item], Result], items: Iterable[Item], at_once: int = 16) -> list[Result]:
    """The results in the order of the items, with at most ``at_once`` calls under way at any time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(call, items))


@contextmanager
def client_at(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def socket_url(service: httpx.Client) -> str:
    """Where the service's WebSocket chat is."""
    return f"ws://{service.base_url.netloc.decode()}/v1/chat/ws"


def until(look: Callable, found: Callable, patience: float = 20.0):
    """Call ``look`` until ``found`` accepts its result, or for ``patience`` seconds. Returns the last result."""
    end = time.monotonic() + patience
    while not found(seen := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return seen


def essence(problem: httpx.Response) -> dict[str, Any]:
    """A problem document, without what differs from request to request."""
    return {name: value for name, value in problem.json().items() if name not in ("timestamp", "request_id")}


def every_error() -> list[ServiceError]:
    """One error of each class in the contracts' tree, with a value for each of its arguments."""
    kinds = [ServiceError]
    for kind in kinds:  # grows during the loop
        kinds += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind(*_arguments(kind)) for kind in kinds]


def _arguments(kind: type[ServiceError]) -> Iterable[object]:
    values = {str: "some text", int: 3, int | None: 3, float: 2.5}
    parameters = inspect.signature(kind).parameters.values()
    return [values[parameter.annotation] for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
