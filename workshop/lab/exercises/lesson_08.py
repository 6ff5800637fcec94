"""Lesson 08: security, caching, limits."""

import asyncio
import hmac
import json
import math
import random
import sqlite3
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory
from typing import Any, cast
from uuid import uuid4

import httpx
import jwt
from cloudpickle import dumps  # type: ignore[import-untyped]
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import NotYet, expect, show
from workshop.lab.fixtures.lesson_08 import (
    ALL_ROWS,
    KEYS,
    ROWS,
    Caller,
    Case,
    ModelError,
    SlowModel,
    asked_rows,
    callers,
    cases,
    decode_part,
    encode_part,
    label_of,
)
from workshop.lab.fixtures.two_processes import open_counter, race
from workshop.lab.registry import exercise

LIMIT_S = 9.0
"""No check takes half of it on an idle machine."""
PATIENCE_S = 3.0
"""How long to wait for a message that must come."""

# ------------------------------------------------------------------------------------------------- 08.1: forgeries

ACCESS = "at+jwt"
HOUR_S = 3600
STRANGERS_KEY = token_urlsafe(48)


def _token(subject: str, keys: dict[str, str], signer: str, **changes: Any) -> str:
    """A good token, or one with changes. `key`, `alg`, `kid` and `typ` change header and signature, others a claim.

    None leaves a claim or a part of the header out.
    """
    key, algorithm = changes.pop("key", keys.get(signer, STRANGERS_KEY)), changes.pop("alg", "HS256")
    head = {"typ": changes.pop("typ", ACCESS), "kid": changes.pop("kid", signer)}
    now = int(time.time())
    claims = {"iss": "clinic-login", "aud": "clinic", "sub": subject, "scope": "predict", "exp": now + 900} | changes
    token = jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key,
        algorithm,
        headers={name: value for name, value in head.items() if value is not None},
    )
    return token if head["typ"] is not None else _changed(token, {"typ": None}, {}, key)


def _changed(token: str, head: dict[str, Any], claims: dict[str, Any], key: str | None = None) -> str:
    """A token with other parts, and its old signature; with a key, it is signed again."""
    first, second, signature = token.split(".")
    parts = [
        encode_part({name: value for name, value in (decode_part(part) | changes).items() if value is not None})
        for part, changes in ((first, head), (second, claims))
    ]
    if key is not None:
        signed = hmac.digest(key.encode(), ".".join(parts).encode(), "sha256")
        signature = urlsafe_b64encode(signed).rstrip(b"=").decode()
    return ".".join([*parts, signature])


