"""Answers to lesson 08: security, caching, limits."""

import asyncio
import json
import math
import sqlite3
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import jwt
from fastapi import (
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Security,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
)
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, OAuth2PasswordBearer, SecurityScopes

from workshop.lab.fixtures.lesson_08 import (
    KEYS,
    UnknownTokenError,
    cases,
    decode_part,
    find_caller,
    label_of_row,
)

# 08.1: read a token

CHECKS: dict[str, Any] = {"audience": "clinic", "issuer": "clinic-login", "options": {"require": ["exp", "sub"]}}


def read(token, keys):
    key = keys.get(jwt.get_unverified_header(token).get("kid"))
    if key is None:
        raise jwt.InvalidTokenError("unknown key")
    decoded = jwt.decode_complete(token, key, algorithms=["HS256"], **CHECKS)
    if decoded["header"].get("typ") != "at+jwt":
        raise jwt.InvalidTokenError("another kind")
    return decoded["payload"]


def read_with_try(token, keys):
    try:
        header = jwt.get_unverified_header(token)
        key = keys[header["kid"]]
        assert header["typ"] == "at+jwt"
    except (KeyError, AssertionError) as error:
        raise jwt.InvalidTokenError from error
    return jwt.decode(token, key, ["HS256"], **CHECKS)


async def read_in_the_end(token, keys):
    header = jwt.get_unverified_header(token)
    if header.get("kid") not in keys or header.get("typ", "") != "at+jwt":
        raise jwt.InvalidTokenError("key or kind")
    claims = jwt.decode(token, keys[header["kid"]], algorithms="HS256", options={"verify_aud": False})
    if claims.get("aud") != "clinic" or claims.get("iss") != "clinic-login" or not {"exp", "sub"} <= claims.keys():
        raise jwt.InvalidTokenError("claims")
    return claims


def with_key_error(token, keys):
    header = jwt.get_unverified_header(token)
    decoded = jwt.decode(token, keys[header["kid"]], algorithms=["HS256"], **CHECKS)
    if header["typ"] != "at+jwt":
        raise jwt.InvalidTokenError
    return decoded


def tries_all_keys(token, keys):
    for key in keys.values():
        try:
            decoded = jwt.decode_complete(token, key, algorithms=["HS256"], **CHECKS)
        except jwt.InvalidSignatureError:
            continue
        if decoded["header"].get("typ") != "at+jwt":
            break
        return decoded["payload"]
    raise jwt.InvalidTokenError


def newest_key_only(token, keys):
    return read(token, dict(list(keys.items())[:1]))


def trusts_the_algorithm(token, keys):
    header = jwt.get_unverified_header(token)
    if header.get("kid") not in keys or header.get("typ") != "at+jwt":
        raise jwt.InvalidTokenError
    return jwt.decode(token, keys[header["kid"]], algorithms=[header["alg"]], **CHECKS)


def takes_more_algorithms(token, keys):
    header = jwt.get_unverified_header(token)
    if header.get("kid") not in keys or header.get("typ") != "at+jwt":
        raise jwt.InvalidTokenError
    return jwt.decode(token, keys[header["kid"]], algorithms=["HS256", "HS384", "HS512"], **CHECKS)


def does_not_verify(token, keys):
    return jwt.decode(token, options={"verify_signature": False})


def skips(**changes: Any) -> Callable[..., Any]:
    """A reader that leaves a check out."""
    checks = CHECKS | changes

    def reads(token, keys):
        header = jwt.get_unverified_header(token)
        if header.get("kid") not in keys or header.get("typ") != "at+jwt":
            raise jwt.InvalidTokenError
        return jwt.decode(token, keys[header["kid"]], algorithms=["HS256"], **checks)

    return reads


def without_kind(token, keys):
    header = jwt.get_unverified_header(token)
    if header.get("kid") not in keys:
        raise jwt.InvalidTokenError
    return jwt.decode(token, keys[header["kid"]], algorithms=["HS256"], **CHECKS)


def falls_back_to_a_key(token, keys):
    header = jwt.get_unverified_header(token)
    key = keys.get(header.get("kid"), next(iter(keys.values())))
    if header.get("typ") != "at+jwt":
        raise jwt.InvalidTokenError
    return jwt.decode(token, key, algorithms=["HS256"], **CHECKS)


def falls_back_without_a_kid(token, keys):
    header = jwt.get_unverified_header(token)
    if (kid := header.get("kid", list(keys)[-1])) not in keys or header.get("typ") != "at+jwt":
        raise jwt.InvalidTokenError
    return jwt.decode(token, keys[kid], algorithms=["HS256"], **CHECKS)


def falls_back_to_the_notebooks_key(token, keys):
    header = jwt.get_unverified_header(token)
    if header.get("typ") != "at+jwt":
        raise jwt.InvalidTokenError
    return jwt.decode(token, keys.get(header.get("kid"), KEYS["2026-12"]), algorithms=["HS256"], **CHECKS)


def with_leeway(token, keys):
    header = jwt.get_unverified_header(token)
    if header.get("kid") not in keys or header.get("typ") != "at+jwt":
        raise jwt.InvalidTokenError
    return jwt.decode(token, keys[header["kid"]], algorithms=["HS256"], leeway=10, **CHECKS)


def returns_the_header(token, keys):
    read(token, keys)
    return jwt.get_unverified_header(token)


def forgets_to_return(token, keys):
    read(token, keys)


def returns_none_if_bad(token, keys):
    try:
        return read(token, keys)
    except jwt.InvalidTokenError:
        return None


# 08.2: who may see it?


def ward(
    get: Callable[..., Any], delete: Callable[..., Any], socket: Callable[..., Any], app: FastAPI | None = None
) -> FastAPI:
    made = app or FastAPI()
    made.get("/cases/{case_id}")(get)
    made.delete("/cases/{case_id}")(delete)
    made.websocket("/cases")(socket)
    return made


