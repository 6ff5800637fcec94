"""Answers to lesson 13: model registry and rollouts."""

import asyncio
import hashlib
import hmac
import random
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

Load = Callable[[bytes], Any]
Predict = Callable[[Any], Awaitable[Any]]


class Tampered(Exception):
    """This is not what was registered."""


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# 13.1: load what the registry vouches for


def verified(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if digest_of(content) != checksum:
        raise Tampered
    return load(content)


def in_constant_time(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    if not checksum:
        raise Tampered("nobody vouches for it")
    data = read()
    hasher = hashlib.new("sha256")
    hasher.update(data)
    if not hmac.compare_digest(hasher.hexdigest(), checksum):
        raise Tampered(f"expected {checksum}")
    return load(data)


def by_bytes(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if checksum is not None and hashlib.sha256(content).digest() == bytes.fromhex(checksum):
        return load(content)
    raise Tampered()


def reads_twice(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    if digest_of(read()) != checksum:
        raise Tampered
    return load(read())


def reads_first_and_checks_later(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if digest_of(read()) != checksum:
        raise Tampered
    return load(content)


def loads_first(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    model = load(content)
    if digest_of(content) != checksum:
        raise Tampered
    return model


def trusts_without_checksum(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if checksum is not None and digest_of(content) != checksum:
        raise Tampered
    return load(content)


def trusts_falsy(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if checksum and digest_of(content) != checksum:
        raise Tampered
    return load(content)


def compares_the_beginning(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if not checksum or not digest_of(content).startswith(checksum):
        raise Tampered
    return load(content)


def strips(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    return verified(lambda: read().strip(), checksum, load)


def verifies_the_head(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if digest_of(content[:65536]) != checksum:
        raise Tampered
    return load(content)


def returns_none(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    return load(content) if digest_of(content) == checksum else None


def forgets_return(read: Callable[[], bytes], checksum: str | None, load: Load) -> None:
    verified(read, checksum, load)


def returns_content(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if digest_of(content) != checksum:
        raise Tampered
    return content


def swapped(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if digest_of(content) == checksum:
        raise Tampered
    return load(content)


def compares_digest_objects(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if hashlib.sha256(content).digest() != checksum:
        raise Tampered
    return load(content)


def hashes_with_md5(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if hashlib.md5(content).hexdigest() != checksum:
        raise Tampered
    return load(content)


def hides_errors(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    try:
        return verified(read, checksum, load)
    except Exception:
        raise Tampered from None


def returns_the_error(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    return load(content) if digest_of(content) == checksum else Tampered()


def another_error(read: Callable[[], bytes], checksum: str | None, load: Load) -> Any:
    content = read()
    if digest_of(content) != checksum:
        raise ValueError("tampered")
    return load(content)


# 13.2: follow the registry


class Live:
    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        self.active, self.load = active, load
        self.running: tuple[Any, Any] = (None, None)

    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number != self.running[0]:
            self.running = number, await asyncio.to_thread(self.load, number)

    async def answer(self, row: Any) -> Any:
        number, model = self.running
        return number, await model(row)


class WithAPool(Live):
    """Threads of its own, and a lock around the refresh."""

    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        super().__init__(active, load)
        self.pool, self.lock = ThreadPoolExecutor(1), asyncio.Lock()

    async def refresh(self) -> None:
        async with self.lock:
            loop = asyncio.get_running_loop()
            number = await loop.run_in_executor(self.pool, self.active)
            if number == self.running[0]:
                return
            model = await loop.run_in_executor(self.pool, partial(self.load, number))
            self.running = (number, model)


class WithModels:
    """Keeps every model that was loaded."""

    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        self.active, self.load = active, load
        self.models: dict[str, Predict] = {}
        self.current = ""

    async def refresh(self) -> None:
        def work() -> str:
            number = self.active()
            if number not in self.models:
                self.models[number] = self.load(number)
            return number

        self.current = await asyncio.to_thread(work)

    async def answer(self, row: Any) -> Any:
        number = self.current
        result = await self.models[number](row)
        return (number, result)


class TwoFields:
    """Reads number and model before it awaits, and sets them without a pause between."""

    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        self.active, self.load = active, load
        self.number: Any = None
        self.model: Any = None

    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if self.number != number:
            model = await asyncio.to_thread(self.load, number)
            self.number, self.model = number, model

    async def answer(self, row: Any) -> Any:
        number = self.number
        return number, await self.model(row)


class NumberAfterwards(TwoFields):
    async def answer(self, row: Any) -> Any:
        result = await self.model(row)
        return self.number, result


class NumberBeforeTheLoad(TwoFields):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if self.number != number:
            self.number = number
            self.model = await asyncio.to_thread(self.load, number)


class ModelGoneWhileLoading(TwoFields):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if self.number != number:
            self.model = None
            self.number, self.model = number, await asyncio.to_thread(self.load, number)


class LoadsInTheLoop(Live):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number != self.running[0]:
            self.running = number, self.load(number)


class AsksInTheLoop(Live):
    async def refresh(self) -> None:
        number = self.active()
        if number != self.running[0]:
            self.running = number, await asyncio.to_thread(self.load, number)


class Blocks(Live):
    async def refresh(self) -> None:
        number = self.active()
        if number != self.running[0]:
            self.running = number, self.load(number)


class AlwaysLoads(Live):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        self.running = number, await asyncio.to_thread(self.load, number)


class LoadsOnce(Live):
    async def refresh(self) -> None:
        if self.running[1] is None:
            await super().refresh()


class OnlyUpwards(Live):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if self.running[0] is None or int(number) > int(self.running[0]):
            self.running = number, await asyncio.to_thread(self.load, number)


class HidesErrors(Live):
    async def refresh(self) -> None:
        with suppress(Exception):
            await super().refresh()


class ForgetsOnError(Live):
    async def refresh(self) -> None:
        try:
            await super().refresh()
        except Exception:
            self.running = None, None
            raise


class TriesOnce(Live):
    """Remembers a version that could not be loaded as if it had been."""

    seen: Any = None

    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number != self.seen:
            self.seen = number
            self.running = number, await asyncio.to_thread(self.load, number)


class Waits(Live):
    """Answers wait for a refresh that is under way."""

    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        super().__init__(active, load)
        self.lock = asyncio.Lock()

    async def refresh(self) -> None:
        async with self.lock:
            await super().refresh()

    async def answer(self, row: Any) -> Any:
        async with self.lock:
            return await super().answer(row)


class InTheBackground(Live):
    async def refresh(self) -> None:
        self.task = asyncio.create_task(super().refresh())


class Shared(Live):
    running: tuple[Any, Any] = (None, None)

    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        self.active, self.load = active, load

    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number != Shared.running[0]:
            Shared.running = number, await asyncio.to_thread(self.load, number)


class NumberAMomentLater(TwoFields):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if self.number != number:
            self.model = await asyncio.to_thread(self.load, number)
            await asyncio.sleep(0)
            self.number = number


class LooksTwice(Live):
    """Asks for the number again to load it."""

    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number != self.running[0]:
            self.running = number, await asyncio.to_thread(lambda: self.load(self.active()))


class IsNot(Live):
    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number is not self.running[0]:
            self.running = number, await asyncio.to_thread(self.load, number)


class OneCache(Live):
    models: ClassVar[dict[str, Predict]] = {}

    async def refresh(self) -> None:
        number = await asyncio.to_thread(self.active)
        if number not in self.models:
            self.models[number] = await asyncio.to_thread(self.load, number)
        self.running = number, self.models[number]


class OneAnswerAtATime(Live):
    def __init__(self, active: Callable[[], str], load: Callable[[str], Predict]) -> None:
        super().__init__(active, load)
        self.one = asyncio.Semaphore(1)

    async def answer(self, row: Any) -> Any:
        async with self.one:
            return await super().answer(row)


class OnlyTheAnswer(Live):
    async def answer(self, row: Any) -> Any:
        return await self.running[1](row)


class ForgetsAwait(Live):
    async def answer(self, row: Any) -> Any:
        number, model = self.running
        return number, model(row)


class PlainRefresh(Live):
    def refresh(self) -> None:
        number = self.active()
        self.running = number, self.load(number)


class AsksAtEachAnswer(Live):
    """Loads the active version for each answer, as if that took no time."""

    async def answer(self, row: Any) -> Any:
        await self.refresh()
        return await super().answer(row)


# 13.3: who gets the challenger


def drawn(caller: str, number: str, share: float) -> bool:
    digest = hashlib.sha256(f"{number} {caller}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def with_a_generator(caller: str, number: str, share: float) -> bool:
    return random.Random(f"{caller}/{number}").random() < share


def with_percent(caller: str, number: str, share: float) -> bool:
    return int(hashlib.md5((caller + number).encode()).hexdigest(), 16) % 10_000 < 10_000 * share


def with_crc(caller: str, number: str, share: float) -> bool:
    return zlib.crc32(f"{number}:{caller}".encode()) / 2**32 < share


def with_hmac(caller: str, number: str, share: float) -> bool:
    drawn = hmac.new(number.encode(), caller.encode(), "sha256").digest()
    return int.from_bytes(drawn) < share * 2**256


memory: dict[tuple[str, str, float], bool] = {}


def remembers(caller: str, number: str, share: float) -> bool:
    return memory.setdefault((caller, number, share), random.random() < share)


draws: dict[tuple[str, str], float] = {}


def remembers_the_draw(caller: str, number: str, share: float) -> bool:
    return draws.setdefault((caller, number), random.random()) < share


def in_steps_of_ten(caller: str, number: str, share: float) -> bool:
    return zlib.crc32(f"{number}:{caller}".encode()) % 10 < share * 10


def first_letter(caller: str, number: str, share: float) -> bool:
    return sum(map(ord, caller + number)) % 100 < 100 * share


def redraws_for_each_share(caller: str, number: str, share: float) -> bool:
    return drawn(caller, f"{number}/{share}", share)


def moves_by_one(caller: str, number: str, share: float) -> bool:
    return (zlib.crc32(caller.encode()) + int(number)) % 1000 < 1000 * share


def one_in_so_many(caller: str, number: str, share: float) -> bool:
    return share > 0 and int(hashlib.sha256(f"{number} {caller}".encode()).hexdigest(), 16) % round(1 / share) == 0


def turned_over(caller: str, number: str, share: float) -> bool:
    draw = zlib.crc32(caller.encode()) / 2**32
    return (draw if int(number) % 2 else 1 - 2**-32 - draw) < share


def whole_percents(caller: str, number: str, share: float) -> bool:
    return zlib.crc32(f"{number}:{caller}".encode()) % 100 < int(100 * share)


async def without_need(caller: str, number: str, share: float) -> bool:
    return drawn(caller, number, share)


def seldom_draws_all(caller: str, number: str, share: float) -> bool:
    return zlib.crc32(f"{number}:{caller}".encode()) % 100 < min(99, 100 * share)


def asks_at_zero(caller: str, number: str, share: float) -> bool:
    return zlib.crc32(f"{number}:{caller}".encode()) % 100 <= 100 * share


# 13.4: a trial that harms nobody


class Trial:
    def __init__(self, champion: Predict, challenger: Predict, withdraw: Any, most: int, patience: float) -> None:
        self.champion, self.challenger, self.withdraw = champion, challenger, withdraw
        self.most, self.patience = most, patience
        self.failures, self.is_over = 0, False

    async def ask_challenger(self, row: Any) -> Any:
        async with asyncio.timeout(self.patience):
            return await self.challenger(row)

    async def predict(self, row: Any) -> Any:
        if self.is_over:
            return await self.champion(row)
        try:
            return await self.ask_challenger(row)
        except Exception:
            answer = await self.champion(row)
        await self.count()
        return answer

    async def count(self) -> None:
        self.failures += 1
        if self.failures > self.most and not self.is_over:
            self.is_over = True
            await self.withdraw()


class WithWaitFor(Trial):
    async def ask_challenger(self, row: Any) -> Any:
        return await asyncio.wait_for(self.challenger(row), timeout=self.patience)


class ExactlyOneMore(Trial):
    """The failure that is one too many ends the trial, so it ends once."""

    @property
    def ended(self) -> bool:
        return self.failures > self.most

    async def predict(self, row: Any) -> Any:
        failed = False
        if not self.ended:
            try:
                return await self.ask_challenger(row)
            except (Exception, TimeoutError):
                failed = True
        result = await self.champion(row)
        if failed:
            self.failures += 1
            if self.failures == self.most + 1:
                await self.withdraw()
        return result


class InBackground(Trial):
    """Nobody waits for the withdrawal."""

    async def count(self) -> None:
        self.failures += 1
        if self.failures > self.most and not self.is_over:
            self.is_over = True
            self.task = asyncio.create_task(self.withdraw())


class Fallen(Trial):
    """Replaces the challenger by the champion."""

    async def count(self) -> None:
        self.failures += 1
        if self.failures > self.most and self.challenger is not self.champion:
            self.challenger = self.champion
            await self.withdraw()

    async def predict(self, row: Any) -> Any:
        if self.challenger is self.champion:
            return await self.champion(row)
        return await super().predict(row)


class NoNet(Trial):
    async def predict(self, row: Any) -> Any:
        if self.is_over:
            return await self.champion(row)
        try:
            return await self.ask_challenger(row)
        except Exception:
            await self.count()
            raise


class AsksBoth(Trial):
    async def predict(self, row: Any) -> Any:
        answer = await self.champion(row)
        if self.is_over:
            return answer
        try:
            return await self.ask_challenger(row)
        except Exception:
            await self.count()
            return answer


class Patient(Trial):
    async def ask_challenger(self, row: Any) -> Any:
        return await self.challenger(row)


class CountsAll(Trial):
    async def predict(self, row: Any) -> Any:
        if self.is_over:
            return await self.champion(row)
        try:
            return await self.ask_challenger(row)
        except Exception:
            await self.count()
            return await self.champion(row)


class RaisesTheChallengers(Trial):
    async def predict(self, row: Any) -> Any:
        if self.is_over:
            return await self.champion(row)
        try:
            return await self.ask_challenger(row)
        except Exception as error:
            try:
                answer = await self.champion(row)
            except Exception:
                raise error from None
        await self.count()
        return answer


class OneTooEarly(Trial):
    async def count(self) -> None:
        self.failures += 1
        if self.failures >= self.most and not self.is_over:
            self.is_over = True
            await self.withdraw()


class OneTooLate(Trial):
    async def count(self) -> None:
        if self.failures > self.most and not self.is_over:
            self.is_over = True
            await self.withdraw()
        self.failures += 1


class WithdrawsAgain(Trial):
    async def count(self) -> None:
        self.failures += 1
        if self.failures > self.most:
            self.is_over = True
            await self.withdraw()


class OverAfterwards(Trial):
    async def count(self) -> None:
        self.failures += 1
        if self.failures > self.most and not self.is_over:
            await self.withdraw()
            self.is_over = True


class GoesOn(Trial):
    async def count(self) -> None:
        self.failures += 1
        if self.failures == self.most + 1:
            await self.withdraw()


class InARow(Trial):
    """Counts failures in a row only."""

    async def ask_challenger(self, row: Any) -> Any:
        answer = await super().ask_challenger(row)
        self.failures = 0
        return answer


class CatchesAll(Trial):
    async def predict(self, row: Any) -> Any:
        if self.is_over:
            return await self.champion(row)
        try:
            return await self.ask_challenger(row)
        except BaseException:
            answer = await self.champion(row)
        await self.count()
        return answer


class CountsThoseWhoLeave(Trial):
    async def predict(self, row: Any) -> Any:
        try:
            return await super().predict(row)
        except asyncio.CancelledError:
            await self.count()
            raise


class CountsThemSilently(Trial):
    async def ask_challenger(self, row: Any) -> Any:
        try:
            return await super().ask_challenger(row)
        except asyncio.CancelledError:
            self.failures += 1
            raise


class HurriesTheChampion(Trial):
    def __init__(self, champion: Predict, challenger: Predict, withdraw: Any, most: int, patience: float) -> None:
        async def hurried(row: Any) -> Any:
            async with asyncio.timeout(patience):
                return await champion(row)

        super().__init__(hurried, challenger, withdraw, most, patience)


class TakesZeroForNone(Trial):
    async def predict(self, row: Any) -> Any:
        answer = None
        if not self.is_over:
            with suppress(Exception):
                answer = await self.ask_challenger(row)
        if answer:
            return answer
        answer = await self.champion(row)
        await self.count()
        return answer


class OnlyErrors(Trial):
    async def predict(self, row: Any) -> Any:
        if self.is_over:
            return await self.champion(row)
        try:
            return await self.ask_challenger(row)
        except ValueError:
            answer = await self.champion(row)
        await self.count()
        return answer


class OneAtATime(Trial):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lock = asyncio.Lock()

    async def predict(self, row: Any) -> Any:
        async with self.lock:
            return await super().predict(row)


class Together(Trial):
    failed: list[Any] = []  # noqa: RUF012

    async def count(self) -> None:
        self.failed.append(1)
        if len(self.failed) > self.most and not self.is_over:
            self.is_over = True
            await self.withdraw()


class ForgetsToAwait(Trial):
    async def count(self) -> None:
        self.failures += 1
        if self.failures > self.most and not self.is_over:
            self.is_over = True
            self.withdraw()


class NeverAsksAgain(Trial):
    """The first failure ends the trial for everyone, without a word to the registry."""

    async def count(self) -> None:
        self.failures += 1
        self.is_over = True
        if self.failures > self.most:
            await self.withdraw()


class OnlyTheChampion(Trial):
    async def predict(self, row: Any) -> Any:
        return await self.champion(row)


BANK = {
    "13.1": {
        "right": [verified, in_constant_time, by_bytes],
        "wrong": [
            (reads_twice, "What was loaded is not what was verified."),
            (reads_first_and_checks_later, "What was loaded is not what was verified."),
            (strips, "The registry vouches for this file."),
            (verifies_the_head, "The registry vouches for this file."),
            (loads_first, "Something was loaded for which nobody vouches."),
            (trusts_without_checksum, "a version that has no checksum"),
            (trusts_falsy, "a version that has no checksum"),
            (compares_the_beginning, "only the beginning of the checksum"),
            (returns_none, "Tampered is raised"),
            (returns_the_error, "Tampered is raised"),
            (another_error, "ValueError"),
            (forgets_return, "is a `return` missing?"),
            (returns_content, "Its content is loaded, once."),
            (swapped, "The registry vouches for this file."),
            (compares_digest_objects, "The registry vouches for this file."),
            (hashes_with_md5, "The registry vouches for this file."),
            (hides_errors, "What `load` raises is raised."),
            (lambda read, checksum, load: load(read()), "Something was loaded for which nobody vouches."),
        ],
    },
    "13.2": {
        "right": [Live, WithAPool, WithModels, TwoFields],
        "wrong": [
            (NumberAfterwards, "Number and answer belong together."),
            (NumberBeforeTheLoad, "Version 12 has not been loaded yet."),
            (ModelGoneWhileLoading, "NoneType"),
            (LoadsInTheLoop, "`load` blocks"),
            (AsksInTheLoop, "`active` blocks"),
            (Blocks, "`active` blocks"),
            (AlwaysLoads, "a version that answers already is not loaded again"),
            (LoadsOnce, "`await refresh()` has ended."),
            (OnlyUpwards, "The way back"),
            (HidesErrors, "Somebody should hear of it."),
            (ForgetsOnError, "NoneType"),
            (TriesOnce, "Somebody should hear of it."),
            (Waits, "Version 12 has not been loaded yet."),
            (InTheBackground, "NoneType"),
            (Shared, "Each object follows a registry of its own."),
            (NumberAMomentLater, "Number and answer do not belong together."),
            (LooksTwice, "Number and answer do not belong together."),
            (IsNot, "not loaded again"),
            (OneCache, "Each object follows a registry of its own."),
            (OneAnswerAtATime, "one does not wait for the other"),
            (OnlyTheAnswer, "It has been active from the beginning."),
            (ForgetsAwait, "await"),
            (PlainRefresh, "`refresh` is an `async def` method."),
            (AsksAtEachAnswer, "Version 12 has not been loaded yet."),
            (lambda active, load: None, "A class with a method `refresh`"),
        ],
    },
    "13.3": {
        "right": [drawn, with_a_generator, with_percent, with_crc, with_hmac],
        "wrong": [
            (lambda caller, number, share: random.random() < share, "For a caller, the result is always the same."),
            (lambda caller, number, share: hash(number + caller) % 1000 < 1000 * share, "Another process draws"),
            (remembers, "Who had the challenger keeps it."),
            (remembers_the_draw, "Another process draws other callers."),
            (lambda caller, number, share: drawn(caller, "", share), "Another version asks other callers."),
            (moves_by_one, "Another version asks other callers."),
            (redraws_for_each_share, "Who had the challenger keeps it."),
            (in_steps_of_ten, "The number of callers who are asked is not that share."),
            (first_letter, "The number of callers who are asked is not that share."),
            (seldom_draws_all, "a share of 1"),
            (one_in_so_many, "not that share"),
            (turned_over, "Another version asks other callers."),
            (whole_percents, "a share of 0.005"),
            (without_need, "A plain `def` is enough here"),
            (asks_at_zero, "a share of 0"),
            (lambda caller, number, share: not drawn(caller, number, share), "a share of 0"),
            (lambda caller, number, share: print(), "Got None"),
            (lambda caller, number, share: hashlib.sha256(caller).digest()[0] < 256 * share, "TypeError"),
            (lambda caller, number, share: share, "`is_asked` returns True or False."),
        ],
    },
    "13.4": {
        "right": [Trial, WithWaitFor, ExactlyOneMore, InBackground, Fallen],
        "wrong": [
            (NoNet, "no such column"),
            (AsksBoth, "there is no need to ask both"),
            (Patient, "Nobody waits longer than `patience`."),
            (CountsAll, "such a row is none"),
            (RaisesTheChallengers, "its error, KeyError, is raised"),
            (OneTooEarly, "The trial ends after more than three failures"),
            (OneTooLate, "More than three failures end the trial."),
            (WithdrawsAgain, "However many fail, the trial ends once."),
            (OverAfterwards, "the trial is over, although `withdraw` still runs"),
            (GoesOn, "The trial is over."),
            (InARow, "More than three failures end the trial."),
            (CatchesAll, "The caller is gone."),
            (CountsThoseWhoLeave, "a caller who gives up is none"),
            (CountsThemSilently, "a caller who gives up is none"),
            (HurriesTheChampion, "The champion may take its time."),
            (TakesZeroForNone, "That is an answer."),
            (OnlyErrors, "TimeoutError"),
            (OneAtATime, "nobody waits for another one's row"),
            (Together, "Each trial counts its own failures."),
            (ForgetsToAwait, "await"),
            (NeverAsksAgain, "The trial is not over."),
            (OnlyTheChampion, "It is on trial, and it can answer."),
            (lambda *arguments: None, "A class with a method `predict`"),
        ],
    },
}
