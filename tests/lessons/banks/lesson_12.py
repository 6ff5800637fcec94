"""Answers to lesson 12: GPU deployments."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

Tokens = list[int]
Step = Callable[[list[Tokens]], Awaitable[Tokens]]

# 12.1: a rectangle of prompts


def pad_left(prompts: list[Tokens], pad: int) -> tuple[list[Tokens], list[Tokens]]:
    longest = max(map(len, prompts), default=0)
    missing = [longest - len(prompt) for prompt in prompts]
    rows = [[pad] * count + list(prompt) for count, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * count + [1] * len(prompt) for count, prompt in zip(missing, prompts, strict=True)]
    return rows, mask


def in_a_loop(prompts: list[Tokens], pad: int) -> Any:
    longest = max(len(prompt) for prompt in prompts)
    rows, mask = [], []
    for prompt in prompts:
        row, ones = prompt[:], [1] * len(prompt)
        while len(row) < longest:
            row.insert(0, pad)
            ones.insert(0, 0)
        rows.append(row)
        mask.append(ones)
    return [rows, mask]


def with_arrays(prompts: list[Tokens], pad: int) -> Any:
    longest = max(len(prompt) for prompt in prompts)
    rows, mask = np.full((len(prompts), longest), pad), np.zeros((len(prompts), longest), int)
    for number, prompt in enumerate(prompts):
        if prompt:
            rows[number, -len(prompt) :], mask[number, -len(prompt) :] = prompt, 1
    return rows, mask


def on_the_right(prompts: list[Tokens], pad: int) -> Any:
    longest = max(map(len, prompts))
    rows = [prompt + [pad] * (longest - len(prompt)) for prompt in prompts]
    return rows, [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]


def mask_of_tokens(prompts: list[Tokens], pad: int) -> Any:
    rows, _ = pad_left(prompts, pad)
    return rows, [[int(token != pad) for token in row] for row in rows]


def mask_on_the_right(prompts: list[Tokens], pad: int) -> Any:
    return pad_left(prompts, pad)[0], on_the_right(prompts, pad)[1]


def mask_swapped(prompts: list[Tokens], pad: int) -> Any:
    rows, mask = pad_left(prompts, pad)
    return rows, [[1 - one for one in row] for row in mask]


def pads_with_zero(prompts: list[Tokens], pad: int) -> Any:
    return pad_left(prompts, 0)


def as_long_as_the_first(prompts: list[Tokens], pad: int) -> Any:
    longest = len(prompts[0])
    rows = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    return rows, [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]


def changes_what_it_gets(prompts: list[Tokens], pad: int) -> Any:
    longest, mask = max(map(len, prompts)), []
    for prompt in prompts:
        mask.append([0] * (longest - len(prompt)) + [1] * len(prompt))
        prompt[:0] = [pad] * (longest - len(prompt))
    return prompts, mask


# 12.2: few rectangles that fit


def batches(lengths: list[int], most: int) -> list[list[int]]:
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[found[-1][0]] if found else 0
        if found and (len(found[-1]) + 1) * longest <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def from_the_front(lengths: list[int], most: int) -> Any:
    """Takes the longest that is left, and as many as fit."""
    left = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    found = []
    while left:
        room = max(1, most // lengths[left[0]])
        found.append(tuple(left[:room]))
        left = left[room:]
    return found


def from_the_shortest(lengths: list[int], most: int) -> Any:
    """Each batch is made from its longest prompt downwards; they are returned in the other order."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    found = []
    while order:
        longest = order.pop()
        batch = [longest]
        while order and (len(batch) + 1) * lengths[longest] <= most:
            batch.append(order.pop())
        found.insert(0, batch)
    return found


def in_their_order(lengths: list[int], most: int) -> Any:
    found: list[list[int]] = []
    for index, length in enumerate(lengths):
        longest = max([length, *(lengths[other] for other in found[-1])]) if found else 0
        if found and (len(found[-1]) + 1) * longest <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def takes_lengths_out(lengths: list[int], most: int) -> Any:
    found = batches(lengths, most)
    while lengths:
        lengths.pop()
    return found


def sorts_texts(lengths: list[int], most: int) -> Any:
    order = sorted(range(len(lengths)), key=lambda index: str(lengths[index]))
    return [[order[index] for index in batch] for batch in in_their_order([lengths[index] for index in order], most)]


