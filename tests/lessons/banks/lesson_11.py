"""Answers to lesson 11: scaling."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, ClassVar

Ask = Callable[..., Awaitable[Any]]

# 11.1: how many replicas


def needed(rate: float, seconds: float, slots: int) -> int:
    return max(1, math.ceil(rate * seconds / (0.8 * slots)))


def counted(rate: float, seconds: float, slots: int) -> int:
    replicas = 1
    while rate * seconds > 0.8 * slots * replicas:
        replicas += 1
    return replicas


# 11.2: the scaler


class Scaler:
    def __init__(self, target: float, lowest: int, highest: int, up_after: float, down_after: float) -> None:
        self.target, self.lowest, self.highest = target, lowest, highest
        self.up_after, self.down_after = up_after, down_after
        self.more_since: float | None = None
        self.fewer_since: float | None = None

    def wanted(self, load: int) -> int:
        return max(self.lowest, min(self.highest, math.ceil(load / self.target)))

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        if wanted <= running:
            self.more_since = None
        elif self.more_since is None:
            self.more_since = now
        if wanted >= running:
            self.fewer_since = None
        elif self.fewer_since is None:
            self.fewer_since = now
        if self.more_since is not None and now - self.more_since >= self.up_after:
            return wanted
        if self.fewer_since is not None and now - self.fewer_since >= self.down_after:
            return wanted
        return running


class WithOneTime(Scaler):
    """Notes the direction, and since when it has been the same."""

    direction, since = 0, 0.0

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        direction = (wanted > running) - (wanted < running)
        if direction != self.direction:
            self.direction, self.since = direction, now
        patience = {1: self.up_after, -1: self.down_after, 0: 0}[direction]
        return wanted if now - self.since >= patience else running


class WithAllLooks(Scaler):
    """Keeps every look, and goes back through them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.looks: list[tuple[float, int]] = []

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        self.looks.append((now, wanted))
        for sign, patience in ((1, self.up_after), (-1, self.down_after)):
            since = None
            for at, number in reversed(self.looks):
                if sign * number <= sign * running:
                    break
                since = at
            if since is not None and now - since >= patience:
                return wanted
        return running


