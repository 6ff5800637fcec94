"""Every outcome of a check, for honest, mistaken and hostile answers."""

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from ray.exceptions import RayTaskError
from websockets.sync.client import connect

from workshop.lab import checks, exercises, registry, tries
from workshop.lab.answer import Answer
from workshop.lab.checks import check, hint, solution
from workshop.lab.expectations import CheckFailed, NotYet, expect, show
from workshop.lab.registry import exercise
from workshop.lab.verdicts import Outcome, Verdict

RIGHT, NOT_YET, NOT_ATTEMPTED, COULD_NOT_CHECK, CHECK_FAILED = Outcome


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Give each test its own registry and its own record of the learner's tries."""
    monkeypatch.setattr(registry, "_exercises", {})
    monkeypatch.setattr(checks, "_hints_seen", {})
    monkeypatch.setattr(checks, "_right", set())
    monkeypatch.setattr(tries, "FILE", tmp_path / "tries")
    monkeypatch.setattr(tries, "_unsaved", [])
    before = set(sys.modules)
    yield
    # A lesson's checks imported during this test are in its registry only: let them be imported again.
    for name in set(sys.modules) - before:
        if name.startswith(f"{exercises.__name__}."):
            del sys.modules[name]


def judge(function, answer, *, seconds=10.0) -> Verdict:
    registry._exercises.clear()
    exercise("90.1", hints=["First.", "Second."], right="Well done.", seconds=seconds)(function)
    verdict = check("90.1", answer)
    assert verdict._repr_html_().startswith("<div")  # whatever was answered, it can be shown
    return verdict


def doubles(answer: Answer) -> None:
    for number in (3, 0):
        expect(answer.call(number), 2 * number, why="Twice the number.")


async def async_double(number):
    await asyncio.sleep(0)
    return 2 * number


class Doubler:
    def __call__(self, number):
        return 2 * number


class AsyncDoubler:
    async def __call__(self, number):
        return 2 * number


class Hostile:
    """Raises an error in every method."""

    def __eq__(self, other):
        raise RuntimeError("no ==")

    def __repr__(self):
        raise RuntimeError("no repr")

    __hash__ = None


# ------------------------------------------------------------------------------------------------ functions


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: 2 * n,
        lambda n: float(2 * n),
        lambda n, extra=1: n + n,
        lambda *args: 2 * args[0],
        lambda n: np.int64(2 * n),
        lambda n: np.array(2 * n),
        async_double,
        Doubler(),
        AsyncDoubler(),
        Doubler().__call__,
        functools.partial(lambda factor, n: factor * n, 2),
    ],
)
def test_a_right_answer_may_take_many_forms(answer):
    verdict = judge(doubles, answer)
    assert verdict.outcome == RIGHT, verdict
    assert repr(verdict) == "90.1 right. Well done."


def test_not_yet_says_what_was_given_expected_and_got():
    verdict = judge(doubles, lambda n: n * n)
    assert (verdict.outcome, verdict.given, verdict.expected, verdict.got) == (NOT_YET, "answer(3)", "6", "9")
    assert "Twice the number." in repr(verdict)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: None, "is a `return` missing?"),
        (lambda: 6, "does not take these arguments: too many positional arguments"),
        (lambda a, b: 6, "does not take these arguments: missing a required argument: 'b'"),
        (7, "A function is needed here."),
        ("text", "A function is needed here."),
        (None, "A function is needed here."),
        (lambda n: "6", "Twice the number."),
        (lambda n: np.array([6, 6]), "Twice the number."),
        (lambda n: (i for i in range(n)), "Twice the number."),
        (lambda n: float("nan"), "Twice the number."),
    ],
)
def test_not_yet_messages(answer, message):
    verdict = judge(doubles, answer)
    assert verdict.outcome == NOT_YET
    assert message in verdict.message


async def forgets_await(number):
    return async_double(number)


async def forgets_await_inside(number):
    return [0, {"label": async_double(number)}]


