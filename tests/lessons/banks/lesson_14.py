"""Answers to lesson 14: cascades and RAG."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI
from starlette.background import BackgroundTask

from workshop.lab.exercises.lesson_14 import (
    BUDGET,
    PRICE,
    RELEVANT,
    SURE_FROM,
    Reply,
    draft,
    ledger,
    main,
    search,
    write,
)


def app(path: str, endpoint: Callable[..., Any]) -> FastAPI:
    made = FastAPI()
    made.get(path)(endpoint)
    return made


# 14.1: a cascade


def reply(got: Reply, model: str, cost: float | None = None) -> dict[str, Any]:
    return {"text": got.text, "model": model, "cost": got.cost if cost is None else cost}


async def returns_early(question: str, direct: bool = False) -> Any:
    cost = 0.0
    if not direct:
        first = await draft(question)
        if first.quality >= SURE_FROM:
            return reply(first, "draft")
        cost = first.cost
    second = await main(question)
    return reply(second, "main", cost + second.cost)


async def collects_replies(question: str, direct: bool = False) -> Any:
    replies = {} if direct else {"draft": await draft(question)}
    if direct or replies["draft"].quality < SURE_FROM:
        replies["main"] = await main(question)
    model, last = list(replies.items())[-1]
    return {"text": last.text, "model": model, "cost": sum(each.cost for each in replies.values())}


async def forgets_the_drafts_cost(question: str, direct: bool = False) -> Any:
    first = None if direct else await draft(question)
    if first and first.quality >= SURE_FROM:
        return reply(first, "draft")
    return reply(await main(question), "main")


async def asks_both(question: str, direct: bool = False) -> Any:
    first, second = await asyncio.gather(draft(question), main(question))
    return reply(first, "draft") if first.quality >= SURE_FROM else reply(second, "main", 11)


async def must_exceed(question: str, direct: bool = False) -> Any:
    first = None if direct else await draft(question)
    if first and first.quality > SURE_FROM:
        return reply(first, "draft")
    second = await main(question)
    return reply(second, "main", second.cost + (first.cost if first else 0))


async def ignores_direct(question: str) -> Any:
    return await returns_early(question)


async def always_the_draft(question: str, direct: bool = False) -> Any:
    return reply(await draft(question), "draft")


async def forgets_await(question: str, direct: bool = False) -> Any:
    first: Any = draft(question)
    return reply(first, "draft")


# 14.2: the threshold


def by_loop(points: list[Any], target: float) -> Any:
    best = None
    for point in points:
        if point.accuracy >= target and (best is None or point.cost < best.cost):
            best = point
    return best


def more_than(points: list[Any], target: float) -> Any:
    return min((point for point in points if point.accuracy > target), key=lambda point: point.cost, default=None)


def without_default(points: list[Any], target: float) -> Any:
    return min((point for point in points if point.accuracy >= target), key=lambda point: point.cost)


def the_most_accurate(points: list[Any], target: float) -> Any:
    return max(points, key=lambda point: point.accuracy)


def the_first(points: list[Any], target: float) -> Any:
    return next((point for point in points if point.accuracy >= target), None)


def up_to_the_first_miss(points: list[Any], target: float) -> Any:
    best = None
    for point in sorted(points, key=lambda point: -point.cost):
        if point.accuracy < target:
            break
        best = point
    return best


# 14.3: the budget


def refusal() -> HTTPException:
    return HTTPException(402, "nothing is left for today", {"Retry-After": "3600"})


async def in_the_background(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    background.add_task(ledger.add, user, PRICE)
    return {"text": "An answer."}


async def on_the_response(user: str) -> Any:
    if await ledger.spent(user) >= BUDGET:
        return JSONResponse({"detail": "no money"}, 402, {"Retry-After": "60"})
    return JSONResponse({"text": "An answer."}, background=BackgroundTask(ledger.add, user, PRICE))


_tasks = set()


async def in_a_task(user: str) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    task = asyncio.create_task(ledger.add(user, PRICE))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return {"text": "An answer."}


async def charges_first(user: str) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    await ledger.add(user, PRICE)
    return {"text": "An answer."}


async def never_charges(user: str) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    return {"text": "An answer."}


async def never_refuses(user: str, background: BackgroundTasks) -> Any:
    background.add_task(ledger.add, user, PRICE)
    return {"text": "An answer."}


async def does_not_say_when(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise HTTPException(402)
    return await in_the_background(user, background)


async def one_for_all(user: str, background: BackgroundTasks) -> Any:
    if ledger.total("everybody") >= BUDGET:
        raise refusal()
    background.add_task(ledger.add, "everybody", PRICE)
    return {"text": "An answer."}


async def refuses_too_soon(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) > 0:
        raise refusal()
    return await in_the_background(user, background)


# 14.4: answers from sources

UNSURE = {"answer": "I am not sure.", "sources": [], "sure": False}


async def from_sources(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    if not hits or hits[0].score < RELEVANT:
        return UNSURE
    text = await write(question, [hit.passage.text for hit in hits])
    return {"answer": text, "sources": [hit.passage.source for hit in hits], "sure": True}


async def by_the_maximum(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    if max((hit.score for hit in hits), default=0) >= RELEVANT:
        passages = [hit.passage for hit in hits]
        text = await write(question, [passage.text for passage in passages])
        return {"answer": text, "sources": [passage.source for passage in passages], "sure": True}
    return UNSURE


async def always_sure(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    text = await write(question, [hit.passage.text for hit in hits])
    return {"answer": text, "sources": [hit.passage.source for hit in hits], "sure": True}


async def asks_before_it_looks(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    text = await write(question, [hit.passage.text for hit in hits])
    if not hits or hits[0].score < RELEVANT:
        return UNSURE
    return {"answer": text, "sources": [hit.passage.source for hit in hits], "sure": True}


async def ignores_k(question: str, k: int = 1) -> Any:
    return await from_sources(question, 1)


async def fails_without_hits(question: str, k: int = 1) -> Any:
    if (await search(question, k))[0].score < RELEVANT:
        return UNSURE
    return await from_sources(question, k)


async def names_no_sources(question: str, k: int = 1) -> Any:
    return await from_sources(question, k) | {"sources": []}


async def must_score_more(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return await from_sources(question, k) if hits and hits[0].score > RELEVANT else UNSURE


# 14.5: the draft when the main model is gone


async def ask(client: AsyncOpenAI, model: str, question: str) -> str | None:
    completion = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}])
    return completion.choices[0].message.content


async def by_class(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except (openai.InternalServerError, openai.APIConnectionError):
        return await ask(client, "workshop-draft", question)


async def by_status(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.APIStatusError as error:
        if error.status_code < 500:
            raise
    return await ask(client, "workshop-draft", question)


async def catches_all(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.OpenAIError:
        return await ask(client, "workshop-draft", question)


async def main_only(client: AsyncOpenAI, question: str) -> Any:
    return await ask(client, "workshop-main", question)


async def draft_only(client: AsyncOpenAI, question: str) -> Any:
    return await ask(client, "workshop-draft", question)


async def asks_both_models(client: AsyncOpenAI, question: str) -> Any:
    fallback = await ask(client, "workshop-draft", question)
    try:
        return await ask(client, "workshop-main", question)
    except openai.InternalServerError:
        return fallback


async def forgets_return(client: AsyncOpenAI, question: str) -> Any:
    try:
        await ask(client, "workshop-main", question)
    except openai.InternalServerError:
        await ask(client, "workshop-draft", question)


BANK = {
    "14.1": {
        "right": [app("/ask", returns_early), app("/ask", collects_replies)],
        "wrong": [
            (app("/ask", forgets_the_drafts_cost), "The cost is of every model that was asked"),
            (app("/ask", asks_both), "asked: draft, then main"),
            (app("/ask", must_exceed), "the draft's quality is 0.9"),
            (app("/ask", ignores_direct), "`direct` is asked for"),
            (app("/ask", always_the_draft), "the draft's quality is 0.62"),
            (app("/ask", forgets_await), "no attribute"),
            (app("/answer", returns_early), "404"),
        ],
    },
    "14.2": {
        "right": [
            by_loop,
            lambda points, target: min(
                (point for point in points if point.accuracy >= target), key=lambda point: point.cost, default=None
            ),
            lambda points, target: next(
                (point for point in sorted(points, key=lambda point: point.threshold) if point.accuracy >= target), None
            ),
        ],
        "wrong": [
            (more_than, "equals the target"),
            (without_default, "empty"),
            (the_most_accurate, "The cheapest one"),
            (the_first, "in any order"),
            (up_to_the_first_miss, "Accuracy may fall"),
            (lambda points, target: None, "`return`"),
        ],
    },
    "14.3": {
        "right": [app("/answer", in_the_background), app("/answer", on_the_response), app("/answer", in_a_task)],
        "wrong": [
            (app("/answer", charges_first), "The caller had to wait"),
            (app("/answer", never_charges), "the ledger shows its price"),
            (app("/answer", never_refuses), "402"),
            (app("/answer", does_not_say_when), "`Retry-After`"),
            (app("/answer", one_for_all), "the ledger shows its price"),
            (app("/answer", refuses_too_soon), "0.5 of 1.0 dollars are spent"),
        ],
    },
    "14.4": {
        "right": [app("/rag", from_sources), app("/rag", by_the_maximum)],
        "wrong": [
            (app("/rag", always_sure), "The model must not be asked"),
            (app("/rag", asks_before_it_looks), "The model must not be asked"),
            (app("/rag", ignores_k), "from the 2 best texts"),
            (app("/rag", fails_without_hits), "IndexError"),
            (app("/rag", names_no_sources), "opening hours"),
            (app("/rag", must_score_more), "The best score is 0.5"),
        ],
    },
    "14.5": {
        "right": [by_class, by_status],
        "wrong": [
            (catches_all, "the caller must hear of it"),
            (main_only, "503"),
            (draft_only, "the main model answers with 200"),
            (asks_both_models, "only when the main model fails"),
            (forgets_return, "`return`"),
        ],
    },
}
