"""Lesson 13: model registry and rollouts."""

import asyncio
import hashlib
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, pairwise, repeat
from typing import Any

from cloudpickle import dumps  # type: ignore[import-untyped]

from workshop.lab.answer import Answer, outcome_of, settle
from workshop.lab.expectations import CouldNotCheck, NotAttempted, NotYet, expect, show
from workshop.lab.registry import exercise

PATIENCE_S = 3.0
"""How long to wait for what must come."""

REGISTERED, OTHER = (b"\xff\x00 a %s model " % name * 5000 + b"\n" for name in (b"registered", b"different"))
"""No text, longer than what is read at once, and with a space at the end that counts."""


@exercise(
    "13.1",
    hints=[
        "Call `read` once, and keep what it returns. `hashlib.sha256(content).hexdigest()` is its checksum.",
        "Compare before you call `load`, and pass it the bytes that you compared. No checksum equals `None`.",
    ],
    right="What was verified is what is loaded, and nothing else ever is.",
)
def loads_verified(answer: Answer) -> None:
    checksum = hashlib.sha256(REGISTERED).hexdigest()
    _expect_loaded(answer, [REGISTERED], checksum, given="the registered file, and its checksum")
    for name, contents, noted in (
        ("another file", [OTHER], checksum),
        ("the registered file, whose last byte has changed", [REGISTERED[:-1] + b"!"], checksum),
        ("the registered file, without its last byte", [REGISTERED[:-1]], checksum),
        ("a file that is empty", [b""], checksum),
        ("a version that has no checksum", [REGISTERED], None),
        ("a checksum that is empty", [REGISTERED], ""),
        ("only the beginning of the checksum", [REGISTERED], checksum[:8]),
    ):
        _expect_refused(answer, contents, noted, given=name)
    for name, contents in (
        ("a file that is replaced after it was read once", [REGISTERED, OTHER]),
        ("another file, which is replaced by the registered one after it was read once", [OTHER, REGISTERED]),
    ):
        loaded, _ = _load(answer, contents, checksum, name)
        if loaded not in ([], [REGISTERED]):
            raise NotYet("What was loaded is not what was verified.", expected=show([REGISTERED]), got=show(loaded))
    answer.given = "the registered file, which turns out to be broken when it is loaded"

    def fails(content: bytes) -> None:
        raise ZeroDivisionError

    try:
        got = answer.call(lambda: REGISTERED, checksum, fails)
    except ZeroDivisionError:
        return
    except Exception as error:
        if type(error).__name__ != "Tampered":
            raise
        got = error
    raise NotYet("What `load` raises is raised.", given="`load` raises ZeroDivisionError", got=show(got))


class _Refused:
    """The answer has raised `Tampered`."""

    def __repr__(self) -> str:
        return "Tampered is raised"


def _load(answer: Answer, contents: Sequence[bytes], checksum: str | None, given: str) -> tuple[list[bytes], Any]:
    """What was loaded, and what the answer returned. Each reading gets the next of the contents."""
    files, loaded = chain(contents, repeat(contents[-1])), []

    def load(content: bytes) -> str:
        loaded.append(content)
        return f"model {len(loaded)}"

    got: Any
    try:
        got = answer.call(lambda: next(files), checksum, load)
    except Exception as error:
        if type(error).__name__ != "Tampered":
            raise
        got = _Refused()
    finally:
        answer.given = given
    return loaded, got


def _expect_loaded(answer: Answer, contents: list[bytes], checksum: str, given: str) -> None:
    loaded, got = _load(answer, contents, checksum, given)
    if isinstance(got, _Refused):
        raise NotYet("The registry vouches for this file.", expected="it is loaded", got=show(got))
    expect(loaded, contents, why="Its content is loaded, once.")
    expect(got, "model 1", why="What `load` returns is returned.")


def _expect_refused(answer: Answer, contents: list[bytes], checksum: str | None, given: str) -> None:
    loaded, got = _load(answer, contents, checksum, given)
    if loaded:
        raise NotYet("Something was loaded for which nobody vouches.", expected="nothing is loaded", got=show(loaded))
    if not isinstance(got, _Refused):
        raise NotYet("Nobody vouches for this.", expected="Tampered is raised", got=f"{show(got)} is returned")