def known(token: str, status: int = 401, **headers: str) -> Any:
    try:
        return find_caller(token)
    except UnknownTokenError:
        raise HTTPException(status, headers=headers or {"WWW-Authenticate": "Bearer"}) from None


def token_in(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token if scheme == "Bearer" else ""


def caller_of(authorization: str, status: int = 401, **headers: str) -> Any:
    return known(token_in(authorization), status, **headers)


async def visible(case_id: str, caller: Any) -> Any:
    case = await cases.get(case_id)
    if case is None or (case.owner != caller.name and "cases:all" not in caller.scopes):
        raise HTTPException(404)
    return case


def may(caller: Any, scope: str) -> Any:
    if scope not in caller.scopes:
        raise HTTPException(403)
    return caller


async def get(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return {"text": (await visible(case_id, may(caller_of(authorization), "cases:read"))).text}


async def delete(case_id: str, authorization: Annotated[str, Header()] = "") -> None:
    await visible(case_id, may(caller_of(authorization), "cases:write"))
    await cases.delete(case_id)


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    try:
        caller = may(known(await socket.receive_text()), "cases:read")
    except HTTPException:
        await socket.close(1008)
        return
    async for case_id in socket.iter_text():
        try:
            await socket.send_json({"text": (await visible(case_id, caller)).text})
        except HTTPException as error:
            await socket.send_json({"error": error.status_code})


def in_the_endpoints() -> FastAPI:
    return ward(get, delete, talk)


def with_security_scopes() -> FastAPI:
    scheme = OAuth2PasswordBearer("token")

    async def find(needed: SecurityScopes, token: Annotated[str, Depends(scheme)]) -> Any:
        caller = known(token)
        for scope in needed.scopes:
            may(caller, scope)
        return caller

    async def get_case(case_id: str, caller: Annotated[Any, Security(find, scopes=["cases:read"])]) -> Any:
        return {"text": (await visible(case_id, caller)).text}

    async def delete_case(case_id: str, caller: Annotated[Any, Security(find, scopes=["cases:write"])]) -> Any:
        await visible(case_id, caller)
        await cases.delete(case_id)
        return {"deleted": case_id}

    return ward(get_case, delete_case, talk)


class Needs:
    """A dependency that is an object."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
    ) -> Any:
        return may(known(given.credentials if given else ""), self.scope)


async def closes_with_exceptions(socket: WebSocket) -> None:
    await socket.accept()
    try:
        caller = find_caller(await socket.receive_text())
    except UnknownTokenError:
        raise WebSocketException(1008, "unknown token") from None
    if "cases:read" not in caller.scopes:
        raise WebSocketException(1008, "missing scope")
    try:
        while True:
            case = await cases.get(await socket.receive_text())
            is_theirs = case and (case.owner == caller.name or "cases:all" in caller.scopes)
            await socket.send_json({"text": case.text} if case and is_theirs else {"error": 404})
    except WebSocketDisconnect:
        pass


def with_objects_as_dependencies() -> FastAPI:
    async def get_case(case_id: str, caller: Annotated[Any, Depends(Needs("cases:read"))]) -> Any:
        return {"text": (await visible(case_id, caller)).text}

    async def delete_case(case_id: str, caller: Annotated[Any, Depends(Needs("cases:write"))]) -> Any:
        await visible(case_id, caller)
        await cases.delete(case_id)

    return ward(get_case, delete_case, closes_with_exceptions)


async def any_scheme(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return {"text": (await visible(case_id, may(known(authorization.partition(" ")[2]), "cases:read"))).text}


async def bare_token(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return {"text": (await visible(case_id, may(known(authorization.removeprefix("Bearer ")), "cases:read"))).text}


async def with_owner(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return await visible(case_id, may(caller_of(authorization), "cases:read"))


async def foreign_is_forbidden(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    caller = may(caller_of(authorization), "cases:read")
    case = await cases.get(case_id)
    if case is None:
        raise HTTPException(404)
    if case.owner != caller.name and "cases:all" not in caller.scopes:
        raise HTTPException(403)
    return {"text": case.text}


async def no_owner(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    may(caller_of(authorization), "cases:read")
    if (case := await cases.get(case_id)) is None:
        raise HTTPException(404)
    return {"text": case.text}


async def tells_which(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    caller = may(caller_of(authorization), "cases:read")
    case = await cases.get(case_id)
    if case is None:
        raise HTTPException(404, "there is no such case")
    if case.owner != caller.name and "cases:all" not in caller.scopes:
        raise HTTPException(404, "this is not your case")
    return {"text": case.text}


async def no_admin(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    caller = may(caller_of(authorization), "cases:read")
    case = await cases.get(case_id)
    if case is None or case.owner != caller.name:
        raise HTTPException(404)
    return {"text": case.text}


async def no_scope(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return {"text": (await visible(case_id, caller_of(authorization))).text}


async def scope_in_text(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    caller = caller_of(authorization)
    if "cases:read" not in " ".join(caller.scopes):
        raise HTTPException(403)
    return {"text": (await visible(case_id, caller)).text}


async def case_first(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    caller = caller_of(authorization)
    case = await visible(case_id, caller)
    may(caller, "cases:read")
    return {"text": case.text}


async def strangers_are_forbidden(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return {"text": (await visible(case_id, may(caller_of(authorization, 403), "cases:read"))).text}


async def no_challenge(case_id: str, authorization: Annotated[str, Header()] = "") -> Any:
    return {"text": (await visible(case_id, may(caller_of(authorization, a="b"), "cases:read"))).text}


async def header_required(case_id: str, authorization: Annotated[str, Header()]) -> Any:
    return await get(case_id, authorization)


async def forgets_await(case_id: str, authorization: Annotated[str, Header()] = "") -> None:
    await visible(case_id, may(caller_of(authorization), "cases:write"))
    cases.delete(case_id)


async def deletes_by_scope_only(case_id: str, authorization: Annotated[str, Header()] = "") -> None:
    may(caller_of(authorization), "cases:write")
    await cases.delete(case_id)


async def deletes_then_looks(case_id: str, authorization: Annotated[str, Header()] = "") -> None:
    caller = may(caller_of(authorization), "cases:write")
    case = await cases.get(case_id)
    await cases.delete(case_id)
    if case is None or (case.owner != caller.name and "cases:all" not in caller.scopes):
        raise HTTPException(404)


async def deletes_with_read(case_id: str, authorization: Annotated[str, Header()] = "") -> None:
    await visible(case_id, may(caller_of(authorization), "cases:read"))
    await cases.delete(case_id)


async def socket_without_owner(socket: WebSocket) -> None:
    await socket.accept()
    try:
        may(known(await socket.receive_text()), "cases:read")
    except HTTPException:
        raise WebSocketException(1008) from None
    async for case_id in socket.iter_text():
        case = await cases.get(case_id)
        await socket.send_json({"text": case.text} if case else {"error": 404})


async def socket_with_owner(socket: WebSocket) -> None:
    await socket.accept()
    try:
        caller = may(known(await socket.receive_text()), "cases:read")
    except HTTPException:
        raise WebSocketException(1008) from None
    async for case_id in socket.iter_text():
        try:
            case = await visible(case_id, caller)
            await socket.send_json({"text": case.text, "owner": case.owner})
        except HTTPException:
            await socket.send_json({"error": 404})


last: dict[str, Any] = {}


async def socket_with_global_caller(socket: WebSocket) -> None:
    await socket.accept()
    try:
        last["caller"] = may(known(await socket.receive_text()), "cases:read")
    except HTTPException:
        raise WebSocketException(1008) from None
    async for case_id in socket.iter_text():
        try:
            await socket.send_json({"text": (await visible(case_id, last["caller"])).text})
        except HTTPException:
            await socket.send_json({"error": 404})


async def socket_without_scope(socket: WebSocket) -> None:
    await socket.accept()
    try:
        caller = known(await socket.receive_text())
    except HTTPException:
        raise WebSocketException(1008) from None
    async for case_id in socket.iter_text():
        try:
            await socket.send_json({"text": (await visible(case_id, caller)).text})
        except HTTPException as error:
            await socket.send_json({"error": error.status_code})


async def socket_without_token(socket: WebSocket) -> None:
    await socket.accept()
    await socket.receive_text()
    async for case_id in socket.iter_text():
        case = await cases.get(case_id)
        await socket.send_json({"text": case.text} if case else {"error": 404})


async def socket_that_ends_at_404(socket: WebSocket) -> None:
    await socket.accept()
    try:
        caller = may(known(await socket.receive_text()), "cases:read")
        async for case_id in socket.iter_text():
            await socket.send_json({"text": (await visible(case_id, caller)).text})
    except HTTPException:
        raise WebSocketException(1008) from None


async def socket_that_closes_with_1000(socket: WebSocket) -> None:
    await socket.accept()
    try:
        caller = may(known(await socket.receive_text()), "cases:read")
    except HTTPException:
        await socket.close()
        return
    async for case_id in socket.iter_text():
        try:
            await socket.send_json({"text": (await visible(case_id, caller)).text})
        except HTTPException as error:
            await socket.send_json({"error": error.status_code})


async def socket_of_a_header(socket: WebSocket) -> None:
    caller = caller_of(socket.headers.get("Authorization", ""))
    await socket.accept()
    async for case_id in socket.iter_text():
        await socket.send_json({"text": (await visible(case_id, caller)).text})


async def only_accepts(socket: WebSocket) -> None:
    await socket.accept()


# 08.3: a limit that holds


def admit(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("DELETE FROM hits WHERE caller = ? AND at <= ?", (caller, now - window_s))
        times = [at for (at,) in db.execute("SELECT at FROM hits WHERE caller = ? ORDER BY at", (caller,))]
        if len(times) >= limit:
            return times[-limit] + window_s - now
        db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
        return 0
    finally:
        db.execute("COMMIT")


def admit_in_one_statement(db, caller, limit, window_s, now):
    added = db.execute(
        "INSERT INTO hits SELECT ?1, ?4 WHERE (SELECT count(*) FROM hits WHERE caller = ?1 AND at > ?4 - ?3) < ?2",
        (caller, limit, window_s, now),
    ).rowcount
    if added == 1:
        return 0.0
    [oldest] = db.execute(
        "SELECT at FROM hits WHERE caller = ? ORDER BY at DESC LIMIT 1 OFFSET ?", (caller, limit - 1)
    ).fetchone()
    return max(0.001, oldest + window_s - now)


async def admit_with_a_context(db, caller, limit, window_s, now):
    with db:
        db.execute("BEGIN EXCLUSIVE")
        recent = db.execute(
            "SELECT count(*), min(at) FROM hits WHERE caller = ? AND at > ?", (caller, now - window_s)
        ).fetchone()
        if recent[0] < limit:
            db.cursor().execute("INSERT INTO hits (at, caller) VALUES (?, ?)", (now, caller))
            return False
    return recent[1] + window_s - now


def admit_in_a_table_of_its_own(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("CREATE TABLE IF NOT EXISTS recent (caller TEXT PRIMARY KEY, times TEXT)")
        row = db.execute("SELECT times FROM recent WHERE caller = ?", (caller,)).fetchone()
        times = [at for at in json.loads(row[0] if row else "[]") if at > now - window_s]
        if len(times) >= limit:
            return math.ceil(times[0] + window_s - now)
        db.execute("INSERT OR REPLACE INTO recent VALUES (?, ?)", (caller, json.dumps([*times, now])))
        return 0
    finally:
        db.execute("COMMIT")


def rounds_down(db, caller, limit, window_s, now):
    return int(admit(db, caller, limit, window_s, now))


def keeps_whole_seconds(db, caller, limit, window_s, now):
    return admit(db, caller, limit, window_s, int(now))


def with_a_window_of_a_minute(db, caller, limit, window_s, now):
    return admit(db, caller, limit, 60, now)


def with_a_limit_of_three(db, caller, limit, window_s, now):
    return admit(db, caller, 3, window_s, now)


def compares(condition: str) -> Callable[..., Any]:
    def admits(db, caller, limit, window_s, now):
        with db:
            db.execute("BEGIN IMMEDIATE")
            sql = f"SELECT count(*), min(at) FROM hits WHERE {condition.format(caller)}"
            n, first = db.execute(sql, {"caller": caller, "start": now - window_s}).fetchone()
            if n >= limit:
                return first + window_s - now
            db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
        return 0

    return admits


def without_a_transaction(db, caller, limit, window_s, now):
    db.execute("DELETE FROM hits WHERE caller = ? AND at <= ?", (caller, now - window_s))
    times = [at for (at,) in db.execute("SELECT at FROM hits WHERE caller = ? ORDER BY at", (caller,)).fetchall()]
    if len(times) >= limit:
        return times[0] + window_s - now
    db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    return 0


def with_a_context_only(db, caller, limit, window_s, now):
    with db:
        return without_a_transaction(db, caller, limit, window_s, now)


def counts_the_refused(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    times = [
        at
        for (at,) in db.execute(
            "SELECT at FROM hits WHERE caller = ? AND at > ? ORDER BY at", (caller, now - window_s)
        ).fetchall()
    ]
    db.execute("COMMIT")
    return 0 if len(times) <= limit else times[0] + window_s - now


def for_all_callers(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    times = [at for (at,) in db.execute("SELECT at FROM hits WHERE at > ? ORDER BY at", (now - window_s,)).fetchall()]
    if len(times) < limit:
        db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    db.execute("COMMIT")
    return 0 if len(times) < limit else times[0] + window_s - now


def forgets_all_callers(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    [[n, first]] = db.execute(
        "SELECT count(*), min(at) FROM hits WHERE caller = ? AND at > ?", (caller, now - window_s)
    ).fetchall()
    if n < limit:
        db.execute("DELETE FROM hits WHERE caller != ?", (caller,))
        db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    db.execute("COMMIT")
    return 0 if n < limit else first + window_s - now


def in_a_fixed_window(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    start = now // window_s * window_s
    [[n]] = db.execute("SELECT count(*) FROM hits WHERE caller = ? AND at >= ?", (caller, start)).fetchall()
    if n < limit:
        db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    db.execute("COMMIT")
    return 0 if n < limit else start + window_s - now


def never_forgets(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    [[n, first]] = db.execute("SELECT count(*), min(at) FROM hits WHERE caller = ?", (caller,)).fetchall()
    if n < limit:
        db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    db.execute("COMMIT")
    return 0 if n < limit else max(1, first + window_s - now)


def one_too_many(db, caller, limit, window_s, now):
    return admit(db, caller, limit + 1, window_s, now)


def says_the_window(db, caller, limit, window_s, now):
    return window_s if admit(db, caller, limit, window_s, now) else 0


def says_the_time(db, caller, limit, window_s, now):
    waits = admit(db, caller, limit, window_s, now)
    return now + waits if waits else 0


def says_yes_or_no(db, caller, limit, window_s, now):
    return admit(db, caller, limit, window_s, now) == 0


def returns_nothing_if_admitted(db, caller, limit, window_s, now):
    return admit(db, caller, limit, window_s, now) or None


in_memory: dict[str, deque[float]] = defaultdict(deque)


def in_this_process(db, caller, limit, window_s, now):
    times = in_memory[caller]
    while times and times[0] <= now - window_s:
        times.popleft()
    if len(times) >= limit:
        return times[0] + window_s - now
    times.append(now)
    return 0


lock = threading.Lock()


def with_a_lock(db, caller, limit, window_s, now):
    with lock:
        return without_a_transaction(db, caller, limit, window_s, now)


def keeps_the_transaction(db, caller, limit, window_s, now):
    db.execute("BEGIN IMMEDIATE")
    [[n, first]] = db.execute(
        "SELECT count(*), min(at) FROM hits WHERE caller = ? AND at > ?", (caller, now - window_s)
    ).fetchall()
    if n >= limit:
        return first + window_s - now
    db.execute("INSERT INTO hits VALUES (?, ?)", (caller, now))
    db.execute("COMMIT")
    return 0


def with_its_own_clock(db, caller, limit, window_s, now):
    return admit(db, caller, limit, window_s, time.time())


# 08.4: compute it once


class WithTasks:
    def __init__(self, model):
        self.model, self.tasks = model, {}

    async def predict(self, row):
        key = (self.model.version, *row)
        if key not in self.tasks:
            task = self.tasks[key] = asyncio.create_task(self.model.predict(row))
            task.add_done_callback(lambda done: self.tasks.pop(key) if done.exception() else None)
        return await asyncio.shield(self.tasks[key])


class WithAnswersAndTasks:
    def __init__(self, model):
        self.model, self.answers, self.under_way = model, {}, {}

    async def compute(self, key, row):
        try:
            self.answers[key] = await self.model.predict(row)
            return self.answers[key]
        finally:
            del self.under_way[key]

    async def predict(self, row):
        key = f"{self.model.version} {row}"
        if key in self.answers:
            return self.answers[key]
        task = self.under_way.get(key) or self.under_way.setdefault(key, asyncio.ensure_future(self.compute(key, row)))
        await asyncio.wait([task])
        return task.result()


class WithLocks:
    def __init__(self, model):
        self.model, self.answers, self.locks = model, {}, defaultdict(asyncio.Lock)

    async def predict(self, row):
        key = (tuple(row), self.model.version)
        async with self.locks[key]:
            if key not in self.answers:
                self.answers[key] = await self.model.predict(row)
            return self.answers[key]


class AnswersOnly:
    def __init__(self, model):
        self.model, self.answers = model, {}

    async def predict(self, row):
        key = (self.model.version, *row)
        if key not in self.answers:
            self.answers[key] = await self.model.predict(row)
        return self.answers[key]


class NoCache:
    def __init__(self, model):
        self.model = model

    async def predict(self, row):
        return await self.model.predict(row)


class WithoutVersion(WithTasks):
    async def predict(self, row):
        key = tuple(row)
        if key not in self.tasks:
            task = self.tasks[key] = asyncio.create_task(self.model.predict(row))
            task.add_done_callback(lambda done: self.tasks.pop(key) if done.exception() else None)
        return await asyncio.shield(self.tasks[key])


class VersionAtTheEnd:
    """Files an answer under the version that runs when it is there."""

    def __init__(self, model):
        self.model, self.answers, self.under_way = model, {}, {}

    async def predict(self, row):
        if (key := (self.model.version, *row)) not in self.answers:
            if key not in self.under_way:
                self.under_way[key] = asyncio.create_task(self.model.predict(row))
            try:
                got = await asyncio.shield(self.under_way[key])
            finally:
                if key in self.under_way and self.under_way[key].done():
                    del self.under_way[key]
            self.answers[self.model.version, *row] = got
            return got
        return self.answers[key]


class ClearsAtARollout:
    """Empties the cache when it sees another version."""

    def __init__(self, model):
        self.model, self.version, self.answers, self.tasks = model, model.version, {}, {}

    async def compute(self, row):
        try:
            self.answers[tuple(row)] = await self.model.predict(row)
            return self.answers[tuple(row)]
        finally:
            self.tasks.pop(tuple(row), None)

    async def predict(self, row):
        if self.version != self.model.version:
            self.version = self.model.version
            self.answers.clear()
        if tuple(row) in self.answers:
            return self.answers[tuple(row)]
        if tuple(row) not in self.tasks:
            self.tasks[tuple(row)] = asyncio.create_task(self.compute(row))
        return await asyncio.shield(self.tasks[tuple(row)])


class KeepsErrors(WithTasks):
    async def predict(self, row):
        key = (self.model.version, *row)
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
        return await asyncio.shield(self.tasks[key])


class WithoutShield(WithTasks):
    async def predict(self, row):
        key = (self.model.version, *row)
        if key not in self.tasks:
            task = self.tasks[key] = asyncio.create_task(self.model.predict(row))
            task.add_done_callback(lambda done: self.tasks.pop(key) if done.cancelled() or done.exception() else None)
        return await self.tasks[key]


class LeaderWithAFuture:
    """The first one computes for all, and nobody if it leaves."""

    def __init__(self, model):
        self.model, self.futures = model, {}

    async def predict(self, row):
        key = (self.model.version, *row)
        if key in self.futures:
            return await asyncio.shield(self.futures[key])
        future = self.futures[key] = asyncio.get_running_loop().create_future()
        try:
            got = await self.model.predict(row)
        except Exception as error:
            del self.futures[key]
            future.set_exception(error)
            future.exception()
            raise
        future.set_result(got)
        return got


class OneLock(WithLocks):
    async def predict(self, row):
        key = (tuple(row), self.model.version)
        async with self.locks["all"]:
            if key not in self.answers:
                self.answers[key] = await self.model.predict(row)
            return self.answers[key]


class ListAsKey(WithTasks):
    async def predict(self, row):
        key = (self.model.version, row)
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
        return await asyncio.shield(self.tasks[key])


class IdAsKey(WithTasks):
    """Keeps the rows, so that no other row ever has the same id."""

    def __init__(self, model):
        super().__init__(model)
        self.rows = []

    async def predict(self, row):
        self.rows.append(row)
        key = (self.model.version, id(row))
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
        return await asyncio.shield(self.tasks[key])


class LengthAsKey(WithTasks):
    """Different rows share a key."""

    async def predict(self, row):
        key = (self.model.version, len(row))
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
        return await asyncio.shield(self.tasks[key])


def with_key(key: Callable[[list[float]], Any]) -> Any:
    """A cache in which different rows share a key."""

    class WithKey(WithTasks):
        async def predict(self, row):
            at = (self.model.version, key(row))
            if at not in self.tasks:
                task = self.tasks[at] = asyncio.create_task(self.model.predict(row))
                task.add_done_callback(lambda done: self.tasks.pop(at) if done.exception() else None)
            return await asyncio.shield(self.tasks[at])

    return WithKey


class SharedByAll(WithTasks):
    def __init__(self, model, tasks={}):  # noqa: B006
        self.model, self.tasks = model, tasks


class ForgetsWhoeverLeaves(WithTasks):
    async def predict(self, row):
        key = (self.model.version, *row)
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
        try:
            return await asyncio.shield(self.tasks[key])
        except BaseException:
            self.tasks.pop(key, None)
            raise


class WaiterForgetsErrors(WithTasks):
    async def predict(self, row):
        key = (self.model.version, *row)
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
        try:
            return await asyncio.shield(self.tasks[key])
        except Exception:
            self.tasks.pop(key, None)
            raise


class StarterKeeps(WithAnswersAndTasks):
    """Only the first one keeps the answer, if it is still there."""

    async def predict(self, row):
        key = (self.model.version, *row)
        if key in self.answers:
            return self.answers[key]
        if starts := key not in self.under_way:
            self.under_way[key] = asyncio.create_task(self.model.predict(row))
        try:
            got = await asyncio.shield(self.under_way[key])
            if starts:
                self.answers[key] = got
            return got
        finally:
            if starts:
                del self.under_way[key]


class ClearsAtAnError(WithTasks):
    async def predict(self, row):
        try:
            return await super().predict(row)
        except Exception:
            self.tasks.clear()
            raise


class CachedCoroutine:
    """`lru_cache` keeps the coroutine, which can be awaited once."""

    def __init__(self, model):
        self.model = model
        self.cached = lru_cache(lambda version, *row: model.predict(row))

    async def predict(self, row):
        return await self.cached(self.model.version, *row)


class SwallowsErrors(WithTasks):
    async def predict(self, row):
        try:
            return await super().predict(row)
        except Exception:
            return None


class IgnoresCancelling(WithTasks):
    """Who is cancelled gets the answer nevertheless."""

    async def predict(self, row):
        try:
            return await super().predict(row)
        except asyncio.CancelledError:
            return await super().predict(row)


class ReturnsTheTask(WithTasks):
    async def predict(self, row):
        return asyncio.create_task(self.model.predict(row))


# 08.5: your own service


def open_counter() -> sqlite3.Connection:
    path = Path(tempfile.mkdtemp(), "clinic.sqlite")
    db = sqlite3.connect(path, 5, isolation_level=None, check_same_thread=False)
    db.execute("CREATE TABLE IF NOT EXISTS hits (caller TEXT, at REAL)")
    return db


def clinic(
    *,
    reads: Callable[..., Any] = read,
    reads_on_socket: Callable[..., Any] | None = None,
    scope_of: Callable[..., Any] = lambda claims: "predict" in claims.get("scope", "").split(),
    scope_on_socket: Callable[..., Any] | None = None,
    admits: Callable[..., Any] = admit,
    key: Callable[..., Any] = lambda claims, means: claims["sub"],
    before: Callable[..., Any] = lambda db, token: None,
    limits_socket: bool = True,
    headers: Callable[..., Any] = lambda wait_s: {"Retry-After": str(max(1, math.ceil(wait_s)))},
    closes: bool = False,
    asks_first: bool = False,
    refuses: int = 401,
    bearer: Callable[[str], str] = token_in,
    challenge: dict[str, str] | None = None,
    global_sub: bool = False,
    counter: sqlite3.Connection | None = None,
    labels: Callable[..., Any] = label_of_row,
) -> FastAPI:
    app, db = FastAPI(), counter or open_counter()
    challenge = {"WWW-Authenticate": "Bearer"} if challenge is None else challenge
    last: dict[str, Any] = {}
    socket_reads, socket_scope = reads_on_socket or reads, scope_on_socket or scope_of

    @app.get("/label/{row}")
    async def label(row: int, authorization: Annotated[str, Header()] = "") -> Any:
        token = bearer(authorization)
        before(db, token)
        try:
            claims = reads(token, KEYS)
        except jwt.InvalidTokenError:
            raise HTTPException(refuses, headers=challenge) from None
        if not scope_of(claims):
            raise HTTPException(403)
        early = await labels(row) if asks_first else None
        if wait_s := admits(db, key(claims, "http"), 3, 60, time.time()):
            raise HTTPException(429, headers=headers(wait_s))
        return {"label": early or await labels(row)}

    @app.websocket("/labels")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        try:
            claims = socket_reads(await socket.receive_text(), KEYS)
        except jwt.InvalidTokenError:
            raise WebSocketException(1008) from None
        if not socket_scope(claims):
            raise WebSocketException(1008)
        last["claims"] = claims
        async for row in socket.iter_text():
            claims = last["claims"] if global_sub else claims
            wait_s = limits_socket and admits(db, key(claims, "socket"), 3, 60, time.time())
            if wait_s and closes:
                raise WebSocketException(1008)
            if wait_s:
                await socket.send_json({"error": 429, "retry_after_s": wait_s})
            else:
                await socket.send_json({"label": await labels(int(row))})

    return app


class TooOftenError(Exception):
    pass


def clinic_with_handlers() -> FastAPI:
    """Dependencies, and handlers of errors; counts in memory."""
    app = FastAPI()
    times: dict[str, deque[float]] = defaultdict(deque)

    @app.exception_handler(jwt.InvalidTokenError)
    async def unauthenticated(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 401, {"WWW-Authenticate": "Bearer"})

    @app.exception_handler(TooOftenError)
    async def too_often(request: Request, error: TooOftenError) -> JSONResponse:
        return JSONResponse({"detail": "slow down"}, 429, {"Retry-After": str(error.args[0])})

    def spend(name: str) -> None:
        now, past = time.monotonic(), times[name]
        while past and past[0] <= now - 60:
            past.popleft()
        if len(past) >= 3:
            raise TooOftenError(int(past[0] + 60 - now) + 1)
        past.append(now)

    async def find_claims(request: Request) -> Any:
        claims = read_with_try(token_in(request.headers.get("Authorization", "")), KEYS)
        if "predict" not in set(claims.get("scope", "").split()):
            raise HTTPException(403)
        return claims

    @app.get("/label/{row}")
    async def label(row: int, claims: Annotated[Any, Depends(find_claims)]) -> Any:
        spend(claims["sub"])
        return {"label": await label_of_row(row)}

    @app.websocket("/labels")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        try:
            claims = read_with_try(await socket.receive_text(), KEYS)
            assert "predict" in claims.get("scope", "").split()
        except (jwt.InvalidTokenError, AssertionError):
            await socket.close(1008, "who are you?")
            return
        async for row in socket.iter_text():
            try:
                spend(claims["sub"])
            except TooOftenError as error:
                await socket.send_json({"error": 429, "retry_after_s": error.args[0]})
                continue
            await socket.send_json({"label": await label_of_row(int(row))})

    return app


def clinic_with_threads(shares: bool) -> FastAPI:
    """Counts in FastAPI's threads, with one connection for all of them or with one for each request."""
    shared = open_counter()
    app = clinic(counter=shared)
    [[path]] = [row[2:] for row in shared.execute("PRAGMA database_list")]
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") != "/label/{row}"]

    def spend(authorization: Annotated[str, Header()] = "") -> None:
        try:
            claims = read(token_in(authorization), KEYS)
        except jwt.InvalidTokenError:
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"}) from None
        if "predict" not in claims.get("scope", "").split():
            raise HTTPException(403)
        db = shared if shares else sqlite3.connect(path, 5, isolation_level=None)
        if wait_s := admit(db, claims["sub"], 3, 60, time.time()):
            raise HTTPException(429, headers={"Retry-After": str(math.ceil(wait_s))})

    @app.get("/label/{row}", dependencies=[Depends(spend)])
    async def label(row: int) -> Any:
        return {"label": await label_of_row(row)}

    return app


def clinic_with_a_race() -> FastAPI:
    """Counts a label when the model has answered."""
    times: dict[str, list[float]] = defaultdict(list)

    def looks(db, caller, limit, window_s, now):
        recent = [at for at in times[caller] if at > now - window_s]
        return recent[0] + window_s - now if len(recent) >= limit else 0

    async def labels(row):
        got = await label_of_row(row)
        times[current.get()].append(time.time())
        return got

    def key(claims, means):
        current.set(claims["sub"])
        return claims["sub"]

    return clinic(admits=looks, labels=labels, key=key)


current: ContextVar[str] = ContextVar("current")


def at_time_0(db, caller, limit, window_s, now):
    return admit(db, caller, limit, window_s, 0)


def in_a_second(db, caller, limit, window_s, now):
    return admit(db, caller, limit, 1, now)


def unverified(token, keys):
    try:
        return decode_part(token.split(".")[1])
    except (IndexError, ValueError):
        raise jwt.InvalidTokenError from None


def counts_unverified(db, token):
    try:
        name = decode_part(token.split(".")[1])["sub"]
    except (IndexError, KeyError, ValueError):
        return
    if admit(db, name, 3, 60, time.time()):
        raise HTTPException(429, headers={"Retry-After": "60"})


async def always_benign(row):
    return "benign"


def in_one_counter() -> Callable[..., Any]:
    counts: Counter[str] = Counter()

    def admits(db, caller, limit, window_s, now):
        counts["all"] += 1
        return 0 if counts["all"] <= limit else window_s

    return admits


OPEN_SOCKET = "A stranger stays on the WebSocket"

BANK: dict[str, Any] = {
    "08.1": {
        "right": [read, read_with_try, read_in_the_end],
        "wrong": [
            (with_key_error, "the caller gets a 500"),
            (tries_all_keys, "under a `kid` that you do not know"),
            (newest_key_only, "This token is good"),
            (trusts_the_algorithm, "the caller gets a 500"),
            (takes_more_algorithms, "HS512"),
            (does_not_verify, "the algorithm `none`"),
            (skips(audience=None, options={"verify_aud": False, "require": ["exp", "sub"]}), "for another service"),
            (skips(options={"require": ["sub"]}), "without an `exp`"),
            (skips(options={"require": ["exp"]}), "without a `sub`"),
            (skips(issuer=None), "from another issuer"),
            (skips(options={"require": ["exp", "sub"], "verify_exp": False}), "expired an hour ago"),
            (without_kind, "a refresh token"),
            (falls_back_to_a_key, "under a `kid` that you do not know"),
            (falls_back_without_a_kid, "without a `kid`"),
            (falls_back_to_the_notebooks_key, "signed with a key that is not in `keys`"),
            (with_leeway, "expired two seconds ago"),
            (returns_the_header, "Return the claims"),
            (forgets_to_return, "is a `return` missing"),
            (returns_none_if_bad, "This token gets in"),
        ],
    },
    "08.2": {
        "right": [in_the_endpoints(), with_security_scopes(), with_objects_as_dependencies()],
        "wrong": [
            (ward(foreign_is_forbidden, delete, talk), "GET a case of another owner"),
            (ward(no_owner, delete, talk), "GET a case of another owner"),
            (ward(tells_which, delete, talk), "the text tells which case exists"),
            (ward(no_admin, delete, talk), "as admin with the scopes"),
            (ward(no_scope, delete, talk), "The scope `cases:read` is missing"),
            (ward(scope_in_text, delete, talk), "The scope `cases:read` is missing"),
            (ward(case_first, delete, talk), "The scope `cases:read` is missing"),
            (ward(strangers_are_forbidden, delete, talk), "GET with no header"),
            (ward(no_challenge, delete, talk), "WWW-Authenticate"),
            (ward(header_required, delete, talk), "GET with no header"),
            (ward(any_scheme, delete, talk), "`Basic` and Ada's token"),
            (ward(bare_token, delete, talk), "Ada's token without `Bearer`"),
            (ward(with_owner, delete, talk), "owner"),
            (ward(get, delete, socket_with_owner), "owner"),
            (ward(get, delete, socket_with_global_caller), "Do the two share the caller"),
            (ward(get, forgets_await, talk), "is an `await` missing"),
            (ward(get, deletes_by_scope_only, talk), "The case is erased"),
            (ward(get, deletes_then_looks, talk), "The case is erased"),
            (ward(get, deletes_with_read, talk), "The scope `cases:write` is missing"),
            (ward(get, delete, socket_without_owner), "The WebSocket shows cases of others"),
            (ward(get, delete, socket_without_scope), "This client must not stay"),
            (ward(get, delete, socket_without_token), "The WebSocket shows cases of others"),
            (ward(get, delete, socket_that_ends_at_404), "The connection ends"),
            (ward(get, delete, socket_that_closes_with_1000), "it is closed with 1000"),
            (ward(get, delete, socket_of_a_header), "was not accepted"),
            (ward(get, delete, only_accepts), "The connection ends"),
        ],
    },
    "08.3": {
        "right": [admit, admit_in_one_statement, admit_with_a_context, admit_in_a_table_of_its_own],
        "wrong": [
            (without_a_transaction, "others look too"),
            (with_a_context_only, "others look too"),
            (counts_the_refused, "do refused requests count"),
            (for_all_callers, "limited by what another one has sent"),
            (forgets_all_callers, "has made room"),
            (in_a_fixed_window, "when the first of them leaves the window"),
            (never_forgets, "The first one leaves the window now"),
            (one_too_many, "This one is over the limit"),
            (says_the_window, "when the first of them leaves the window"),
            (says_the_time, "when the first of them leaves the window"),
            (says_yes_or_no, "This one is within the limit"),
            (returns_nothing_if_admitted, "is a `return` missing"),
            (in_this_process, "does each process count alone"),
            (with_a_lock, "that only this process has"),
            (keeps_the_transaction, "is a `COMMIT` missing"),
            (rounds_down, "That is too early"),
            (keeps_whole_seconds, "That is too early"),
            (with_a_window_of_a_minute, "when the first of them leaves the window"),
            (with_a_limit_of_three, "This one is within the limit"),
            (compares("caller = '{}' AND at > :start"), "OperationalError"),
            (compares("caller LIKE :caller AND at > :start"), "limited by what another one has sent"),
            (compares("caller = :caller AND at >= :start"), "is not counted"),
            (with_its_own_clock, "when the first of them leaves the window"),
        ],
    },
    "08.4": {
        "right": [WithTasks, WithAnswersAndTasks, WithLocks],
        "wrong": [
            (AnswersOnly, "Equal rows are computed once"),
            (NoCache, "Equal rows are computed once"),
            (WithoutVersion, "This is the old version's answer"),
            (VersionAtTheEnd, "This is the old version's answer"),
            (ClearsAtARollout, "This is the old version's answer"),
            (KeepsErrors, "The error is kept"),
            (WithoutShield, "The others get an error"),
            (LeaderWithAFuture, "The others wait for ever"),
            (OneLock, "Different rows wait for each other"),
            (ListAsKey, "unhashable"),
            (IdAsKey, "Equal rows are computed once"),
            (LengthAsKey, "predict("),
            (with_key(lambda row: row[0]), "Different rows share an answer"),
            (with_key(lambda row: row[-1]), "Different rows share an answer"),
            (with_key(frozenset), "Different rows share an answer"),
            (with_key(lambda row: tuple(round(x, 1) for x in row)), "Different rows share an answer"),
            (SharedByAll, "share what is kept"),
            (ForgetsWhoeverLeaves, "is computed again for others"),
            (WaiterForgetsErrors, "The error is kept if nobody waits"),
            (StarterKeeps, "is computed again for others"),
            (ClearsAtAnError, "must not remove the answers of others"),
            (CachedCoroutine, "already awaited"),
            (SwallowsErrors, "must be passed on"),
            (IgnoresCancelling, "Who is cancelled must end"),
            (ReturnsTheTask, "is an `await` missing"),
        ],
    },
    "08.5": {
        "right": [
            clinic(),
            clinic(reads=read_with_try, admits=admit_in_one_statement),
            clinic_with_handlers(),
            clinic_with_threads(shares=False),
        ],
        "wrong": [
            (clinic(reads=unverified), "A stranger gets in"),
            (clinic(reads=takes_more_algorithms), "HS512"),
            (clinic(reads=without_kind), "a refresh token"),
            (clinic(reads_on_socket=unverified), OPEN_SOCKET),
            (clinic(reads_on_socket=without_kind), OPEN_SOCKET),
            (clinic(scope_of=lambda claims: True), "GET /label/19 with a good token with the scope"),
            (clinic(scope_of=lambda claims: "predict" in claims["scope"]), "with the scope `predictions`"),
            (clinic(scope_on_socket=lambda claims: True), "Without the scope `predict`, nobody may stay"),
            (clinic(refuses=403), "GET /label/19 with no header"),
            (clinic(admits=lambda *_: 0), "request 4 of a caller"),
            (clinic(admits=one_too_many), "request 4 of a caller"),
            (clinic(admits=in_one_counter()), "expected 200"),
            (clinic(key=lambda claims, means: "everybody"), "expected 200"),
            (clinic(key=lambda claims, means: f"{claims['sub']} {means}"), "The WebSocket has no limit"),
            (clinic(before=counts_unverified, admits=lambda *_: 0), "GET /label/19 with a token"),
            (clinic(limits_socket=False), "The WebSocket has no limit"),
            (clinic(closes=True), "The connection ends"),
            (clinic(headers=lambda wait_s: {}), "A 429 needs `Retry-After`"),
            (clinic(headers=lambda wait_s: {"Retry-After": str(wait_s)}), "whole seconds"),
            (clinic(headers=lambda wait_s: {"Retry-After": "1"}), "when the first label leaves the window"),
            (clinic(headers=lambda wait_s: {"Retry-After": "60"}), "when the first label leaves the window"),
            (clinic(admits=at_time_0), "when the first label leaves the window"),
            (clinic(admits=in_a_second), "over the limit"),
            (clinic(challenge={}), "WWW-Authenticate"),
            (clinic(bearer=lambda text: text.split(" ")[-1]), "without `Bearer`"),
            (clinic(bearer=lambda text: text.partition(" ")[2]), "`Basic` and a good token"),
            (clinic(reads=lambda token, keys: read(token, keys) | {"sub": token}), "whichever of its tokens"),
            (clinic(scope_of=lambda claims: "predict" in claims["scope"].split()), "KeyError"),
            (clinic(global_sub=True), "Do the two share something"),
            (clinic_with_a_race(), "others look too"),
            (clinic_with_threads(shares=True), "transaction"),
            (clinic(asks_first=True), "The model is asked before"),
            (clinic(labels=always_benign), "malignant"),
        ],
    },
}