async def forgets_await_and_goes_on(number):
    asyncio.sleep(0.01)
    return number


async def forgets_await_and_uses_it(number):
    doubled = async_double(number)
    return 2 * doubled


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (forgets_await, "`return async_double(number)`"),
        (forgets_await_inside, '`return [0, {"label": async_double(number)}]`'),
        (forgets_await_and_goes_on, "`asyncio.sleep(0.01)`"),
        (forgets_await_and_uses_it, "`doubled = async_double(number)`"),
    ],
)
def test_a_missing_await_is_named_with_its_line(answer, line, recwarn):
    verdict = judge(doubles, answer)
    assert verdict.outcome in (NOT_YET, COULD_NOT_CHECK)
    assert "was not awaited: is an `await` missing in line" in verdict.message
    assert line in verdict.message
    assert "never awaited" not in verdict.printed
    assert [str(warning.message) for warning in recwarn] == []


def test_a_right_answer_need_not_await_everything():
    async def starts_a_task(number):
        task = asyncio.create_task(async_double(number))
        return await task

    assert judge(doubles, starts_a_task).message == "Well done."


def test_something_else_that_must_be_awaited_is_noticed():
    class Pending:
        def __await__(self):
            yield

    verdict = judge(doubles, lambda n: [Pending()])
    assert verdict.outcome == NOT_YET

    def looks(answer):
        expect(answer.call(3)[0], 6)

    assert "is an `await` missing?" in judge(looks, lambda n: [Pending()]).message


@pytest.mark.parametrize(
    "answer",
    [..., lambda n: ..., lambda n: [...], lambda n: {"label": ...}, lambda n: n + ..., [...], {"a": ...}],
)
def test_not_attempted(answer):
    assert judge(doubles, answer).outcome == NOT_ATTEMPTED


def test_an_async_starter_is_not_attempted():
    async def starter(number):
        return ...

    assert judge(doubles, starter).outcome == NOT_ATTEMPTED


def fails(number):
    raise ValueError("<b>my fault</b>")


async def async_fails(number):
    fails(number)


def group_fails(number):
    raise ExceptionGroup("many", [ValueError("one of many")])


@pytest.mark.parametrize("answer", [fails, async_fails])
def test_could_not_check_shows_the_learners_own_traceback(answer):
    verdict = judge(doubles, answer)
    assert verdict.outcome == COULD_NOT_CHECK
    assert verdict.given == f"{answer.__name__}(3)"
    assert "in fails\n    raise ValueError" in verdict.traceback
    assert verdict.traceback.endswith("ValueError: <b>my fault</b>")
    assert "checks.py" not in verdict.traceback
    assert "<b>my" not in verdict._repr_html_()
    assert "&lt;b&gt;my fault" in verdict._repr_html_()


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError


def raise_(error):
    raise error


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: sys.exit(1),
        lambda n: raise_(KeyboardInterrupt()),
        lambda n: raise_(GeneratorExit()),
        lambda n: raise_(StopIteration()),
        lambda n: raise_(asyncio.CancelledError()),
        lambda n: raise_(UnprintableError()),
        lambda n: asyncio.run(async_fails(n)),
        lambda n: Hostile(),
        group_fails,
    ],
)
def test_no_error_in_the_learners_code_escapes(answer):
    assert judge(doubles, answer).outcome == COULD_NOT_CHECK


def test_an_async_exit_and_a_cancellation_do_not_escape_either():
    async def leave(number):
        sys.exit(3)

    async def cancel(number):
        raise asyncio.CancelledError

    assert judge(doubles, leave).message == "Your code asked Python to exit."
    assert judge(doubles, cancel).outcome == COULD_NOT_CHECK


# ---------------------------------------------------------------------------- whose fault an error in a check is


