"""Answers to lesson 03: dependencies and lifespan."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Annotated, Any
from unittest.mock import patch

from fastapi import Depends, FastAPI, HTTPException, Query, Request

from workshop.lab.fixtures.lesson_03 import (
    Journal,
    Part,
    Scanner,
    Session,
    label_of,
    measure,
    open_database,
    open_model,
    open_session,
    scanner,
)

# 03.1: open and close


def clinic(lifespan: Any, endpoint: Callable[..., Any] | None = None) -> FastAPI:
    async def parts(request: Request) -> Any:
        state = request.app.state
        return {"database": state.database.number, "model": state.model.number}

    made = FastAPI(lifespan=lifespan)
    made.get("/parts")(endpoint or parts)
    return made


@asynccontextmanager
async def with_a_stack(app):
    async with AsyncExitStack() as stack:
        app.state.database = await open_database()
        stack.push_async_callback(app.state.database.aclose)
        app.state.model = await open_model()
        stack.push_async_callback(app.state.model.aclose)
        yield


@asynccontextmanager
async def with_nested_finally(app):
    app.state.database = await open_database()
    try:
        app.state.model = await open_model()
        try:
            yield
        finally:
            await app.state.model.aclose()
    finally:
        await app.state.database.aclose()


@asynccontextmanager
async def with_aclosing_and_state(app):
    async with aclosing(await open_database()) as database, aclosing(await open_model()) as model:
        yield {"database": database, "model": model}


async def from_request_state(request: Request):
    return {"database": request.state.database.number, "model": request.state.model.number}


class Opened:
    """A lifespan that is a class."""

    def __init__(self, app):
        self.app = app
        self.stack = AsyncExitStack()

    async def __aenter__(self):
        async with AsyncExitStack() as stack:
            for name, open_part in (("database", open_database), ("model", open_model)):
                part = await stack.enter_async_context(aclosing(await open_part()))
                setattr(self.app.state, name, part)
            self.stack = stack.pop_all()

    async def __aexit__(self, *error):
        return await self.stack.__aexit__(*error)


async def a_generator_without_decorator(app):
    async with AsyncExitStack() as stack:
        app.state.database = await stack.enter_async_context(aclosing(await open_database()))
        app.state.model = await stack.enter_async_context(aclosing(await open_model()))
        yield


@asynccontextmanager
async def without_finally(app):
    app.state.database = await open_database()
    app.state.model = await open_model()
    yield
    await app.state.model.aclose()
    await app.state.database.aclose()


@asynccontextmanager
async def with_one_finally(app):
    app.state.database = await open_database()
    app.state.model = await open_model()
    try:
        yield
    finally:
        await app.state.model.aclose()
        await app.state.database.aclose()


@asynccontextmanager
async def with_one_finally_around_all(app):
    try:
        app.state.database = await open_database()
        app.state.model = await open_model()
        yield
    finally:
        await app.state.model.aclose()
        await app.state.database.aclose()


@asynccontextmanager
async def closes_one_after_the_other(app):
    database = app.state.database = await open_database()
    try:
        app.state.model = await open_model()
    except BaseException:
        await database.aclose()
        raise
    try:
        yield
    finally:
        await app.state.model.aclose()
        await database.aclose()


@asynccontextmanager
async def in_the_same_order(app):
    async with AsyncExitStack() as stack:
        app.state.database = await open_database()
        app.state.model = await open_model()
        stack.push_async_callback(app.state.model.aclose)
        stack.push_async_callback(app.state.database.aclose)
        yield


@asynccontextmanager
async def model_first(app):
    async with aclosing(await open_model()) as app.state.model, aclosing(await open_database()) as app.state.database:
        yield


@asynccontextmanager
async def both_at_once(app):
    app.state.model, app.state.database = await asyncio.gather(open_model(), open_database())
    async with aclosing(app.state.database), aclosing(app.state.model):
        yield


@asynccontextmanager
async def closes_both_at_once(app):
    app.state.database = await open_database()
    try:
        app.state.model = await open_model()
    except BaseException:
        await app.state.database.aclose()
        raise
    yield
    await asyncio.gather(app.state.model.aclose(), app.state.database.aclose(), return_exceptions=True)


@asynccontextmanager
async def starts_half_alive(app):
    async with AsyncExitStack() as stack:
        with suppress(Exception):
            app.state.database = await open_database()
            stack.push_async_callback(app.state.database.aclose)
            app.state.model = await open_model()
            stack.push_async_callback(app.state.model.aclose)
        yield


@asynccontextmanager
async def with_an_error_of_its_own(app):
    try:
        async with (
            aclosing(await open_database()) as app.state.database,
            aclosing(await open_model()) as app.state.model,
        ):
            yield
    except Exception as error:
        raise RuntimeError("the service cannot start") from error


@asynccontextmanager
async def never_closes(app):
    app.state.database = await open_database()
    app.state.model = await open_model()
    yield


@asynccontextmanager
async def forgets_to_await_the_close(app):
    app.state.database = await open_database()
    app.state.model = await open_model()
    yield
    app.state.model.aclose()
    app.state.database.aclose()


@asynccontextmanager
async def forgets_to_await(app):
    app.state.database = open_database()
    app.state.model = open_model()
    yield


@asynccontextmanager
async def opens_nothing(app):
    yield


async def opens_for_each_request():
    async with aclosing(await open_database()) as database, aclosing(await open_model()) as model:
        return {"database": database.number, "model": model.number}


kept: dict[str, Part] = {}


async def opens_at_the_first_request():
    if not kept:
        kept.update(database=await open_database(), model=await open_model())
    return {name: part.number for name, part in kept.items()}


async def fixed_numbers():
    return {"database": 101, "model": 102}


async def returns_the_parts(request: Request):
    return {"database": str(request.app.state.database), "model": str(request.app.state.model)}


async def returns_nothing(request: Request):
    await returns_the_parts(request)


def with_on_event() -> FastAPI:
    made = clinic(None)

    async def start():
        made.state.database = await open_database()
        made.state.model = await open_model()

    async def stop():
        await made.state.model.aclose()
        await made.state.database.aclose()

    made.router.on_startup.append(start)
    made.router.on_shutdown.append(stop)
    return made


def forgets_to_pass_it() -> FastAPI:
    made = clinic(with_a_stack)
    made.router.lifespan_context = FastAPI().router.lifespan_context
    return made


async def in_a_list(request: Request):
    return [request.app.state.database.number, request.app.state.model.number]


# 03.2: a journal for each request

JournalDep = Annotated[Journal, Depends(Journal)]


def desk(below: Callable[[int], Any], journal: Any = JournalDep) -> tuple[FastAPI, Any]:
    made = FastAPI()

    async def few(row: Annotated[int, Depends(below(10))], notes: journal):
        await measure(row)
        notes.write("measured")
        return {"row": row, "journal": notes.lines}

    async def every(row: Annotated[int, Depends(below(569))], notes: journal):
        await measure(row)
        notes.write("measured")
        return {"row": row, "journal": notes.lines}

    made.get("/few/{row}")(few)
    made.get("/all/{row}")(every)
    return made, below


def makes_a_function(limit):
    async def row_below(row: int, journal: JournalDep):
        if row not in range(limit):
            raise HTTPException(404)
        journal.write(f"row {row} of {limit}")
        return row

    return row_below


class MakesAnInstance:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, row: int, journal: JournalDep) -> int:
        journal.write(f"row {row} of {self.limit}")
        if row not in range(self.limit):
            raise HTTPException(404, "no such row")
        return row


def desk_with_request_state() -> tuple[FastAPI, Any]:
    async def get_journal(request: Request):
        if not hasattr(request.state, "journal"):
            request.state.journal = Journal()
        return request.state.journal

    in_state = Annotated[Journal, Depends(get_journal, use_cache=False)]

    def below(limit):
        async def row_below(row: int, journal: in_state):
            if row not in range(limit):
                raise HTTPException(404)
            journal.write(f"row {row} of {limit}")
            return row

        return row_below

    return desk(below, in_state)


def desk_with_yield() -> tuple[FastAPI, Any]:
    async def get_journal() -> AsyncIterator[Journal]:
        yield Journal()

    yielded = Annotated[Journal, Depends(get_journal)]

    def below(limit):
        def row_below(row: int, journal: yielded):
            if row not in range(limit):
                raise HTTPException(404)
            journal.write(f"row {row} of {limit}")
            return row

        return row_below

    return desk(below, yielded)


def desk_with(get_journal: Callable[..., Any], **options: Any) -> tuple[FastAPI, Any]:
    """A desk whose journal comes from here."""
    given = Annotated[Journal, Depends(get_journal, **options)]

    def below(limit):
        async def row_below(row: int, journal: given):
            if row not in range(limit):
                raise HTTPException(404)
            journal.write(f"row {row} of {limit}")
            return row

        return row_below

    return desk(below, given)


def make_journal():
    return Journal()


one_journal = Journal()


def the_same_for_all():
    return one_journal


@cache
def made_once():
    return Journal()


def emptied_for_each_request():
    one_journal.lines.clear()
    return one_journal


def with_a_new_list():
    one_journal.lines = []
    return one_journal


def forgets_the_limit(limit):
    async def any_row(row: int, journal: JournalDep):
        journal.write(f"row {row} of {limit}")
        return row

    return any_row


def always_below_ten(limit):
    return makes_a_function(10)


def any_number_below(limit):
    async def row_below(row: int, journal: JournalDep):
        if row >= limit:
            raise HTTPException(404)
        journal.write(f"row {row} of {limit}")
        return row

    return row_below


def one_too_many(limit):
    async def row_below(row: int, journal: JournalDep):
        if row > limit:
            raise HTTPException(404)
        journal.write(f"row {row} of {limit}")
        return row

    return row_below


def writes_nothing(limit):
    async def row_below(row: int):
        if row not in range(limit):
            raise HTTPException(404)
        return row

    return row_below


def refuses_with_422(limit):
    async def row_below(row: int, journal: JournalDep):
        if row >= limit:
            raise HTTPException(422)
        journal.write(f"row {row} of {limit}")
        return row

    return row_below


def forgets_to_return_the_row(limit):
    async def row_below(row: int, journal: JournalDep):
        if row not in range(limit):
            raise HTTPException(404)
        journal.write(f"row {row} of {limit}")

    return row_below


def journal_of_the_dependency(limit):
    journal = Journal()  # made with the route, so all its requests share it

    async def row_below(row: int):
        if row not in range(limit):
            raise HTTPException(404)
        journal.write(f"row {row} of {limit}")
        return row

    return row_below


def writes_both_lines() -> tuple[FastAPI, Any]:
    made = FastAPI()

    def add(path, limit):
        @made.get(path)
        async def known(row: int):
            if row not in range(limit):
                raise HTTPException(404)
            journal = Journal()
            journal.write(f"row {row} of {limit}")
            await measure(row)
            journal.write("measured")
            return {"row": row, "journal": journal.lines}

    add("/few/{row}", 10)
    add("/all/{row}", 569)
    return made, lambda limit: None


def bypasses_the_dependency() -> tuple[FastAPI, Any]:
    made = FastAPI()

    @made.get("/few/{row}")
    @made.get("/all/{row}")
    async def known(row: int):
        return {"row": row, "journal": [f"row {row} of 10", "measured"]}

    return made, makes_a_function


def only_one_route() -> tuple[FastAPI, Any]:
    made = FastAPI()

    @made.get("/few/{row}")
    async def few(row: Annotated[int, Depends(makes_a_function(10))], journal: JournalDep):
        await measure(row)
        journal.write("measured")
        return {"row": row, "journal": journal.lines}

    return made, makes_a_function


def returns_the_journal() -> tuple[FastAPI, Any]:
    made = FastAPI()

    @made.get("/few/{row}")
    async def few(row: Annotated[int, Depends(makes_a_function(10))], journal: JournalDep):
        journal.write("measured")
        return journal.lines

    return made, makes_a_function


def desk_whose_endpoints(measures: Callable[[int, Journal], Any]) -> tuple[FastAPI, Any]:
    """A desk whose endpoints do this with the row and the journal."""
    made = FastAPI()

    def add(path, limit):
        @made.get(path)
        async def known(row: Annotated[int, Depends(makes_a_function(limit))], journal: JournalDep):
            await measures(row, journal)
            return {"row": row, "journal": [f"row {row} of {limit}", "measured"]}

    add("/few/{row}", 10)
    add("/all/{row}", 569)
    return made, makes_a_function


async def measures_nothing(row, journal):
    journal.write("measured")


async def waits_for_nothing(row, journal):
    measure(row)
    journal.write("measured")


async def measures_in_a_task(row, journal):
    asyncio.create_task(measure(row))  # noqa: RUF006
    journal.write("measured")


async def writes_first(row, journal):
    journal.write("measured")
    await measure(row)


async def measures_twice(row, journal):
    await measure(row)
    await measures_and_writes(row, journal)


async def measures_and_writes(row, journal):
    await measure(row)
    journal.write("measured")


async def writes_elsewhere(row, journal):
    await measures_and_writes(row, Journal())


def desk_without_a_journal() -> tuple[FastAPI, Any]:
    made = FastAPI()

    def below(limit):
        async def row_below(row: int):
            if row not in range(limit):
                raise HTTPException(404)
            return row

        return row_below

    def add(path, limit):
        @made.get(path)
        async def known(row: Annotated[int, Depends(below(limit))]):
            await measure(row)
            return {"row": row, "journal": [f"row {row} of {limit}", "measured"]}

    add("/few/{row}", 10)
    add("/all/{row}", 569)
    return made, below


# 03.3: a session for each request


def book(get_session: Callable[..., Any], writing: str | None = "function", reading: str | None = None) -> FastAPI:
    made = FastAPI()

    @made.post("/notes/{text}")
    async def add_note(text: str, session: Annotated[Any, Depends(get_session, scope=writing)]):
        await session.add(text)
        if text in [stored async for stored in session.texts()]:
            raise HTTPException(409, "there is such a note")
        return {"stored": text}

    @made.get("/notes")
    async def all_notes(session: Annotated[Any, Depends(get_session, scope=reading)]):
        async for text in session.texts():
            yield {"text": text}

    return made


async def commits_and_closes():
    session = await open_session()
    try:
        yield session
        await session.commit()
    finally:
        await session.aclose()


async def with_aclosing():
    async with aclosing(await open_session()) as session:
        yield session
        await session.commit()


async def with_else():
    async with AsyncExitStack() as stack:
        session = await open_session()
        stack.push_async_callback(session.aclose)
        try:
            yield session
        except Exception:
            raise
        else:
            await session.commit()


async def closes_only():
    async with aclosing(await open_session()) as session:
        yield session


def commits_in_the_endpoint() -> FastAPI:
    made = FastAPI()

    @made.post("/notes/{text}")
    async def add_note(text: str, session: Annotated[Any, Depends(closes_only)]):
        await session.add(text)
        if text in [stored async for stored in session.texts()]:
            raise HTTPException(409)
        await session.commit()
        return {"stored": text}

    @made.get("/notes")
    async def all_notes(session: Annotated[Any, Depends(closes_only)]):
        async for text in session.texts():
            yield {"text": text}

    return made


async def leaves_it_open():
    session = await open_session()
    yield session
    await session.commit()


async def closes_without_finally():
    session = await open_session()
    yield session
    await session.commit()
    await session.aclose()


async def commits_in_finally():
    session = await open_session()
    try:
        yield session
    finally:
        await session.commit()
        await session.aclose()


async def closes_before_the_commit():
    session = await open_session()
    try:
        yield session
    finally:
        await session.aclose()
    await session.commit()


async def swallows():
    session = await open_session()
    try:
        yield session
        await session.commit()
    except Exception:
        pass
    finally:
        await session.aclose()


async def swallows_and_reraises_nothing_of_a_commit():
    async with aclosing(await open_session()) as session:
        yield session
        with suppress(Exception):
            await session.commit()


async def catches_errors_only():
    session = await open_session()
    try:
        yield session
    except Exception:
        await session.aclose()
        raise
    await session.commit()
    await session.aclose()


async def closes_after_an_http_error_only():
    session = await open_session()
    try:
        yield session
    except HTTPException:
        await session.aclose()
        raise
    try:
        await session.commit()
    finally:
        await session.aclose()


async def commits_unless_http_error():
    async with aclosing(await open_session()) as session:
        try:
            yield session
        except HTTPException:
            raise
        except Exception:
            await session.commit()
            raise
        await session.commit()


async def closes_in_a_task():
    session = await open_session()
    try:
        yield session
        await session.commit()
    finally:
        asyncio.create_task(session.aclose())  # noqa: RUF006


async def closes_in_a_shield():
    session = await open_session()
    try:
        yield session
        await session.commit()
    finally:
        await asyncio.shield(session.aclose())


async def makes_it_a_503():
    async with aclosing(await open_session()) as session:
        yield session
        try:
            await session.commit()
        except Exception as error:
            raise HTTPException(503) from error


async def opens_two():
    async with aclosing(await open_session()) as session, aclosing(await open_session()):
        yield session
        await session.commit()


async def returns_it():
    return await open_session()


async def forgets_to_await_the_session():
    session = open_session()
    yield session


async def forgets_to_await_the_commit():
    session = await open_session()
    try:
        yield session
        session.commit()
    finally:
        await session.aclose()


sessions: list[Session] = []


async def one_for_all():
    if not sessions:
        sessions.append(await open_session())
    yield sessions[0]
    await sessions[0].commit()


async def commits_too_early():
    async with aclosing(await open_session()) as session:
        await session.commit()
        yield session


# 03.4: for one block only


@contextmanager
def restores_everything(app, dependency, stand_in):
    before = dict(app.dependency_overrides)
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        app.dependency_overrides.clear()
        app.dependency_overrides.update(before)


def patches_the_dictionary(app, dependency, stand_in):
    return patch.dict(app.dependency_overrides, {dependency: stand_in})


class RestoresTheEntry:
    def __init__(self, app, dependency, stand_in):
        self.overrides, self.dependency, self.stand_in = app.dependency_overrides, dependency, stand_in

    def __enter__(self):
        self.before = self.overrides.get(self.dependency)
        self.overrides[self.dependency] = self.stand_in

    def __exit__(self, *error):
        if self.before is None:
            del self.overrides[self.dependency]
        else:
            self.overrides[self.dependency] = self.before


@contextmanager
def replaces_the_dictionary(app, dependency, stand_in):
    before = app.dependency_overrides
    app.dependency_overrides = before | {dependency: stand_in}
    try:
        yield app
    finally:
        app.dependency_overrides = before


@contextmanager
def no_finally(app, dependency, stand_in):
    before = dict(app.dependency_overrides)
    app.dependency_overrides[dependency] = stand_in
    yield
    app.dependency_overrides = before


@contextmanager
def restores_after(app, dependency, stand_in, errors):
    before = dict(app.dependency_overrides)
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    except errors:
        app.dependency_overrides = before
        raise
    app.dependency_overrides = before


def restores_after_assertions(app, dependency, stand_in):
    return restores_after(app, dependency, stand_in, AssertionError)


def restores_after_exceptions(app, dependency, stand_in):
    return restores_after(app, dependency, stand_in, Exception)


def takes_no_stand_in(app, dependency):
    return patch.dict(app.dependency_overrides, {dependency: get_nothing})


def get_nothing():
    return None


@contextmanager
def clears_all(app, dependency, stand_in):
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        app.dependency_overrides.clear()


@contextmanager
def empties_all_first(app, dependency, stand_in):
    before = app.dependency_overrides
    app.dependency_overrides = {dependency: stand_in}
    try:
        yield
    finally:
        app.dependency_overrides = before


@contextmanager
def only_removes(app, dependency, stand_in):
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        del app.dependency_overrides[dependency]


@contextmanager
def removes_if_there(app, dependency, stand_in):
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        app.dependency_overrides.pop(dependency, None)


@contextmanager
def restores_the_same_object(app, dependency, stand_in):
    before = app.dependency_overrides  # not a copy
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        app.dependency_overrides = before


@contextmanager
def swallows_the_error(app, dependency, stand_in):
    with suppress(Exception), patch.dict(app.dependency_overrides, {dependency: stand_in}):
        yield


@contextmanager
def calls_the_stand_in(app, dependency, stand_in):
    with patch.dict(app.dependency_overrides, {dependency: stand_in()}):
        yield


@contextmanager
def wraps_the_stand_in(app, dependency, stand_in):
    with patch.dict(app.dependency_overrides, {dependency: lambda: stand_in}):
        yield


@contextmanager
def swaps_the_two(app, dependency, stand_in):
    with patch.dict(app.dependency_overrides, {stand_in: dependency}):
        yield


@contextmanager
def restores_none(app, dependency, stand_in):
    before = app.dependency_overrides.get(dependency)
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        app.dependency_overrides[dependency] = before


@contextmanager
def leaves_an_entry(app, dependency, stand_in):
    before = app.dependency_overrides.get(dependency, dependency)
    app.dependency_overrides[dependency] = stand_in
    try:
        yield
    finally:
        app.dependency_overrides[dependency] = before


def just_sets(app, dependency, stand_in):
    app.dependency_overrides[dependency] = stand_in


def is_only_a_generator(app, dependency, stand_in):
    with patch.dict(app.dependency_overrides, {dependency: stand_in}):
        yield


# 03.5: your own service


@asynccontextmanager
async def keeps_the_scanner(app):
    async with scanner() as model:
        app.state.scanner = model
        yield


async def from_app_state(request: Request):
    return request.app.state.scanner


def service(
    *,
    lifespan: Any = keeps_the_scanner,
    get: Callable[..., Any] = from_app_state,
    predict: Callable[..., Any] | None = None,
    ready: Callable[..., Any] | None = None,
    guards_predict: bool = True,
    alive: Callable[..., Any] = lambda: {"status": "alive"},
) -> tuple[FastAPI, Any]:
    """The service, with some of its parts made differently."""
    model_of_request = Annotated[Any, Depends(get)]

    async def require_ready(model: model_of_request):
        if not model.ready:
            raise HTTPException(503)

    async def predict_all(row: Annotated[list[int], Query()], model: model_of_request):
        return {"labels": [await model.label(number) for number in row]}

    guard = [Depends(ready or require_ready)]
    made = FastAPI(lifespan=lifespan)
    made.get("/predict", dependencies=guard if guards_predict else [])(predict or predict_all)
    made.get("/readiness", dependencies=guard)(lambda: {"status": "ready"})
    made.get("/liveness")(alive)
    return made, get


def with_lifespan_state() -> tuple[FastAPI, Any]:
    @asynccontextmanager
    async def lifespan(app):
        async with AsyncExitStack() as stack:
            yield {"model": await stack.enter_async_context(scanner())}

    def get_model(request: Request) -> Scanner:
        return request.state.model

    return service(lifespan=lifespan, get=get_model)


def with_statuses_in_the_endpoints() -> tuple[FastAPI, Any]:
    made = FastAPI(lifespan=keeps_the_scanner)

    class GetModel:
        def __call__(self, request: Request) -> Scanner:
            return request.app.state.scanner

    get_model = GetModel()

    @made.get("/predict")
    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(get_model)]):
        if not model.ready:
            raise HTTPException(status_code=503, detail="not ready")
        return {"labels": await asyncio.gather(*map(model.label, row))}

    @made.get("/readiness")
    async def readiness(model: Annotated[Any, Depends(get_model)]):
        if not model.ready:
            raise HTTPException(status_code=503)

    @made.get("/liveness")
    def liveness():
        return "yes"

    return made, get_model


def with_errors_as_statuses() -> tuple[FastAPI, Any]:
    """`/predict` asks the model, and says 503 if it refuses."""

    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        try:
            return {"labels": [await model.label(number) for number in row]}
        except RuntimeError:
            raise HTTPException(503) from None

    return service(predict=predict, guards_predict=False)


def with_a_module_variable() -> tuple[FastAPI, Any]:
    held: list[Scanner] = []

    @asynccontextmanager
    async def lifespan(app):
        async with scanner() as model:
            held[:] = [model]
            yield

    async def get_model():
        return held[0]

    return service(lifespan=lifespan, get=get_model)


def as_it_was() -> tuple[FastAPI, Any]:
    made = FastAPI()
    labels: list[str] = []

    async def get_model():
        return None

    @made.get("/predict")
    async def predict(row: Annotated[list[int], Query()]):
        async with scanner() as model:
            for number in row:
                labels.append(await model.label(number))
        return {"labels": labels}

    @made.get("/liveness")
    @made.get("/readiness")
    async def readiness():
        return {"status": "ready"}

    return made, get_model


def opens_in_a_dependency() -> tuple[FastAPI, Any]:
    async def get_model():
        async with scanner() as model:
            yield model

    return service(lifespan=None, get=get_model)


def opens_at_first_use() -> tuple[FastAPI, Any]:
    stack, held = AsyncExitStack(), []
    lock = asyncio.Lock()

    async def get_model():
        async with lock:
            if not held:
                held.append(await stack.enter_async_context(scanner()))
        return held[0]

    return service(lifespan=None, get=get_model)


def does_not_release() -> tuple[FastAPI, Any]:
    stacks = []

    @asynccontextmanager
    async def lifespan(app):
        stacks.append(AsyncExitStack())
        app.state.scanner = await stacks[-1].enter_async_context(scanner())
        yield

    return service(lifespan=lifespan)


def closes_at_once() -> tuple[FastAPI, Any]:
    @asynccontextmanager
    async def lifespan(app):
        async with scanner() as model:
            app.state.scanner = model
        yield

    return service(lifespan=lifespan)


def starts_with_damage() -> tuple[FastAPI, Any]:
    @asynccontextmanager
    async def lifespan(app):
        app.state.scanner = None
        try:
            async with scanner() as app.state.scanner:
                yield
        except Exception:
            yield

    return service(lifespan=lifespan)


def opens_in_a_task() -> tuple[FastAPI, Any]:
    @asynccontextmanager
    async def lifespan(app):
        async with AsyncExitStack() as stack:

            async def open_it():
                await asyncio.sleep(1)  # it is large
                app.state.scanner = await stack.enter_async_context(scanner())

            app.state.scanner = Scanner(ready=False)
            app.state.task = asyncio.create_task(open_it())
            yield

    return service(lifespan=lifespan)


def with_one_list() -> tuple[FastAPI, Any]:
    labels: list[str] = []

    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        for number in row:
            labels.append(await model.label(number))
        return {"labels": labels}

    return service(predict=predict)


def with_one_list_that_is_cleared() -> tuple[FastAPI, Any]:
    labels: list[str] = []

    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        labels.clear()
        for number in row:
            labels.append(await model.label(number))
        return {"labels": labels}

    return service(predict=predict)


def with_rows_in_app_state() -> tuple[FastAPI, Any]:
    async def predict(
        request: Request, row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]
    ):
        state = request.app.state
        state.rows, labels = row, []
        for index in range(len(row)):
            labels.append(await model.label(state.rows[index]))
        return {"labels": labels}

    return service(predict=predict)


def past_the_port() -> tuple[FastAPI, Any]:
    async def predict(request: Request, row: Annotated[list[int], Query()]):
        return {"labels": [await request.app.state.scanner.label(number) for number in row]}

    return service(predict=predict)


def readiness_past_the_port() -> tuple[FastAPI, Any]:
    async def require_ready(request: Request):
        if not request.app.state.scanner.ready:
            raise HTTPException(503)

    return service(ready=require_ready)


def without_the_model() -> tuple[FastAPI, Any]:
    async def predict(row: Annotated[list[int], Query()]):
        return {"labels": [label_of(number) for number in row]}

    return service(predict=predict)


def the_first_label_only() -> tuple[FastAPI, Any]:
    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        return {"labels": [await model.label(row[0])]}

    return service(predict=predict)


def without_await() -> tuple[FastAPI, Any]:
    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        return {"labels": [model.label(row[0])]}

    return service(predict=predict)


def sorts_the_rows() -> tuple[FastAPI, Any]:
    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        return {"labels": [await model.label(number) for number in sorted(row)]}

    return service(predict=predict)


def each_row_once() -> tuple[FastAPI, Any]:
    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        return {"labels": [await model.label(number) for number in dict.fromkeys(row)]}

    return service(predict=predict)


def backwards() -> tuple[FastAPI, Any]:
    async def predict(row: Annotated[list[int], Query()], model: Annotated[Any, Depends(from_app_state)]):
        return {"labels": [await model.label(number) for number in reversed(row)]}

    return service(predict=predict)


def guarded_by_the_port() -> tuple[FastAPI, Any]:
    async def get_model(request: Request):
        if not request.app.state.scanner.ready:
            raise HTTPException(503)
        return request.app.state.scanner

    return service(get=get_model, ready=get_model)


def always_ready() -> tuple[FastAPI, Any]:
    return service(ready=lambda: None, guards_predict=False)


def ready_once_started() -> tuple[FastAPI, Any]:
    @asynccontextmanager
    async def lifespan(app):
        app.state.ready = False
        async with scanner() as app.state.scanner:
            app.state.ready = True
            yield

    async def require_ready(request: Request):
        if not request.app.state.ready:
            raise HTTPException(503)

    return service(lifespan=lifespan, ready=require_ready)


def ready_says_no_with_200() -> tuple[FastAPI, Any]:
    made, get = service(ready=lambda: None)

    @made.get("/ready")
    async def readiness(model: Annotated[Any, Depends(get)]):
        return {"ready": model.ready}

    return made, get


def alive_if_ready() -> tuple[FastAPI, Any]:
    async def alive(model: Annotated[Any, Depends(from_app_state)]):
        if not model.ready:
            raise HTTPException(503)

    return service(alive=alive)


def statuses_swapped() -> tuple[FastAPI, Any]:
    async def require_busy(model: Annotated[Any, Depends(from_app_state)]):
        if model.ready:
            raise HTTPException(503)

    return service(ready=require_busy, guards_predict=False)


def remembers_that_it_was_ready() -> tuple[FastAPI, Any]:
    seen: list[bool] = []

    async def require_ready(model: Annotated[Any, Depends(from_app_state)]):
        if not seen:
            seen.append(model.ready)
        if not seen[0]:
            raise HTTPException(503)

    return service(ready=require_ready)


def calls_the_port() -> tuple[FastAPI, Any]:
    made, _ = service()
    return made, Scanner(ready=True)


PARTS = "Return the numbers of the parts that are open"
AT_START = "Open both parts when the service starts"
OPEN = "A session is left open"

BANK = {
    "03.1": {
        "right": [
            clinic(with_a_stack),
            clinic(with_nested_finally),
            clinic(with_aclosing_and_state, from_request_state),
            clinic(Opened),
            clinic(a_generator_without_decorator),
        ],
        "wrong": [
            (clinic(without_finally), "Close what is open, and only that"),
            (clinic(with_one_finally), "Close what is open, and only that"),
            (clinic(with_one_finally_around_all), "Close what is open, and only that"),
            (clinic(closes_one_after_the_other), "the other one is left open"),
            (clinic(in_the_same_order), "the last opened first"),
            (clinic(model_first), AT_START),
            (clinic(both_at_once), AT_START),
            (clinic(closes_both_at_once), "close database during close model"),
            (clinic(starts_half_alive), "The start must fail"),
            (clinic(with_an_error_of_its_own), "The start must fail, with the error of the part"),
            (clinic(never_closes), "Close both when the service stops"),
            (clinic(forgets_to_await_the_close), "is an `await` missing"),
            (clinic(forgets_to_await), "'coroutine' object has no attribute 'number'"),
            (clinic(opens_nothing), "'State' object has no attribute 'database'"),
            (clinic(None, opens_for_each_request), AT_START),
            (clinic(None, opens_at_the_first_request), AT_START),
            (clinic(with_a_stack, fixed_numbers), PARTS),
            (clinic(with_a_stack, returns_the_parts), PARTS),
            (clinic(with_a_stack, returns_nothing), "is a `return` missing"),
            (clinic(with_a_stack, in_a_list), "Return both numbers in a dict"),
            (with_on_event(), "Close what is open, and only that"),
            (forgets_to_pass_it(), "'State' object has no attribute 'database'"),
        ],
    },
    "03.2": {
        "right": [
            desk(makes_a_function),
            desk(MakesAnInstance),
            desk_with_request_state(),
            desk_with_yield(),
            desk_with(make_journal),
            desk_whose_endpoints(measures_and_writes),
        ],
        "wrong": [
            (desk_with(the_same_for_all), "The lines of this request, and no others"),
            (desk_with(made_once), "The lines of this request, and no others"),
            (desk_with(emptied_for_each_request), "while other requests are under way"),
            (desk_with(with_a_new_list), "while other requests are under way"),
            (desk_with(Journal, use_cache=False), "['measured']"),
            (desk(forgets_the_limit), "There is no such row"),
            (desk(always_below_ten), "the number is the limit that `below` was given"),
            (desk_whose_endpoints(measures_nothing), "Await `measure(row)`"),
            (desk_whose_endpoints(waits_for_nothing), "Await `measure(row)`"),
            (desk_whose_endpoints(measures_in_a_task), "Await `measure(row)`"),
            (desk_whose_endpoints(writes_first), "Await `measure(row)`"),
            (desk_whose_endpoints(measures_twice), "Each of these happens once"),
            (desk_whose_endpoints(writes_elsewhere), "write into the same journal"),
            (desk_without_a_journal(), "were not written into a `Journal`"),
            (desk(one_too_many), "There is no such row"),
            (desk(any_number_below), "GET /few/-1"),
            (writes_both_lines(), "`below` returns a dependency"),
            (desk(makes_a_function)[0], "Give the check both"),
            (desk(writes_nothing), "['measured']"),
            (desk(refuses_with_422), "There is no such row"),
            (desk(forgets_to_return_the_row), "error"),
            (desk(journal_of_the_dependency), "['measured']"),
            (bypasses_the_dependency(), "were not written into a `Journal`"),
            (only_one_route(), "GET /all/3"),
            (returns_the_journal(), "The lines of this request"),
        ],
    },
    "03.3": {
        "right": [
            book(commits_and_closes),
            book(with_aclosing),
            book(with_else, reading="request"),
            book(closes_in_a_shield),
            commits_in_the_endpoint(),
        ],
        "wrong": [
            (book(leaves_it_open), OPEN),
            (book(closes_without_finally), OPEN),
            (book(commits_in_finally), "The endpoint has failed: nothing must be committed"),
            (book(closes_before_the_commit), "this session is closed"),
            (book(swallows), "The endpoint's error must come through"),
            (book(swallows_and_reraises_nothing_of_a_commit), "The client was told that its note is stored"),
            (book(catches_errors_only), OPEN),
            (book(commits_and_closes, writing=None), "A note is stored as soon as"),
            (book(commits_and_closes, writing="function", reading="function"), "this session is closed"),
            (book(commits_and_closes, writing="request", reading="function"), "A note is stored as soon as"),
            (book(returns_it, writing=None), "A note is stored as soon as"),
            (book(forgets_to_await_the_session), "is an `await` missing"),
            (book(forgets_to_await_the_commit), "is an `await` missing"),
            (book(one_for_all), "Each request opens one session, its own"),
            (book(opens_two), "Each request opens one session, its own"),
            (book(closes_after_an_http_error_only), "the endpoint fails with an OSError"),
            (book(commits_unless_http_error), "The endpoint has failed: nothing must be committed"),
            (book(closes_in_a_task), "does the request await `aclose()`"),
            (book(makes_it_a_503), "The status of a server's own error"),
            (book(commits_too_early), "A note is stored as soon as"),
            (book(closes_only), "A note is stored as soon as"),
        ],
    },
    "03.4": {
        "right": [restores_everything, patches_the_dictionary, RestoresTheEntry, replaces_the_dictionary],
        "wrong": [
            (no_finally, "after a block with an error"),
            (clears_all, "The override of another dependency must stay"),
            (empties_all_first, "The override of another dependency must stay"),
            (only_removes, "in the outer block, after the inner one"),
            (restores_after_assertions, "after a block with an error: KeyError"),
            (restores_after_exceptions, "an error that is no Exception"),
            (takes_no_stand_in, "<function get_label>"),
            (removes_if_there, "in the outer block, after the inner one"),
            (restores_the_same_object, "after the block"),
            (swallows_the_error, "An error in the block must come out of it"),
            (calls_the_stand_in, "missing 1 required positional argument: 'row'"),
            (wraps_the_stand_in, "GET /label/7 in the block"),
            (swaps_the_two, "GET /label/7 in the block"),
            (restores_none, "error"),
            (leaves_an_entry, "Something is left in `dependency_overrides`"),
            (just_sets, "It must work as `with replaced(…):`"),
            (is_only_a_generator, "is `@contextmanager` missing"),
        ],
    },
    "03.5": {
        "right": [
            service(),
            with_lifespan_state(),
            with_statuses_in_the_endpoints(),
            with_errors_as_statuses(),
            with_a_module_variable(),
        ],
        "wrong": [
            (as_it_was(), "Open the model when the service starts, once"),
            (opens_in_a_dependency(), "Open the model when the service starts, once"),
            (opens_at_first_use(), "Open the model when the service starts, once"),
            (does_not_release(), "The model is not closed"),
            (closes_at_once(), "this model is closed"),
            (starts_with_damage(), "whose model is damaged must not start"),
            (opens_in_a_task(), "expected 200"),
            (with_one_list(), "labels"),
            (with_one_list_that_is_cleared(), "These are not the labels of this request"),
            (with_rows_in_app_state(), "These are not the labels of this request"),
            (past_the_port(), "The endpoint has another way to its model"),
            (readiness_past_the_port(), "`/readiness` asks another model"),
            (without_the_model(), "The endpoint has another way to its model"),
            (the_first_label_only(), "labels"),
            (without_await(), "is an `await` missing"),
            (sorts_the_rows(), "A label for each row, in order"),
            (each_row_once(), "A label for each row, in order"),
            (backwards(), "These are not the labels of this request"),
            (guarded_by_the_port(), "must depend on `get_scanner`, and not be in it"),
            (always_ready(), "The model cannot answer now"),
            (ready_once_started(), "The model cannot answer now"),
            (ready_says_no_with_200(), "The model cannot answer now"),
            (service(guards_predict=False), "The model cannot answer now"),
            (alive_if_ready(), "A restart would only make it take longer"),
            (statuses_swapped(), "The model is ready"),
            (remembers_that_it_was_ready(), "The model cannot answer now"),
            (calls_the_port(), "is the function itself"),
            (service()[0], "Give the check both"),
        ],
    },
}
