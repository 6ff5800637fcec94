"""Lesson 12: GPU deployments."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from workshop.lab.answer import Answer, outcome_of, settle
from workshop.lab.expectations import CouldNotCheck, NotAttempted, NotYet, expect, show
from workshop.lab.registry import exercise

PATIENCE_S = 3.0
"""How long to wait for what must come."""
BEGIN_S = 0.05
"""How long to wait for a step to begin. A loop may look for work now and then."""


@exercise(
    "12.1",
    hints=[
        "First the length of the longest prompt. A row is `[pad] * missing + prompt`.",
        "The mask has the same shape: `[0] * missing + [1] * len(prompt)`. Lengths decide, not tokens.",
    ],
    right="All prompts end in the same column, and that is where the model goes on.",
)
def pads_left(answer: Answer) -> None:
    for prompts, pad, why in (
        ([[5, 6, 7], [8]], 0, "The short prompt gets two padding tokens on its left."),
        ([[5, 6], [7, 8]], 0, "Nothing is missing."),
        ([[1, 2, 3, 4]], 9, "One prompt needs no padding."),
        ([[3], [4, 5, 6, 7, 8], [9, 10]], 2, "All are as long as the longest one, wherever it stands."),
        ([[0, 5], [0], [6, 0, 7]], 0, "A token of the prompt counts, even if it is the padding token."),
        ([[7, 7], []], 3, "An empty prompt is all padding."),
    ):
        longest = max(len(prompt) for prompt in prompts)
        missing = [longest - len(prompt) for prompt in prompts]
        rows = [[pad] * count + prompt for count, prompt in zip(missing, prompts, strict=True)]
        mask = [[0] * count + [1] * len(prompt) for count, prompt in zip(missing, prompts, strict=True)]
        got = answer.call(prompts, pad)
        if not isinstance(got, tuple | list) or len(got) != 2:
            expect(got, (rows, mask), why="Two lists are returned: the rows, and the mask.")
        expect(got[0], rows, why=f"The rows. {why}")
        expect(got[1], mask, why=f"The mask. {why}")
    answer.given = "a list of prompts, which the caller uses again"
    prompts = [[1], [2, 3]]
    answer.run(answer.value(prompts, 0))
    expect(prompts, [[1], [2, 3]], why="The lists that it gets stay as they are.", exact=True)


@exercise(
    "12.2",
    hints=[
        "Sort the indices by length, the longest first: `sorted(range(len(lengths)), key=lambda i: -lengths[i])`.",
        "The first prompt of a batch is then its longest. Put the next one into the last batch if "
        "`(len(batch) + 1) * longest` is at most `most`; otherwise it begins a new batch.",
    ],
    right="No rectangle is too large, and there are as few as can be.",
)
def groups(answer: Answer) -> None:
    for lengths, most, fewest in (
        ([10, 10, 10, 10], 20, 2),
        ([10, 1000, 10, 10], 1000, 2),
        ([1, 9, 2, 8, 3, 7], 18, 3),
        ([5, 5, 5], 15, 1),
        ([5, 5, 5], 14, 2),
        ([6, 5, 5], 15, 2),
        ([3, 1, 1, 1, 3, 1], 6, 2),
        ([1000] + [10] * 15, 1000, 2),
        ([30, 7, 50], 20, 3),
        ([50, 4, 4, 4, 4, 50], 20, 3),
        ([9, 10, 100, 9, 10, 100], 200, 2),
        ([7], 7, 1),
        ([], 10, 0),
    ):
        got = answer.call(list(lengths), most)
        if not isinstance(got, list | tuple) or not all(isinstance(batch, list | tuple) for batch in got):
            expect(got, [[0]], why="A list of lists of indices is returned.")
        indices = sorted(index for batch in got for index in batch)
        if indices != list(range(len(lengths))):
            raise NotYet("Every index occurs once.", expected=show(list(range(len(lengths)))), got=show(got))
        if not all(got):
            raise NotYet("A batch has at least one prompt.", got=show(got))
        for batch in got:
            places = len(batch) * max(lengths[index] for index in batch)
            if places > most and len(batch) > 1:
                raise NotYet(
                    "This batch does not fit.",
                    expected=f"at most {most} places",
                    got=f"{show(batch)} with lengths {show([lengths[index] for index in batch])} takes {places}",
                )
        if len(got) > fewest:
            raise NotYet("Fewer batches are enough.", expected=f"{fewest} batches", got=show(got))
    answer.given = "a list of lengths, which the caller uses again"
    lengths = [3, 1, 2]
    answer.run(answer.value(lengths, 6))
    expect(lengths, [3, 1, 2], why="`lengths` stays as it is.", exact=True)


class _Card:
    """Makes tokens, one step at a time, when the check lets it."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []
        self.begun, self.goes = asyncio.Event(), asyncio.Semaphore(0)
        self.at_once = self.most_at_once = 0
        self.error: Exception | None = None

    async def step(self, sequences: list[list[int]]) -> list[int]:
        self.calls.append([list(sequence) for sequence in sequences])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        try:
            await self.goes.acquire()
            if self.error is not None:
                raise self.error
        finally:
            self.at_once -= 1
            self.begun.clear()
        return [sequence[-1] + 1 for sequence in sequences]

    async def begins(self) -> bool:
        """Wait for a step to begin; whether it did."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_S):
                await self.begun.wait()
        return self.begun.is_set()

    async def steps(self, count: int) -> None:
        """Let so many steps end, or fewer if no more begin."""
        for _ in range(count):
            if await self.begins():
                self.goes.release()
            await settle()


@exercise(
    "12.3",
    hints=[
        "`extend` puts a future of its own into a list, starts a task unless one is running, and awaits the future. "
        "The task calls `step`, again and again, until nobody is left.",
        "Before each step, take out the sequences that are complete or whose future is done: that of a caller who has "
        "given up is cancelled. The first `room` of those that are left take part. Errors go to their futures only.",
    ],
    right="Nobody waits for the longest answer, and the card is as full as can be.",
)
def joins_and_leaves(answer: Answer) -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().set_task_factory(_remembered)
        for attack in (_one, _together, _latecomer, _crowd, _gives_up, _fails, _is_cancelled_in_a_step, _alike, _idle):
            _tasks.clear()  # what failed in an earlier attack, such as a step that was to fail, explains nothing
            await attack(answer)

    answer.run(scenario())


_tasks: "WeakSet[asyncio.Task[Any]]" = WeakSet()
"""All tasks of a check. If one of the learner's fails, nobody may hear of it."""