def reads_a_label(answer: Answer) -> None:
    expect(answer.call(3).get("label"), "benign")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: None, "This is None: is a `return` missing?"),
        (lambda n: "benign", "The check cannot use this: AttributeError: 'str' object has no attribute 'get'."),
        (lambda n: np.array([1, 2]), "`array([1, 2])` comes from numpy. A plain Python value is needed here"),
    ],
)
def test_an_error_caused_by_the_type_of_the_answer_is_explained(answer, message):
    verdict = judge(reads_a_label, answer)
    assert (verdict.outcome, verdict.given) == (NOT_YET, "answer(3)")
    assert message in verdict.message
    assert verdict.got == show(answer(3))
    assert verdict.next_step == '`hint("90.1")` helps.'


def test_an_array_has_no_truth_value():
    def compares(answer):
        if answer.call(3) != 6:
            raise NotYet("Twice the number.")

    assert "`.tolist()` makes one" in judge(compares, lambda n: np.array([6, 6])).message


def test_the_value_itself_may_have_the_wrong_type():
    def looks_inside(answer):
        expect(answer.value.limit, 6)

    verdict = judge(looks_inside, 6)
    assert verdict.message == "The check cannot use this: AttributeError: 'int' object has no attribute 'limit'."
    assert verdict.got == "6"


def test_an_error_caused_by_a_response_of_the_wrong_form_is_explained():
    def reads(answer):
        with answer.serve() as client:
            expect(client.get("/predict").json()["label"], "benign")

    nothing = judge(reads, app_with(lambda: None))
    assert (nothing.outcome, nothing.given, nothing.got) == (NOT_YET, "GET /predict", "'null'")
    assert "is a `return` missing?" in nothing.message
    assert "KeyError: 'label'" in judge(reads, app_with(lambda: {"lable": "benign"})).message
    text = judge(reads, app_with(lambda: PlainTextResponse("benign")))
    assert (text.message, text.got) == ("This is not JSON.", "'benign'")


def test_an_app_that_breaks_off_its_response():
    async def too_short(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"{}"})

    verdict = judge(labels, too_short)
    assert verdict.outcome in (NOT_YET, COULD_NOT_CHECK)


@pytest.mark.parametrize(
    "check_with_a_fault",
    [
        lambda answer: undefined,  # noqa: F821
        lambda answer: 1 / (answer.call(3) - 6),
        lambda answer: {}["nothing"],
    ],
)
def test_a_fault_of_the_check_is_reported_and_does_not_count_as_a_try(check_with_a_fault):
    verdict = judge(check_with_a_fault, lambda n: 2 * n)
    assert verdict.outcome == CHECK_FAILED
    assert "not in your answer" in verdict.message
    assert "test_checks.py" in verdict.traceback
    assert verdict.next_step == "This does not count as a try."
    assert "opens after 3 more tries" in repr(solution("90.1"))


def test_a_check_that_cannot_run_says_why_and_does_not_count_as_a_try():
    def needs_more(answer):
        raise CheckFailed("The kettle is cold.")

    verdict = judge(needs_more, lambda n: n)
    assert repr(verdict) == "90.1 check failed. The kettle is cold.\nThis does not count as a try."


def test_an_error_in_a_library_that_the_answer_calls_is_an_error_in_the_answer():
    verdict = judge(doubles, functools.partial(int, "six"))
    assert verdict.outcome == COULD_NOT_CHECK
    assert judge(lambda answer: answer.collect(3), lambda n: map(int, ["x"])).outcome == COULD_NOT_CHECK


def test_an_error_of_ray_shows_the_cause_and_the_learners_line(tmp_path):
    cell = tmp_path / "cell.py"
    cell.write_text("def diagnose(patient):\n    return patients[patient]\n")
    remote = (
        "\x1b[36mray::ServeReplica:app:Ward.handle_request()\x1b[39m (pid=1, ip=127.0.0.1)\n"
        + f'  File "{np.__file__}", line 1, in library\n' * 100
        + f'  File "{cell}", line 2, in diagnose\nKeyError: 7'
    )
    error = RayTaskError("handle_request", remote, KeyError(7)).as_instanceof_cause()
    verdict = judge(doubles, lambda n: raise_(error))
    assert verdict.outcome == COULD_NOT_CHECK
    assert verdict.traceback.endswith("line 2, in diagnose\n    return patients[patient]\nKeyError: 7")
    assert "ServeReplica" not in verdict.traceback
    assert verdict.error.args == (7,)


