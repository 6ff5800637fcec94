"""Lesson 11: scaling."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from workshop.lab.answer import Answer, outcome_of, settle
from workshop.lab.expectations import CouldNotCheck, EndOfCheck, NotAttempted, NotYet, expect, has_blank, show
from workshop.lab.registry import exercise

PATIENCE_S = 3.0
"""How long to wait for what must come."""


@exercise(
    "11.1",
    hints=[
        "On average, `rate * seconds` requests are under way at the same time.",
        "A replica has `slots` places, of which four fifths may be taken. `math.ceil` rounds up, and `max(1, …)` keeps "
        "the one that is always needed.",
    ],
    right="Requests under way are their rate times their time: Little's law.",
)
def needs_replicas(answer: Answer) -> None:
    for rate, seconds, slots, needed, why in (
        (20, 0.2, 1, 5, "Four requests are under way: four fifths of five slots."),
        (20, 0.2, 2, 3, "Four requests are under way. Two replicas have four slots, and all of them would be taken."),
        (16, 0.25, 5, 1, "Four requests are under way, in five slots: exactly four fifths are taken."),
        (17, 0.25, 5, 2, "More than four fifths of five slots would be taken."),
        (300, 0.05, 8, 3, "Fifteen requests are under way."),
        (1000, 2, 10, 250, "Two thousand requests are under way: 80 % of 2500 slots."),
        (0.5, 30, 1, 19, "Slow requests add up: fifteen of them are under way."),
        (1, 0.5, 1, 1, "Half a request is under way, on average: less than 80 % of one slot."),
        (0, 1.0, 5, 1, "Nobody asks yet, and the first one who does should not wait for a start."),
    ):
        expect(answer.call(rate, seconds, slots), needed, why=why)


@dataclass(frozen=True)
class _Limits:
    target: int = 2
    lowest: int = 1
    highest: int = 6
    up_after: int = 3
    down_after: int = 10

    def __str__(self) -> str:
        return f"Scaler({', '.join(f'{name}={value}' for name, value in asdict(self).items())})"


TWO_AT_LEAST = _Limits(target=3, lowest=2, highest=4, up_after=1, down_after=2)
Looks = list[tuple[float, int, int]]
LOADS: list[tuple[str, _Limits, Looks]] = [
    ("a sudden load", _Limits(), [(0, 1, 1), (1, 1, 8), (2, 1, 8), (3, 1, 8), (4, 1, 8), (5, 4, 8), (6, 4, 8)]),
    (
        "a load that pauses for a moment",
        _Limits(),
        [(0, 1, 8), (2, 1, 8), (2.5, 1, 1), (3, 1, 8), (4, 1, 8), (5.5, 1, 8), (6, 1, 8)],
    ),
    (
        "a load that ends",
        _Limits(),
        [(0, 4, 8), (1, 4, 2), (5, 4, 2), (10, 4, 2), (10.5, 4, 2), (11, 4, 2), (12, 1, 2), (30, 1, 2)],
    ),
    (
        "a load that comes back before the end",
        _Limits(),
        [(0, 4, 1), (9, 4, 1), (9.5, 4, 8), (10, 4, 1), (19, 4, 1), (20, 4, 1)],
    ),
    ("more than the highest number can bear", _Limits(), [(0, 1, 100), (3, 1, 100), (4, 6, 100), (8, 6, 100)]),
    ("a load that is gone for a moment", _Limits(), [(0, 3, 8), (2, 3, 0), (2.5, 3, 8), (4, 3, 8), (5.5, 3, 8)]),
    ("a load that is there for a moment", _Limits(), [(0, 3, 2), (8, 3, 8), (8.5, 3, 2), (11, 3, 2), (18.5, 3, 2)]),
    ("no load at all", _Limits(), [(0, 3, 0), (10, 3, 0), (11, 1, 0), (50, 1, 0)]),
    ("a load that grows during the wait", _Limits(), [(0, 1, 3), (1, 1, 5), (2, 1, 9), (3, 1, 9), (4, 5, 9)]),
    ("a load that shrinks during the wait", _Limits(), [(0, 1, 12), (1, 1, 4), (3, 1, 6), (4, 3, 6)]),
    ("a load that comes and goes while it ends", _Limits(), [(0, 6, 8), (4, 6, 2), (10, 6, 6), (11, 3, 6)]),
    ("a replica that has died", _Limits(), [(0, 4, 8), (1, 3, 8), (4, 3, 8), (5, 4, 8)]),
    ("other limits", TWO_AT_LEAST, [(0, 2, 9), (1, 2, 9), (2, 3, 9), (3, 3, 0), (4, 3, 0), (5, 3, 0), (6, 2, 0)]),
]
"""What happens: at this time, so many replicas run, and so many requests are under way or waiting."""


def _decisions(limits: _Limits, looks: Looks) -> Iterator[tuple[int, str]]:
    """What is right at each look, and why."""
    more_since: float | None = None
    fewer_since: float | None = None
    for now, running, load in looks:
        wanted = min(max(ceil(load / limits.target), limits.lowest), limits.highest)
        more_since = (now if more_since is None else more_since) if wanted > running else None
        fewer_since = (now if fewer_since is None else fewer_since) if wanted < running else None
        if more_since is not None:
            what, waited, needed, name = "More", now - more_since, limits.up_after, "up_after"
        elif fewer_since is not None:
            what, waited, needed, name = "Fewer", now - fewer_since, limits.down_after, "down_after"
        else:
            yield running, f"{wanted} are wanted, and so many run."
            continue
        if waited < needed:
            yield running, f"{what} have been wanted for {waited:g} s, and `{name}` is {needed}."
        else:
            yield wanted, f"{what} have been wanted for {waited:g} s, and `{name}` is {needed}. Now it is {wanted}."
            more_since = fewer_since = None


@exercise(
    "11.2",
    hints=[
        "First the number that is wanted: `load / target` rounded up, within `lowest` and `highest`. Then compare it "
        "with `running`.",
        "Keep two times on `self`: since when more are wanted, and since when fewer are. A look at which that is not "
        "the case sets it back to `None`.",
    ],
    right="That is what Serve does, with an average over the last seconds on top.",
)
def scales(answer: Answer) -> None:
    for name, limits, looks in LOADS:
        scaler = answer.instance(methods=["decide"], **asdict(limits))
        for number, (look, (decided, why)) in enumerate(zip(looks, _decisions(limits, looks), strict=True)):
            now, running, load = look
            got = answer.run(scaler.decide(now, running, load))
            before = "; ".join(f"{at:g} s: {count} run, load {much}" for at, count, much in looks[:number])
            answer.given = f"{limits}, {name}: decide({now:g}, {running}, {load})"
            answer.given += f", after {before}" if before else ""
            expect(got, decided, why=why)
    first, second = (answer.instance(methods=["decide"], **asdict(_Limits())) for _ in range(2))
    answer.given = "two scalers: first.decide(1, 1, 8), then second.decide(5, 1, 8)"
    answer.run(first.decide(1, 1, 8))
    expect(answer.run(second.decide(5, 1, 8)), 1, why="Each scaler has a time of its own.")


class _Calls:
    """An async function that waits until the check lets it go, and notes its calls."""

    def __init__(self) -> None:
        self.under_way = self.most = self.begun = 0
        self.fails = False
        self.goes = asyncio.Event()

    def ask(self, question: Any, *, politely: bool = False) -> Awaitable[Any]:
        self.begun += 1
        return self._answer(question, politely)

    async def _answer(self, question: Any, politely: bool) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.goes.wait()
            if self.fails:
                raise LookupError(question)
            return question, politely
        finally:
            self.under_way -= 1


class Busy(Exception):
    """Too many calls are under way."""


@exercise(
    "11.3",
    hints=[
        "Count the calls under way, in a variable of `bounded`, with `nonlocal`. Look at it before you call `ask`.",
        "A `finally` takes the call out of the count, however it ends. A call that was refused is not in it.",
    ],
    right="Whoever is refused knows it at once, and can try elsewhere or later.",
)
def refuses(answer: Answer) -> None:
    async def scenario() -> None:
        calls, other = _Calls(), _Calls()
        limited, elsewhere = await _made(answer, calls.ask, 2), await _made(answer, other.ask, 1)
        answer.given = "`ask = bounded(ask, 2)`, and three calls at once"
        first, second, third = [_begun(limited, number) for number in range(3)]
        await settle()
        _raise_what_went_wrong(first, second)
        if calls.under_way < 2:
            raise NotYet("There is room for two.", expected="two calls of `ask`", got=f"{calls.under_way}")
        await _expect_refused(third, calls, 2)
        answer.given = "another function that was bounded, to one call"
        stranger = _begun(elsewhere, "x")
        await settle()
        if other.under_way != 1:
            raise NotYet("Each function that was bounded has room of its own.", got=outcome_of(stranger))
        await _expect_refused(_begun(elsewhere, "y"), other, 1)
        stranger.cancel()

        answer.given = (
            "two calls under way, and a third one that was refused. One of the two is cancelled, a fourth comes"
        )
        second.cancel()
        await settle()
        if not second.cancelled():
            raise NotYet("A call that is cancelled ends like that.", expected="CancelledError", got=outcome_of(second))
        fourth = _begun(limited, "fourth", politely=True)
        await settle()
        _raise_what_went_wrong(fourth)
        if calls.under_way != 2:
            raise NotYet(
                "A call that was cancelled makes room, and one that was refused takes none.", got=outcome_of(fourth)
            )
        answer.given = "a fifth call, while two are under way again"
        await _expect_refused(_begun(limited, "fifth"), calls, 3)
        calls.goes.set()
        answer.given = "both calls come to their end"
        expect([await first, await fourth], [(0, False), ("fourth", True)], why="What `ask` returns is returned.")

        answer.given = "two calls that fail, and then two others"
        calls.fails = True
        failed = await asyncio.gather(_begun(limited, 5), _begun(limited, 6), return_exceptions=True)
        expect([type(error).__name__ for error in failed], ["LookupError"] * 2, why="What `ask` raises is raised.")
        calls.fails = False
        got = await asyncio.gather(_begun(limited, 7), _begun(limited, 8), return_exceptions=True)
        if any(isinstance(one, Exception) for one in got):
            raise NotYet("A call that has failed makes room.", expected="two results", got=show(got))
        if calls.most > 2:
            raise NotYet("There is room for two.", expected="two calls under way at most", got=f"{calls.most}")
        expect(calls.begun, 7, why="Calls of `ask`: one for each that was not refused.")

    answer.run(scenario())


def _raise_what_went_wrong(*calls: "asyncio.Future[Any]") -> None:
    for call in calls:
        if call.done() and not call.cancelled() and (error := call.exception()) is not None:
            if isinstance(error, EndOfCheck):
                raise error
            if type(error).__name__ != "Busy":
                raise CouldNotCheck(error)


async def _made(answer: Answer, ask: Callable[..., Awaitable[Any]], most: int) -> Any:
    made = answer._value(ask, most)
    answer.last = made
    if made is ...:
        expect(made, "a function")
    if asyncio.iscoroutine(made) or not callable(made):
        if asyncio.iscoroutine(made):
            made.close()
        raise NotYet("`bounded` is a plain function, and returns an `async def` function.", got=show(made))
    return made


def _begun(limited: Any, *args: Any, **kwargs: Any) -> "asyncio.Future[Any]":
    async def call() -> Any:
        result = limited(*args, **kwargs)
        if not asyncio.iscoroutine(result) and not asyncio.isfuture(result):
            raise NotYet("The function that is returned should be an `async def`.", got=show(result))
        if has_blank(returned := await result):
            raise NotAttempted
        return returned

    begun = asyncio.ensure_future(call())
    begun.add_done_callback(lambda call: call.cancelled() or call.exception())  # asyncio logs what nobody has looked at
    return begun


async def _expect_refused(call: "asyncio.Future[Any]", calls: _Calls, begun: int) -> None:
    await settle()
    if calls.begun > begun:
        call.cancel()
        raise NotYet("There is no room, and yet `ask` was called.", expected=f"{begun} calls", got=str(calls.begun))
    if not call.done():
        call.cancel()
        raise NotYet("The call waits. Nobody should wait where there is no room.", expected="Busy is raised at once")
    error = call.exception()
    if type(error).__name__ != "Busy":
        raise NotYet("There is no room.", expected="Busy is raised", got=outcome_of(call))


class _Store:
    """Loads models by name, when the check lets it."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.goes = asyncio.Event()
        self.goes.set()
        self.broken: set[str] = set()
        self.slow: set[str] = set()

    async def load(self, name: str) -> str:
        self.loads.append(name)
        if name in self.slow:
            await self.goes.wait()
        else:
            await asyncio.sleep(0)
        if name in self.broken:
            raise LookupError(name)
        return f"model of {name}"