class _Registry:
    """An active version, and models that say who they are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = "11"
        self.then: str | None = None
        self.loads: list[str] = []
        self.broken: set[str] = set()
        self.is_away = False
        self.in_event_loop = ""
        self.slow: set[str] = set()
        self.begun, self.goes = threading.Event(), threading.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.under_way = 0

    def active(self) -> str:
        self._note("active")
        if self.is_away:
            raise ConnectionError("the registry does not answer")
        number = "".join(self.number)  # another object each time, as from a database
        self.number = self.then or self.number
        return number

    def load(self, number: str) -> Callable[[str], Awaitable[str]]:
        self._note("load")
        self.loads.append(number)
        if number in self.slow and not self.in_event_loop:
            self.begun.set()
            self.goes.wait()
        if number in self.broken:
            raise LookupError(f"version {number} cannot be loaded")

        async def model(row: str) -> str:
            self.under_way += 1
            await self.answers.wait()
            self.under_way -= 1
            return self.answer(row, number)

        return model

    def answer(self, row: str, number: str) -> str:
        return f"{row}, says version {number} of {self.name}"

    def _note(self, what: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self.in_event_loop = self.in_event_loop or what


@exercise(
    "13.2",
    hints=[
        "`await asyncio.to_thread(self.load, number)` runs a blocking function in a thread. Other code goes on.",
        "Keep number and model together, as one tuple, and replace both in one assignment, after the load. `answer` "
        "takes the tuple once, before it awaits anything.",
    ],
    right="A version is either in use or it is not. Nothing in between can be seen.",
)
def follows(answer: Answer) -> None:
    async def scenario() -> None:
        registry = _Registry("tumours")
        live = _Live(answer, registry)
        await live.refresh("version 11 is active")
        await live.expect_version("11", "It has been active from the beginning.")
        await live.refresh("version 11 is still active")
        expect(registry.loads, ["11"], why="These are loaded: a version that answers already is not loaded again.")
        await _loads_beside(live)
        await _keeps_together(live)
        await _survives(live)
        other = _Live(answer, _Registry("crops"))
        await other.refresh("another object, for another registry")
        await other.expect_version("11", "Each object follows a registry of its own.")
        await live.expect_version("11", "Each object follows a registry of its own.")

    answer.run(scenario())


class _Live:
    """The learner's object, and its registry."""

    def __init__(self, answer: Answer, registry: _Registry) -> None:
        self.answer, self.registry = answer, registry
        self.object = answer.instance(registry.active, registry.load, methods=["refresh", "answer"])

    async def refresh(self, given: str) -> None:
        self.answer.given = given
        refresh = self.object.refresh()
        if refresh is ...:
            raise NotAttempted
        if not asyncio.iscoroutine(refresh) and not asyncio.isfuture(refresh):
            raise NotYet("`refresh` is an `async def` method.", got=show(refresh))
        if (returned := await refresh) is ...:
            raise NotAttempted
        self.answer.last = returned
        if what := self.registry.in_event_loop:
            raise NotYet(
                f"`{what}` blocks, and it was called in the event loop. No other code goes on meanwhile.",
                expected="it is called in a thread",
            )

    def asked(self) -> "asyncio.Future[Any]":
        call = self.object.answer("row")
        if not asyncio.iscoroutine(call) and not asyncio.isfuture(call):
            raise NotAttempted if call is ... else NotYet("`answer` is an `async def` method.", got=show(call))
        return asyncio.ensure_future(call)

    async def expect_version(self, number: str, why: str) -> None:
        given, self.answer.given = self.answer.given, f"{self.answer.given}. Then `await answer('row')`"
        asked = self.asked()
        if not (await asyncio.wait([asked], timeout=PATIENCE_S))[0]:
            asked.cancel()
            raise NotYet(f"No answer. {why}", expected=f"version {number} answers", got="it waits")
        self.answer.last = asked.result()
        expect(self.answer.last, (number, self.registry.answer("row", number)), why=why)
        self.answer.given = given

    async def expect_raised(self, expected: type[Exception], given: str) -> None:
        self.answer.given = given
        try:
            got = await self.object.refresh()
        except expected:
            return
        raise NotYet(
            "Somebody should hear of it.", expected=f"{expected.__name__} is raised", got=f"{show(got)} is returned"
        )

    async def watch(self, done: "asyncio.Future[Any]") -> None:
        """Ask at each turn of the event loop until then, and see that number and answer belong together."""
        asked = []
        while not done.done():
            asked.append(self.asked())
            await asyncio.sleep(0)
        for call in asked:
            self.expect_together(await call)

    def expect_together(self, got: Any) -> None:
        self.answer.last = got
        numbers = [number for number in self.registry.loads if got == (number, self.registry.answer("row", number))]
        if not numbers and isinstance(got, list):
            return self.expect_together(tuple(got))
        if not numbers:
            raise NotYet("Number and answer do not belong together.", got=show(got))