def test_a_long_error_keeps_both_ends():
    verdict = judge(doubles, lambda n: raise_(ValueError(f"begin {'-' * 5000} end")))
    assert "ValueError: begin" in verdict.traceback
    assert verdict.traceback.endswith(" end")
    assert len(verdict.traceback) < 2500


def test_a_hostile_answer_gets_a_verdict():
    assert judge(doubles, Hostile()).outcome == NOT_YET
    assert judge(lambda answer: expect(answer.value, 6), Hostile()).outcome == COULD_NOT_CHECK
    assert judge(doubles, Doubler).outcome == COULD_NOT_CHECK  # the class, where an instance is needed
    assert "whose repr raises" in show(Hostile())


def test_a_learner_who_changes_the_arguments_changes_a_copy():
    def sums(answer):
        numbers, array = [1, 2], np.array([1.0, 2.0])
        expect(answer.call(numbers, array), 6.0)
        expect(numbers, [1, 2])
        expect(array, [1, 2])

    def answer(numbers, array):
        array += numbers
        numbers.clear()
        return array.sum()

    assert judge(sums, answer).outcome == RIGHT


def test_other_objects_are_passed_as_they_are():
    def uses(answer):
        seen = Doubler()
        expect(answer.call(seen) is seen, True)

    assert judge(uses, lambda thing: thing).outcome == RIGHT


def test_what_the_learner_prints_is_shown_in_part():
    def chatty(number):
        for line in range(100_000):
            print("line", line)
        return number

    verdict = judge(doubles, chatty)
    assert verdict.printed.splitlines()[-1] == "line 99999"
    assert len(verdict.printed.splitlines()) <= 10
    assert "line 99999" in repr(verdict)
    assert judge(doubles, lambda n: print("quiet") or 2 * n).printed == ""


def test_a_long_result_is_shortened():
    assert len(judge(doubles, lambda n: list(range(10_000))).got) <= 310


# ---------------------------------------------------------------------------------------------------- limits


def spin(number):
    while True:
        pass


def spin_and_catch(number):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


async def waits_for_ever(number):
    await asyncio.Event().wait()


def waits_in_a_lock(number):
    threading.Event().wait(30)


@pytest.mark.parametrize("answer", [spin, spin_and_catch, waits_for_ever, waits_in_a_lock])
def test_an_endless_answer_is_not_yet_and_says_where_it_is_busy(answer):
    before = threading.active_count()
    started = time.monotonic()
    verdict = judge(doubles, answer, seconds=0.5)
    assert time.monotonic() - started < 20
    assert verdict.outcome == NOT_YET
    assert "No answer within 0.5 s." in verdict.message
    assert f"in {answer.__name__}\n" in verdict.traceback
    if answer is not waits_in_a_lock:
        deadline = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() <= before


def test_a_timeout_error_in_the_learners_code_is_not_taken_for_the_limit():
    async def own(number):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)

    verdict = judge(doubles, own)
    assert verdict.outcome == COULD_NOT_CHECK
    assert "TimeoutError" in verdict.traceback


def test_check_works_inside_a_running_event_loop():
    async def notebook():
        return judge(doubles, async_double)

    assert asyncio.run(notebook()).outcome == RIGHT


# --------------------------------------------------------------------------------- other ways to call an answer


