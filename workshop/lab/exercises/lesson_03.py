"""Lesson 03: dependencies and lifespan."""

import json
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI

from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import CouldNotCheck, NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_03 import (
    Notes,
    NotReadyError,
    OpeningError,
    Scanner,
    clinic_parts,
    desk_events,
    label_of,
    note_book,
    scanners,
)
from workshop.lab.registry import exercise
from workshop.models.artifacts import ArtifactError

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""
TOGETHER = 20
ROWS = 569


def _start_error(answer: Answer, app: Any = None) -> BaseException | None:
    """The error with which the app fails to start, or None if it starts."""
    try:
        with answer.serve(app):
            pass
    except CouldNotCheck as failed:
        return failed.error
    return None


def _log(log: list[str]) -> str:
    return ", ".join(log) or "nothing"


# ------------------------------------------------------------------------------- 03.1: opened and closed in order


@exercise(
    "03.1",
    hints=[
        "What comes before the `yield` opens, what comes after it closes. An `AsyncExitStack` closes what was pushed "
        "onto it, the last first, even if a line before the `yield` fails.",
        "`database = await open_database()`, then `stack.push_async_callback(database.aclose)`, and then the model. "
        "`app.state` is one place to keep both.",
    ],
    right="Whatever was opened is closed, also after a failed start.",
    seconds=LIMIT_S,
)
def opens_and_closes(answer: Answer) -> None:
    used = ["open database", "open model", "close model", "close database"]
    for _ in range(2):  # tests start an app many times
        with clinic_parts.breaking() as log:
            with answer.serve() as client:
                at_start = list(log)
                first = client.get("/parts")
                _expect_log(at_start, used[:2], "Open both parts when the service starts, the database first.")
                _expect_the_same_parts(client, first)
                _expect_log(log, used[:2], "A request must not open or close anything.", given="GET /parts")
            _expect_log(log, used, "Close both when the service stops, the last opened first.", given="start and stop")
    _expect_failed_start(answer, "open model", ["open database", "open model", "close database"])
    _expect_failed_start(answer, "open database", ["open database"])
    with clinic_parts.breaking("close model") as log:
        with answer.serve() as client:
            client.get("/parts")
        why = "One part cannot be closed, and the other one is left open."
        _expect_log(log, used, why, given="`aclose` of the model fails when the service stops")


def _expect_the_same_parts(client: Client, first: httpx.Response) -> None:
    """All requests get the parts that were opened at the start."""
    for reply in (first, *client.together(TOGETHER, "GET", "/parts")):
        expect(reply.status_code, 200)
        got = reply.json()
        if got is not None and not (isinstance(got, dict) and got.keys() >= clinic_parts.numbers.keys()):
            raise NotYet('Return both numbers in a dict: `{"database": …, "model": …}`.', got=show(got))
        expect(got, clinic_parts.numbers, why="Return the numbers of the parts that are open.")


def _expect_failed_start(answer: Answer, broken: str, expected: list[str]) -> None:
    given = f"`{broken.replace(' ', '_')}()` fails when the service starts"
    with clinic_parts.breaking(broken) as log:
        error = _start_error(answer)
        if not isinstance(error, OpeningError):
            got = "the service starts" if error is None else f"it fails with {show(error)}"
            raise NotYet("The start must fail, with the error of the part.", given=given, got=got)
        _expect_log(log, expected, "Close what is open, and only that.", given=given)


def _expect_log(log: list[str], expected: list[str], why: str, given: str = "the start of the service") -> None:
    if log != expected:
        raise NotYet(why, given=given, expected=_log(expected), got=_log(log))


# ----------------------------------------------------------------------------------- 03.2: a journal per request