def _forgeries(keys: dict[str, str], subject: str, stranger: str) -> dict[str, str]:
    """Tokens that claim to be the subject's, by what is wrong with them. The stranger has a good one of its own."""
    newest, oldest = keys
    good = _token(subject, keys, newest)
    own = _token(stranger, keys, newest)
    made = {
        "the algorithm `none`, and no signature": _changed(good, {"alg": "none"}, {}).rpartition(".")[0] + ".",
        "the algorithm `None`, and no signature": _changed(good, {"alg": "None"}, {}).rpartition(".")[0] + ".",
        "no signature": good.rpartition(".")[0] + ".",
        "signed with another key": _token(subject, keys, newest, key=STRANGERS_KEY),
        "signed with another key, under a `kid` that you do not know": _token(subject, keys, "2031-01"),
        "signed with another key, without a `kid`": _token(subject, keys, newest, key=STRANGERS_KEY, kid=None),
        "signed with your newer key, under a `kid` that you do not know": _token(subject, keys, newest, kid="2031-01"),
        "signed with your older key, under a `kid` that you do not know": _token(subject, keys, oldest, kid="2031-01"),
        "signed with your newer key, without a `kid`": _token(subject, keys, newest, kid=None),
        "signed with your older key, without a `kid`": _token(subject, keys, oldest, kid=None),
        "signed with the older key, under the `kid` of the newer one": _token(subject, keys, newest, key=keys[oldest]),
        "another `sub` in the stranger's own token": _changed(own, {}, {"sub": subject}),
        "more scopes, and the old signature": _changed(good, {}, {"scope": "predict cases:all"}),
        "expired an hour ago": _token(subject, keys, newest, exp=int(time.time()) - HOUR_S),
        "expired two seconds ago": _token(subject, keys, newest, exp=int(time.time()) - 2),
        "without an `exp`": _token(subject, keys, newest, exp=None),
        "a refresh token": _token(subject, keys, newest, typ="refresh+jwt"),
        "of the kind `JWT`": _token(subject, keys, newest, typ="JWT"),
        "of no kind": _token(subject, keys, oldest, typ=None),
        "for another service": _token(subject, keys, oldest, aud="newsletter"),
        "for no service": _token(subject, keys, newest, aud=None),
        "from another issuer": _token(subject, keys, newest, iss="shop-login"),
        "from no issuer": _token(subject, keys, newest, iss=None),
        "without a `sub`": _token(subject, keys, newest, sub=None),
        "the first half of a token": good[: len(good) // 2],
        "not a token": "a.b.c",
        "empty": "",
    }
    with_other_algorithm = _token(subject, keys, newest, alg="HS512")
    return made | {"your key, but another algorithm (HS512)": with_other_algorithm}


@exercise(
    "08.1",
    hints=[
        '`jwt.get_unverified_header(token)` has the `kid`, if there is one: `.get("kid")`. A `kid` that is not in '
        "`keys` is an `InvalidTokenError` too.",
        "Then as in `with_audience`, with this key, and as in `with_kind`.",
    ],
    right="All forgeries are refused, and the tokens of both keys are accepted.",
    seconds=LIMIT_S,
)
def reads_tokens(answer: Answer) -> None:
    keys = {f"key {number}": token_urlsafe(48) for number in random.sample(range(1000), 2)}
    for kid in (*keys, *keys):
        subject = f"user {uuid4()}"
        token = _token(subject, keys, kid, scope="cases:read")
        try:
            claims = answer.call(token, keys)
        except jwt.InvalidTokenError as error:
            raise NotYet("This token is good.", given=f"a token signed with `{kid}`", got=show(error)) from None
        expected = {"sub": subject, "scope": "cases:read"}
        expect(claims, expected, given=f"a good token of {subject}", why="Return the claims.")
    forgeries = _forgeries(keys, f"user {uuid4()}", "eve")
    former = _token(f"user {uuid4()}", KEYS, next(iter(KEYS)), kid="2031-01")
    forgeries["signed with a key that is not in `keys`, under a `kid` that is not there either"] = former
    for name, token in forgeries.items():
        try:
            got = answer.call(token, keys)
        except jwt.InvalidTokenError:
            continue
        except Exception as error:
            message = "A bad token must be an `InvalidTokenError`: with any other error, the caller gets a 500."
            raise NotYet(message, given=f"a token: {name}", got=show(error)) from None
        raise NotYet("This token gets in.", given=f"a token: {name}", expected="InvalidTokenError", got=show(got))


# ------------------------------------------------------------------------------------------- 08.2: scopes and owners


@contextmanager
def _talking(answer: Answer, client: Client, path: str, who: str, first: str) -> Iterator[ClientConnection]:
    """A WebSocket on which the first message was sent."""
    answer.given = f"{who}, on the WebSocket {path}"
    try:
        socket = connect(client.socket_url(path), open_timeout=PATIENCE_S, close_timeout=0.3, proxy=None)
    except (InvalidHandshake, TimeoutError, EOFError, OSError) as error:
        raise NotYet("The connection was not accepted.", got=str(error) or type(error).__name__) from None
    with socket:
        with suppress(ConnectionClosed):
            socket.send(first)
        yield socket


def _reply(socket: ClientConnection, message: str, given: str) -> Any:
    """What the learner's endpoint replies to a message."""
    try:
        socket.send(message)
        text = socket.recv(timeout=PATIENCE_S)
    except TimeoutError:
        raise NotYet("No reply arrives.", given=given) from None
    except ConnectionClosed:
        got = f"it is closed with {socket.close_code}"
        raise NotYet("The connection ends.", given=given, expected="a reply", got=got) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise NotYet("This is not JSON.", given=given, got=show(text)) from None


def _expect_closed(socket: ClientConnection, message: str, why: str, given: str) -> None:
    """The endpoint must close with 1008, without a reply to the message."""
    try:
        with suppress(ConnectionClosed):
            socket.send(message)
        got = f"a message: {show(socket.recv(timeout=PATIENCE_S))}"
    except TimeoutError:
        got = "the connection stays open"
    except ConnectionClosed:
        if socket.close_code == 1008:
            return
        got = f"it is closed with {socket.close_code}"
    raise NotYet(why, given=given, expected="it is closed with 1008", got=got)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}".rstrip()}


@contextmanager
def _people(**scopes: str) -> Iterator[dict[str, tuple[str, str]]]:
    """A new token and a new name for each of these, as (token, name)."""
    made = {key: (token_urlsafe(12), f"{key} {uuid4().hex[:6]}") for key in scopes}
    callers.update({made[key][0]: Caller(made[key][1], frozenset(text.split())) for key, text in scopes.items()})
    try:
        yield made
    finally:
        for token, _ in made.values():
            callers.pop(token, None)


@exercise(
    "08.2",
    hints=[
        "A helper `allowed(token, scope)` finds the caller (401) and looks at the scopes (403). Another one, "
        "`find_case(case_id, caller)`, raises the 404. Both routes and the WebSocket call both.",
        'On the WebSocket, the caller is `allowed(await socket.receive_text(), "cases:read")`. For an '
        "`HTTPException`, `raise WebSocketException(1008)` closes. Then `async for case_id in socket.iter_text()`.",
    ],
    right="Whoever may not see a case does not even learn that it exists.",
    seconds=LIMIT_S,
)
def guards_the_cases(answer: Answer) -> None:
    scopes = {
        "ada": "cases:read cases:write",
        "eve": "cases:read cases:write",
        "reader": "cases:read",
        "writer": "cases:write",
        "clerk": "cases:reader",
        "admin": "cases:read cases:write cases:all",
        "auditor": "cases:all",
    }
    with _people(**scopes) as people, answer.serve() as client:
        ids = {key: str(uuid4()) for key in people}
        for key, case_id in ids.items():
            cases.stored[case_id] = Case(people[key][1], f"text {uuid4()}")
        try:
            _attack_reads(client, people, ids)
            _attack_deletions(client, people, ids)
            _attack_the_socket(answer, client, people, ids)
        finally:
            for case_id in ids.values():
                cases.stored.pop(case_id, None)


People = dict[str, tuple[str, str]]