def test_together_runs_at_once():
    def overlaps(answer):
        started = time.monotonic()
        expect(answer.together(*[(n,) for n in range(20)]), list(range(0, 40, 2)))
        if time.monotonic() - started > 2:
            raise NotYet("One after the other.")

    async def good(number):
        await asyncio.sleep(0.2)
        return 2 * number

    async def blocking(number):
        time.sleep(0.2)  # noqa: ASYNC251
        return 2 * number

    assert judge(overlaps, good).outcome == RIGHT
    assert judge(overlaps, blocking).message == "One after the other."
    assert "`async def`" in judge(overlaps, lambda n: 2 * n).message
    assert judge(overlaps, AsyncDoubler()).outcome == RIGHT


def test_collect():
    def counts(answer):
        expect(answer.collect(3), [0, 1, 2])

    def sync(number):
        yield from range(number)

    async def asynchronous(number):
        for item in range(number):
            yield item

    async def endless(number):
        while True:
            yield 0

    def fails_midway(number):
        yield 0
        raise ValueError("midway")

    assert judge(counts, sync).outcome == RIGHT
    assert judge(counts, asynchronous).outcome == RIGHT
    assert judge(counts, range).outcome == NOT_YET
    assert judge(counts, endless).outcome == NOT_YET
    assert "`yield`" in judge(counts, lambda n: [0, 1, 2]).message
    assert judge(counts, fails_midway).outcome == COULD_NOT_CHECK
    assert judge(counts, lambda n: ...).outcome == NOT_ATTEMPTED


def test_raises():
    class Record(BaseModel):
        size: float = Field(ge=0)

    def rejects(answer):
        error = answer.raises(ValidationError, size=-1, why="A size below 0 must be refused.")
        expect(error.error_count(), 1)

    class Lenient(BaseModel):
        size: float

    assert judge(rejects, Record).outcome == RIGHT
    verdict = judge(rejects, Lenient)
    assert (verdict.outcome, verdict.message) == (NOT_YET, "A size below 0 must be refused.")
    assert verdict.expected == "ValidationError is raised"
    assert judge(rejects, lambda size: 1 / 0).outcome == COULD_NOT_CHECK

    def refuses(answer):
        answer.raises(Exception, 1)

    assert judge(refuses, 7).message == "A function is needed here."  # not mistaken for the expected error


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (0.1 + 0.2, 0.3),
        ([1, (2, 3)], (1, [2, 3])),
        ({"a": np.array([1.0, 2.0])}, {"a": [1, 2]}),
        (np.float32(0.1), 0.1),
        (float("nan"), float("nan")),
        (np.bool_(True), True),
        (None, None),
        (3, 3.0),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ({"a": 1, "more": 2}, {"a": 1}),
        ([{"a": {"b": 1, "more": 2}}], [{"a": {"b": 1}}]),
        ({}, {}),
    ],
)
def test_equal_enough(got, expected):
    expect(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (0.31, 0.3),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 2, "b": 2}, {"a": 1}),
        ({"a": 1}, {}),
        ("1", 1),
        (np.array([1, 2]), 1),
        (None, []),
        ([], None),
    ],
)
def test_not_equal(got, expected):
    with pytest.raises(NotYet):
        expect(got, expected)


def test_the_exact_form_can_be_asked_for():
    expect([{"a": 1}], [{"a": 1}], exact=True)
    with pytest.raises(NotYet):
        expect([{"a": 1, "more": 2}], [{"a": 1}], exact=True)


# ------------------------------------------------------------------------------------------------------- apps


def labels(answer: Answer) -> None:
    with answer.serve(seconds=2) as client:
        reply = client.get("/predict", params={"n": 1})
        expect(reply.status_code, 200, why="The route must answer.")
        expect(reply.json(), {"label": "benign"}, why="The label.")


def app_with(endpoint, **options) -> FastAPI:
    app = FastAPI(**options)
    app.get("/predict")(endpoint)
    return app


def benign():
    return {"label": "benign"}


async def async_benign():
    return {"label": "benign"}


async def raw_asgi(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"label": "benign"}'})


@pytest.mark.parametrize("app", [app_with(benign), app_with(async_benign), raw_asgi])
def test_a_right_app(app):
    assert judge(labels, app).outcome == RIGHT