@exercise(
    "03.2",
    hints=[
        "`Annotated[Journal, Depends(Journal)]` makes a journal, one for each request: whoever asks for it in the same "
        "request gets the same.",
        "`below(limit)` defines a function `row_below(row: int, journal: JournalDep)` inside, and returns it, "
        "without calling it. The endpoint takes `row: Annotated[int, Depends(below(10))]` and the journal.",
    ],
    right="One journal for each request, whoever writes into it.",
    seconds=LIMIT_S,
)
def keeps_a_journal(answer: Answer) -> None:
    desk, below = _both(answer, "`below`")
    with answer.serve(desk) as client:
        for path, row, limit in (("/few", 3, 10), ("/all", 3, ROWS), ("/all", 19, ROWS), ("/few", 9, 10)):
            desk_events.clear()
            _expect_journal(client.get(f"{path}/{row}"), row, limit)
            _expect_events(row, limit)
        for path in ("/few/10", f"/all/{ROWS}", "/few/-1"):
            refused = client.get(path)
            expect(refused.status_code, 404, why="There is no such row.")
        _expect_journal(client.get("/few/0"), 0, 10)
        paths = [(path, row, limit) for row in range(5) for path, limit in (("/few", 10), ("/all", ROWS))]
        with ThreadPoolExecutor(len(paths)) as pool:
            replies = list(pool.map(lambda asked: client.get(f"{asked[0]}/{asked[1]}"), paths))
        for (path, row, limit), reply in zip(paths, replies, strict=True):
            _expect_journal(reply, row, limit, given=f"GET {path}/{row}, while other requests are under way")
    dependency = below(4)
    if not callable(dependency):
        raise NotYet("`below` returns a dependency: a callable.", given="below(4)", got=show(dependency))
    app = FastAPI()
    app.get("/{row}")(_returns_the_row(dependency))
    with answer.serve(app) as client:
        given = "a route with Depends(below(4))"
        expect(client.get("/3").json(), 3, given=f"GET /3 of {given}")
        expect(client.get("/4").status_code, 404, given=f"GET /4 of {given}")


def _both(answer: Answer, function: str) -> tuple[FastAPI, Callable[..., Any]]:
    """The app and the function of an answer that is such a pair."""
    try:
        app, made = answer.value
    except (TypeError, ValueError):
        raise NotYet(f"Give the check both: the app and {function}.", got=show(answer.value)) from None
    if not isinstance(app, FastAPI):
        raise NotYet("A FastAPI app is needed here.", got=show(app))
    if not callable(made):
        raise NotYet(f"{function} is the function itself, not what it returns.", got=show(made))
    return app, made


def _returns_the_row(dependency: Callable[..., Any]) -> Callable[..., Any]:
    async def endpoint(row: Annotated[int, Depends(dependency)]) -> int:
        return row

    return endpoint


def _expect_journal(got: httpx.Response, row: int, limit: int, given: str = "") -> None:
    expect(got.status_code, 200, given=given)
    reply = got.json()
    expected = {"row": row, "journal": [f"row {row} of {limit}", "measured"]}
    why = "The lines of this request, and no others."
    lines = reply.get("journal") if isinstance(reply, dict) else None
    if isinstance(lines, list) and len(lines) == 2 and str(lines[0]).startswith(f"row {row} "):
        why = f"The first line is such as `row {row} of {limit}`: the number is the limit that `below` was given."
    expect(reply, expected, given=given, why=why)


def _expect_events(row: int, limit: int) -> None:
    """In a request that was alone, one journal was written, and the measurement came before its line."""
    expected = [f"row {row} of {limit}", f"measure({row})", "measured"]
    happened = [what for _, what in desk_events]
    journals = {id(journal) for journal, _ in desk_events if journal is not None}
    if not journals:
        raise NotYet("The lines of the answer were not written into a `Journal`.", expected="`journal.write(…)`")
    if "measured" in happened and f"measure({row})" not in happened[: happened.index("measured")]:
        raise NotYet('Await `measure(row)`, and write "measured" when it is over.', got=_log(happened))
    if happened != expected:
        raise NotYet("Each of these happens once.", expected=_log(expected), got=_log(happened))
    if len(journals) > 1:
        raise NotYet("The dependency and the endpoint write into the same journal.", got=f"{len(journals)} journals")


# ------------------------------------------------------------------------------------- 03.3: a session per request