@exercise(
    "11.4",
    hints=[
        "An `OrderedDict` keeps the models in the order of their use: `move_to_end(name)` at each use, "
        "`popitem(last=False)` when there are too many.",
        "Keep the loads under way in another dict, by name, as tasks. Who asks meanwhile awaits the same task, within "
        "`asyncio.shield`: otherwise one who gives up cancels it for all.",
    ],
    right="Each model is loaded when it is needed, once, and the ones in use stay.",
)
def keeps_the_recent(answer: Answer) -> None:
    async def scenario() -> None:
        store = _Store()
        models = answer.instance(store.load, 2, methods=["get"])
        await _ask(
            answer, models, store, ["ada", "bob", "ada", "bob"], ["ada", "bob"], "Both stay: there is room for two."
        )
        await _ask(answer, models, store, ["ada", "cleo", "ada"], ["cleo"], "bob's was used the longest time ago.")
        await _ask(answer, models, store, ["bob"], ["bob"], "bob's was displaced, and has to be loaded again.")
        await _ask(answer, models, store, ["ada", "bob"], [], "ada's was used after cleo's, so it has stayed.")

        await _shares_loads(answer, models, store)
        await _survives_failures(answer, models, store)
        await _has_room_for_one(answer)

    answer.run(scenario())


async def _shares_loads(answer: Answer, models: Any, store: _Store) -> None:
    answer.given = "three who ask for dora at the same time"
    store.slow, before = {"dora", "eve"}, len(store.loads)
    store.goes.clear()
    three = [asyncio.ensure_future(models.get("dora")) for _ in range(3)]
    await settle()
    expect(store.loads[before:], ["dora"], why="They share one load.")
    answer.given = "ada asks while dora's model is loaded"
    await _answers_at_once(models, "ada", "Whoever asks for a model that is kept waits for the load of another one.")
    answer.given = "fay asks while dora's model is loaded"
    await _answers_at_once(models, "fay", "Two loads do not wait for each other.")
    answer.given = "three wait for dora's model. The first one gives up, and then a fourth asks for it"
    three[0].cancel()
    await settle()
    fourth = asyncio.ensure_future(models.get("dora"))
    await settle()
    expect(store.loads[before:], ["dora", "fay"], why="These are loaded: the load of dora's model goes on.")
    store.goes.set()
    await settle()
    outcomes = [outcome_of(one) for one in (*three[1:], fourth)]
    why = "The outcomes of the three others: one who gives up takes nothing from them."
    expect(outcomes, ["'model of dora' is returned"] * 3, why=why)
    await _ask(answer, models, store, ["dora"], [], "Her model is kept, although the first who asked for it gave up.")
    store.slow = set()