def test_an_app_that_is_not_yet_right():
    verdict = judge(labels, app_with(lambda: {"label": "malignant"}))
    assert (verdict.outcome, verdict.given) == (NOT_YET, "GET /predict?n=1")
    assert judge(labels, FastAPI()).got == "404"
    for no_app in (7, benign, FastAPI, lambda: app_with(benign)):
        assert judge(labels, no_app).message == "A FastAPI app is needed here."


async def forgets_await_in_an_app():
    return {"label": async_double(3)}


def forgets_await_in_a_thread():
    return {"label": async_double(3)}


async def forgets_await_and_converts():
    return JSONResponse({"label": async_double(3)})


def test_a_missing_await_in_an_app_is_named_with_its_line():
    for endpoint in (forgets_await_in_an_app, forgets_await_and_converts):
        verdict = judge(labels, app_with(endpoint))
        assert verdict.outcome == COULD_NOT_CHECK
        assert "`async_double` was not awaited: is an `await` missing in line" in verdict.message
        assert 'return {"label": async_double(3)}`' in verdict.message or "JSONResponse" in verdict.message
    # The line is not known for a coroutine that is created in a worker thread.
    verdict = judge(labels, app_with(forgets_await_in_a_thread))
    assert "`async_double` was not awaited: is an `await` missing?" in verdict.message


def test_a_numpy_value_in_json_is_named():
    def annotated() -> dict[str, bool]:
        return {"label": np.array([1])}

    for value, shown in ((np.float32(0.5), "np.float32(0.5)"), (np.bool_(True), "np.True_"), (np.array([1]), "array")):
        for endpoint in (lambda: {"label": value}, lambda: JSONResponse({"label": value})):  # noqa: B023
            verdict = judge(labels, app_with(endpoint))
            assert verdict.outcome == COULD_NOT_CHECK
            assert f"`{shown}" in verdict.message
            assert "comes from numpy. A plain Python value is needed here: `.tolist()` makes one." in verdict.message
    assert "array([1])" in repr(judge(labels, app_with(annotated)))


def test_a_starter_app_is_not_attempted():
    def annotated() -> dict[str, str]:
        return ...

    async def asynchronous():
        return ...

    for endpoint in (lambda: ..., lambda: {"label": ...}, annotated, asynchronous):
        assert judge(labels, app_with(endpoint)).outcome == NOT_ATTEMPTED


def app_error():
    raise KeyError("my own")


def test_an_error_in_the_app_is_shown_with_the_learners_frames():
    for app in (app_with(app_error), app_with(app_error, debug=True)):
        verdict = judge(labels, app)
        assert verdict.outcome == COULD_NOT_CHECK
        assert "in app_error\n    raise KeyError" in verdict.traceback
        assert "site-packages" not in verdict.traceback
        assert verdict.printed == ""


def test_an_exit_in_the_app_does_not_escape():
    async def leave():
        sys.exit(1)

    assert judge(labels, app_with(leave)).outcome == COULD_NOT_CHECK
    assert judge(labels, app_with(lambda: sys.exit(1))).outcome == COULD_NOT_CHECK


def test_a_500_that_the_exercise_asks_for():
    def handles(answer):
        with answer.serve(allow_500=True) as client:
            expect(client.get("/predict").status_code, 500)

    assert judge(handles, app_with(app_error)).outcome == RIGHT


def test_an_error_after_the_whole_response_explains_it():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"nothing"})
            await asyncio.sleep(0.3)
            raise ValueError("a late error")

    def needs_something(answer):
        with answer.serve() as client:
            expect(client.get("/predict").text, "something")

    verdict = judge(needs_something, app)
    assert verdict.outcome == COULD_NOT_CHECK
    assert "ValueError: a late error" in verdict.traceback


def test_an_app_that_fails_to_start():
    @asynccontextmanager
    async def lifespan(app):
        raise FileNotFoundError("model.skops")
        yield

    verdict = judge(labels, app_with(benign, lifespan=lifespan))
    assert verdict.outcome == COULD_NOT_CHECK
    assert "in lifespan\n    raise FileNotFoundError" in verdict.traceback