@exercise(
    "03.3",
    hints=[
        "`session = await open_session()`, then `try: yield session`. What must always happen stands in `finally`.",
        "The commit stands after the `yield`, in the `try`: an error in the endpoint is raised at the `yield`, and "
        'skips it. With `Depends(…, scope="function")`, it runs before the response leaves. A stream needs the other.',
    ],
    right="Whoever gets a 200 can rely on it, and every session is closed.",
    seconds=LIMIT_S,
)
def closes_its_sessions(answer: Answer) -> None:
    with note_book.another() as notes, answer.serve() as client:
        for number, text in enumerate(["one", "two"], start=1):
            expect(client.post(f"/notes/{text}").json(), {"stored": text})
            _expect_stored(notes, ["one", "two"][:number], "A note is stored as soon as the client has a 200.")
            _expect_opened(notes, number, f"{number} times POST /notes/…")
        _expect_closed(notes, "2 times POST /notes/…")
    with note_book.another() as notes, answer.serve(allow_500=True) as client:
        _expect_errors_to_come_through(client, notes)
    with note_book.another() as notes, answer.serve() as client:
        _expect_sessions_of_their_own(client, notes)
        notes.stored = [f"note {number}" for number in range(8)]
        read = client.get("/notes")
        expect(read.status_code, 200)
        expect([json.loads(line)["text"] for line in read.iter_lines()], notes.stored, why="A stream sends all notes.")
        _expect_closed(notes, "GET /notes")
        notes.stored, notes.pause_s = ["a"] * 200, 0.05
        with client.stream("GET", "/notes") as response:
            next(response.iter_lines())
        _expect_closed(notes, "GET /notes by a client that leaves after the first line")
    with note_book.another() as notes:
        with answer.serve() as client:
            notes.close_s = 0.3
            client.post("/notes/one")
        if notes.open:  # the server waits for its requests, and for nothing else
            given = "POST /notes/one, and the service stops while the session is closing"
            raise NotYet("A session is left open: does the request await `aclose()`?", given=given)


def _expect_errors_to_come_through(client: Client, notes: Notes) -> None:
    notes.stored = ["one"]
    refused = client.post("/notes/one")
    given = "POST /notes/one, and there is such a note"
    _expect_closed(notes, given)
    _expect_stored(notes, ["one"], "The endpoint has failed: nothing must be committed.", given)
    expect(refused.status_code, 409, given=given, why="The endpoint's error must come through.")

    notes.unreadable = True
    failed = client.post("/notes/two")
    given = "POST /notes/two, and the endpoint fails with an OSError"
    _expect_closed(notes, given)
    _expect_stored(notes, ["one"], "The endpoint has failed: nothing must be committed.", given)
    expect(failed.status_code, 500, given=given, why="The endpoint's error must come through.")

    notes.unreadable, notes.refuses = False, True
    lost = client.post("/notes/two")
    given = "POST /notes/two, and the commit fails"
    why = "The status of a server's own error is needed."
    if lost.status_code < 400:
        why = "The client was told that its note is stored, and it is not. The error must come before the response."
    expect(lost.status_code, 500, given=given, why=why)
    _expect_closed(notes, given)


def _expect_sessions_of_their_own(client: Client, notes: Notes) -> None:
    before = notes.opened
    texts = [f"note {number}" for number in range(notes.SESSIONS - 1)]
    with ThreadPoolExecutor(len(texts)) as pool:
        replies = list(pool.map(lambda text: client.post(f"/notes/{text}"), texts))
    given = f"{len(texts)} times POST /notes/… at once"
    expect([reply.status_code for reply in replies], [200] * len(texts), given=given)
    expect(sorted(notes.stored), texts, given=given, why="All notes are stored.")
    _expect_opened(notes, before + len(texts), given)
    _expect_closed(notes, given)


def _expect_opened(notes: Notes, expected: int, given: str) -> None:
    if notes.opened != expected:
        got = f"{notes.opened} of {expected} sessions" if notes.opened < expected else f"{notes.opened} sessions"
        raise NotYet("Each request opens one session, its own.", given=given, got=got)


def _expect_stored(notes: Notes, expected: list[str], why: str, given: str = "") -> None:
    if notes.stored != expected:
        raise NotYet(why, given=given, expected=f"{show(expected)} is stored", got=f"{show(notes.stored)} is stored")


def _expect_closed(notes: Notes, given: str) -> None:
    if not becomes_true(lambda: notes.open == 0, 2.0):
        raise NotYet(
            "A session is left open.", given=given, expected="every session is closed", got=f"{notes.open} open"
        )


# --------------------------------------------------------------------------------------- 03.4: a stand-in, and back


class Failed(BaseException):
    """Not an Exception, as that of `pytest.fail`."""


def get_label(row: int) -> str:
    return f"real {row}"


def get_other() -> str:
    return "other"


def first_stand_in(row: int) -> str:
    return f"first {row}"


async def second_stand_in(row: int) -> str:
    return f"second {row}"


def _labelling() -> FastAPI:
    app = FastAPI()

    @app.get("/label/{row}")
    async def label(got: Annotated[str, Depends(get_label)], beside: Annotated[str, Depends(get_other)]) -> list[str]:
        return [str(got), beside]

    return app