def ascending(lengths: list[int], most: int) -> Any:
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if found and (len(found[-1]) + 1) * lengths[index] <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def sums_lengths(lengths: list[int], most: int) -> Any:
    """Counts tokens, without padding."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if found and sum(lengths[other] for other in found[-1]) + lengths[index] <= most:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def strictly_less(lengths: list[int], most: int) -> Any:
    return batches(lengths, most - 1)


def one_each(lengths: list[int], most: int) -> Any:
    return [[index] for index in range(len(lengths))]


def all_together(lengths: list[int], most: int) -> Any:
    return [list(range(len(lengths)))]


def leaves_out_the_long(lengths: list[int], most: int) -> Any:
    return [batch for batch in batches(lengths, most) if lengths[batch[0]] <= most]


def returns_lengths(lengths: list[int], most: int) -> Any:
    return [[lengths[index] for index in batch] for batch in batches(lengths, most)]


def forgets_the_last(lengths: list[int], most: int) -> Any:
    return batches(lengths, most)[:-1]


def adds_an_empty_one(lengths: list[int], most: int) -> Any:
    return [[], *batches(lengths, most)]


# 12.3: join and leave at each token


class Loop:
    def __init__(self, step: Step, room: int) -> None:
        self.step, self.room = step, room
        self.runs: list[tuple[Tokens, int, asyncio.Future[Tokens]]] = []
        self.task: asyncio.Task[None] | None = None

    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        done = asyncio.get_running_loop().create_future()
        self.runs.append((list(prompt), len(prompt) + count, done))
        if self.task is None:
            self.task = asyncio.create_task(self.work())
        return (await done)[len(prompt) :]

    async def work(self) -> None:
        while self.runs:
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if not run[2].done()]
            if under_way := self.runs[: self.room]:
                await self.advance(under_way)
        self.task = None

    async def advance(self, under_way: list[Any]) -> None:
        try:
            tokens = await self.step([list(sequence) for sequence, *_ in under_way])
        except Exception as error:
            for *_, done in under_way:
                if not done.done():
                    done.set_exception(error)
        else:
            for (sequence, *_), token in zip(under_way, tokens, strict=True):
                sequence.append(token)


class WithAQueue:
    """A worker that waits for the first one, and sleeps otherwise."""

    def __init__(self, step: Step, room: int) -> None:
        self.step, self.room = step, room
        self.waiting: asyncio.Queue[Any] = asyncio.Queue()
        self.active: list[dict[str, Any]] = []
        self.worker: Any = None

    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        if self.worker is None:
            self.worker = asyncio.ensure_future(self.run())
        entry = {"ids": [*prompt], "left": count, "new": [], "future": asyncio.Future()}
        self.waiting.put_nowait(entry)
        return await entry["future"]

    async def run(self) -> None:
        while True:
            self.active = [entry for entry in self.active if not entry["future"].done()]
            while len(self.active) < self.room and not (self.active and self.waiting.empty()):
                entry = await self.waiting.get() if not self.active else self.waiting.get_nowait()
                if not entry["future"].done():
                    self.active.append(entry)
            try:
                tokens = await self.step([entry["ids"] for entry in self.active])
            except BaseException as error:
                for entry in self.active:
                    entry["future"].done() or entry["future"].set_exception(error)
                continue
            for entry, token in zip(self.active, tokens, strict=True):
                entry["ids"].append(token)
                entry["new"].append(token)
                entry["left"] -= 1
                if entry["left"] <= 0 and not entry["future"].done():
                    entry["future"].set_result(entry["new"])


class WithoutATask:
    """Whoever comes first does the steps for all, and hands that over when it leaves."""

    def __init__(self, step: Step, room: int) -> None:
        self.step, self.room = step, room
        self.order: list[Any] = []
        self.turn = asyncio.Lock()

    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        mine: dict[str, Any] = {"ids": list(prompt), "goal": len(prompt) + count, "error": None}
        self.order.append(mine)
        try:
            while len(mine["ids"]) < mine["goal"]:
                async with self.turn:
                    if mine["error"]:
                        raise mine["error"]
                    if len(mine["ids"]) >= mine["goal"]:
                        break
                    now = [one for one in self.order if len(one["ids"]) < one["goal"] and not one["error"]]
                    now = now[: self.room]
                    work = asyncio.ensure_future(self.step([list(one["ids"]) for one in now]))
                    try:
                        tokens = await asyncio.shield(work)
                    except asyncio.CancelledError:
                        self.leave(mine)  # the step goes on, and others get its tokens
                        for one, token in zip(now, await work, strict=True):
                            one["ids"].append(token)
                        raise
                    except Exception as error:
                        for one in now:
                            one["error"] = error
                        raise
                    for one, token in zip(now, tokens, strict=True):
                        one["ids"].append(token)
            return mine["ids"][len(prompt) :]
        finally:
            self.leave(mine)

    def leave(self, mine: dict[str, Any]) -> None:
        self.order = [one for one in self.order if one is not mine]


class Alone:
    """Each sequence has steps of its own."""

    def __init__(self, step: Step, room: int) -> None:
        self.step, self.places = step, asyncio.Semaphore(room)

    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        sequence = list(prompt)
        async with self.places:
            for _ in range(count):
                sequence += await self.step([sequence])
        return sequence[len(prompt) :]


class OneAfterTheOther(Alone):
    def __init__(self, step: Step, room: int) -> None:
        super().__init__(step, 1)


class Static(Loop):
    """Nobody joins or leaves until all under way have ended."""

    async def work(self) -> None:
        while self.runs:
            under_way = self.runs[: self.room]
            while any(len(sequence) < length for sequence, length, _ in under_way):
                await self.advance(under_way)
            for sequence, length, done in under_way:
                done.set_result(sequence[:length])
            self.runs = self.runs[len(under_way) :]
        self.task = None


class NobodyJoins(Loop):
    """Who is complete leaves at once, but nobody joins until all have left."""

    async def work(self) -> None:
        while self.runs:
            batch, self.runs = self.runs[: self.room], self.runs[self.room :]
            while batch := [run for run in batch if not run[2].done()]:
                await self.advance(batch)
                for sequence, length, done in batch:
                    if len(sequence) >= length and not done.done():
                        done.set_result(sequence)
        self.task = None


class WithPrompt(Loop):
    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        return [*prompt, *await super().extend(prompt, count)]


class OneTooMany(Loop):
    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        return await super().extend(prompt, count + 1)


class ChangesThePrompt(Loop):
    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        done = asyncio.get_running_loop().create_future()
        before = len(prompt)
        self.runs.append((prompt, len(prompt) + count, done))
        if self.task is None:
            self.task = asyncio.create_task(self.work())
        return (await done)[before:]


class WithoutRoom(Loop):
    def __init__(self, step: Step, room: int) -> None:
        super().__init__(step, 1000)


class LastComeFirst(Loop):
    async def extend(self, prompt: Tokens, count: int) -> Tokens:
        done = asyncio.get_running_loop().create_future()
        self.runs.insert(
            self.room if len(self.runs) > self.room else len(self.runs), (list(prompt), len(prompt) + count, done)
        )
        if self.task is None:
            self.task = asyncio.create_task(self.work())
        return (await done)[len(prompt) :]


class KeepsThoseWhoLeft(Loop):
    async def work(self) -> None:
        while self.runs:
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if len(run[0]) < run[1]]
            if under_way := self.runs[: self.room]:
                await self.advance(under_way)
        self.task = None


class SetsWhatIsCancelled(Loop):
    """Raises InvalidStateError in its task if a caller has left."""

    async def work(self) -> None:
        while self.runs:
            await self.advance(self.runs[: self.room])
            for sequence, length, done in list(self.runs):
                if len(sequence) >= length:
                    done.set_result(sequence)
                    self.runs = [run for run in self.runs if run[2] is not done]
        self.task = None


class Dies(Loop):
    """An error ends its task, and everybody waits for ever."""

    async def advance(self, under_way: list[Any]) -> None:
        tokens = await self.step([list(sequence) for sequence, *_ in under_way])
        for (sequence, *_), token in zip(under_way, tokens, strict=True):
            sequence.append(token)


class FailsForAll(Loop):
    """An error also goes to those who wait."""

    async def advance(self, under_way: list[Any]) -> None:
        try:
            tokens = await self.step([list(sequence) for sequence, *_ in under_way])
        except Exception as error:
            for *_, done in self.runs:
                if not done.done():
                    done.set_exception(error)
        else:
            for (sequence, *_), token in zip(under_way, tokens, strict=True):
                sequence.append(token)


class TriesAgain(Loop):
    """An error is hidden, and the step repeated."""

    async def advance(self, under_way: list[Any]) -> None:
        try:
            tokens = await self.step([list(sequence) for sequence, *_ in under_way])
        except Exception:
            return
        for (sequence, *_), token in zip(under_way, tokens, strict=True):
            sequence.append(token)


class NeverStartsAgain(Loop):
    """Its first task is its last one."""

    async def work(self) -> None:
        while self.runs:
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if not run[2].done()]
            if under_way := self.runs[: self.room]:
                await self.advance(under_way)


class Restless(Loop):
    """Does steps for nobody."""

    async def work(self) -> None:
        while True:
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if not run[2].done()]
            await self.advance(self.runs[: self.room])


class Shared(Loop):
    everyone: list[Any] = []  # noqa: RUF012

    def __init__(self, step: Step, room: int) -> None:
        super().__init__(step, room)
        self.runs = Shared.everyone

    async def work(self) -> None:
        while self.runs:
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs[:] = [run for run in self.runs if not run[2].done()]
            if under_way := self.runs[: self.room]:
                await self.advance(under_way)
        self.task = None


class ShortestFirst(Loop):
    async def advance(self, under_way: list[Any]) -> None:
        self.runs[self.room :] = sorted(self.runs[self.room :], key=lambda run: run[1] - len(run[0]))
        await super().advance(under_way)


class SetsAnErrorOnWhatIsCancelled(Loop):
    """Raises InvalidStateError in its task if a caller has left during a step that fails."""

    async def advance(self, under_way: list[Any]) -> None:
        try:
            tokens = await self.step([list(sequence) for sequence, *_ in under_way])
            for (sequence, *_), token in zip(under_way, tokens, strict=True):
                sequence.append(token)
        except Exception as error:
            for *_, done in under_way:
                done.set_exception(error)


class SetsALastTokenOnWhatIsCancelled(Loop):
    """Takes out those who have left only after a step, and raises InvalidStateError if one has left during its last."""

    async def work(self) -> None:
        while self.runs:
            await self.advance(self.runs[: self.room])
            for sequence, length, done in self.runs:
                if len(sequence) == length:
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if not run[2].done()]
        self.task = None


class LooksAfterTheStep(Loop):
    """Does a step for nobody if its only caller leaves before the first one."""

    async def work(self) -> None:
        while True:
            self.runs = [run for run in self.runs if not run[2].done()]
            await self.advance(self.runs[: self.room])
            for sequence, length, done in self.runs:
                if len(sequence) >= length and not done.done():
                    done.set_result(sequence)
            self.runs = [run for run in self.runs if not run[2].done()]
            if not self.runs:
                break
        self.task = None


class EndsLater(Loop):
    """Who comes while its task ends is forgotten."""

    async def work(self) -> None:
        task = self.task
        await super().work()
        self.task = task
        await asyncio.sleep(0)
        self.task = None


class ByPrompt(Loop):
    """Of two callers with the same prompt, one is forgotten."""

    async def advance(self, under_way: list[Any]) -> None:
        self.runs = list({tuple(run[0]): run for run in self.runs}.values())
        await super().advance(self.runs[: self.room])


class RemovesAnEqual(WithoutATask):
    """Dicts are equal if their contents are: another caller may be taken out."""

    def leave(self, mine: dict[str, Any]) -> None:
        if mine in self.order:
            self.order.remove(mine)


class OnlyNewTokens(Loop):
    """Gives `step` only what was added last."""

    async def advance(self, under_way: list[Any]) -> None:
        tokens = await self.step([sequence[-1:] for sequence, *_ in under_way])
        for (sequence, *_), token in zip(under_way, tokens, strict=True):
            sequence.append(token)


class ForgetsAwait(Loop):
    async def advance(self, under_way: list[Any]) -> None:
        tokens: Any = self.step([list(sequence) for sequence, *_ in under_way])
        for (sequence, *_), token in zip(under_way, tokens, strict=True):
            sequence.append(token)


# 12.4: how many tokens fit


def cache_tokens(memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int) -> int:
    free = 0.9 * share * memory - weights
    return max(0, int(free // (2 * layers * heads * size * width)))


def with_a_branch(memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int) -> int:
    mine = memory * share
    left = mine - mine / 10 - weights
    if left <= 0:
        return 0
    per_layer = (size * width) * 2 * heads
    return int(left / (per_layer * layers))


def fits(*, reserve: float = 0.9, both: int = 2, divided: bool = True, whole: bool = True, least: float = 0) -> Any:
    def answer(memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int) -> Any:
        mine = memory * (share if divided else 1)
        found = (reserve * mine - weights) // (both * layers * heads * size * width)
        return max(least, int(found) if whole else found)

    return answer


def reserve_of_what_is_left(
    memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int
) -> int:
    return max(0, int(0.9 * (share * memory - weights) // (2 * layers * heads * size * width)))


def rounds(memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int) -> int:
    return max(0, round((0.9 * share * memory - weights) / (2 * layers * heads * size * width)))


def weights_of_a_share(memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int) -> int:
    return max(0, int(share * (0.9 * memory - weights) // (2 * layers * heads * size * width)))


def without_heads(memory: int, share: float, weights: int, layers: int, heads: int, size: int, width: int) -> int:
    return max(0, int((0.9 * share * memory - weights) // (2 * layers * size * width)))


BANK = {
    "12.1": {
        "right": [pad_left, in_a_loop, with_arrays],
        "wrong": [
            (on_the_right, "on its left"),
            (mask_of_tokens, "A token of the prompt counts"),
            (mask_on_the_right, "The mask. The short prompt"),
            (mask_swapped, "The mask. The short prompt"),
            (pads_with_zero, "The rows. All are as long"),
            (as_long_as_the_first, "The rows. All are as long"),
            (changes_what_it_gets, "The lists that it gets stay as they are."),
            (lambda prompts, pad: pad_left(prompts, pad)[0], "The rows."),
            (lambda prompts, pad: pad_left(prompts, pad)[::-1], "The rows."),
            (lambda prompts, pad: (prompts, [[1] * len(prompt) for prompt in prompts]), "on its left"),
            (lambda prompts, pad: None, "Got None"),
        ],
    },
    "12.2": {
        "right": [batches, from_the_front, from_the_shortest, ascending],
        "wrong": [
            (in_their_order, "Fewer batches are enough."),
            (sums_lengths, "This batch does not fit."),
            (strictly_less, "Fewer batches are enough."),
            (one_each, "Fewer batches are enough."),
            (all_together, "This batch does not fit."),
            (leaves_out_the_long, "Every index occurs once."),
            (returns_lengths, "Every index occurs once."),
            (forgets_the_last, "Every index occurs once."),
            (adds_an_empty_one, "A batch has at least one prompt."),
            (takes_lengths_out, "`lengths` stays as it is."),
            (sorts_texts, "Fewer batches are enough."),
            (lambda lengths, most: len(batches(lengths, most)), "A list of lists"),
            (lambda lengths, most: list(range(len(lengths))), "A list of lists"),
            (lambda lengths, most: None, "Got None"),
        ],
    },
    "12.3": {
        "right": [Loop, WithAQueue, WithoutATask],
        "wrong": [
            (Alone, "One `step` runs at a time"),
            (OneAfterTheOther, "All sequences under way go into one call."),
            (Static, "It joins at the next step"),
            (NobodyJoins, "It joins at the next step"),
            (WithPrompt, "Three new tokens, without the prompt."),
            (OneTooMany, "Three new tokens"),
            (ChangesThePrompt, "The caller's prompt stays as it is."),
            (WithoutRoom, "There is room for two."),
            (LastComeFirst, "in which they came"),
            (ShortestFirst, "in which they came"),
            (SetsAnErrorOnWhatIsCancelled, "InvalidStateError"),
            (SetsALastTokenOnWhatIsCancelled, "InvalidStateError"),
            (LooksAfterTheStep, "`step` is called without a sequence."),
            (EndsLater, "extend([50], 1) as soon as"),
            (ByPrompt, "Another call with the same prompt"),
            (RemovesAnEqual, "Another call with the same prompt"),
            (KeepsThoseWhoLeft, "Who gives up leaves, and makes room."),
            (SetsWhatIsCancelled, "Who gives up leaves, and makes room."),
            (Dies, "A `step` has failed."),
            (FailsForAll, "MemoryError"),
            (TriesAgain, "A `step` has failed."),
            (NeverStartsAgain, "it waits"),
            (Restless, "`step` gets these."),
            (Shared, "Each loop has sequences of its own."),
            (OnlyNewTokens, "The prompt, and what was added to it."),
            (ForgetsAwait, "coroutine"),
            (lambda step, room: None, "A class with a method `extend`"),
        ],
    },
    "12.4": {
        "right": [cache_tokens, with_a_branch],
        "wrong": [
            (fits(reserve=1.0), "The whole card"),
            (fits(both=1), "The whole card"),
            (fits(divided=False), "Half of the card"),
            (fits(whole=False), "A whole number is returned."),
            (fits(least=-(10**12)), "not enough for the weights"),
            (fits(least=1), "not enough for the weights"),
            (reserve_of_what_is_left, "The whole card"),
            (weights_of_a_share, "Half of the card"),
            (rounds, "80"),
            (without_heads, "The whole card"),
            (lambda *numbers: print(), "Got None"),
        ],
    },
}