def _attack_reads(client: Client, people: People, ids: dict[str, str]) -> None:
    def get(who: str, whose: str) -> httpx.Response:
        return client.get(f"/cases/{ids.get(whose, uuid4())}", headers=_bearer(people[who][0]))

    for who, whose in (("ada", "ada"), ("reader", "reader"), ("admin", "admin"), ("admin", "eve")):
        given = f"GET the case of {whose}, as {who} with the scopes {_scopes(people, who)}"
        got = get(who, whose)
        expect(got.status_code, 200, given=given)
        expect(got.json(), {"text": cases.stored[ids[whose]].text}, given=given, exact=True)
    adas = people["ada"][0]
    for name, headers in {
        "no header": {},
        "a token that nobody has": _bearer("wrong"),
        "`Bearer` and no token": _bearer(""),
        "Ada's token without `Bearer`": {"Authorization": adas},
        "`Basic` and Ada's token": {"Authorization": f"Basic {adas}"},
    }.items():
        for method in ("GET", "DELETE"):
            got = client.request(method, f"/cases/{ids['ada']}", headers=headers)
            why = "Without `Bearer` and a known token, a caller is unknown."
            expect(got.status_code, 401, given=f"{method} with {name}", why=why)
            _expect_challenge(got, f"{method} with {name}")
    for who in ("writer", "clerk", "auditor"):
        for whose in (who, "ada", "no such case"):
            case = f"a case of {whose}" if whose in ids else "a case that does not exist"
            given = f"GET {case}, as {who} with the scopes {_scopes(people, who)}"
            expect(get(who, whose).status_code, 403, given=given, why="The scope `cases:read` is missing.")
    foreign, missing = get("eve", "ada"), get("eve", "no such case")
    why = "For this caller, the case does not exist."
    expect(foreign.status_code, 404, given="GET a case of another owner", why=why)
    expect(missing.status_code, 404, given="GET a case that does not exist")
    if foreign.text != missing.text:
        why = "The two 404 differ: the text tells which case exists."
        raise NotYet(why, given="GET a case of another owner", expected=show(missing.text), got=show(foreign.text))


def _expect_challenge(got: httpx.Response, given: str) -> None:
    challenge = got.headers.get("WWW-Authenticate", "")
    if not challenge.lower().startswith("bearer"):
        why = "The header `WWW-Authenticate: Bearer` is missing."
        raise NotYet(why, given=given, expected="Bearer", got=show(challenge))


def _attack_deletions(client: Client, people: People, ids: dict[str, str]) -> None:
    def delete(who: str, whose: str) -> int:
        return client.delete(f"/cases/{ids[whose]}", headers=_bearer(people[who][0])).status_code

    for who in ("reader", "clerk", "auditor"):
        given = f"DELETE, as {who} with the scopes {_scopes(people, who)}"
        expect(delete(who, who), 403, given=given, why="The scope `cases:write` is missing.")
        _expect_stored(ids[who], given)
    given = "DELETE a case of another owner"
    status = delete("eve", "ada")
    _expect_stored(ids["ada"], given)
    expect(status, 404, given=given)
    gone = client.delete(f"/cases/{uuid4()}", headers=_bearer(people["eve"][0])).status_code
    expect(gone, 404, given="DELETE a case that does not exist")
    for who, whose in (("writer", "writer"), ("eve", "eve"), ("admin", "clerk")):
        given = f"DELETE a case of {whose}, as {who} with the scopes {_scopes(people, who)}"
        status = delete(who, whose)
        if status not in range(200, 300):
            raise NotYet("This caller may erase it.", given=given, expected="status 200 or 204", got=f"status {status}")
        if ids[whose] in cases.stored:
            raise NotYet("The case is still stored.", given=given)


def _attack_the_socket(answer: Answer, client: Client, people: People, ids: dict[str, str]) -> None:
    for who, own, other in (("ada", "ada", "reader"), ("reader", "reader", "ada"), ("admin", "ada", None)):
        with _talking(
            answer, client, "/cases", f"{who} with the scopes {_scopes(people, who)}", people[who][0]
        ) as talk:
            for case_id, name in (
                (ids[own], f"the id of a case of {own}"),
                (str(uuid4()), "an id that does not exist"),
            ):
                given = f"{answer.given}, sends {name}"
                text = cases.stored[case_id].text if case_id in cases.stored else None
                reply = _reply(talk, case_id, given)
                expect(reply, {"text": text} if text else {"error": 404}, given=given, exact=True)
            if other:
                given = f"{answer.given}, sends the id of a case of {other}"
                why = "The WebSocket shows cases of others."
                expect(_reply(talk, ids[other], given), {"error": 404}, given=given, why=why, exact=True)
            given = f"{answer.given}, sends one more id"
            expect(_reply(talk, ids[own], given), {"text": cases.stored[ids[own]].text}, given=given)
    _attack_two_sockets(answer, client, people, ids)
    refused = {"a token that nobody has": "wrong", "an empty text as the token": ""}
    refused |= {
        f"a token with the scopes {_scopes(people, who)}": people[who][0] for who in ("writer", "clerk", "auditor")
    }
    for name, token in refused.items():
        with _talking(answer, client, "/cases", "a client", token) as talk:
            given = f"{name}, then the id of a case, on the WebSocket"
            _expect_closed(talk, ids["ada"], "This client must not stay.", given)