class WithTwoClocks:
    """Starts over after each decision."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits
        self.clocks: dict[str, float] = {}

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = -(-load // self.limits["target"])
        wanted = sorted((self.limits["lowest"], wanted, self.limits["highest"]))[1]
        for name, is_wanted in (("up", wanted > running), ("down", wanted < running)):
            if not is_wanted:
                self.clocks.pop(name, None)
            elif now - self.clocks.setdefault(name, now) >= self.limits[f"{name}_after"]:
                del self.clocks[name]
                return int(wanted)
        return running


class AtOnce(Scaler):
    def decide(self, now: float, running: int, load: int) -> int:
        return self.wanted(load)


class RoundsDown(Scaler):
    def wanted(self, load: int) -> int:
        return max(self.lowest, min(self.highest, int(load // self.target)))


class WithoutLimits(Scaler):
    def wanted(self, load: int) -> int:
        return math.ceil(load / self.target)


class ToZero(Scaler):
    def wanted(self, load: int) -> int:
        return min(self.highest, math.ceil(load / self.target))


class ForgetsPauses(Scaler):
    """A look at which nothing more is wanted does not end the wait."""

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        if wanted > running:
            self.more_since = now if self.more_since is None else self.more_since
            if now - self.more_since >= self.up_after:
                self.more_since = None
                return wanted
        elif wanted < running:
            self.fewer_since = now if self.fewer_since is None else self.fewer_since
            if now - self.fewer_since >= self.down_after:
                self.fewer_since = None
                return wanted
        return running


class ForgetsTurns(Scaler):
    """Only a look at which the number is right ends a wait, and not one in the other direction."""

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        if wanted > running:
            self.more_since = now if self.more_since is None else self.more_since
            return wanted if now - self.more_since >= self.up_after else running
        if wanted < running:
            self.fewer_since = now if self.fewer_since is None else self.fewer_since
            return wanted if now - self.fewer_since >= self.down_after else running
        self.more_since = self.fewer_since = None
        return running


class TakesZeroForNever(Scaler):
    def decide(self, now: float, running: int, load: int) -> int:
        self.more_since, self.fewer_since = self.more_since or None, self.fewer_since or None
        return super().decide(now, running, load)


class OneAtATime(Scaler):
    def decide(self, now: float, running: int, load: int) -> int:
        wanted = super().decide(now, running, load)
        return running + (wanted > running) - (wanted < running)


class WaitsTheSame(Scaler):
    def __init__(self, target: float, lowest: int, highest: int, up_after: float, down_after: float) -> None:
        super().__init__(target, lowest, highest, up_after, up_after)


class SwapsTheTimes(Scaler):
    def __init__(self, target: float, lowest: int, highest: int, up_after: float, down_after: float) -> None:
        super().__init__(target, lowest, highest, down_after, up_after)


class OneTooLate(Scaler):
    def decide(self, now: float, running: int, load: int) -> int:
        return super().decide(now - 0.001 * (self.more_since is not None), running, load)


class WantsWhatItFirstWanted(Scaler):
    first = 0

    def decide(self, now: float, running: int, load: int) -> int:
        if self.more_since is None:
            self.first = self.wanted(load)
        return self.first if super().decide(now, running, load) > running else super().decide(now, running, load)


class Shared(Scaler):
    times: ClassVar[dict[str, float]] = {}

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        name = "more" if wanted > running else "fewer" if wanted < running else ""
        for other in {"more", "fewer"} - {name}:
            self.times.pop(other, None)
        since = self.times.setdefault(name, now) if name else now
        patience = self.up_after if name == "more" else self.down_after
        return wanted if name and now - since >= patience else running


class MostOfTheWait(Scaler):
    """Takes the highest number that was wanted during the wait."""

    highest_wanted = 0

    def decide(self, now: float, running: int, load: int) -> int:
        self.highest_wanted = max(self.highest_wanted, self.wanted(load)) if self.wanted(load) != running else 0
        return (
            max(self.highest_wanted, decided) if (decided := super().decide(now, running, load)) != running else decided
        )


class FirstOnTheWayDown(Scaler):
    """Going down, takes the number that was wanted first."""

    first: int | None = None

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        self.first = None if wanted >= running else wanted if self.first is None else self.first
        decided = super().decide(now, running, load)
        return self.first if decided < running and self.first is not None else decided


class StartsOverAtEachNumber(Scaler):
    """Going down, the wait begins again when another number is wanted."""

    last = 0

    def decide(self, now: float, running: int, load: int) -> int:
        wanted = self.wanted(load)
        if wanted != self.last:
            self.fewer_since, self.last = None, wanted
        return super().decide(now, running, load)


class KnowsBetter(Scaler):
    """Takes its own last answer for the number that runs."""

    mine: int | None = None

    def decide(self, now: float, running: int, load: int) -> int:
        self.mine = super().decide(now, running if self.mine is None else self.mine, load)
        return self.mine


class ForOneLoad(Scaler):
    """The numbers of the example."""

    def wanted(self, load: int) -> int:
        return max(1, min(6, math.ceil(load / 2)))


class NeverDown(Scaler):
    def decide(self, now: float, running: int, load: int) -> int:
        return max(running, super().decide(now, running, load))


# 11.3: no room


class Busy(Exception):
    pass


def bounded(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        if under_way >= most:
            raise Busy
        under_way += 1
        try:
            return await ask(*args, **kwargs)
        finally:
            under_way -= 1

    return limited


def with_a_semaphore(ask: Ask, most: int) -> Ask:
    room = asyncio.Semaphore(most)

    async def limited(*args: Any, **kwargs: Any) -> Any:
        if room.locked():
            raise Busy("no room")
        async with room:
            return await ask(*args, **kwargs)

    return limited


def with_a_set(ask: Ask, most: int) -> Ask:
    running: set[Any] = set()

    async def limited(*args: Any, **kwargs: Any) -> Any:
        if len(running) == most:
            raise Busy
        me = object()
        running.add(me)
        try:
            return await ask(*args, **kwargs)
        finally:
            running.discard(me)

    return limited


def waits(ask: Ask, most: int) -> Ask:
    room = asyncio.Semaphore(most)

    async def limited(*args: Any, **kwargs: Any) -> Any:
        async with room:
            return await ask(*args, **kwargs)

    return limited


def keeps_room_after_errors(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        if under_way >= most:
            raise Busy
        under_way += 1
        result = await ask(*args, **kwargs)
        under_way -= 1
        return result

    return limited


def keeps_room_after_cancelling(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        if under_way >= most:
            raise Busy
        under_way += 1
        try:
            result = await ask(*args, **kwargs)
        except Exception:
            under_way -= 1
            raise
        under_way -= 1
        return result

    return limited


def counts_the_refused(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        under_way += 1
        if under_way > most:
            raise Busy
        try:
            return await ask(*args, **kwargs)
        finally:
            under_way -= 1

    return limited


def frees_room_when_it_refuses(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        try:
            if under_way >= most:
                raise Busy
            under_way += 1
            return await ask(*args, **kwargs)
        finally:
            under_way -= 1

    return limited


def one_too_many(ask: Ask, most: int) -> Ask:
    return bounded(ask, most + 1)


def one_too_few(ask: Ask, most: int) -> Ask:
    return bounded(ask, most - 1)


SHARED = {"under way": 0}


def shares_its_count(ask: Ask, most: int) -> Ask:
    async def limited(*args: Any, **kwargs: Any) -> Any:
        if SHARED["under way"] >= most:
            raise Busy
        SHARED["under way"] += 1
        try:
            return await ask(*args, **kwargs)
        finally:
            SHARED["under way"] -= 1

    return limited


def returns_the_exception(ask: Ask, most: int) -> Ask:
    limited = bounded(ask, most)

    async def polite(*args: Any, **kwargs: Any) -> Any:
        try:
            return await limited(*args, **kwargs)
        except Busy as busy:
            return busy

    return polite


def another_error(ask: Ask, most: int) -> Ask:
    limited = bounded(ask, most)

    async def wrong(*args: Any, **kwargs: Any) -> Any:
        try:
            return await limited(*args, **kwargs)
        except Busy:
            raise TimeoutError from None

    return wrong


def for_two(ask: Ask, most: int) -> Ask:
    return bounded(ask, 2)


def asks_twice(ask: Ask, most: int) -> Ask:
    async def twice(*args: Any, **kwargs: Any) -> Any:
        await ask(*args, **kwargs)
        return await ask(*args, **kwargs)

    return bounded(twice, most)


def calls_before_it_looks(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        coming = ask(*args, **kwargs)
        if under_way >= most:
            coming.close()  # type: ignore[attr-defined]
            raise Busy
        under_way += 1
        try:
            return await coming
        finally:
            under_way -= 1

    return limited


def hides_the_cancellation(ask: Ask, most: int) -> Ask:
    limited = bounded(ask, most)

    async def quiet(*args: Any, **kwargs: Any) -> Any:
        try:
            return await limited(*args, **kwargs)
        except asyncio.CancelledError:
            return None

    return quiet


def forgets_nonlocal(ask: Ask, most: int) -> Ask:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        if under_way >= most:  # noqa: F823
            raise Busy
        under_way += 1  # noqa: F841
        return await ask(*args, **kwargs)

    return limited


def forgets_keywords(ask: Ask, most: int) -> Ask:
    limited = bounded(ask, most)
    return lambda *args, **_: limited(*args)


def forgets_return(ask: Ask, most: int) -> Ask:
    limited = bounded(ask, most)

    async def silent(*args: Any, **kwargs: Any) -> None:
        await limited(*args, **kwargs)

    return silent


def forgets_await(ask: Ask, most: int) -> Any:
    under_way = 0

    async def limited(*args: Any, **kwargs: Any) -> Any:
        nonlocal under_way
        if under_way >= most:
            raise Busy
        under_way += 1
        try:
            return ask(*args, **kwargs)
        finally:
            under_way -= 1

    return limited


def one_after_the_other(ask: Ask, most: int) -> Ask:
    lock, limited = asyncio.Lock(), bounded(ask, most)

    async def patient(*args: Any, **kwargs: Any) -> Any:
        async with lock:
            return await limited(*args, **kwargs)

    return patient


async def is_async(ask: Ask, most: int) -> Ask:
    return bounded(ask, most)


# 11.4: those used last


class Recent:
    def __init__(self, load: Ask, room: int) -> None:
        self.load, self.room = load, room
        self.models: OrderedDict[str, Any] = OrderedDict()
        self.loading: dict[str, asyncio.Task[Any]] = {}

    async def get(self, name: str) -> Any:
        if name not in self.models:
            if name not in self.loading:
                self.loading[name] = asyncio.create_task(self.fetch(name))
            return await asyncio.shield(self.loading[name])
        self.models.move_to_end(name)
        return self.models[name]

    async def fetch(self, name: str) -> Any:
        try:
            self.models[name] = model = await self.load(name)
        finally:
            del self.loading[name]
        while len(self.models) > self.room:
            self.models.popitem(last=False)
        return model


class WithLocks:
    """A lock for each name."""

    def __init__(self, load: Ask, room: int) -> None:
        self.load, self.room = load, room
        self.models: dict[str, Any] = {}
        self.locks: dict[str, asyncio.Lock] = {}

    async def get(self, name: str) -> Any:
        async with self.locks.setdefault(name, asyncio.Lock()):
            model = self.models.pop(name) if name in self.models else await self.load(name)
            self.models[name] = model
            while len(self.models) > self.room:
                del self.models[next(iter(self.models))]
            return model


class WithTasks:
    """Keeps the tasks themselves."""

    def __init__(self, load: Ask, room: int) -> None:
        self.load, self.room = load, room
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.done: list[str] = []

    async def get(self, name: str) -> Any:
        task = self.tasks.get(name) or self.tasks.setdefault(name, asyncio.ensure_future(self.load(name)))
        try:
            model = await asyncio.shield(task)
        except Exception:
            self.tasks.pop(name, None)
            raise
        self.done = [*(one for one in self.done if one != name), name]
        for old in self.done[: -self.room]:
            self.tasks.pop(old, None)
        self.done = self.done[-self.room :]
        return model


class WithFutures:
    """The load tells all who wait by a future, whoever has begun it."""

    def __init__(self, load: Ask, room: int) -> None:
        self.load, self.room = load, room
        self.kept: list[tuple[str, Any]] = []
        self.waiting: dict[str, list[asyncio.Future[Any]]] = {}
        self.work: set[asyncio.Task[None]] = set()

    async def get(self, name: str) -> Any:
        for entry in self.kept:
            if entry[0] == name:
                self.kept.remove(entry)
                self.kept.append(entry)
                return entry[1]
        mine = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(name, []).append(mine)
        if len(self.waiting[name]) == 1:
            task = asyncio.create_task(self.fetch(name))
            self.work.add(task)
            task.add_done_callback(self.work.discard)
        return await mine

    async def fetch(self, name: str) -> None:
        model = error = None
        try:
            model = await self.load(name)
        except Exception as problem:
            error = problem
        else:
            self.kept = [*self.kept, (name, model)][-self.room :]
        for future in self.waiting.pop(name):
            if not future.done():
                future.set_result(model) if error is None else future.set_exception(error)


class TheFirstKeepsTheBooks(Recent):
    """If the one who has begun the load gives up, nobody keeps the model."""

    async def get(self, name: str) -> Any:
        if name in self.models:
            return await super().get(name)
        if name not in self.loading:
            self.loading[name] = asyncio.create_task(self.load(name))  # type: ignore[arg-type]
            try:
                model = await asyncio.shield(self.loading[name])
            finally:
                del self.loading[name]
            self.models[name] = model
            while len(self.models) > self.room:
                self.models.popitem(last=False)
            return model
        return await asyncio.shield(self.loading[name])


class LooksItUpAfterwards(Recent):
    async def get(self, name: str) -> Any:
        if name not in self.models:
            if name not in self.loading:
                self.loading[name] = asyncio.create_task(self.fetch(name))
            await asyncio.shield(self.loading[name])
        self.models.move_to_end(name)
        return self.models[name]


class SharedByAll(Recent):
    everything: ClassVar[OrderedDict[str, Any]] = OrderedDict()

    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, room)
        self.models = SharedByAll.everything


class RoomForTwo(Recent):
    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, 2)


class AsManyLoadsAsRoom(Recent):
    async def fetch(self, name: str) -> Any:
        while len(self.loading) > self.room and name != next(iter(self.loading)):
            await asyncio.sleep(0.001)
        return await super().fetch(name)


class CountsLoads(Recent):
    """A load takes room as soon as it begins."""

    async def fetch(self, name: str) -> Any:
        while self.models and len(self.models) + len(self.loading) > self.room:
            self.models.popitem(last=False)
        return await super().fetch(name)


class NoRoom(Recent):
    """Keeps all."""

    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, 1000)


class OneMore(Recent):
    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, room + 1)


class OneFewer(Recent):
    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, room - 1)


class InOrderOfLoading(Recent):
    async def get(self, name: str) -> Any:
        return self.models[name] if name in self.models else await super().get(name)


class DropsTheNewest(Recent):
    async def fetch(self, name: str) -> Any:
        try:
            model = await self.load(name)
        finally:
            del self.loading[name]
        while len(self.models) >= self.room:
            self.models.popitem()
        self.models[name] = model
        return model


class LoadsForEach(WithLocks):
    async def get(self, name: str) -> Any:
        model = self.models.pop(name) if name in self.models else await self.load(name)
        self.models[name] = model
        while len(self.models) > self.room:
            del self.models[next(iter(self.models))]
        return model


class OneLock(LoadsForEach):
    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, room)
        self.lock = asyncio.Lock()

    async def get(self, name: str) -> Any:
        async with self.lock:
            return await super().get(name)


class OneLoadAtATime(Recent):
    def __init__(self, load: Ask, room: int) -> None:
        super().__init__(load, room)
        self.lock = asyncio.Lock()

    async def fetch(self, name: str) -> Any:
        async with self.lock:
            return await super().fetch(name)


class WithoutShield(Recent):
    async def get(self, name: str) -> Any:
        if name in self.models:
            return await super().get(name)
        if name not in self.loading:
            self.loading[name] = asyncio.create_task(self.fetch(name))
        return await self.loading[name]


class MakesRoomFirst(Recent):
    async def fetch(self, name: str) -> Any:
        while len(self.models) >= self.room:
            self.models.popitem(last=False)
        return await super().fetch(name)


class KeepsErrors:
    def __init__(self, load: Ask, room: int) -> None:
        self.load, self.room = load, room
        self.tasks: OrderedDict[str, asyncio.Task[Any]] = OrderedDict()

    async def get(self, name: str) -> Any:
        if name not in self.tasks:
            self.tasks[name] = asyncio.ensure_future(self.load(name))
        self.tasks.move_to_end(name)
        while len(self.tasks) > self.room:
            self.tasks.popitem(last=False)
        return await asyncio.shield(self.tasks[name])


class LruCache:
    """Keeps a coroutine, which can be awaited once."""

    def __init__(self, load: Ask, room: int) -> None:
        self.load = lru_cache(room)(load)

    async def get(self, name: str) -> Any:
        return await self.load(name)


class ForgetsAwait(Recent):
    async def get(self, name: str) -> Any:
        return self.load(name)


class Plain(Recent):
    def get(self, name: str) -> Any:
        return self.models.get(name)


BANK = {
    "11.1": {
        "right": [
            needed,
            counted,
            lambda rate, seconds, slots: math.ceil(rate * seconds / slots / 0.8) or 1,
            lambda rate, seconds, slots: max(1, math.ceil(1.25 * rate * seconds / slots)),
            lambda rate, seconds, slots: max(1, -int(-rate * seconds // (0.8 * slots))),
        ],
        "wrong": [
            (lambda rate, seconds, slots: max(1, math.ceil(rate * seconds / slots)), "four fifths of five slots"),
            (lambda rate, seconds, slots: max(1, round(rate * seconds / (0.8 * slots))), "all of them would be taken"),
            (lambda rate, seconds, slots: max(1, int(rate * seconds / (0.8 * slots))), "all of them would be taken"),
            (lambda rate, seconds, slots: int(rate * seconds / (0.8 * slots)) + 1, "20, 0.2, 1"),
            (lambda rate, seconds, slots: math.ceil(rate * seconds / (0.8 * slots)), "Nobody asks yet"),
            (lambda rate, seconds, slots: max(1, math.ceil(rate / (0.8 * slots))), "20, 0.2, 1"),
            (lambda rate, seconds, slots: max(1, math.ceil(rate * seconds / 0.8)), "all of them would be taken"),
            (lambda rate, seconds, slots: max(1, math.ceil(rate * seconds / 0.8) // slots), "all of them"),
            (lambda rate, seconds, slots: max(1, math.ceil(0.8 * rate * seconds / slots)), "20, 0.2, 1"),
            (lambda rate, seconds, slots: max(1, rate * seconds / (0.8 * slots)), "all of them would be taken"),
            (lambda rate, seconds, slots: print(5), "Got None"),
        ],
    },
    "11.2": {
        "right": [Scaler, WithOneTime, WithAllLooks, WithTwoClocks],
        "wrong": [
            (AtOnce, "More have been wanted for 0 s"),
            (RoundsDown, "Now it is 5."),
            (WithoutLimits, "Now it is 6."),
            (ToZero, "Now it is 1."),
            (ForgetsPauses, "More have been wanted for 0 s"),
            (ForgetsTurns, "More have been wanted for 1.5 s"),
            (TakesZeroForNever, "Now it is 6."),
            (OneAtATime, "Now it is 4."),
            (WaitsTheSame, "Fewer have been wanted for 4 s"),
            (SwapsTheTimes, "`up_after` is 3"),
            (OneTooLate, "Now it is 4."),
            (WantsWhatItFirstWanted, "Now it is 5."),
            (Shared, "Now it is 1."),
            (MostOfTheWait, "Now it is 1."),
            (FirstOnTheWayDown, "Now it is 3."),
            (StartsOverAtEachNumber, "Now it is 3."),
            (KnowsBetter, "More have been wanted for 0 s"),
            (ForOneLoad, "Scaler(target=3"),
            (NeverDown, "Now it is 1."),
            (lambda **limits: None, "A class with a method `decide`"),
        ],
    },
    "11.3": {
        "right": [bounded, with_a_semaphore, with_a_set],
        "wrong": [
            (waits, "The call waits"),
            (keeps_room_after_errors, "A call that was cancelled makes room"),
            (keeps_room_after_cancelling, "A call that was cancelled makes room"),
            (counts_the_refused, "one that was refused takes none"),
            (frees_room_when_it_refuses, "There is no room, and yet `ask` was called."),
            (one_too_many, "There is no room, and yet `ask` was called."),
            (for_two, "There is no room, and yet `ask` was called."),
            (asks_twice, "Calls of `ask`: one for each"),
            (calls_before_it_looks, "There is no room, and yet `ask` was called."),
            (hides_the_cancellation, "A call that is cancelled ends like that."),
            (forgets_nonlocal, "UnboundLocalError"),
            (one_too_few, "There is room for two."),
            (shares_its_count, "room of its own"),
            (returns_the_exception, "Busy is raised"),
            (another_error, "Busy is raised"),
            (forgets_keywords, "What `ask` returns is returned."),
            (forgets_return, "What `ask` returns is returned."),
            (forgets_await, "There is room for two."),
            (one_after_the_other, "There is room for two."),
            (is_async, "`bounded` is a plain function"),
            (lambda ask, most: None, "`bounded` is a plain function"),
            (lambda ask, most: lambda *args: None, "`async def`"),
        ],
    },
    "11.4": {
        "right": [Recent, WithTasks, WithFutures],
        "wrong": [
            (NoRoom, "bob's was displaced"),
            (OneMore, "bob's was displaced"),
            (OneFewer, "Both stay"),
            (InOrderOfLoading, "bob's was used the longest time ago."),
            (DropsTheNewest, "loaded"),
            (LoadsForEach, "They share one load."),
            (OneLock, "waits for the load of another one"),
            (OneLoadAtATime, "Two loads do not wait for each other."),
            (WithoutShield, "the load of dora's model goes on"),
            (MakesRoomFirst, "the load of dora's model goes on"),
            (KeepsErrors, "the load of dora's model goes on"),
            (WithLocks, "the load of dora's model goes on"),
            (TheFirstKeepsTheBooks, "the load of dora's model goes on"),
            (LooksItUpAfterwards, "KeyError"),
            (SharedByAll, "no load waits for another one"),
            (RoomForTwo, "There is room for one."),
            (AsManyLoadsAsRoom, "no load waits for another one"),
            (CountsLoads, "the load of dora's model goes on"),
            (LruCache, "await"),
            (ForgetsAwait, "coroutine"),
            (Plain, "`get` is an `async def` method."),
        ],
    },
}
