"""Lesson 14: cascades and RAG."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx
from anyio import to_thread
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from openai import APIStatusError, AsyncOpenAI

from workshop.contracts.retriever import Hit, Passage
from workshop.lab.answer import Answer, Client
from workshop.lab.app_server import run_app
from workshop.lab.expectations import NotYet, expect, show
from workshop.lab.registry import exercise

# ------------------------------------------------------------------------------------ 14.1: two models, one route


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answers, how sure it was of it, and what it cost."""

    text: str
    quality: float
    cost: float


SURE_FROM = 0.9
_QUALITIES = {"What is a replica?": 0.97, "What is a proxy?": 0.9, "What is a mutex?": 0.62, "What is a quorum?": 0.89}
_asked: list[str] = []


async def draft(question: str) -> Reply:
    """Stands for the cheap model: answers at once, and is not sure of everything."""
    _asked.append("draft")
    return Reply(f"The draft's answer to: {question}", _QUALITIES.get(question, 0.95), 1.0)


async def main(question: str) -> Reply:
    """Stands for the better model: answers at once, at ten times the price."""
    _asked.append("main")
    return Reply(f"The main model's answer to: {question}", 0.99, 10.0)


@exercise(
    "14.1",
    hints=[
        "Ask the draft. If its quality is at least 0.9, its reply is the answer. Only else, await `main(question)`.",
        "After a draft that was not kept, the cost is `first.cost + second.cost`. With `direct`, ask `main` alone.",
    ],
    right="Each question is answered by the cheapest model that is sure enough, and the bill is complete.",
    seconds=30,
)
def cascades(answer: Answer) -> None:
    with answer.serve(seconds=10) as client:
        _expect_route(client, "What is a replica?", "draft", 1, "draft")
        _expect_route(client, "What is a mutex?", "main", 11, "draft", "main")
        _expect_route(client, "What is a proxy?", "draft", 1, "draft")
        _expect_route(client, "What is a quorum?", "main", 11, "draft", "main")
        _expect_route(client, "What is a replica?", "main", 10, "main", direct=True)


def _expect_route(client: Client, question: str, model: str, cost: float, *asked: str, direct: bool = False) -> None:
    _asked.clear()
    got = client.get("/ask", params={"question": question} | ({"direct": "true"} if direct else {}))
    expect(got.status_code, 200)
    quality = _QUALITIES[question]
    sureness = "`direct` is asked for" if direct else f"the draft's quality is {quality}"
    if _asked != list(asked):
        raise NotYet(
            f"Here {sureness}.",
            expected=f"asked: {', then '.join(asked)}",
            got=f"asked: {', then '.join(_asked) or 'nobody'}",
        )
    text = f"The {'draft' if model == 'draft' else 'main model'}'s answer to: {question}"
    why = f"Here {sureness}. The cost is of every model that was asked."
    expect(got.json(), {"text": text, "model": model, "cost": cost}, why=why)


# ---------------------------------------------------------------------------------------- 14.2: the best threshold


@dataclass(frozen=True)
class _Point:
    threshold: float
    accuracy: float
    cost: float
    kept: float = 0.5


_SMOOTH = [_Point(0, 48, 5), _Point(0.9, 56, 9), _Point(0.95, 69, 25), _Point(0.97, 71, 38), _Point(1, 73, 54)]
_BUMPY = [_Point(0, 50, 4), _Point(0.9, 70, 20), _Point(0.95, 66, 30), _Point(1, 72, 50)]


@exercise(
    "14.2",
    hints=[
        "First keep the points whose accuracy is high enough: a list comprehension with `if`.",
        "`min(good, key=lambda point: point.cost)` finds the cheapest; `default=None` is for an empty list.",
    ],
    right="The cheapest point that is good enough, whatever the shape of the curve.",
)
def chooses(answer: Answer) -> None:
    cases = [
        (_SMOOTH, 65, _SMOOTH[2], "The cheapest one whose accuracy reaches the target."),
        (_SMOOTH, 71, _SMOOTH[3], "An accuracy that equals the target is high enough."),
        (_SMOOTH[::-1], 55, _SMOOTH[1], "The points come in any order."),
        (_BUMPY, 68, _BUMPY[1], "Accuracy may fall while the threshold rises, so look at all points."),
        (_BUMPY, 72, _BUMPY[3], "The cheapest one whose accuracy reaches the target."),
        (_SMOOTH, 99, None, "No point is good enough."),
    ]
    for points, target, best, why in cases:
        expect(answer.call(points, target), best, why=why)