async def _loads_beside(live: _Live) -> None:
    registry = live.registry
    registry.number, registry.slow = "12", {"12"}
    live.answer.given = "version 12 is active, and its load takes a while"
    refresh = asyncio.ensure_future(live.object.refresh())
    try:
        await asyncio.to_thread(registry.begun.wait, PATIENCE_S)
        await settle()
        await live.expect_version("11", "Version 12 has not been loaded yet.")
    finally:
        registry.goes.set()
    await live.watch(refresh)
    await refresh
    await live.expect_version("12", "`await refresh()` has ended.")


async def _keeps_together(live: _Live) -> None:
    registry = live.registry
    registry.number = "13"
    registry.answers.clear()
    slow = [live.asked() for _ in range(2)]
    await settle()
    live.answer.given = "two answers at the same time"
    expect(registry.under_way, 2, why="Answers under way: one does not wait for the other.")
    await live.refresh("version 13 is active, while version 12 still works on two answers")
    registry.answers.set()
    live.answer.given = "answers that version 12 has begun, and that end after version 13 was loaded"
    for call in slow:
        expect(await call, ("12", registry.answer("row", "12")), why="Number and answer belong together.")
    await live.expect_version("13", "It has been loaded.")
    registry.number, registry.then = "14", "15"
    await live.refresh("version 14 is active at the first look, and version 15 at the next one")
    live.expect_together(await live.asked())
    await live.refresh("version 15 is active")
    await live.expect_version("15", "It is active now.")
    registry.then = None


async def _survives(live: _Live) -> None:
    registry = live.registry
    registry.number, registry.broken = "16", {"16"}
    for again in ("", ". `refresh()` is called again"):
        await live.expect_raised(LookupError, f"version 16 is active, and cannot be loaded{again}")
        await live.expect_version("15", "Version 16 could not be loaded.")
    registry.broken = set()
    await live.refresh("version 16 is active, and can be loaded again")
    await live.expect_version("16", "Now it could be loaded.")
    registry.is_away = True
    await live.expect_raised(ConnectionError, "the registry does not answer")
    await live.expect_version("16", "Nobody has activated another version.")
    registry.is_away, registry.number = False, "11"
    await live.refresh("version 11 is active again")
    await live.expect_version("11", "The way back is the same as the way there.")


CALLERS = [f"clinic {number}" for number in range(600)]
CALLERS += [f"{number * 7919}@hospital.example" for number in range(600)]
CALLERS += [hashlib.sha256(str(number).encode()).hexdigest() for number in range(600)]
CALLERS += ["", "Zoë", "東京の病院", "a" * 500]
SHARES = [(0.0, 0, 0), (1.0, 1804, 1804), (0.25, 370, 530), (0.05, 50, 135), (0.2, 285, 440), (0.75, 1270, 1435)]
SHARES += [(0.4, 640, 805), (0.005, 1, 25)]
"""Shares, and how many callers may be asked at least and at most: more than four standard deviations to either side."""
ELSEWHERE = (
    "import sys, cloudpickle; f, calls = cloudpickle.load(sys.stdin.buffer); print([bool(f(*c)) for c in calls])"
)


@exercise(
    "13.3",
    hints=[
        "A digest of caller and version is the same everywhere: `hashlib.sha256(f'{number} {caller}'.encode())`.",
        "Make a number from 0 to 1 of it, such as `int(digest.hexdigest(), 16) / 2**256`, and compare it with `share`.",
    ],
    right="Nobody has to remember the draw: each process makes the same one.",
)
def draws_callers(answer: Answer) -> None:
    if inspect.iscoroutinefunction(answer.value):
        raise NotYet("A plain `def` is enough here: nothing has to be awaited.", got=show(answer.value))

    def asked(number: str, share: float) -> set[str]:
        found = set()
        for caller in CALLERS:
            one = answer.call(caller, number, share)
            if one is None or type(one).__name__ not in ("bool", "bool_"):
                why = "Got None: is a `return` missing?" if one is None else "`is_asked` returns True or False."
                raise NotYet(why, expected="True or False", got=show(one))
            if one:
                found.add(caller)
        answer.given = f"{len(CALLERS)} callers, version {number} and a share of {share:g}"
        return found

    drawn = {}
    for share, least, most in SHARES:
        drawn[share] = asked("2", share)
        if not least <= len(drawn[share]) <= most:
            raise NotYet(
                "The number of callers who are asked is not that share.",
                expected=f"{'about ' * (0 < share < 1)}{share * len(CALLERS):.0f}",
                got=str(len(drawn[share])),
            )
    if asked("2", 0.25) != drawn[0.25]:
        raise NotYet("For a caller, the result is always the same.", got="some callers have got another result")
    for fewer, more in pairwise(sorted(drawn)):
        answer.given = f"a share that grows from {fewer:g} to {more:g}"
        if lost := drawn[fewer] - drawn[more]:
            raise NotYet(
                "Who had the challenger keeps it.", expected="nobody loses it", got=f"{len(lost)} callers lose it"
            )
    for number in ("3", "4", "12"):
        both = len(drawn[0.25] & asked(number, 0.25)) / len(drawn[0.25])
        answer.given = f"versions 2 and {number}, each with a share of 0.25"
        if both > 0.5:
            raise NotYet(
                "Another version asks other callers.",
                expected=f"about a quarter of those who have version 2 also have version {number}",
                got=f"{100 * both:.0f} % of them",
            )
    strangers = [(f"stranger {number}", "2", 0.25) for number in range(100)]  # nobody has asked for them yet
    elsewhere = _elsewhere(answer, strangers)
    here = [bool(answer.call(*stranger)) for stranger in strangers]
    answer.given = "other callers, in this process and in another one"
    if here != elsewhere:
        raise NotYet("Another process draws other callers.", expected="the same result in every process")


