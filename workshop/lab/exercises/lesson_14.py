"""Lesson 14: cascades and RAG."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any

import httpx
from openai import APIStatusError, AsyncOpenAI

from workshop.lab.answer import Answer, Client
from workshop.lab.app_server import run_app
from workshop.lab.expectations import NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_14 import (
    BUDGET,
    BUMPY,
    LIBRARY,
    MODELS,
    PRICE,
    QUALITIES,
    SCORES,
    SMOOTH,
    ModelServer,
    asked,
    ledger,
    written,
)
from workshop.lab.registry import exercise

# ------------------------------------------------------------------------------------ 14.1: two models, one route


@exercise(
    "14.1",
    hints=[
        "Ask the draft. If its quality is at least 0.9, its reply is the answer. Otherwise, await `main(question)`.",
        "After a draft that was not kept, the cost is `first.cost + second.cost`. With `direct`, ask `main` alone. "
        "Give no variable the name `draft` or `main`: in your function, it would hide the model.",
    ],
    right="Each question is answered by the cheapest model that is sure enough, and the bill is complete.",
    seconds=30,
)
def cascades(answer: Answer) -> None:
    with answer.serve(seconds=10) as client:
        _expect_route(client, "What is a replica?", "draft")
        _expect_route(client, "What is a mutex?", "draft", "main")
        _expect_route(client, "What is a proxy?", "draft")
        _expect_route(client, "What is a quorum?", "draft", "main")
        _expect_route(client, "What is a replica?", "main", direct=True)
        _expect_route(client, "What is a replica?", "draft", direct=False)


def _expect_route(client: Client, question: str, *models: str, direct: bool | None = None) -> None:
    """The question goes to these models. If ``direct`` is None, the request does not mention it."""
    asked.clear()
    got = client.get("/ask", params={"question": question} | ({} if direct is None else {"direct": direct}))
    expect(got.status_code, 200)
    sureness = "`direct` is true" if direct else f"the draft's quality is {QUALITIES[question]}"
    if direct is False:
        sureness += ", and `direct` is false: a `bool`, not a text"
    if asked != list(models):
        raise NotYet(
            f"Here {sureness}.",
            expected=f"asked: {', then '.join(models)}",
            got=f"asked: {', then '.join(asked) or 'nobody'}",
        )
    costs = {"draft": len(question) / 10, "main": float(len(question))}
    text = f"The {'draft' if models[-1] == 'draft' else 'main model'}'s answer to: {question}"
    bill = " + ".join(f"{costs[model]:g} for {model}" for model in models)
    expect(
        got.json(),
        {"text": text, "model": models[-1], "cost": sum(costs[model] for model in models)},
        why=f"Here {sureness}. The cost of this question is {bill}.",
    )


# ---------------------------------------------------------------------------------------- 14.2: the best threshold


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
        (SMOOTH, 65, SMOOTH[2], "The cheapest point whose accuracy reaches the target."),
        (SMOOTH, 71, SMOOTH[3], "An accuracy that equals the target is high enough."),
        (SMOOTH[::-1], 55, SMOOTH[1], "The points come in any order."),
        (BUMPY, 60, BUMPY[1], "Among the points that reach the target only the cost counts: this one costs least."),
        (BUMPY, 68, BUMPY[1], "Accuracy may fall while the threshold rises, so look at all points."),
        (BUMPY, 72, BUMPY[3], "The cheapest point whose accuracy reaches the target."),
        (SMOOTH, 99, None, "No point is good enough."),
        ([], 50, None, "There is no point at all."),
    ]
    for points, target, best, why in cases:
        got = answer.call(points, target)
        is_figure = best is not None and isinstance(got, int | float)
        expect(got, best, why="Return the whole point, not one figure of it." if is_figure else why)


# ----------------------------------------------------------------------------------------------- 14.3: the budget

_users = (f"user-{number}" for number in count(1))


@exercise(
    "14.3",
    hints=[
        'If `await ledger.spent(user) >= BUDGET`, raise `HTTPException(402, "…", {"Retry-After": "3600"})`.',
        "`background.add_task(ledger.add, user, PRICE)` charges the user after the response has been sent.",
    ],
    right="Nobody waits for the ledger, and whoever has spent the budget gets no more answers.",
    seconds=60,
)
def keeps_the_budget(answer: Answer) -> None:
    user, other = next(_users), next(_users)
    with answer.serve(seconds=10) as client:
        with ledger.slow():
            _expect_answer(client, user, "This is the user's first question.")
            if ledger.total(user):
                raise NotYet("The caller had to wait until the ledger was written. Charge after the response.")
        charged = _charged(client, user, PRICE)
        expect(charged, PRICE, why="After the answer, the ledger shows its price.", given=f"one answer to {user}")
        _expect_answer(client, user, f"One answer was charged: {ledger.total(user)} of {BUDGET} dollars are spent.")
        _charged(client, user, 2 * PRICE)
        refused = _ask(client, user)
        expect(refused.status_code, 402, why=f"{ledger.total(user)} of {BUDGET} dollars are spent.")
        _expect_retry_after(refused)
        _expect_answer(client, other, "This is another user's first question.")
        _charged(client, other, PRICE)  # a charge for what was refused would be older, so it would be written by now
        expect(ledger.total(user), 2 * PRICE, why="Two answers were given and one was refused: two are charged.")


def _charged(client: Client, user: str, dollars: float) -> float:
    """What the user has spent, once it is as much as this, or the app has failed, or writing has had time enough."""
    becomes_true(lambda: ledger.total(user) >= dollars or bool(client.errors), seconds=4)
    return ledger.total(user)


def _ask(client: Client, user: str) -> httpx.Response:
    return client.get("/answer", params={"user": user})


def _expect_answer(client: Client, user: str, why: str) -> None:
    got = _ask(client, user)
    expect(got.status_code, 200, why=why)
    expect(got.json(), {"text": "An answer."})


def _expect_retry_after(refused: httpx.Response) -> None:
    wait = refused.headers.get("Retry-After", "")
    if not _is_in_the_future(wait):
        raise NotYet(
            "The response must say when to try again.",
            expected="a header `Retry-After`: whole seconds above 0, or a date in the future such as "
            "'Fri, 31 Dec 2100 23:59:59 GMT'",
            got=show(wait) if wait else "no such header",
        )


def _is_in_the_future(wait: str) -> bool:
    """Whether the value of a `Retry-After` is valid, and not over yet: seconds, or a date as HTTP writes it."""
    if wait.isdecimal():
        return int(wait) > 0
    if not wait.endswith(" GMT"):
        return False
    try:
        return parsedate_to_datetime(wait) > datetime.now(UTC)
    except ValueError:
        return False


# -------------------------------------------------------------------------------------- 14.4: answers from sources


@exercise(
    "14.4",
    hints=[
        "Two things mean unsure: no hits at all, or a first hit whose `score` is below 0.5. Then do not call `write`.",
        "The text of a hit is `hit.passage.text`, its source is `hit.passage.source`.",
    ],
    right="It answers from sources and names them, or says that it has none.",
    seconds=30,
)
def answers_from_sources(answer: Answer) -> None:
    with answer.serve(seconds=10) as client:
        _expect_sources(client, "When does the library open?", 0)
        _expect_sources(client, "When does the library open?", 0, 2)
        _expect_sources(client, "What does a late book cost?", 1, 0, 2)
        _expect_sources(client, "Is there a room for my group?", 2)
        _expect_unsure(client, "Who wrote Don Quixote?", "The best score is 0.49.")
        _expect_unsure(client, "Qwrtzpf?", "The search finds nothing at all.")


def _reply(client: Client, question: str, k: int) -> Any:
    written.clear()
    got = client.get("/rag", params={"question": question, "k": k})
    expect(got.status_code, 200)
    return got.json()


def _expect_sources(client: Client, question: str, *rows: int) -> None:
    """The answer is written once, from these rows of the library."""
    k = len(rows)
    got = _reply(client, question, k)
    texts = [LIBRARY[row].text for row in rows]
    scores = sorted(SCORES[question], reverse=True)[:k]
    if written != [texts]:
        raise NotYet(
            f"The scores are {', '.join(map(str, scores))}: one that is high enough will do. "
            f"The model then writes once, from the texts of all {k} hits.",
            expected=show(texts),
            got=show(written[0] if len(written) == 1 else written) if written else "the model was not asked",
        )
    sources = [LIBRARY[row].source for row in rows]
    expect(got, {"answer": f"From {len(rows)} sources: {texts[0]}", "sources": sources, "sure": True})


def _expect_unsure(client: Client, question: str, why: str) -> None:
    got = _reply(client, question, 2)
    if written:
        raise NotYet(f"{why} The model must not be asked: it answers even what it cannot know.", got=show(got))
    expect(got, {"answer": "I am not sure.", "sources": [], "sure": False}, why=why)


# ------------------------------------------------------------------------------------ 14.5: when the model is gone

_MAIN, _DRAFT = MODELS
_QUESTION = "What is a replica?"


@exercise(
    "14.5",
    hints=[
        "`try` the main model; `except openai.InternalServerError`, ask the draft. It is any status from 500 on.",
        "Everything else, such as `openai.BadRequestError`, must reach the caller: do not catch it.",
    ],
    right="A draft is better than no answer, and the caller still sees every other error.",
    seconds=40,
)
def falls_back(answer: Answer) -> None:
    models = ModelServer()
    with run_app(models.app()) as server:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="check", max_retries=0, timeout=15)
        try:
            _expect_text(answer, client, models, {}, _MAIN)
            for status in (503, 500, 502):
                _expect_text(answer, client, models, {_MAIN: status}, _MAIN, _DRAFT)
            for status in (400, 402, 429):
                _expect_error(answer, client, models, {_MAIN: status}, "The server has not failed")
            _expect_error(answer, client, models, {_MAIN: 503, _DRAFT: 500}, "Nobody has answered")
        finally:
            answer.run(client.close())


def _expect_text(
    answer: Answer, client: AsyncOpenAI, models: ModelServer, failing: dict[str, int], *calls: str
) -> None:
    """With these models failing, these are called, and the last one's text is returned."""
    given = _given(models, failing)
    try:
        got = answer.call(client, _QUESTION)
    except APIStatusError as error:
        raise NotYet(
            "This failure must not reach the caller: the draft can answer.",
            given=given,
            expected=f"the text of {calls[-1]}",
            got=f"{type(error).__name__}, with status {error.status_code}",
        ) from error
    expect(got, f"{calls[-1]} answers: {_QUESTION}", given=given)
    if models.calls != list(calls):
        raise NotYet(
            "Ask the main model once, and the draft only when it fails.",
            given=given,
            expected=show(list(calls)),
            got=show(models.calls),
        )


def _expect_error(
    answer: Answer, client: AsyncOpenAI, models: ModelServer, failing: dict[str, int], reason: str
) -> None:
    given, statuses = _given(models, failing), list(failing.values())
    try:
        got = show(answer.call(client, _QUESTION))
    except APIStatusError as error:
        if error.status_code in statuses:
            return
        got = f"{type(error).__name__}, with status {error.status_code}"
    raise NotYet(
        f"{reason}: the caller must get the error.",
        given=given,
        expected=f"the client's error, with status {' or '.join(map(str, statuses))}",
        got=got,
    )


def _given(models: ModelServer, failing: dict[str, int]) -> str:
    """Make these models fail, and say so."""
    models.failing = failing
    models.calls.clear()
    states = [f"{model} fails with {failing[model]}" if model in failing else f"{model} answers" for model in MODELS]
    return ", ".join(states)