# ----------------------------------------------------------------------------------------------- 14.3: the budget

BUDGET = 1.0
PRICE = 0.5


class Ledger:
    """Who has spent how much. To write into it takes half a second, as on a busy database."""

    WRITE_S = 0.5
    PATIENCE_S = 3.0

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._open = threading.Event()
        self._open.set()

    async def spent(self, user: str) -> float:
        """Dollars that the user has spent today."""
        return self._spent[user]

    async def add(self, user: str, dollars: float) -> None:
        """Charge the user."""
        await asyncio.sleep(self.WRITE_S)
        await to_thread.run_sync(self._open.wait, self.PATIENCE_S)
        self._spent[user] += dollars

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Within the block nothing is written for seconds, however slow the machine is."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def total(self, user: str, at_least: float = 0.0, patience_s: float = 5.0) -> float:
        """What the user has spent, as soon as it is at least so much, or when patience ends."""
        deadline = time.monotonic() + patience_s
        while self._spent[user] < at_least and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._spent[user]


ledger = Ledger()
_users = (f"user-{number}" for number in count(1))


@exercise(
    "14.3",
    hints=[
        'If `await ledger.spent(user) >= BUDGET`, raise `HTTPException(402, "…", {"Retry-After": "3600"})`.',
        "`background.add_task(ledger.add, user, PRICE)` runs after the answer has been sent.",
    ],
    right="Nobody waits for the ledger, and nobody who has spent the budget is answered.",
    seconds=60,
)
def keeps_the_budget(answer: Answer) -> None:
    user, other = next(_users), next(_users)
    with answer.serve(seconds=15) as client:
        with ledger.slow():
            _expect_answer(client, user)
            if ledger.total(user):
                raise NotYet("The caller had to wait until the ledger was written. Charge after the answer.")
        charged = ledger.total(user, PRICE)
        expect(charged, PRICE, why="After the answer, the ledger shows its price.", given=f"one answer to {user}")
        _expect_answer(client, user)
        ledger.total(user, 2 * PRICE)
        refused = _ask(client, user)
        expect(
            refused.status_code, 402, why=f"The ledger says that {ledger.total(user)} of {BUDGET} dollars are spent."
        )
        wait = refused.headers.get("Retry-After", "")
        if not (wait.isdecimal() and int(wait) > 0):
            raise NotYet(
                "The answer must say when it is worth to ask again.",
                expected="a header `Retry-After` with a number of seconds",
                got=show(wait) if wait else "no such header",
            )
        _expect_answer(client, other)
        ledger.total(other, PRICE)
        time.sleep(2 * Ledger.WRITE_S)  # a charge for what was refused would be written by now
        expect(ledger.total(user), 2 * PRICE, why="An answer that was refused costs nothing.")


def _ask(client: Client, user: str) -> httpx.Response:
    return client.get("/answer", params={"user": user})


def _expect_answer(client: Client, user: str) -> None:
    got = _ask(client, user)
    expect(got.status_code, 200, why=f"The ledger says that {ledger.total(user)} of {BUDGET} dollars are spent.")
    expect(got.json(), {"text": "An answer."})


# -------------------------------------------------------------------------------------- 14.4: answers from sources

RELEVANT = 0.5
_LIBRARY = [
    Passage("1", "opening hours", "The library opens at nine and closes at six. On Sundays it stays closed."),
    Passage("2", "fees", "A book that comes back late costs ten cents a day."),
    Passage("3", "rooms", "Rooms for groups are on the second floor. The library opens them on demand."),
]
_SCORES = {
    "When does the library open?": (0.91, 0.2, 0.64),
    "What does a late book cost?": (0.31, 0.88, 0.12),
    "Is there a room for my group?": (0.22, 0.1, 0.5),
    "Who wrote Don Quixote?": (0.15, 0.49, 0.11),
}
_written: list[list[str]] = []


async def search(question: str, k: int) -> list[Hit]:
    """The ``k`` nearest passages of a small library, the best first; none for a text without a known word."""
    hits = [Hit(passage, score) for passage, score in zip(_LIBRARY, _SCORES.get(question, ()), strict=False)]
    return sorted(hits, key=lambda hit: -hit.score)[:k]


async def write(question: str, texts: Sequence[str]) -> str:
    """Stands for the model: the answer to a question from the texts of its sources."""
    _written.append(list(texts))
    return f"From {len(texts)} sources: {texts[0]}" if texts else f"I believe that {question}"