def test_an_app_that_hangs():
    async def waits():
        await asyncio.Event().wait()

    async def blocks():
        while True:
            pass

    assert judge(labels, app_with(waits)).message == "No answer within 2 s."
    verdict = judge(labels, app_with(blocks))
    assert verdict.outcome == NOT_YET
    assert "in blocks\n" in verdict.traceback


def test_an_error_after_the_response_started():
    async def half():
        async def chunks():
            yield b"1"
            raise ValueError("half way")

        return StreamingResponse(chunks())

    def reads(answer):
        with answer.serve() as client:
            expect(client.get("/predict").content, b"12")

    verdict = judge(reads, app_with(half))
    assert verdict.outcome == COULD_NOT_CHECK
    assert "ValueError: half way" in verdict.traceback


def test_an_error_in_a_background_task_explains_what_is_missing():
    def task():
        raise ValueError("in the background")

    def endpoint(background: BackgroundTasks):
        background.add_task(task)
        return 1

    def waits_for_effect(answer):
        with answer.serve() as client:
            client.get("/predict")
            client.get("/predict")
            raise NotYet("Nothing was written.")

    assert "in the background" in judge(waits_for_effect, app_with(endpoint)).traceback


def test_web_sockets():
    def echoes(answer):
        with answer.serve() as client, connect(client.socket_url("/ws")) as socket:
            socket.send("hi")
            expect(socket.recv(timeout=9), "hi")

    good, bad = FastAPI(), FastAPI()

    @good.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    @bad.websocket("/ws")
    async def fail(websocket: WebSocket):
        await websocket.accept()
        raise ValueError("in the socket")

    verdict = judge(echoes, good)
    assert verdict.outcome == RIGHT, verdict
    assert "in the socket" in judge(echoes, bad).traceback


def test_an_app_that_uses_the_answer_and_an_error_in_a_group():
    def shouts(answer):
        app = FastAPI()

        @app.websocket("/ws")
        async def use(websocket: WebSocket):
            await websocket.accept()
            await answer.value(websocket)

        with answer.serve(app) as client:
            with connect(client.socket_url("/ws")) as socket:
                socket.send("hi")
                expect(socket.recv(timeout=9), "HI", why="Louder.")
            with connect(client.socket_url("/ws")) as socket:
                socket.send("you")
                expect(socket.recv(timeout=9), "YOU", why="Again.")

    def talk(reply):
        async def talk_in_a_group(websocket):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(60))
                while True:
                    await websocket.send_text(reply(await websocket.receive_text()))

        return talk_in_a_group

    assert judge(shouts, talk(str.upper)).outcome == RIGHT
    # It is not an error that the first client left, although the task group raises one.
    assert judge(shouts, talk(lambda text: "HI")).message == "Again."
    assert "ZeroDivisionError" in judge(shouts, talk(lambda text: 1 / 0)).traceback
    assert judge(shouts, talk(lambda text: ... + text)).outcome == NOT_ATTEMPTED


def test_requests_at_once():
    arrived = []
    all_are_here = asyncio.Event()

    async def waits_for_all():
        arrived.append(1)
        if len(arrived) == 30:
            all_are_here.set()
        await all_are_here.wait()
        return 1

    def overlap(answer):
        with answer.serve(seconds=60) as client:
            replies = client.together(30, "GET", "/predict")
            expect([reply.json() for reply in replies], [1] * 30)

    for app, outcome in ((app_with(waits_for_all), RIGHT), (app_with(lambda: 1 / 0), COULD_NOT_CHECK)):
        verdict = judge(overlap, app, seconds=100)
        assert verdict.outcome == outcome, repr(verdict)


# ------------------------------------------------------------------------------------- hints, solutions, state