def _elsewhere(answer: Answer, calls: list[tuple[str, str, float]]) -> list[bool]:
    """The results of another Python, which hashes texts in another way."""
    try:
        pickled = dumps((answer.value, calls))
    except Exception as error:
        why = "It uses something that only this process has, such as a lock or an open connection."
        raise NotYet(why, got=show(error)) from None
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickled,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=False,
    )
    if done.returncode:
        *_, line = done.stderr.decode(errors="replace").splitlines() or [""]
        raise CouldNotCheck(RuntimeError(f"in another process, it fails: {line}"))
    return [word == "True" for word in done.stdout.decode().strip("[]\n").split(", ")]


class _Model:
    """Answers, fails or hangs, as the check wants it, and counts its calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.error: Exception | None = None
        self.goes = asyncio.Event()
        self.goes.set()

    async def predict(self, row: Any) -> Any:
        self.calls += 1
        await self.goes.wait()
        if self.error is not None:
            raise self.error
        return None if self.name == "challenger" and row == "nothing" else f"{row}, says the {self.name}"


class _Withdrawal:
    def __init__(self) -> None:
        self.calls = 0
        self.goes = asyncio.Event()
        self.goes.set()

    async def __call__(self) -> None:
        self.calls += 1
        await self.goes.wait()


class _Trial:
    """A trial of the learner's, with its models."""

    def __init__(self, answer: Answer, most: int, patience: float = 5.0) -> None:
        self._answer = answer
        self.champion, self.challenger, self.withdrawal = _Model("champion"), _Model("challenger"), _Withdrawal()

        async def withdraw() -> None:
            await self.withdrawal()

        arguments = self.champion.predict, self.challenger.predict, withdraw, most, patience
        self.trial = answer.instance(*arguments, methods=["predict"])
        answer.given = ""

    def begun(self, row: str) -> "asyncio.Future[Any]":
        call = self.trial.predict(row)
        if not asyncio.iscoroutine(call) and not asyncio.isfuture(call):
            raise NotAttempted if call is ... else NotYet("`predict` is an `async def` method.", got=show(call))
        begun = asyncio.ensure_future(call)
        begun.add_done_callback(lambda call: call.cancelled() or call.exception())  # asyncio logs what nobody looked at
        return begun

    async def expect(self, given: str, expected: Any, why: str, row: str = "a row") -> None:
        self._answer.given = given
        call = self.begun(row)
        if not (await asyncio.wait([call], timeout=PATIENCE_S))[0]:
            call.cancel()
            raise NotYet(why, expected=show(expected), got="it waits")
        expect(call.result(), expected, why=why)

    def expect_withdrawn(self, times: int, why: str) -> None:
        if self.withdrawal.calls != times:
            raise NotYet(why, expected=f"{times} calls of `withdraw`", got=str(self.withdrawal.calls))