@exercise(
    "14.4",
    hints=[
        "Two things mean unsure: no hits at all, or a first hit whose `score` is below 0.5. Then do not call `write`.",
        "The text of a hit is `hit.passage.text`, where it stands is `hit.passage.source`.",
    ],
    right="It answers from sources and names them, or says that it has none.",
    seconds=30,
)
def answers_from_sources(answer: Answer) -> None:
    with answer.serve(seconds=10) as client:
        _expect_sources(client, "When does the library open?", 1, 0)
        _expect_sources(client, "When does the library open?", 2, 0, 2)
        _expect_sources(client, "What does a late book cost?", 1, 1)
        _expect_sources(client, "Is there a room for my group?", 1, 2)
        _expect_unsure(client, "Who wrote Don Quixote?", "The best score is 0.49.")
        _expect_unsure(client, "Qwrtzpf?", "The search finds nothing at all.")


def _reply(client: Client, question: str, k: int) -> Any:
    _written.clear()
    got = client.get("/rag", params={"question": question, "k": k})
    expect(got.status_code, 200)
    return got.json()


def _expect_sources(client: Client, question: str, k: int, *rows: int) -> None:
    got = _reply(client, question, k)
    texts = [_LIBRARY[row].text for row in rows]
    if _written != [texts]:
        raise NotYet(
            f"The best score is {max(_SCORES[question])}. The model writes once, from the {k} best texts.",
            expected=show(texts),
            got=show(_written[0]) if _written else "the model was not asked",
        )
    sources = [_LIBRARY[row].source for row in rows]
    expect(got, {"answer": f"From {len(rows)} sources: {texts[0]}", "sources": sources, "sure": True})


def _expect_unsure(client: Client, question: str, why: str) -> None:
    got = _reply(client, question, 2)
    if _written:
        raise NotYet(f"{why} The model must not be asked: it answers anything.", got=show(got))
    expect(got, {"answer": "I am not sure.", "sources": [], "sure": False}, why=why)


# ------------------------------------------------------------------------------------ 14.5: when the model is gone


def _openai_server(calls: list[str], state: dict[str, int]) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> Any:
        model = str(body.get("model"))
        calls.append(model)
        if model not in ("workshop-main", "workshop-draft"):
            raise HTTPException(404, f"there is no model {model}")
        question = body["messages"][-1]["content"]
        if model == "workshop-main" and state["status"] != 200:
            error = {"message": "a failure on purpose", "type": "server_error", "param": None, "code": None}
            return JSONResponse({"error": error}, state["status"])
        message = {"role": "assistant", "content": f"{model} answers: {question}"}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    return app


@exercise(
    "14.5",
    hints=[
        "`try` the main model, `except openai.InternalServerError` ask the draft. That is any status from 500 on.",
        "Everything else, such as `openai.BadRequestError`, must reach the caller: do not catch it.",
    ],
    right="A draft is better than no answer, and what the caller did wrong is not covered up.",
    seconds=40,
)
def falls_back(answer: Answer) -> None:
    calls: list[str] = []
    state = {"status": 200}
    question = "What is a replica?"
    with run_app(_openai_server(calls, state)) as server:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="check", max_retries=0, timeout=15)
        try:
            for status, asked in (
                (200, ["workshop-main"]),
                *((s, ["workshop-main", "workshop-draft"]) for s in (503, 500)),
            ):
                state["status"] = status
                calls.clear()
                given = f"the main model answers with {status}"
                got = answer.call(client, question)
                expect(got, f"{asked[-1]} answers: {question}", given=given)
                if calls != asked:
                    raise NotYet(
                        "Ask the draft only when the main model fails.",
                        given=given,
                        expected=show(asked),
                        got=show(calls),
                    )
            for status in (400, 402):
                state["status"] = status
                calls.clear()
                _expect_error(answer, client, question, status)
        finally:
            answer.run(client.close())


def _expect_error(answer: Answer, client: AsyncOpenAI, question: str, status: int) -> None:
    given = f"the main model answers with {status}"
    try:
        got = answer.call(client, question)
    except APIStatusError as error:
        expect(error.status_code, status, given=given)
        return
    raise NotYet(
        "This is no failure of the server: the caller must hear of it.",
        given=given,
        expected=f"the client's error, with status {status}",
        got=show(got),
    )