@exercise(
    "03.4",
    hints=[
        "With `@contextmanager`, set `app.dependency_overrides[dependency]` before the `yield`, and restore it after.",
        "Restore in `finally`. Remember what was there before: if there was something, it must be back, else remove "
        "the entry. `clear()` would also remove the overrides of others.",
    ],
    right="A test can fail, and the next one does not notice.",
    seconds=LIMIT_S,
)
def replaces_for_a_block(answer: Answer) -> None:
    app = _labelling()
    app.dependency_overrides[get_other] = lambda: "other's stand-in"
    with answer.serve(app) as client, _first_fault():

        def expect_label(expected: str, given: str) -> None:
            given = f"GET /label/7 {given}"
            label = client.get("/label/7")
            expect(label.status_code, 200, given=given)
            got, beside = label.json()
            expect(got, f"{expected} 7", given=given)
            expect(beside, "other's stand-in", given=given, why="The override of another dependency must stay.")

        for _ in range(2):
            with _block(answer, app, first_stand_in):
                expect_label("first", "in the block")
            expect_label("real", "after the block")
        with _block(answer, app, first_stand_in):
            with _block(answer, app, second_stand_in):
                expect_label("second", "in a block inside a block")
            expect_label("first", "in the outer block, after the inner one")
        expect_label("real", "after both blocks")
        for error in (AssertionError("the test fails"), KeyError("label"), Failed("by pytest.fail")):
            name = type(error).__name__
            try:
                with _block(answer, app, first_stand_in):
                    raise error
            except BaseException as raised:
                if raised is not error:
                    raise
            else:
                raise NotYet("An error in the block must come out of it.", given=f"a block with {name}")
            what = "an error that is no Exception, as of `pytest.fail`" if isinstance(error, Failed) else name
            expect_label("real", f"after a block with an error: {what}")
    if list(app.dependency_overrides) != [get_other]:
        left = ", ".join(f"`{getattr(key, '__name__', show(key))}`" for key in app.dependency_overrides)
        why = "Something is left in `dependency_overrides`, or missing."
        raise NotYet(
            why, given="after all blocks", expected="an override of `get_other`", got=f"of {left or 'nothing'}"
        )