def _remembered(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    task = asyncio.Task(coroutine, loop=loop, **options)
    _tasks.add(task)
    return task


class _Learner:
    """A loop of the learner's on a card."""

    def __init__(self, answer: Answer, room: int) -> None:
        self.answer, self.card = answer, _Card()
        self.loop = answer.instance(self.card.step, room, methods=["extend"])

    async def begun(self, prompt: list[int], count: int) -> "asyncio.Future[Any]":
        call = self.loop.extend(prompt, count)
        if not asyncio.iscoroutine(call) and not asyncio.isfuture(call):
            raise NotAttempted if call is ... else NotYet("`extend` is an `async def` method.", got=show(call))
        begun = self.begin(call)
        await settle()
        if begun.done() and not begun.cancelled() and begun.exception() is None and begun.result() is ...:
            raise NotAttempted
        return begun

    def begin(self, call: Awaitable[Any]) -> "asyncio.Future[Any]":
        begun = asyncio.ensure_future(call)
        _tasks.discard(begun)  # this one is the check's
        begun.add_done_callback(lambda call: call.cancelled() or call.exception())  # asyncio logs what nobody looked at
        return begun

    def given(self, given: str) -> None:
        self.answer.given = given

    def expect_calls(self, calls: list[list[list[int]]], why: str) -> None:
        """What the steps so far have got. The order within a step is the learner's."""
        got = [sorted(call) for call in self.card.calls]
        expect(got, [sorted(call) for call in calls], why=f"`step` gets these. {why}")

    async def expect_answer(self, call: "asyncio.Future[Any]", tokens: list[Any], why: str) -> None:
        if not (await asyncio.wait([call], timeout=PATIENCE_S))[0]:
            call.cancel()
            for task in _tasks:
                if (
                    task.get_loop() is call.get_loop()
                    and task.done()
                    and not task.cancelled()
                    and (error := task.exception())
                ):
                    raise CouldNotCheck(error)
            raise NotYet(why, expected=show(tokens), got="it waits")
        self.answer.last = call.result()
        expect(self.answer.last, tokens, why=why)


async def _one(answer: Answer) -> None:
    one = _Learner(answer, room=4)
    prompt = [10, 11]
    one.given("extend([10, 11], 3), and nobody else")
    call = await one.begun(prompt, 3)
    await one.card.steps(3)
    await one.expect_answer(call, [12, 13, 14], "Three new tokens, without the prompt.")
    one.expect_calls([[[10, 11]], [[10, 11, 12]], [[10, 11, 12, 13]]], "The prompt, and what was added to it.")
    expect(prompt, [10, 11], why="The caller's prompt stays as it is.", exact=True)


async def _together(answer: Answer) -> None:
    two = _Learner(answer, room=4)
    two.given("extend([10], 1), extend([20], 3) and extend([10], 2) at the same time")
    calls = [await two.begun([10], 1), await two.begun([20], 3), await two.begun([10], 2)]
    await two.card.steps(2)
    await two.expect_answer(calls[0], [11], "It has its one token, and does not wait for the others.")
    await two.card.steps(3)
    if two.card.most_at_once > 1:
        raise NotYet("One `step` runs at a time.", got=f"{two.card.most_at_once} at the same time")
    if len(two.card.calls) > 4:  # the first step may begin before the others have come
        raise NotYet("All sequences under way go into one call.", got=f"{len(two.card.calls)} calls of `step`")
    await two.expect_answer(calls[1], [21, 22, 23], "Each gets tokens of its own.")
    await two.expect_answer(calls[2], [11, 12], "Each gets tokens of its own, even for the same prompt.")


async def _latecomer(answer: Answer) -> None:
    loop = _Learner(answer, room=4)
    loop.given("extend([10], 5), and extend([20], 1) after two steps")
    early = await loop.begun([10], 5)
    await loop.card.steps(2)
    late = await loop.begun([20], 1)
    await loop.card.steps(2)
    await loop.expect_answer(late, [21], "It joins at the next step, and leaves after it.")
    if early.done():
        raise NotYet("Five tokens take five steps.", got=outcome_of(early))
    await loop.card.steps(1)
    await loop.expect_answer(early, [11, 12, 13, 14, 15], "It goes on while others come and leave.")


async def _crowd(answer: Answer) -> None:
    loop = _Learner(answer, room=2)
    loop.given("four sequences at the same time, and `room=2`")
    calls = [await loop.begun([number], count) for number, count in ((10, 3), (20, 1), (30, 2), (40, 1))]
    for _ in range(10):
        await loop.card.steps(1)
    most = max(len(call) for call in loop.card.calls)
    if most > 2:
        raise NotYet("There is room for two.", expected="two sequences at most", got=f"{most} in one step")
    for call, tokens in zip(calls, ([11, 12, 13], [21], [31, 32], [41]), strict=True):
        await loop.expect_answer(call, tokens, "Who waits joins when another one leaves.")
    first_seen = list(dict.fromkeys(sequence[0] for call in loop.card.calls for sequence in sorted(call)))
    expect(first_seen, [10, 20, 30, 40], why="They join in the order in which they came.")
    if len(loop.card.calls) > 4:
        raise NotYet("A place that is free is taken at the next step.", got=f"{len(loop.card.calls)} calls of `step`")


async def _gives_up(answer: Answer) -> None:
    loop = _Learner(answer, room=1)
    loop.given("`room=1`: extend([10], 100) is cancelled after two steps, while extend([20], 2) waits")
    first, second = await loop.begun([10], 100), await loop.begun([20], 2)
    await loop.card.steps(2)
    first.cancel()
    await settle()
    await loop.card.steps(4)
    if not first.cancelled():
        raise NotYet("The caller is gone.", expected="its call ends", got=outcome_of(first))
    await loop.expect_answer(second, [21, 22], "Who gives up leaves, and makes room.")
    loop.given("`room=1`: of two, the one that waits is cancelled")
    third, fourth = await loop.begun([30], 2), await loop.begun([40], 2)
    fourth.cancel()
    await loop.card.steps(4)
    await loop.expect_answer(third, [31, 32], "It has nothing to do with the one that was cancelled.")
    if any(sequence[0] == 40 for call in loop.card.calls for sequence in call):
        raise NotYet("Who gave up while it waited takes part in no step.", got=show(loop.card.calls))


async def _is_cancelled_in_a_step(answer: Answer) -> None:
    for error in (None, MemoryError("no room on the card")):
        loop = _Learner(answer, room=2)
        loop.given(
            f"extend([10], 1) is cancelled during its step{', which fails' if error else ''}; then extend([20], 1)"
        )
        gone = await loop.begun([10], 1)
        await loop.card.begins()
        gone.cancel()
        await settle()
        loop.card.error = error
        await loop.card.steps(1)
        loop.card.error = None
        later = await loop.begun([20], 1)
        await loop.card.steps(2)
        await loop.expect_answer(later, [21], "The one that was cancelled does not matter to others.")
    loop = _Learner(answer, room=2)
    loop.given("extend([10], 1) is cancelled before its first step; then extend([20], 1)")
    gone = loop.begin(loop.loop.extend([10], 1))
    await asyncio.sleep(0)
    gone.cancel()
    await loop.card.steps(1)
    later = await loop.begun([20], 1)
    await loop.card.steps(2)
    await loop.expect_answer(later, [21], "The one that was cancelled does not matter to others.")
    if [] in loop.card.calls:
        raise NotYet("`step` is called without a sequence.", got="step([])")


async def _alike(answer: Answer) -> None:
    loop = _Learner(answer, room=1)
    loop.given("`room=1`: extend([10], 2) is under way; extend([20], 2) waits twice, and the second one is cancelled")
    first, second, third = [await loop.begun([number], 2) for number in (10, 20, 20)]
    await loop.card.steps(1)
    third.cancel()
    await loop.card.steps(4)
    await loop.expect_answer(first, [11, 12], "It is under way.")
    await loop.expect_answer(second, [21, 22], "Another call with the same prompt does not matter to it.")


async def _fails(answer: Answer) -> None:
    loop = _Learner(answer, room=2)
    loop.given("a `step` that fails with two sequences under way, while a third one waits, `room=2`")
    calls = [await loop.begun([number], 2) for number in (10, 20, 30)]
    await loop.card.steps(1)
    loop.card.error = MemoryError("no room on the card")
    await loop.card.steps(1)
    loop.card.error = None
    await loop.card.steps(3)
    if not (await asyncio.wait(calls[:2], timeout=PATIENCE_S))[0]:
        raise NotYet("A `step` has failed.", expected="its callers get the error", got="they wait")
    for call in calls[:2]:
        if not call.done() or call.cancelled() or not isinstance(call.exception(), MemoryError):
            raise NotYet("A `step` has failed.", expected="its callers get MemoryError", got=outcome_of(call))
    await loop.expect_answer(calls[2], [31, 32], "Who was not in that step gets its tokens.")
    loop.given("another sequence after the error")
    later = await loop.begun([50], 1)
    await loop.card.steps(2)
    await loop.expect_answer(later, [51], "Later ones get their tokens.")


async def _idle(answer: Answer) -> None:
    loop, other = _Learner(answer, room=2), _Learner(answer, room=2)
    loop.given("nobody asks any more")
    call = await loop.begun([10], 1)
    await loop.card.steps(1)
    await loop.expect_answer(call, [11], "One token.")
    before = len(loop.card.calls)
    await loop.card.steps(5)
    expect(len(loop.card.calls), before, why="Calls of `step`: none while nobody asks.")
    loop.given("somebody asks again, after a pause")
    again = await loop.begun([20], 2)
    await loop.card.steps(2)
    await loop.expect_answer(again, [21, 22], "The loop works again.")
    loop.given("extend([40], 1), and extend([50], 1) as soon as that has returned")

    async def twice() -> list[Any]:
        return [await loop.loop.extend([40], 1), await loop.loop.extend([50], 1)]

    both = loop.begin(twice())
    await loop.card.steps(3)
    await loop.expect_answer(both, [[41], [51]], "The loop works again.")
    loop.given("another loop with a card of its own, while the first one works")
    here, elsewhere = await loop.begun([30], 1), await other.begun([70], 1)
    await other.card.steps(1)
    await other.expect_answer(elsewhere, [71], "Each loop has sequences of its own.")
    other.expect_calls([[[70]]], "Each loop has sequences of its own.")
    await loop.card.steps(1)
    await loop.expect_answer(here, [31], "Each loop has sequences of its own.")


@exercise(
    "12.4",
    hints=[
        "What the replica may use is `0.9 * share * memory`. Its weights are part of that.",
        "A token takes `2 * layers * heads * size * width` bytes: a key and a value. `max(0, …)` helps where "
        "weights do not fit.",
    ],
    right="A promise of memory is kept by those who know what they need.",
)
def fits(answer: Answer) -> None:
    gb = 10**9
    for arguments, why in (
        (
            (80 * gb, 1.0, 16 * gb, 32, 8, 128, 2),
            "The whole card: 72 GB without the reserve, and 16 of them for the weights.",
        ),
        ((80 * gb, 0.5, 16 * gb, 32, 8, 128, 2), "Half of the card: 36 GB without the reserve."),
        ((24 * gb, 0.25, 1 * gb, 12, 12, 64, 4), "A quarter of the card: 5.4 GB without the reserve."),
        ((16 * gb, 0.5, 8 * gb, 32, 8, 128, 2), "7.2 GB are not enough for the weights."),
        ((1000, 1.0, 0, 1, 1, 1, 1), "900 bytes, and two for each token."),
        ((1010, 1.0, 0, 1, 3, 1, 1), "909 bytes, and six for each token: the last one does not fit."),
        ((1000, 0.5, 450, 1, 1, 1, 1), "The weights take all of it."),
    ):
        memory, share, weights, layers, heads, size, width = arguments
        fitting = max(0, int((0.9 * share * memory - weights) // (2 * layers * heads * size * width)))
        got = answer.call(*arguments)
        if isinstance(got, float):
            raise NotYet("A whole number is returned.", expected=str(fitting), got=show(got))
        expect(got, fitting, why=why)