async def _survives_failures(answer: Answer, models: Any, store: _Store) -> None:
    await _ask(answer, models, store, ["ada", "bob"], None, "")
    store.broken, before = {"gus"}, len(store.loads)
    answer.given = "three ask for gus at the same time, whose model cannot be loaded"
    outcomes = await asyncio.gather(*(models.get("gus") for _ in range(3)), return_exceptions=True)
    names = [type(outcome).__name__ for outcome in outcomes]
    expect(names, ["LookupError"] * 3, why="The error of the load is raised, for each of them.")
    expect(store.loads[before:], ["gus"], why="These are loaded: the three share a load, even one that fails.")
    answer.given, before = "gus asks again, twice", len(store.loads)
    for _ in range(2):
        again = await asyncio.gather(models.get("gus"), return_exceptions=True)
        expect(type(again[0]).__name__, "LookupError", why="The error of the load is raised.")
    expect(store.loads[before:], ["gus", "gus"], why="These are loaded: a load that has failed is tried again.")
    await _ask(answer, models, store, ["ada", "bob"], [], "A model that cannot be loaded displaces none.")
    store.slow = {"gus"}
    store.goes.clear()
    failing = asyncio.ensure_future(models.get("gus"))
    await settle()
    await _ask(answer, models, store, ["ada", "bob"], [], "A load that is under way, and will fail, displaces none.")
    store.goes.set()
    await asyncio.wait([failing])
    await _ask(answer, models, store, ["ada", "bob"], [], "A model that cannot be loaded displaces none.")
    store.broken = store.slow = set()
    await _ask(answer, models, store, ["gus"], ["gus"], "Now it can be loaded.")