@exercise(
    "13.4",
    hints=[
        "`async with asyncio.timeout(self.patience):` around the challenger, within a `try`. `except Exception` "
        "catches its errors and the TimeoutError, but no cancellation.",
        "Ask the champion in the `except` block: if that raises, no line after it runs, and nothing is counted. Note "
        "that the trial is over before you await `withdraw`, because other calls run meanwhile.",
    ],
    right="The callers try the version, and the champion answers for it when it cannot.",
)
def tries_out(answer: Answer) -> None:
    async def scenario() -> None:
        from_champion, from_challenger = "a row, says the champion", "a row, says the challenger"
        first, other = _Trial(answer, most=3, patience=0.05), _Trial(answer, most=2)
        await first.expect("a challenger that answers", from_challenger, "It is on trial, and it can answer.")
        expect(first.champion.calls, 0, why="Calls of the champion: there is no need to ask both.")
        await first.expect("a challenger that answers None", None, "That is an answer.", row="nothing")
        first.challenger.error = ValueError("no such column")
        await first.expect(
            "a challenger that fails", from_champion, "What the challenger fails at, the champion answers."
        )
        answer.given = "a row at which both fail"
        first.champion.error = KeyError("the champion's error")
        both = first.begun("a row")
        await asyncio.wait([both])
        if both.cancelled() or not isinstance(both.exception(), KeyError):
            raise NotYet("The champion fails, too.", expected="its error, KeyError, is raised", got=outcome_of(both))
        first.champion.error, first.challenger.error = None, None
        first.challenger.goes.clear()
        await first.expect("a challenger that never answers", from_champion, "Nobody waits longer than `patience`.")
        first.champion.goes.clear()
        slow = first.begun("a row")
        await asyncio.sleep(0.15)
        answer.given = "a challenger that never answers, and a champion that takes longer than `patience`"
        if slow.done():
            raise NotYet("The champion may take its time.", expected="the call waits for it", got=outcome_of(slow))
        first.champion.goes.set()
        expect(await slow, from_champion, why="The champion may take its time.")
        answer.given = "three failures, `most=3`, and a row at which both failed"
        first.expect_withdrawn(0, "The trial ends after more than three failures, and such a row is none.")
        first.challenger.goes.set()
        await first.expect("the challenger answers again", from_challenger, "The trial is not over.")
        first.challenger.error = ValueError("no such column")
        await first.expect("a fourth failure, `most=3`", from_champion, "The champion answers this one, too.")
        first.expect_withdrawn(1, "More than three failures end the trial.")
        calls, first.challenger.error = first.challenger.calls, None
        await first.expect("a row after the trial", from_champion, "The trial is over.")
        expect(first.challenger.calls, calls, why="Calls of the challenger: after the trial, it is not asked again.")
        first.expect_withdrawn(1, "The trial ends once.")
        other.challenger.error = ValueError("no such column")
        await other.expect("another trial, and its first failure", from_champion, "The champion answers this one, too.")
        other.expect_withdrawn(0, "Each trial counts its own failures.")
        await _gives_up(answer)
        await _all_at_once(answer)

    answer.run(scenario())


async def _gives_up(answer: Answer) -> None:
    trial = _Trial(answer, most=1)
    trial.challenger.goes.clear()
    answer.given = "a caller who gives up while the challenger works"
    call = trial.begun("a row")
    await settle()
    call.cancel()
    await asyncio.wait([call])
    if not call.cancelled() or trial.champion.calls:
        raise NotYet("The caller is gone.", expected="the call ends, and nobody else is asked", got=outcome_of(call))
    trial.challenger.goes.set()
    trial.challenger.error = ValueError("no such column")
    given = "a caller who gives up, and then a failure, `most=1`"
    await trial.expect(given, "a row, says the champion", "The champion answers this one.")
    trial.expect_withdrawn(0, "One failure is not more than one, and a caller who gives up is none.")


async def _all_at_once(answer: Answer) -> None:
    trial = _Trial(answer, most=1)
    trial.challenger.goes.clear()
    trial.withdrawal.goes.clear()
    given = "four rows at the same time, `most=1`, and the challenger fails at all of them"
    calls = [trial.begun(f"row {number}") for number in range(4)]
    await settle()
    answer.given = given
    expect(trial.challenger.calls, 4, why="Calls of the challenger: nobody waits for another one's row.")
    trial.challenger.error = ValueError("no such column")
    trial.challenger.goes.set()
    await settle()
    answer.given = f"{given}. `withdraw` takes a while, and a fifth row comes"
    fifth = trial.begun("a row")
    await settle()
    expect(trial.challenger.calls, 4, why="Calls of the challenger: the trial is over, although `withdraw` still runs.")
    trial.withdrawal.goes.set()
    expect(
        await asyncio.gather(*calls, fifth),
        [*(f"row {number}, says the champion" for number in range(4)), "a row, says the champion"],
        why="The champion answers all of them.",
    )
    answer.given = given
    trial.expect_withdrawn(1, "However many fail, the trial ends once.")