def _attack_two_sockets(answer: Answer, client: Client, people: People, ids: dict[str, str]) -> None:
    """Two callers talk in turn."""
    (adas, _), (readers, _) = people["ada"], people["reader"]
    with (
        _talking(answer, client, "/cases", "ada", adas) as ada,
        _talking(answer, client, "/cases", "reader", readers) as reader,
    ):
        for who, talk, own, foreign in (("reader", reader, "reader", "ada"), ("ada", ada, "ada", "reader")) * 2:
            given = f"ada and reader are connected at once, and {who} sends the id of a case of"
            for whose, expected in ((own, {"text": cases.stored[ids[own]].text}), (foreign, {"error": 404})):
                why = "Do the two share the caller?"
                got = _reply(talk, ids[whose], f"{given} {whose}")
                expect(got, expected, given=f"{given} {whose}", why=why, exact=True)


def _scopes(people: People, who: str) -> str:
    return f"`{' '.join(sorted(callers[people[who][0]].scopes))}`"


def _expect_stored(case_id: str, given: str) -> None:
    if case_id not in cases.stored:
        raise NotYet("The case is erased.", given=given, expected="it is still stored")


# --------------------------------------------------------------------------------------- 08.3: one limit for all


@exercise(
    "08.3",
    hints=[
        "`BEGIN IMMEDIATE`, then select the caller's times after `now - window_s`. If there are fewer than `limit`, "
        "insert one, else compute when the oldest of the last `limit` leaves the window. `COMMIT` in both cases.",
        '`finally: db.execute("COMMIT")` ends the transaction whichever `return` is taken. A place is free at '
        "`times[-limit] + window_s`.",
    ],
    right="One limit for each caller, however many processes there are.",
    seconds=LIMIT_S,
)
def limits_callers(answer: Answer) -> None:
    if not callable(answer.value):
        raise NotYet("A function is needed here.", got=show(answer.value))
    limits, windows = random.sample(range(3, 7), 2), random.sample([30, 60, 600], 2)
    for limit, window_s in zip(limits, windows, strict=True):
        start = window_s * (random.randint(10**5, 10**6) + 0.4)  # not at the edge of a fixed window
        with TemporaryDirectory() as folder:
            db, other = (open_counter(Path(folder, "counter"), 1.0) for _ in range(2))
            db.execute("PRAGMA synchronous = OFF")  # it need not survive a power cut
            try:
                _attack_with_one_caller(answer, db, other, limit, window_s, start)
                _attack_when_one_leaves(answer, db, limit, window_s, start)
                _attack_with_retries(answer, db, limit, window_s, start)
                _attack_at_the_edge(answer, db, limit, window_s, start)
            finally:
                db.close()
                other.close()
    _attack_from_two_processes(answer, limit, window_s, start)


def _ask(answer: Answer, db: Any, *arguments: Any, given: str) -> float:
    """How long the caller is to wait."""
    try:
        waits = answer.call(db, *arguments)
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "transaction" in str(error):
            why = "The transaction of an earlier call has not ended: is a `COMMIT` missing, also before a `return`?"
            raise NotYet(why, given=given, got=show(error)) from None
        raise
    if waits is None:
        raise NotYet("Got None: is a `return` missing?", given=given)
    if not isinstance(waits, int | float):
        raise NotYet("Return a number of seconds.", given=given, got=show(waits))
    answer.given = given
    return float(waits)


def _expect_wait(got: float, expected: float, given: str, why: str) -> None:
    if expected - 1 < got < expected - 0.01:
        why = "That is too early: the caller would be refused again. Round up, if at all."
    elif abs(got - expected) <= 1 and (got > 0) == (expected > 0):
        return
    raise NotYet(why, given=given, expected=f"{expected:g}", got=f"{got:g}")


def _attack_with_one_caller(answer: Answer, db: Any, other: Any, limit: int, window_s: float, start: float) -> None:
    name = f"o'neill {uuid4()}"  # a quote, and in the neighbour's name a character that `LIKE` takes for any other
    caller, neighbour = name, name.replace(" ", "_")
    start += 0.75  # fractions that a float has exactly
    for number in range(limit):
        given = f"request {number + 1} of a caller, limit {limit} in {window_s} s"
        waits = _ask(answer, (db, other)[number % 2], caller, limit, window_s, start + number, given=given)
        _expect_wait(waits, 0, given, "This one is within the limit.")
    given = f"request {limit + 1}, {limit - 0.25} s after the first of {limit}, limit {limit} in {window_s} s"
    for connection in (db, other):
        waits = _ask(answer, connection, caller, limit, window_s, start + limit - 0.25, given=given)
        if waits <= 0:
            raise NotYet("This one is over the limit.", given=given, expected="the seconds to wait", got=f"{waits:g}")
        expected = window_s - limit + 0.25
        _expect_wait(waits, expected, given, "It may ask again when the first of them leaves the window.")
    given = "the first request of another caller"
    waits = _ask(answer, db, neighbour, limit, window_s, start + limit, given=given)
    _expect_wait(waits, 0, given, "A caller is limited by what another one has sent.")
    waits = _ask(answer, db, caller, limit, window_s, start + limit + 0.5, given=f"the first caller, after {given}")
    if waits <= 0:
        raise NotYet("Another caller's request has made room.", given=f"the first caller, after {given}")