async def _has_room_for_one(answer: Answer) -> None:
    store = _Store()
    models = answer.instance(store.load, 1, methods=["get"])
    names = ["ada", "bob", "cleo"]
    answer.given = "another object, with room for one: ada, bob and cleo ask at the same time"
    store.slow = set(names)
    store.goes.clear()
    asked = [asyncio.ensure_future(models.get(name)) for name in names]
    await settle()
    expect(store.loads, names, why="These are loaded: no load waits for another one.")
    store.goes.set()
    await asyncio.wait(asked, timeout=PATIENCE_S)
    expect([outcome_of(one) for one in asked], [f"'model of {name}' is returned" for name in names])
    store.slow = set()
    await _ask(answer, models, store, ["dora", "ada", "dora"], ["dora", "ada", "dora"], "There is room for one.")


async def _answers_at_once(models: Any, name: str, otherwise: str) -> None:
    asked = asyncio.ensure_future(models.get(name))
    await settle()
    if not asked.done():
        raise NotYet(otherwise, expected="an answer at once", got="she waits")
    expect(asked.result(), f"model of {name}")


async def _ask(
    answer: Answer, models: Any, store: _Store, names: list[str], loaded: list[str] | None, why: str
) -> None:
    before = len(store.loads)
    for name in names:
        answer.given = f"get({name!r})"
        got = models.get(name)
        if not asyncio.iscoroutine(got) and not asyncio.isfuture(got):
            raise NotYet("`get` is an `async def` method.", got=show(got))
        expect(await got, f"model of {name}", why=f"What `load({name!r})` has returned.")
    if loaded is not None:
        answer.given = ", ".join(f"get({name!r})" for name in names) + ", one after the other"
        expect(store.loads[before:], loaded, why=f"These are loaded. {why}")