@contextmanager
def _first_fault() -> Iterator[None]:
    """Report what the check found in a block, not the error with which the learner's clean-up then fails."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__context__, NotYet):
            raise error.__context__ from None
        raise


def _block(answer: Answer, app: FastAPI, stand_in: Callable[..., Any]) -> AbstractContextManager[Any]:
    made = answer.call(app, get_label, stand_in)
    answer.given = f"replaced(app, get_label, {stand_in.__name__})"
    if not (hasattr(made, "__enter__") and hasattr(made, "__exit__")):
        what = "a generator: is `@contextmanager` missing?" if isinstance(made, Generator) else show(made)
        raise NotYet("It must work as `with replaced(…):`.", got=what)
    return made  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------- 03.5: your own service


class StandIn:
    """A model that knows one word."""

    ready = True

    async def label(self, row: int) -> str:
        return f"stand-in {row}"


@exercise(
    "03.5",
    hints=[
        "A lifespan opens the model (`async with scanner() as model:`) and keeps it in `app.state`. `get_scanner` "
        "only returns it from `request.app.state`. The list of labels is made in the endpoint.",
        "A dependency `require_ready(model: …)` raises `HTTPException(503)` unless `model.ready`. `/predict` and "
        "`/readiness` depend on it, `/liveness` on nothing.",
    ],
    right="Loaded once, released, replaceable, and honest about its state.",
    seconds=LIMIT_S,
)
def serves_one_model(answer: Answer) -> None:
    service, get_model = _both(answer, "`get_scanner`")
    with _no_models(), answer.serve(service) as client:
        at_start = list(scanners.opened)
        _expect_labels(client, [3])
        if len(at_start) != 1:
            given, got = "the start of the service", f"it is opened {len(at_start)} times"
            raise NotYet("Open the model when the service starts, once.", given=given, got=got)
        _attack_with_many(client)
        _expect_opened_once()
        for rows in ([3, 19, 300], [300, 19, 3, 300], [19, 3, 19, 19]):  # not sorted, not unique, no palindrome
            _expect_labels(client, rows)
        _expect_honest(client, at_start[0])
        _expect_labels(client, [5])
        _expect_opened_once()
        if not at_start[0].open:
            raise NotYet("The model is closed while the service runs.")
    if not becomes_true(lambda: not at_start[0].open, 3.0):
        raise NotYet("The model is not closed.", given="the stop of the service")
    _attack_with_damage(answer, service)
    with _no_models(ready=False), answer.serve(service) as client:
        given = "a second start, with a model that is not ready yet"
        if len(scanners.opened) != 1:
            raise NotYet("Each start opens the model.", given=given, got=f"{len(scanners.opened)} models")
        expect(client.get("/liveness").status_code, 200, given=f"GET /liveness after {given}")
        expect(client.get("/readiness").status_code, 503, given=f"GET /readiness after {given}")
        scanners.opened[0].ready = True
        _expect_labels(client, [8])
        _attack_with_a_stand_in(client, service, get_model)


@contextmanager
def _no_models(*, damaged: bool = False, ready: bool = True) -> Iterator[None]:
    """Forget the models that were opened before. Those that are opened in the block are like this."""
    scanners.opened, scanners.damaged, scanners.ready = [], damaged, ready
    try:
        yield
    finally:
        scanners.damaged, scanners.ready = False, True


def _expect_labels(client: Client, rows: list[int]) -> None:
    got = client.get("/predict", params={"row": rows})
    expect(got.status_code, 200)
    expect(got.json(), {"labels": [label_of(row) for row in rows]}, exact=True, why="A label for each row, in order.")


def _attack_with_many(client: Client) -> None:
    """Many requests at once, each for rows of its own."""
    asked = [[number, number + 100, number + 200] for number in range(TOGETHER)]
    with ThreadPoolExecutor(TOGETHER) as pool:
        replies = list(pool.map(lambda rows: client.get("/predict", params={"row": rows}), asked))
    for rows, reply in zip(asked, replies, strict=True):
        given = f"rows {rows}, one of {TOGETHER} requests at once"
        expect(reply.status_code, 200, given=given)
        expected, got = {"labels": [label_of(row) for row in rows]}, reply.json()
        why = "These are not the labels of this request."
        if isinstance(got, dict) and isinstance(got.get("labels"), list) and len(got["labels"]) != len(rows):
            raise NotYet(why, given=given, expected=f"{len(rows)} labels", got=f"{len(got['labels'])} labels")
        expect(got, expected, given=given, why=why)


def _expect_opened_once() -> None:
    if len(scanners.opened) != 1:
        raise NotYet("A request opens the model again.", expected="1 model", got=f"{len(scanners.opened)} models")


def _expect_honest(client: Client, model: Scanner) -> None:
    """The model needs some time twice: after the start, and later."""
    for _ in range(2):
        expect(client.get("/readiness").status_code, 200, why="The model is ready.")
        model.ready = False
        given = "`model.ready` is False"
        for path in ("/readiness", "/predict?row=3"):
            status = _status_of_the_busy(client, path)
            expect(status, 503, given=f"GET {path} while {given}", why="The model cannot answer now.")
        alive = client.get("/liveness").status_code
        expect(alive, 200, given=f"GET /liveness while {given}", why="A restart would only make it take longer.")
        model.ready = True
    expect(client.get("/readiness").status_code, 200, why="The model is ready again.")
    expect(client.get("/liveness").status_code, 200)


def _status_of_the_busy(client: Client, path: str) -> int:
    """The status while the model is not ready: 500 if the app asks it nevertheless."""
    try:
        return client.get(path).status_code
    except CouldNotCheck as failed:
        if not isinstance(failed.error, NotReadyError):
            raise
        client.errors = []  # the verdict names the status, not this error
        return 500


def _attack_with_damage(answer: Answer, service: FastAPI) -> None:
    with _no_models(damaged=True):
        error = _start_error(answer, service)
    if not isinstance(error, ArtifactError):
        got = "the service starts" if error is None else f"it fails with {show(error)}"
        raise NotYet("A service whose model is damaged must not start.", given="a damaged model", got=got)


def _attack_with_a_stand_in(client: Client, service: FastAPI, get_model: Callable[..., Any]) -> None:
    stand_in = StandIn()
    given = "a stand-in in `dependency_overrides[get_scanner]`"
    before = dict(service.dependency_overrides)
    service.dependency_overrides[get_model] = lambda: stand_in
    try:
        got = client.get("/predict", params={"row": [3]})
        expect(got.status_code, 200, given=given)
        expect(got.json(), {"labels": ["stand-in 3"]}, given=given, why="The endpoint has another way to its model.")
        stand_in.ready = False
        status = client.get("/readiness").status_code
        why = "`/readiness` asks another model: what checks `ready` must depend on `get_scanner`, and not be in it."
        expect(status, 503, given=f"GET /readiness with {given} whose `ready` is False", why=why)
    finally:
        service.dependency_overrides = before