def _attack_with_retries(answer: Answer, db: Any, limit: int, window_s: float, start: float) -> None:
    """A caller who never stops asking gets as many as one who waits."""
    caller = f"impatient {uuid4()}"
    admitted = [
        second
        for second in range(int(2.5 * window_s))
        if second < limit or second % max(1, int(window_s) // 30) == 0
        if _ask(answer, db, caller, limit, window_s, start + second, given=f"a request each second, limit {limit}") == 0
    ]
    given = f"a caller who retries all the time, limit {limit} in {window_s} s"
    if len(admitted) <= limit:
        raise NotYet("This caller never gets in again: do refused requests count?", given=given)
    for index in range(len(admitted) - limit):
        span = admitted[index + limit] - admitted[index]
        if span < window_s - 1:
            got = f"{limit + 1} within {span} s"
            raise NotYet("More are admitted than the limit.", given=given, got=got)
    second_round = admitted[limit] - admitted[0]
    if second_round > window_s + 2 * max(1, window_s // 30):
        raise NotYet("It gets in again later than it should.", given=given, got=f"after {second_round} s")


def _attack_when_one_leaves(answer: Answer, db: Any, limit: int, window_s: float, start: float) -> None:
    caller = f"punctual {uuid4()}"
    for number in range(limit):
        _ask(answer, db, caller, limit, window_s, start + number, given=f"request {number + 1}, limit {limit}")
    given = f"a request exactly {window_s} s after the first of {limit}, limit {limit} in {window_s} s"
    waits = _ask(answer, db, caller, limit, window_s, start + window_s, given=given)
    _expect_wait(waits, 0, given, "The first one leaves the window now.")
    waits = _ask(answer, db, caller, limit, window_s, start + window_s, given=f"{given}, and one more")
    if waits <= 0:
        raise NotYet("The one before was admitted, but is not counted.", given=f"{given}, and one more")


def _attack_at_the_edge(answer: Answer, db: Any, limit: int, window_s: float, start: float) -> None:
    """Just before and just after a multiple of the window."""
    caller, edge = f"clever {uuid4()}", window_s * (start // window_s + 100)
    given = f"{limit} requests at the end of a fixed window, and more at the start of the next, limit {limit}"
    for moment in (edge - 2, edge + 2):
        waits = [_ask(answer, db, caller, limit, window_s, moment, given=given) for _ in range(limit + 1)]
        if moment < edge:
            given_now = f"{limit + 1} requests with the same `now`, limit {limit}"
            expect(waits.count(0), limit, given=given_now, why="Each of them counts, up to the limit.")
        elif 0 in waits:
            raise NotYet("The window must move: look back from `now`.", given=given, got=f"{waits.count(0)} more")
    given = "the same caller, when all its requests have left the window"
    waits = [_ask(answer, db, caller, limit, window_s, edge + window_s + 2, given=given) for _ in range(limit + 1)]
    expect(waits.count(0), limit, given=given, why="Old requests must be forgotten, and new ones counted.")


def _attack_from_two_processes(answer: Answer, limit: int, window_s: float, start: float) -> None:
    given = f"12 requests of one caller at once, to two processes, limit {limit}"
    try:
        pickled = dumps(answer.value)
    except Exception as error:
        why = "It uses something that only this process has, such as a lock or an open connection."
        raise NotYet(why, given=given, got=show(error)) from None
    came = race(pickled, (f"crowd {uuid4()}", limit, window_s, start))
    if came.errors:
        raise NotYet("It fails in another process.", given=given, got=came.errors[0][-200:])
    admitted = sum(waits == 0 for waits in came.results)
    if admitted > limit and not came.counted:
        raise NotYet("Nothing is in the table `hits`: does each process count alone?", given=given)
    if admitted != limit:
        why = "Between a look and what follows from it, others look too." if admitted > limit else "Too few get in."
        raise NotYet(why, given=given, expected=f"{limit} are admitted", got=f"{admitted} are admitted")


# ------------------------------------------------------------------------------------------- 08.4: compute it once


@exercise(
    "08.4",
    hints=[
        "Keep tasks rather than answers: `asyncio.create_task(self.model.predict(row))`, in a dictionary by version "
        "and content. A list is no key, a tuple is. Everyone awaits `asyncio.shield(task)`.",
        "`task.add_done_callback(function)` calls `function(task)` when it ends. If `task.exception()` is not None, "
        "take it out of the dictionary.",
    ],
    right="However many ask, the model is asked once.",
    seconds=LIMIT_S,
)
def computes_once(answer: Answer) -> None:
    if not callable(answer.value):
        raise NotYet("A class is needed here.", got=show(answer.value))
    answer.run(_attack_two_models(answer.value))
    attacks = [_attack_later, _attack_a_crowd, _attack_a_rollout, _attack_an_error, _attack_a_leader]
    for attack in (*attacks, _attack_an_error_that_nobody_sees):
        model = SlowModel(seconds=0.1)
        answer.run(attack(_predict_of(answer.value(model)), model))


Predict = Callable[[list[float]], Coroutine[Any, Any, Any]]


def _predict_of(cached: Any) -> "Predict":
    if not hasattr(cached, "predict"):
        raise NotYet("`CachedModel(model)` has a method `predict`.", got=show(cached))
    return cast(Predict, cached.predict)


async def _attack_two_models(cached_model: Callable[[SlowModel], Any]) -> None:
    row = [*random.choice(ROWS)[:-1], random.random()]  # in no cache yet, whoever shares it
    for why in ("", "Do all `CachedModel`s share what is kept?"):
        model = SlowModel(seconds=0.01)
        given = "a second `CachedModel`, with another model, and the same row" if why else "a row"
        got = await _predict_of(cached_model(model))(row)
        expect(got, f"{label_of(row)}, says 1.0.0", given=given)
        _expect_computed(model, 1, given, why)


def _one_of_each() -> list[list[float]]:
    """Two rows with different labels, in any order."""
    labels = sorted(("benign", "malignant"), key=lambda _: random.random())
    return [random.choice([row for row in ROWS if label_of(row) == label]) for label in labels]


async def _attack_later(predict: Predict, model: SlowModel) -> None:
    first, second = _one_of_each()
    swapped, other_start = [first[0], first[2], first[1], *first[3:]], [first[0] + 0.001, *first[1:]]
    other_end, other_middle = [*first[:-1], first[-1] + 0.001], [*first[:9], first[9] + 0.001, *first[10:]]
    rows = [first, second, swapped, other_start, other_end, other_middle]
    for row in (*rows, *rows):
        expect(await predict(list(row)), f"{label_of(row)}, says 1.0.0", given=f"predict({show(row, 60)})")
    given = "six rows, some of which differ only in one number or in the order, one after the other, each of them twice"
    _expect_computed(model, len(rows), given)


async def _attack_a_crowd(predict: Predict, model: SlowModel) -> None:
    first, second = _one_of_each()
    began = time.perf_counter()
    got = await asyncio.gather(*(predict(list(row)) for row in [first, second] * 5))
    together = time.perf_counter() - began
    given = "10 at once: two different rows, five times each"
    expect(got, [f"{label_of(row)}, says 1.0.0" for row in [first, second] * 5], given=given)
    _expect_computed(model, 2, given)
    began = time.perf_counter()
    await asyncio.gather(*(predict(row) for row in [row for row in ROWS if row not in (first, second)][:8]))
    apart = time.perf_counter() - began
    if max(together, apart) > 5 * model.seconds:
        raise NotYet("Different rows wait for each other.", given="8 different rows at once")


async def _attack_a_rollout(predict: Predict, model: SlowModel) -> None:
    row, late = random.sample(ROWS, 2)
    version = f"2.{random.randint(1, 99)}.0"
    await predict(row)
    under_way = asyncio.create_task(predict(late))
    await asyncio.sleep(model.seconds / 3)
    model.version = version
    given = "a row that the old version has answered, after the change of version"
    expect(await predict(row), f"{label_of(row)}, says {version}", given=given, why="This is the old version's answer.")
    given = "a row that the old version is computing, after the change of version"
    expect(
        await predict(late), f"{label_of(late)}, says {version}", given=given, why="This is the old version's answer."
    )
    await under_way
    given = "a row whose computation began before the change of version, and ended after it"
    expect(
        await predict(late), f"{label_of(late)}, says {version}", given=given, why="This is the old version's answer."
    )


async def _attack_an_error(predict: Predict, model: SlowModel) -> None:
    row, other = random.sample(ROWS, 2)
    await predict(other)
    model.fails = True
    given = "3 at once, and the model fails"
    got = await asyncio.gather(*(_in_time(predict(row)) for _ in range(3)), return_exceptions=True)
    for error in got:
        if isinstance(error, TimeoutError):
            raise NotYet("Somebody waits for ever.", given=given)
        if not isinstance(error, ModelError):
            raise NotYet("The model's error must be passed on.", given=given, expected="ModelError", got=show(error))
    model.fails = False
    given = "the same row again, after an error of the model"
    try:
        after = await predict(row)
    except ModelError:
        raise NotYet("The error is kept.", given=given) from None
    expect(after, f"{label_of(row)}, says 1.0.0", given=given)
    computed = len(model.computed)
    await predict(other)
    given = "a row that was computed before the model failed for another row"
    _expect_computed(model, computed, given, "An error of one row must not remove the answers of others.")


async def _until_computing(model: SlowModel, times: int) -> None:
    for _ in range(200):
        if len(model.computed) < times:
            await asyncio.sleep(0.001)


async def _attack_a_leader(predict: Predict, model: SlowModel) -> None:
    row = random.choice(ROWS)
    model.seconds = 0.3  # enough for a busy machine: the first one must not have ended when it is cancelled
    leader, *others = [asyncio.create_task(predict(row)) for _ in range(4)]
    await _until_computing(model, 1)
    leader.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    others.append(asyncio.create_task(predict(row)))
    given = "4 at once, the first one is cancelled, and then a fifth asks"
    try:
        got = await _in_time(asyncio.gather(*others, return_exceptions=True))
    except TimeoutError:
        raise NotYet("The others wait for ever.", given=given) from None
    for one in got:
        if isinstance(one, BaseException):
            raise NotYet("The others get an error.", given=given, got=show(one))
        expect(one, f"{label_of(row)}, says 1.0.0", given=given)
    with suppress(asyncio.CancelledError):
        got_by_leader = await _in_time(leader)
        raise NotYet("Who is cancelled must end.", given=given, got=show(got_by_leader))
    if model.answered > 1:
        got_times = f"{model.answered} answers of the model"
        raise NotYet("The row is computed again for others.", given=given, expected="1 answer", got=got_times)
    await predict(row)
    if model.answered > 1:
        raise NotYet("The answer is lost with the one who asked first.", given=f"{given}, then one more")


async def _attack_an_error_that_nobody_sees(predict: Predict, model: SlowModel) -> None:
    row = random.choice(ROWS)
    model.fails = True
    leaver = asyncio.create_task(predict(row))
    await _until_computing(model, 1)
    leaver.cancel()
    await asyncio.sleep(2 * model.seconds)  # the model has failed by now
    model.fails = False
    given = "a row for which the model has failed after the only caller had left"
    try:
        expect(await _in_time(predict(row)), f"{label_of(row)}, says 1.0.0", given=given)
    except ModelError:
        raise NotYet("The error is kept if nobody waits for it.", given=given) from None
    except TimeoutError:
        raise NotYet("Who asks next waits for ever.", given=given) from None


async def _in_time(result: Awaitable[Any]) -> Any:
    """What is awaited. Raises TimeoutError if it takes many times as long as the model."""
    async with asyncio.timeout(2):
        return await result


def _expect_computed(model: SlowModel, times: int, given: str, why: str = "") -> None:
    if len(model.computed) != times:
        got = f"{len(model.computed)} times"
        usual = "Equal rows are computed once." if len(model.computed) > times else "Different rows share an answer."
        why = why or usual
        raise NotYet(why, given=given, expected=f"{times} times", got=got)


# ------------------------------------------------------------------------------------------- 08.5: your own service

LIMIT = 3


@exercise(
    "08.5",
    hints=[
        '`read_token(token, KEYS)` first, then the scope, then `admit(db, claims["sub"], 3, 60, time.time())`, and '
        "only then the model. `db` is one `open_counter(…)` for both routes.",
        "A helper that raises an error of your own for 429 serves both: the HTTP route turns it into an "
        "`HTTPException` with `Retry-After`, the WebSocket into a message. `math.ceil` rounds up.",
    ],
    right="The stranger's token opens nothing any more, and nobody gets more than the limit.",
    seconds=LIMIT_S + 3,
)
def withstands_attacks(answer: Answer) -> None:
    newest, oldest = KEYS
    with answer.serve() as client:
        ada = f"ada {uuid4()}"
        began = time.monotonic()
        _expect_label(client, _token(ada, KEYS, newest), 19)
        ended = time.monotonic()
        for number, row in ((2, 0), (3, 21)):
            _expect_label(client, _token(ada, KEYS, newest), row, f"request {number} of a caller, {LIMIT} are allowed")
        victim = f"victim {uuid4()}"
        tokens = [_token(victim, KEYS, kid, scope="cases:read predict") for kid in (oldest, newest)]
        _attack_over_http(client, victim)
        _attack_over_the_socket(answer, client, victim)
        for scope in ("cases:read", "predictions", "", None):
            _attack_without_scope(answer, client, _token(victim, KEYS, newest, scope=scope), scope)
        for number, row in enumerate((0, 19, 21), 1):
            note = f"request {number} of a caller, after others that got a 401, a 403 or a 1008 in the same name"
            _expect_label(client, tokens[number % 2], row, note)
        _attack_the_limit(answer, client, tokens[0], f"other {uuid4()}")
        _attack_the_limit_over_the_socket(answer, client)
        _attack_from_two_sockets(answer, client)
        _attack_at_once(client)
        time.sleep(max(0, ended + 1.2 - time.monotonic()))  # by now, 60 is too much
        _expect_the_right_wait(answer, client, _token(ada, KEYS, newest), began, ended)


def _expect_label(client: Client, token: str, row: int, note: str = "") -> None:
    got = client.get(f"/label/{row}", headers=_bearer(token))
    given = f"GET /label/{row} with a good token" + (f": {note}" if note else "")
    why = "This is not over the limit: what else is counted?" if got.status_code == 429 else ""
    expect(got.status_code, 200, given=given, why=why)
    expect(got.json(), {"label": _label(row)}, given=given)


def _label(row: int) -> str:
    return label_of(ALL_ROWS[row])


def _attack_over_http(client: Client, victim: str) -> None:
    attempts: dict[str, dict[str, str]] = {"no header": {}}
    attempts |= {f"a token: {name}": _bearer(token) for name, token in _forgeries(KEYS, victim, "eve").items()}
    good = _token(victim, KEYS, next(iter(KEYS)))
    attempts["a good token without `Bearer`"] = {"Authorization": good}
    attempts["`Basic` and a good token"] = {"Authorization": f"Basic {good}"}
    for name, headers in attempts.items():
        asked_rows.clear()
        got = client.get("/label/19", headers=headers)
        why = "A stranger gets in." if got.status_code == 200 and "Bearer" in headers.get("Authorization", "") else ""
        expect(got.status_code, 401, given=f"GET /label/19 with {name}", why=why)
        _expect_challenge(got, f"GET /label/19 with {name}")
        _expect_not_asked(f"GET /label/19 with {name}")


def _attack_over_the_socket(answer: Answer, client: Client, victim: str) -> None:
    for name, token in _forgeries(KEYS, victim, "eve").items():
        with _talking(answer, client, "/labels", f"a client whose token is: {name}", token) as talk:
            given = f"a token: {name}, then a row, on the WebSocket"
            _expect_closed(talk, "19", "A stranger stays on the WebSocket.", given)


def _attack_without_scope(answer: Answer, client: Client, token: str, scope: str | None) -> None:
    asked_rows.clear()
    given = "a good token without the claim `scope`" if scope is None else f"a good token with the scope `{scope}`"
    why = "Without the scope `predict`, nobody may ask."
    expect(
        client.get("/label/19", headers=_bearer(token)).status_code, 403, given=f"GET /label/19 with {given}", why=why
    )
    with _talking(answer, client, "/labels", "a client", token) as talk:
        why = "Without the scope `predict`, nobody may stay."
        _expect_closed(talk, "19", why, f"{given}, on the WebSocket")
    _expect_not_asked(given)


def _attack_the_limit(answer: Answer, client: Client, token: str, other: str) -> None:
    """The caller of the token has had its three answers."""
    for _ in range(3):
        asked_rows.clear()
        given = f"request {LIMIT + 1} of a caller within 60 s"
        got = client.get("/label/19", headers=_bearer(token))
        expect(got.status_code, 429, given=given, why="This `sub` is over the limit, whichever of its tokens it sends.")
        waits = got.headers.get("Retry-After", "")
        if not (waits.isdecimal() and 1 <= int(waits) <= 60):
            expected = "whole seconds, 1 to 60"
            raise NotYet("A 429 needs `Retry-After`.", given=given, expected=expected, got=show(waits))
        _expect_not_asked(given)
    with _talking(answer, client, "/labels", "a caller who has had three answers over HTTP", token) as talk:
        given = f"{answer.given}, sends a row"
        _expect_too_often(_reply(talk, "19", given), given)
    _expect_label(client, _token(other, KEYS, "2026-12"), 20, "while another caller is over the limit")


def _attack_the_limit_over_the_socket(answer: Answer, client: Client) -> None:
    token = _token(f"talker {uuid4()}", KEYS, "2026-12")
    with _talking(answer, client, "/labels", "a caller", token) as talk:
        for number, row in enumerate(random.sample(range(500), LIMIT), 1):
            given = f"message {number} of a caller on the WebSocket"
            expect(_reply(talk, str(row), given), {"label": _label(row)}, given=given)
        for number in (LIMIT + 1, LIMIT + 2):
            given = f"message {number} of a caller on the WebSocket, within 60 s"
            asked_rows.clear()
            _expect_too_often(_reply(talk, "19", given), given)
            _expect_not_asked(given)
    given = f"GET after {LIMIT} answers on the WebSocket"
    expect(client.get("/label/19", headers=_bearer(token)).status_code, 429, given=given)


def _attack_from_two_sockets(answer: Answer, client: Client) -> None:
    """Two callers talk at the same time, and only one of them is over the limit."""
    one, two = (_token(f"{name} {uuid4()}", KEYS, "2026-12") for name in ("ben", "cai"))
    with _talking(answer, client, "/labels", "Ben", one) as ben, _talking(answer, client, "/labels", "Cai", two) as cai:
        for who, talk in (("Cai", cai), ("Ben", ben), ("Ben", ben), ("Ben", ben), ("Cai", cai), ("Cai", cai)):
            given = f"Ben and Cai are connected at once, none of them is over the limit, and {who} sends a row"
            why = "Do the two share something?"
            expect(_reply(talk, "19", given), {"label": _label(19)}, given=given, why=why)
        for who, talk in (("Ben", ben), ("Cai", cai)):
            given = f"Ben and Cai are connected at once, and {who} has had {LIMIT} labels"
            _expect_too_often(_reply(talk, "19", given), given)


def _attack_at_once(client: Client) -> None:
    """Many requests at the same moment. Errors of the app, such as those of a shared connection, end the check."""
    for _ in range(2):
        token = _token(f"crowd {uuid4()}", KEYS, "2026-12")
        given = "20 requests of one caller at once"
        statuses = [reply.status_code for reply in client.together(20, "GET", "/label/19", headers=_bearer(token))]
        if statuses.count(200) != LIMIT or statuses.count(429) != 20 - LIMIT:
            why = "Between a look and what follows from it, others look too." if statuses.count(200) > LIMIT else ""
            got = ", ".join(f"{statuses.count(status)} times {status}" for status in sorted(set(statuses)))
            expected = f"{LIMIT} times 200, {20 - LIMIT} times 429"
            raise NotYet(why or "Count each request once.", given=given, expected=expected, got=got)


def _expect_the_right_wait(answer: Answer, client: Client, token: str, began: float, ended: float) -> None:
    """The first of three labels was given between these moments."""
    given = f"a caller who is over the limit, {time.monotonic() - ended:.1f} s after its first label"
    most = math.floor(60 - (time.monotonic() - ended)) + 1
    over_http = client.get("/label/19", headers=_bearer(token))
    expect(over_http.status_code, 429, given=given)
    _expect_between(int(over_http.headers["Retry-After"]), 60 - (time.monotonic() - began), most, f"GET by {given}")
    with _talking(answer, client, "/labels", given, token) as talk:
        got = _reply(talk, "19", given)
    _expect_too_often(got, given)
    _expect_between(got["retry_after_s"], 60 - (time.monotonic() - began), most, f"on the WebSocket, {given}")


def _expect_between(got: float, least: float, most: float, given: str) -> None:
    why = "This is not when the first label leaves the window. Round up, if at all."
    if not least - 0.05 <= got <= most:
        raise NotYet(why, given=given, expected=f"{most}", got=show(got))


def _expect_too_often(got: Any, given: str) -> None:
    expect(got, {"error": 429}, given=given, why="The WebSocket has no limit." if "label" in (got or ()) else "")
    waits = got.get("retry_after_s")
    if not isinstance(waits, int | float) or not 0 < waits <= 60:
        raise NotYet("Say when to come back: `retry_after_s`.", given=given, expected="1 to 60", got=show(got))


def _expect_not_asked(given: str) -> None:
    if asked_rows:
        raise NotYet("The model is asked before the caller is refused.", given=given)
