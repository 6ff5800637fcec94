"""Micro-batching as a decorator of the contract: every runtime and placement batches in the same way."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, replace

import numpy as np
from opentelemetry import trace

from workshop.contracts.classifier import Classifier, FloatMatrix, ModelCard, Scores
from workshop.contracts.errors import DeadlineExceededError, InvalidInputError, OverloadedError, UnavailableError
from workshop.logs import log_fields, set_log_fields

tracer = trace.get_tracer(__name__)

MAX_LOGGED_IDS = 16
"""The most request ids in a log line about a batch."""

_NOT_CAUSED_BY_INPUT = UnavailableError, DeadlineExceededError, TimeoutError


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    rows: FloatMatrix
    answer: asyncio.Future[Scores]
    id: str
    span: trace.Span


class MicroBatched:
    """A classifier that batches waiting requests into single calls of another classifier.

    No timer: a lone request starts at once, and whatever arrives while a call runs shares the next one.
    In front of a handle it sits on the caller's side, so that requests share the hop as well as the model. That is
    several times as fast as batches made in the replicas, even if four processes call: see ``benchmarks/batching.py``.
    Serve scales by the calls that are under way, so ``max_calls`` must be large enough to show it the load.

    Args:
        inner: predicts the batches.
        max_rows: rows in one call. A single larger request still goes through, alone.
        max_waiting_rows: above it, requests are turned away.
        max_calls: calls at the same time: enough to keep all replicas behind ``inner`` busy.
        timeout_s: how long a request may take, its waiting included.
    """

    def __init__(
        self, inner: Classifier, *, max_rows: int, max_waiting_rows: int, max_calls: int, timeout_s: float
    ) -> None:
        self._inner = inner
        self._max_rows = max_rows
        self._max_waiting_rows = max_waiting_rows
        self._max_calls = max_calls
        self._timeout_s = timeout_s
        self._waiting: OrderedDict[_Request, None] = OrderedDict()
        self._waiting_rows = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def card(self) -> ModelCard:
        """See ``Classifier.card``."""
        return await self._inner.card()

    async def predict(self, rows: FloatMatrix) -> Scores:
        """See ``Classifier.predict``.

        Raises:
            OverloadedError: too many rows wait.
            DeadlineExceededError: no answer within ``timeout_s``.
        """
        if self._waiting and self._waiting_rows + len(rows) > self._max_waiting_rows:
            raise OverloadedError(f"{self._waiting_rows} rows are waiting already")
        answer = asyncio.get_running_loop().create_future()
        request = _Request(rows, answer, log_fields().get("request_id", ""), trace.get_current_span())
        self._waiting[request] = None
        self._waiting_rows += len(rows)
        self._start_calls()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await request.answer
        except TimeoutError:
            raise DeadlineExceededError("the model did not answer in time", self._timeout_s) from None
        finally:
            self._leave_queue(request)  # if it is still waiting: its time is up, or its caller has left

    def _start_calls(self) -> None:
        while len(self._calls) < self._max_calls and (batch := self._next_batch()):
            # An empty context detaches the call from the request that starts it. Otherwise Serve would cancel the whole
            # batch when that one client disconnects.
            call = asyncio.create_task(self._predict_together(batch), context=Context())
            self._calls.add(call)
            call.add_done_callback(self._call_ended)

    def _call_ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._start_calls()

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        size = 0
        while self._waiting:
            request = next(iter(self._waiting))
            if batch and size + len(request.rows) > self._max_rows:
                break
            self._leave_queue(request)
            batch.append(request)
            size += len(request.rows)
        return batch

    def _leave_queue(self, request: _Request) -> None:
        if request in self._waiting:
            del self._waiting[request]
            self._waiting_rows -= len(request.rows)

    async def _predict_together(self, batch: list[_Request]) -> None:
        """Answer each request. When some of them make the call fail, the others are called again without them.

        An error that names its row identifies the bad request. Otherwise the batch is bisected: k bad ones among n take
        about 2 k log(n) calls.
        """
        parts = [batch]
        while parts:
            part = [
                request for request in parts.pop() if not request.answer.done()
            ]  # skip those whose callers have left
            if not part:
                continue
            try:
                # A call that hangs must not block the next one forever.
                async with asyncio.timeout(self._timeout_s):
                    with _observed(part):
                        scores = await self._inner.predict(np.concatenate([request.rows for request in part]))
            except Exception as error:
                if len(part) == 1 or isinstance(error, _NOT_CAUSED_BY_INPUT):
                    _fail(part, error)
                elif (culprit := _find_culprit(part, error)) is not None:
                    _fail([culprit[0]], culprit[1])
                    parts.append([request for request in part if request is not culprit[0]])
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            except BaseException as error:
                _fail([request for rest in (part, *parts) for request in rest], error)
                raise
            else:
                _answer(part, scores)


@contextmanager
def _observed(batch: Sequence[_Request]) -> Iterator[None]:
    """The log lines of a call have the ids of all its requests. Its span is in the trace of the first one."""
    ids = [request.id for request in batch if request.id]
    more = [f"{len(ids) - MAX_LOGGED_IDS} more"] if len(ids) > MAX_LOGGED_IDS else []
    set_log_fields(**({"request_id": ",".join(ids[:MAX_LOGGED_IDS] + more)} if ids else {}))
    first, *others = (request.span for request in batch)
    with tracer.start_as_current_span(
        "predict",
        context=trace.set_span_in_context(first),
        attributes={"requests": len(batch), "rows": sum(len(request.rows) for request in batch)},
        links=[trace.Link(span.get_span_context()) for span in others if span.get_span_context().is_valid],
    ):
        yield


def _find_culprit(batch: list[_Request], error: Exception) -> tuple[_Request, InvalidInputError] | None:
    """The request whose row the error names, and the error with that request's own row number; or None."""
    if isinstance(error, InvalidInputError):
        start = 0
        for request in batch:
            if start <= error.row < start + len(request.rows):
                return request, InvalidInputError(error.message, error.row - start, error.field)
            start += len(request.rows)
    return None


def _fail(batch: list[_Request], error: BaseException) -> None:
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(error)


def _answer(batch: list[_Request], scores: Scores) -> None:
    start = 0
    for request in batch:
        end = start + len(request.rows)
        if not request.answer.done():
            request.answer.set_result(replace(scores, probabilities=scores.probabilities[start:end]))
        start = end