def test_an_unknown_exercise_lists_the_known_ones():
    exercise("90.1", hints=["x"])(doubles)
    for ask in (lambda: check("90.7", 1), lambda: hint("90.7"), lambda: solution("77.1"), lambda: check("nonsense", 1)):
        with pytest.raises(LookupError, match=r"There is no exercise .* There are: .*90\.1"):
            ask()


def test_hints_come_one_by_one_and_the_last_one_stays():
    exercise("90.1", hints=["First.", "Second."])(doubles)
    assert [hint("90.1").text for _ in range(3)] == ["First.", "Second.", "Second."]
    assert repr(hint("90.1")) == "90.1 hint 2 of 2. Second."
    assert "Second." in hint("90.1")._repr_html_()


def test_the_solution_opens_after_three_tries(monkeypatch):
    monkeypatch.setattr(checks.lessons, "solution_code", lambda _: "return 2 * number  # <ok>")
    exercise("90.1", hints=["x"])(doubles)
    assert "opens after 3 more tries" in repr(solution("90.1"))
    for answer in (lambda n: n, fails):
        assert check("90.1", answer).next_step == '`hint("90.1")` helps.'
    assert check("90.1", ...).next_step == ""  # not attempted: does not count as a try
    assert "opens after 1 more try," in solution("90.1")._repr_html_()
    assert check("90.1", lambda n: n).next_step == '`solution("90.1")` helps.'
    assert "return 2 * number" in repr(solution("90.1"))
    assert "&lt;ok&gt;" in solution("90.1")._repr_html_()


def test_a_new_kernel_knows_the_tries(monkeypatch):
    monkeypatch.setattr(checks.lessons, "solution_code", lambda _: "code")
    exercise("90.1", hints=["x"])(doubles)
    check("90.1", fails)
    check("90.1", fails)
    code = "from workshop.lab.tries import count_tries; print(count_tries('90.1'), count_tries('90.2'))"
    kernel = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LAB_TRIES_FILE": tries.FILE},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert kernel.stdout == b"2 0\n"
    for _ in range(5):
        check("90.1", fails)
    assert tries.FILE.read_text() == "90.1\n" * 3  # more are not needed
    assert solution("90.1").code == "code"


def test_a_damaged_record_of_tries_does_no_harm():
    exercise("90.1", hints=["x"])(doubles)
    tries.FILE.write_bytes(b"90.1\n\xff\xfe\x00\n90.")
    assert solution("90.1").tries_left == 2
    assert check("90.1", fails).outcome == COULD_NOT_CHECK
    assert solution("90.1").tries_left == 2  # this line was appended to the damaged one
    check("90.1", fails)
    assert solution("90.1").tries_left == 1


def test_tries_count_where_they_cannot_be_saved(monkeypatch, tmp_path):
    exercise("90.1", hints=["x"])(doubles)
    for place in (tmp_path, tmp_path / "no" / "folder"):
        monkeypatch.setattr(tries, "FILE", place)
        monkeypatch.setattr(tries, "_unsaved", [])
        check("90.1", fails)
        assert solution("90.1").tries_left == 2


def test_the_solution_opens_after_a_right_answer(monkeypatch):
    monkeypatch.setattr(checks.lessons, "solution_code", lambda _: "code")
    judge(doubles, async_double)
    assert solution("90.1").code == "code"


def test_a_wrong_or_second_registration_is_refused():
    with pytest.raises(ValueError, match="not an exercise id"):
        exercise("1.1", hints=["x"])
    with pytest.raises(ValueError, match="no hint"):
        exercise("90.1", hints=[])
    exercise("90.1", hints=["x"])(doubles)
    exercise("90.1", hints=["x"])(doubles)  # the module was loaded again
    with pytest.raises(ValueError, match="registered twice"):
        exercise("90.1", hints=["x"])(labels)


def test_html_is_escaped_everywhere():
    verdict = judge(doubles, lambda n: "<script>")
    assert "<script>" not in verdict._repr_html_()
    assert "&lt;script&gt;" in verdict._repr_html_()
