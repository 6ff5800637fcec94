"""Answers to lesson 14: cascades and RAG."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from operator import attrgetter
from typing import Annotated, Any

import numpy as np
import openai
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI
from pydantic import BaseModel
from starlette.background import BackgroundTask

from workshop.lab.fixtures.lesson_14 import (
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


class Bill(BaseModel):
    text: str
    model: str
    cost: float


async def as_a_model(question: str, direct: bool = False) -> Bill:
    drafted = None if direct else await draft(question)
    if drafted is not None and drafted.quality >= SURE_FROM:
        return Bill(text=drafted.text, model="draft", cost=drafted.cost)
    final = await main(question)
    return Bill(text=final.text, model="main", cost=final.cost + getattr(drafted, "cost", 0))


def with_def(question: str, direct: bool = False) -> Any:
    return asyncio.run(returns_early(question, direct))


async def adds_up_in_a_loop(question: str, direct: bool = False) -> Any:
    cost = 0.0
    for name, model in (("draft", draft), ("main", main)):
        if direct and name == "draft":
            continue
        got = await model(question)
        cost += got.cost
        if got.quality >= SURE_FROM:
            break
    return JSONResponse(reply(got, name, cost))


_total = Counter[str]()


async def adds_to_one_sum(question: str, direct: bool = False) -> Any:
    answered = await returns_early(question, direct)
    _total["cost"] += answered["cost"]
    return answered | {"cost": _total["cost"]}


async def writes_the_costs_down(question: str, direct: bool = False) -> Any:
    answered = await returns_early(question, direct)
    return answered | {"cost": 1.8 if answered["model"] == "draft" else 18 if direct else 19.8}


async def swaps_the_branches(question: str, direct: bool = False) -> Any:
    return await returns_early(question, not direct)


async def drafts_in_any_case(question: str, direct: bool = False) -> Any:
    first = await draft(question)
    if first.quality >= SURE_FROM and not direct:
        return reply(first, "draft")
    second = await main(question)
    return reply(second, "main", second.cost if direct else first.cost + second.cost)


async def names_no_model(question: str, direct: bool = False) -> Any:
    answered = await returns_early(question, direct)
    return {"text": answered["text"], "cost": answered["cost"]}


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


async def takes_direct_as_text(question: str, direct: str = "") -> Any:
    return await returns_early(question, bool(direct))


async def hides_the_models(question: str, direct: bool = False) -> Any:
    draft = await draft(question)  # type: ignore[has-type] # noqa: F823
    return reply(draft, "draft")


async def always_the_draft(question: str, direct: bool = False) -> Any:
    return reply(await draft(question), "draft")


async def forgets_await(question: str, direct: bool = False) -> Any:
    first: Any = draft(question)
    return reply(first, "draft")


# 14.2: the threshold


def with_numpy(points: list[Any], target: float) -> Any:
    costs = np.array([point.cost if point.accuracy >= target else np.inf for point in points])
    return points[costs.argmin()] if np.isfinite(costs).any() else None


def by_loop(points: list[Any], target: float) -> Any:
    best = None
    for point in points:
        if point.accuracy >= target and (best is None or point.cost < best.cost):
            best = point
    return best


def by_sorting(points: list[Any], target: float) -> Any:
    points.sort(key=attrgetter("cost"))
    while points and points[0].accuracy < target:
        points.pop(0)
    return points[0] if points else None


def unpacks(points: list[Any], target: float) -> Any:
    good = [(cost, point) for point in points for _, accuracy, cost, _ in [point] if accuracy >= target]
    return min(good)[1] if good else None


def with_try(points: list[Any], target: float) -> Any:
    try:
        return min((point for point in points if point.accuracy >= target), key=lambda point: point.cost)
    except ValueError:
        return None


def the_least_accurate(points: list[Any], target: float) -> Any:
    good = [point for point in points if point.accuracy >= target]
    return min(good, key=lambda point: point.accuracy, default=None)


def the_cheapest_of_all(points: list[Any], target: float) -> Any:
    return min(points, key=lambda point: point.cost, default=None)


def only_the_cheapest(points: list[Any], target: float) -> Any:
    best = min(points, key=lambda point: point.cost)
    return best if best.accuracy >= target else None


def starts_with_the_first(points: list[Any], target: float) -> Any:
    best = points[0]
    for point in points[1:]:
        if point.accuracy >= target and point.cost < best.cost:
            best = point
    return best if best.accuracy >= target else None


def its_threshold(points: list[Any], target: float) -> Any:
    best = by_loop(points, target)
    return best.threshold if best else None


def its_cost(points: list[Any], target: float) -> Any:
    return min((point.cost for point in points if point.accuracy >= target), default=None)


def all_that_reach_it(points: list[Any], target: float) -> Any:
    return [point for point in points if point.accuracy >= target] or None


def the_dearest(points: list[Any], target: float) -> Any:
    return max((point for point in points if point.accuracy >= target), key=lambda point: point.cost, default=None)


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


def in_a_thread(user: str, background: BackgroundTasks) -> Any:
    if asyncio.run(ledger.spent(user)) >= BUDGET:
        raise refusal()
    background.add_task(lambda: asyncio.run(ledger.add(user, PRICE)))
    return {"text": "An answer."}


async def charge_at_the_end(user: str) -> AsyncGenerator[None, None]:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    yield
    await ledger.add(user, PRICE)


async def in_a_dependency(user: str, _: Annotated[None, Depends(charge_at_the_end)]) -> Any:
    return {"text": "An answer."}


def retry_after(value: str) -> Callable[..., Any]:
    """The right answer, with another value of the header."""

    async def answers(user: str, background: BackgroundTasks) -> Any:
        if await ledger.spent(user) >= BUDGET:
            raise HTTPException(402, headers={"Retry-After": value})
        return await in_the_background(user, background)

    return answers


async def until_midnight(user: str, background: BackgroundTasks) -> Any:
    now = datetime.now(UTC)
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    return await retry_after(format_datetime(midnight, usegmt=True))(user, background)


async def calls_instead_of_passing(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    background.add_task(ledger.add(user, PRICE))  # type: ignore[arg-type]
    return {"text": "An answer."}


async def with_a_lambda(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    background.add_task(lambda: ledger.add(user, PRICE))  # runs in a thread, which awaits nothing
    return {"text": "An answer."}


async def returns_the_refusal(user: str, background: BackgroundTasks):
    if await ledger.spent(user) >= BUDGET:
        return refusal()
    return await in_the_background_unchecked(user, background)


async def says_when_in_the_body(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise HTTPException(402, {"Retry-After": "3600"})
    return await in_the_background_unchecked(user, background)


async def gives_a_number(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise HTTPException(402, headers={"Retry-After": 3600})  # type: ignore[dict-item]
    return await in_the_background_unchecked(user, background)


async def allows_one_more(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) > BUDGET:
        raise refusal()
    return await in_the_background_unchecked(user, background)


async def in_the_background_unchecked(user: str, background: BackgroundTasks) -> Any:
    background.add_task(ledger.add, user, PRICE)
    return {"text": "An answer."}


async def refuses_with_429(user: str, background: BackgroundTasks) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise HTTPException(429, headers={"Retry-After": "3600"})
    return await in_the_background_unchecked(user, background)


async def charges_what_it_refuses(user: str) -> Any:
    _tasks.add(asyncio.create_task(ledger.add(user, PRICE)))
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    return {"text": "An answer."}


async def charges_twice(user: str, background: BackgroundTasks) -> Any:
    background.add_task(ledger.add, user, PRICE)
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    return await in_the_background_unchecked(user, background)


async def forgets_await_at_the_ledger(user: str, background: BackgroundTasks) -> Any:
    if ledger.spent(user) >= BUDGET:  # type: ignore[operator]
        raise refusal()
    return await in_the_background_unchecked(user, background)


async def charges_first(user: str) -> Any:
    if await ledger.spent(user) >= BUDGET:
        raise refusal()
    await ledger.add(user, PRICE)
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


class Advice(BaseModel):
    answer: str = "I am not sure."
    sources: list[str] = []
    sure: bool = False


async def as_advice(question: str, k: int = 1) -> Advice:
    hits = await search(question, k)
    if not any(hit.score >= RELEVANT for hit in hits):
        return Advice()
    return Advice(**await written_from(question, hits))


async def forgets_await_at_the_model(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    if not hits or hits[0].score < RELEVANT:
        return UNSURE
    return {"answer": write(question, [hit.passage.text for hit in hits]), "sources": [], "sure": True}


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


async def unless_none_is_relevant(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    if all(hit.score < RELEVANT for hit in hits):
        return UNSURE
    return await written_from(question, hits)


async def if_any_is_relevant(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return await written_from(question, hits) if any(hit.score >= RELEVANT for hit in hits) else JSONResponse(UNSURE)


async def with_match(question: str, k: int = 1) -> Any:
    match await search(question, k):
        case [best, *others] if best.score >= RELEVANT:
            return await written_from(question, [best, *others])
    return UNSURE


async def written_from(question: str, hits: list[Any]) -> Any:
    text = await write(question, [hit.passage.text for hit in hits])
    return {"answer": text, "sources": [hit.passage.source for hit in hits], "sure": True}


async def if_all_are_relevant(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return await written_from(question, hits) if hits and all(hit.score >= RELEVANT for hit in hits) else UNSURE


async def all_of_nothing(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return await written_from(question, hits) if all(hit.score >= RELEVANT for hit in hits) else UNSURE


async def unless_one_is_irrelevant(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return UNSURE if any(hit.score < RELEVANT for hit in hits) or not hits else await written_from(question, hits)


async def by_the_last(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return await written_from(question, hits) if hits and hits[-1].score >= RELEVANT else UNSURE


async def by_the_mean(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    mean = sum(hit.score for hit in hits) / max(len(hits), 1)
    return await written_from(question, hits) if mean >= RELEVANT else UNSURE


async def from_the_relevant_only(question: str, k: int = 1) -> Any:
    hits = [hit for hit in await search(question, k) if hit.score >= RELEVANT]
    return await written_from(question, hits) if hits else UNSURE


async def writes_once_per_hit(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    if not hits or hits[0].score < RELEVANT:
        return UNSURE
    texts = [await write(question, [hit.passage.text]) for hit in hits]
    return {"answer": " ".join(texts), "sources": [hit.passage.source for hit in hits], "sure": True}


async def names_sources_though_unsure(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    return await from_sources(question, k) | {"sources": [hit.passage.source for hit in hits]}


async def quotes_without_the_model(question: str, k: int = 1) -> Any:
    hits = await search(question, k)
    if not hits or hits[0].score < RELEVANT:
        return UNSURE
    answer = f"From {len(hits)} sources: {hits[0].passage.text}"
    return {"answer": answer, "sources": [hit.passage.source for hit in hits], "sure": True}


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


async def with_match_on_the_status(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.APIStatusError as error:
        match error.status_code:
            case status if status >= 500:
                return await ask(client, "workshop-draft", question)
        raise


async def with_suppress(client: AsyncOpenAI, question: str) -> Any:
    with suppress(openai.InternalServerError):
        return await ask(client.with_options(max_retries=0), "workshop-main", question)
    return await ask(client, "workshop-draft", question)


async def raises_the_first_error(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.InternalServerError as error:
        try:
            return await ask(client, "workshop-draft", question)
        except openai.OpenAIError:
            raise error from None


def with_a_coroutine(client: AsyncOpenAI, question: str) -> Any:
    return by_status(client, question)


async def connection_errors_only(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.APIConnectionError:
        return await ask(client, "workshop-draft", question)


async def only_a_503(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.APIStatusError as error:
        if error.status_code != 503:
            raise
    return await ask(client, "workshop-draft", question)


async def also_when_limited(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except (openai.InternalServerError, openai.RateLimitError):
        return await ask(client, "workshop-draft", question)


async def any_status(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.APIStatusError:
        return await ask(client, "workshop-draft", question)


async def nothing_at_last(client: AsyncOpenAI, question: str) -> Any:
    for model in ("workshop-main", "workshop-draft"):
        try:
            return await ask(client, model, question)
        except openai.InternalServerError:
            continue
    return None


async def swallows_the_others(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.APIStatusError as error:
        if error.status_code >= 500:
            return await ask(client, "workshop-draft", question)


async def awaits_after_the_try(client: AsyncOpenAI, question: str) -> Any:
    try:
        call = ask(client, "workshop-main", question)
    except openai.InternalServerError:
        call = ask(client, "workshop-draft", question)
    return await call


async def apologises(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await by_class(client, question)
    except openai.InternalServerError:
        return "Sorry, no model can answer at the moment."


async def asks_the_main_model_twice(client: AsyncOpenAI, question: str) -> Any:
    try:
        return await ask(client, "workshop-main", question)
    except openai.InternalServerError:
        return await by_class(client, question)


async def the_completion(client: AsyncOpenAI, question: str) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    try:
        return await client.chat.completions.create(model="workshop-main", messages=messages)
    except openai.InternalServerError:
        return await client.chat.completions.create(model="workshop-draft", messages=messages)


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
        "right": [
            app("/ask", returns_early),
            app("/ask", collects_replies),
            app("/ask", as_a_model),
            app("/ask", with_def),
            app("/ask", adds_up_in_a_loop),
        ],
        "wrong": [
            (app("/ask", forgets_the_drafts_cost), "1.6 for draft + 16 for main"),
            (app("/ask", asks_both), "asked: draft, then main"),
            (app("/ask", must_exceed), "the draft's quality is 0.9"),
            (app("/ask", ignores_direct), "`direct` is true"),
            (app("/ask", drafts_in_any_case), "`direct` is true"),
            (app("/ask", takes_direct_as_text), "`direct` is false: a `bool`, not a text"),
            (app("/ask", hides_the_models), "UnboundLocalError"),
            (app("/ask", swaps_the_branches), "the draft's quality is 0.97"),
            (app("/ask", always_the_draft), "the draft's quality is 0.62"),
            (app("/ask", writes_the_costs_down), "The cost of this question is"),
            (app("/ask", adds_to_one_sum), "The cost of this question is"),
            (app("/ask", names_no_model), "'model': 'draft'"),
            (app("/ask", forgets_await), "no attribute"),
            (app("/answer", returns_early), "404"),
        ],
    },
    "14.2": {
        "right": [
            by_loop,
            by_sorting,
            unpacks,
            with_numpy,
            with_try,
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
            (the_most_accurate, "The cheapest point"),
            (the_least_accurate, "only the cost counts"),
            (the_cheapest_of_all, "The cheapest point whose accuracy reaches the target"),
            (only_the_cheapest, "The cheapest point whose accuracy reaches the target"),
            (starts_with_the_first, "The cheapest point"),
            (the_dearest, "The cheapest point"),
            (the_first, "in any order"),
            (up_to_the_first_miss, "Accuracy may fall"),
            (its_threshold, "Return the whole point"),
            (its_cost, "Return the whole point"),
            (all_that_reach_it, "The cheapest point"),
            (lambda points, target: None, "`return`"),
        ],
    },
    "14.3": {
        "right": [
            app("/answer", in_the_background),
            app("/answer", on_the_response),
            app("/answer", in_a_task),
            app("/answer", in_a_thread),
            app("/answer", in_a_dependency),
            app("/answer", until_midnight),
        ],
        "wrong": [
            (app("/answer", charges_first), "The caller had to wait"),
            (app("/answer", with_a_lambda), "the ledger shows its price"),
            (app("/answer", calls_instead_of_passing), "the first argument must be callable"),
            (app("/answer", forgets_await_at_the_ledger), "'coroutine' and 'float'"),
            (app("/answer", never_refuses), "402"),
            (app("/answer", allows_one_more), "402"),
            (app("/answer", refuses_with_429), "429"),
            (app("/answer", returns_the_refusal), "expected 402"),
            (app("/answer", says_when_in_the_body), "no such header"),
            (app("/answer", gives_a_number), "'int' object has no attribute 'encode'"),
            (app("/answer", charges_what_it_refuses), "two are charged"),
            (app("/answer", charges_twice), "charged"),
            (app("/answer", does_not_say_when), "`Retry-After`"),
            (app("/answer", retry_after("0")), "whole seconds"),
            (app("/answer", retry_after("Sat, 31 Dec 2005 23:59:59 GMT")), "a date in the future"),
            (app("/answer", retry_after("2100-12-31T23:59:59+00:00")), "'2100-12-31T23:59:59+00:00'"),
            (app("/answer", retry_after("Midnight GMT")), "a date in the future"),
            (app("/answer", one_for_all), "the ledger shows its price"),
            (app("/answer", refuses_too_soon), "0.5 of 1.0 dollars are spent"),
        ],
    },
    "14.4": {
        "right": [
            app("/rag", from_sources),
            app("/rag", by_the_maximum),
            app("/rag", unless_none_is_relevant),
            app("/rag", if_any_is_relevant),
            app("/rag", with_match),
            app("/rag", as_advice),
        ],
        "wrong": [
            (app("/rag", always_sure), "The model must not be asked"),
            (app("/rag", asks_before_it_looks), "The model must not be asked"),
            (app("/rag", if_all_are_relevant), "one that is high enough will do"),
            (app("/rag", all_of_nothing), "one that is high enough will do"),
            (app("/rag", unless_one_is_irrelevant), "one that is high enough will do"),
            (app("/rag", by_the_last), "one that is high enough will do"),
            (app("/rag", by_the_mean), "one that is high enough will do"),
            (app("/rag", from_the_relevant_only), "from the texts of all 3 hits"),
            (app("/rag", writes_once_per_hit), "writes once"),
            (app("/rag", quotes_without_the_model), "the model was not asked"),
            (app("/rag", ignores_k), "from the texts of all 2 hits"),
            (app("/rag", fails_without_hits), "IndexError"),
            (app("/rag", names_no_sources), "opening hours"),
            (app("/rag", forgets_await_at_the_model), "`write` was not awaited"),
            (app("/rag", names_sources_though_unsure), "The best score is 0.49"),
            (app("/rag", must_score_more), "0.5: one that is high enough will do"),
        ],
    },
    "14.5": {
        "right": [
            by_class,
            by_status,
            with_match_on_the_status,
            with_suppress,
            raises_the_first_error,
            with_a_coroutine,
        ],
        "wrong": [
            (catches_all, "the caller must get the error"),
            (any_status, "the caller must get the error"),
            (also_when_limited, "workshop-main fails with 429"),
            (connection_errors_only, "the draft can answer"),
            (only_a_503, "workshop-main fails with 500"),
            (main_only, "InternalServerError, with status 503"),
            (draft_only, "workshop-main answers, workshop-draft answers"),
            (asks_both_models, "the draft only when it fails"),
            (asks_the_main_model_twice, "Ask the main model once"),
            (nothing_at_last, "Nobody has answered"),
            (apologises, "Nobody has answered"),
            (swallows_the_others, "workshop-main fails with 400"),
            (awaits_after_the_try, "InternalServerError, with status 503"),
            (the_completion, "ChatCompletion"),
            (forgets_return, "`return`"),
        ],
    },
}
