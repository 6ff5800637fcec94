# %% [markdown]
# # 08 Security, caching, limits
#
# A stranger without any key writes "I am Ada" into a token, and reads Ada's cases. You will see why, refuse that token
# and its relatives, and then decide who may call what, how often, and what need not be computed twice.
#
# After this lesson you can
#
# - verify a token, store a password, and end a session,
# - check scopes and owners, over HTTP and on a WebSocket,
# - limit callers, however many processes answer,
# - cache predictions without returning those of an older model.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 60 minutes, exercises included.
#
# Arriving late, or restarted the kernel? `await start_at("08.3")` runs what exercise 3 builds on.

# %%
from workshop.lab import bars, check, compare, hint, load, marks, run_app, run_command
from workshop.lab import service_map, solution, start_at, stop_all, timeline

service_map("08")

# %% [markdown]
# ## A token that nobody signed
#
# After the log-in, a client sends a token with each request. It says who the caller is, and is signed with a key that
# only our services have. The log-in issues tokens like this:

# %%
import tempfile
import time
from pathlib import Path

import jwt

from workshop.lab.fixtures.lesson_08 import KEYS, decode_part, encode_part

folder, KEY = Path(tempfile.mkdtemp()), KEYS["2026-12"]


def issue(subject, key=KEY, typ="at+jwt", **changes):
    claims = {"iss": "clinic-login", "aud": "clinic", "sub": subject, "scope": "cases:read"}
    claims |= {"exp": int(time.time()) + 900} | changes
    return jwt.encode(claims, key, "HS256", headers={"typ": typ, "kid": "2026-12"})


# %% [markdown]
# A token has three parts, separated by dots. They are not encrypted, only written in base64: anybody can read the first
# two. The third is the signature.

# %%
ada_token = issue("ada")
header, claims, signature = ada_token.split(".")
decode_part(header), decode_part(claims), signature

# %% [markdown]
# The service that stores the cases has a reader of its own. It signs the first two parts again, with the algorithm that
# the header names, compares, and looks at the expiry.

# %%
import base64
import hmac

SIGN = {"HS256": lambda text: hmac.digest(KEY.encode(), text.encode(), "sha256"), "none": lambda text: b""}


def read_by_hand(token):
    text, _, signature = token.rpartition(".")
    header, claims = map(decode_part, text.split("."))
    signed = base64.urlsafe_b64encode(SIGN[header["alg"]](text)).decode().rstrip("=")
    if signed != signature:
        raise jwt.InvalidTokenError("wrong signature")
    if claims["exp"] < time.time():
        raise jwt.InvalidTokenError("expired")
    return claims


# %%
from typing import Annotated

import httpx
from fastapi import FastAPI, Header, HTTPException

app = FastAPI()
CASES = {"ada": ["tumour 17 is malignant"], "eve": []}


@app.get("/cases")
def own_cases(authorization: Annotated[str, Header()]):
    try:
        return CASES[read_by_hand(authorization.removeprefix("Bearer "))["sub"]]
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, str(error)) from None


# %%
server = run_app(app, name="lesson 08")


def ask_cases(token):
    return httpx.get(server.url + "/cases", headers={"Authorization": f"Bearer {token}"})


ask_cases(ada_token).json(), ask_cases(issue("eve")).json()

# %% [markdown]
# Now the stranger. The standard knows tokens without a signature: their algorithm is called `none`. So the stranger
# needs no key, only three lines.

# %%
unsigned = ".".join([encode_part({"alg": "none"}), encode_part({"sub": "ada", "exp": 10**10}), ""])
ask_cases(unsigned).json()

# %% [markdown]
# ## Which attacks get in?
#
# That was one attack. Eve tries five more. Besides her own tokens she has two of Ada's: a refresh token, which is only
# for getting new tokens, and a token that the newsletter service got.

# %%
eve_header, _, eve_signature = issue("eve").split(".")
ATTACKS = {
    "no algorithm": unsigned,
    "another key": issue("ada", key="a key that Eve has made up, 40 letters.."),
    "expired": issue("ada", exp=int(time.time()) - 60),
    "changed claims": ".".join([eve_header, encode_part({"sub": "ada", "exp": 10**10}), eve_signature]),
    "refresh token": issue("ada", typ="refresh+jwt"),
    "another service": issue("ada", aud="newsletter"),
}

# %% [markdown]
# For each attack, predict `"in"` or `"out"`. Replace each `...`.

# %%
guess = {"no algorithm": ..., "another key": ..., "expired": ...}
guess |= {"changed claims": ..., "refresh token": ..., "another service": ...}

# %%
compare(guess, {name: "in" if ask_cases(token).is_success else "out" for name, token in ATTACKS.items()})

# %% [markdown]
# ## What just happened?
#
# The reader asks the token how it wants to be checked. And it checks that the log-in has signed, but not what for: each
# token that the log-in ever issued, for anything, opens the cases.
#
# Let us leave the signature to PyJWT, and see what is left. The caller of a library names the algorithm, not the token.


# %%
def get_in(read):
    passed = []
    for name, token in ATTACKS.items():
        try:
            read(token)
            passed.append(name)
        except jwt.InvalidTokenError:
            pass
    return passed


# %%
def with_algorithm(token):
    return jwt.decode(token, KEY, algorithms=["HS256"], options={"verify_aud": False})


get_in(read_by_hand), get_in(with_algorithm)

# %% [markdown]
# `verify_aud=False` is often copied from a search result, because a token with an audience is an error without it. What
# belongs there is the name of this service. And a claim is only checked if it is there, so we require it.


# %%
def with_audience(token):
    checks = {"audience": "clinic", "issuer": "clinic-login", "options": {"require": ["exp", "sub"]}}
    return jwt.decode_complete(token, KEY, algorithms=["HS256"], **checks)


get_in(with_audience)

# %% [markdown]
# A refresh token has the same key, issuer and audience. Only its kind differs, and that stands in the header `typ`.


# %%
def with_kind(token):
    decoded = with_audience(token)
    if decoded["header"].get("typ") != "at+jwt":
        raise jwt.InvalidTokenError("another kind")
    return decoded["payload"]


readers = {"by hand": read_by_hand, "algorithm": with_algorithm, "audience": with_audience, "kind": with_kind}
bars({name: {"attacks": len(get_in(read))} for name, read in readers.items()}, y="attacks that get in")

# %% [markdown]
# ### Exercise 1: read a token
#
# Keys are replaced from time to time. Then two of them are valid for a while, and the header `kid` says which one has
# signed. Write `read_token(token, keys)`, where `keys` maps each `kid` to its key. It returns the claims, or raises
# `jwt.InvalidTokenError`, whatever the token is.
#
# - The token is signed with HS256, by the key that its `kid` names.
# - Its kind, audience and issuer are those above. It has an `exp` and a `sub`, and has not expired.
#
# If you are stuck, `hint("08.1")` and `solution("08.1")` help.


# %% exercise="08.1"
def read_token(token, keys):
    # solution (about 8 lines)
    key = keys.get(jwt.get_unverified_header(token).get("kid"))
    if key is None:
        raise jwt.InvalidTokenError("unknown key")
    checks = {"audience": "clinic", "issuer": "clinic-login", "options": {"require": ["exp", "sub"]}}
    decoded = jwt.decode_complete(token, key, algorithms=["HS256"], **checks)
    if decoded["header"].get("typ") != "at+jwt":
        raise jwt.InvalidTokenError("another kind")
    return decoded["payload"]
    # starter
    # return ...
    # end


# %%
check("08.1", read_token)

# %% [markdown]
# ## Passwords
#
# A database gets stolen one day. So it holds no passwords, only hashes, and slow ones on purpose: whoever tries a million
# passwords pays for each. The same password twice gives two hashes, because each has a random salt.

# %%
import hashlib

from pwdlib import PasswordHash

from workshop.lab.fixtures.lesson_08 import PASSWORD, median_ms

argon2 = PasswordHash.recommended()
HASHES = {name: argon2.hash(PASSWORD) for name in ("ada", "eve")}
HASHES

# %% start_at=false
slow_ms = median_ms(lambda: argon2.verify(PASSWORD, HASHES["ada"]))
fast_ms = median_ms(lambda: hashlib.sha256(PASSWORD.encode()).hexdigest(), times=1000)
print(f"argon2 takes {slow_ms / fast_ms:,.0f} times as long as SHA-256")

# %% [markdown]
# ## The clock tells who exists
#
# FastAPI has a dependency that reads the form in which OAuth 2.0 sends a name and a password. Here are two log-ins with
# it. The first looks the user up, and refuses at once if there is none.

# %%
from fastapi import Depends
from fastapi.security import OAuth2PasswordRequestForm

from workshop.api.passwords import Passwords

FormDep = Annotated[OAuth2PasswordRequestForm, Depends()]
passwords = Passwords()


@app.post("/early")
def log_in_early(form: FormDep):
    if form.username not in HASHES or not argon2.verify(form.password, HASHES[form.username]):
        raise HTTPException(400, "the name or the password is wrong")
    return {"access_token": issue(form.username), "token_type": "bearer"}


# %% [markdown]
# The second asks the service's `Passwords`. For an unknown user, that class checks the password against a hash that
# belongs to nobody.


# %% mirrors="workshop.api.passwords:Passwords.verify"
from secrets import token_hex

import anyio
from pwdlib.exceptions import UnknownHashError


async def verify(self, password: str, password_hash: str | None) -> bool:
    if password_hash is None:
        password_hash = self._nobodys_hash = self._nobodys_hash or await self.hash(token_hex())
    try:
        return await anyio.to_thread.run_sync(self._argon2.verify, password, password_hash, limiter=self._limiter)
    except UnknownHashError:
        return False


# %%
@app.post("/equal")
async def log_in_equal(form: FormDep):
    if not await passwords.verify(form.password, HASHES.get(form.username)):
        raise HTTPException(400, "the name or the password is wrong")
    return {"access_token": issue(form.username), "token_type": "bearer"}


# %% [markdown]
# Both say the same about a wrong name and a wrong password. Eve wants to know who has an account, sends a wrong password
# for Ada and for Zoe, who has none, and looks at the clock. How many times longer does Ada's take?

# %%
guess = {"/early": ..., "/equal": ...}


# %% start_at=false
def wrong_password_ms(path, name):
    form = {"username": name, "password": "a wrong one"}
    with httpx.Client(base_url=server.url) as client:
        return median_ms(lambda: client.post(path, data=form))


took = {path: {name: wrong_password_ms(path, name) for name in ("zoe", "ada")} for path in guess}
compare(guess, {path: ms["ada"] / ms["zoe"] for path, ms in took.items()}, "times")
bars(took, y="milliseconds for a wrong password")

# %% [markdown]
# ## The service knows its users
#
# We start the final service with three users: a viewer, Vi, may only read. Its log-in takes the same form, and
# its access token is like ours, with the id of a session (`sid`).

# %%
from workshop.api.app import create_app
from workshop.contracts.principals import Role
from workshop.integration.services import build_services
from workshop.lab.fixtures.lesson_08 import RECORD, add_users
from workshop.settings import Settings

LIMITS = {"rate_limits": {"/v1/predict": "3/minute"}, "wrong_keys_limit": "1000/minute"}
database = f"sqlite+aiosqlite:///{folder}/service.sqlite"
settings = Settings(database_url=database, token_keys=KEYS, language_models=False, **LIMITS)
add_users(settings, ada=Role.MEMBER, eve=Role.MEMBER, vi=Role.VIEWER)
service = run_app(create_app(build_services(settings), settings), name="service")


# %%
def log_in(name):
    form = {"username": name, "password": PASSWORD}
    tokens = httpx.post(service.url + "/v1/auth/token", data=form).json()
    return tokens["access_token"]


def send(method, path, token=None, **options):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.request(method, service.url + path, headers=headers, **options)


ada_token = log_in("ada")
decode_part(ada_token.split(".")[1])

# %% [markdown]
# Ada logs out, after a minute. Her access token is valid for another 14. Which status does it get, before and after?

# %%
guess = {"before": ..., "after": ...}

# %%
before = send("GET", "/v1/auth/me", ada_token).status_code
httpx.post(service.url + "/v1/auth/revoke", data={"token": ada_token})
compare(guess, {"before": before, "after": send("GET", "/v1/auth/me", ada_token).status_code})

# %% [markdown]
# The token has not changed: its signature is right, and it has not expired. But the service looks the session up for each
# request. Without that, a stolen token works until it expires.
#
# ## Scopes and owners
#
# A token says what its bearer may do: its scopes. A route asks for the scope that it needs, in a dependency.

# %% mirrors="workshop.api.dependencies:require_scopes workshop.api.dependencies:requires"
from typing import Any

from fastapi import Security
from fastapi.security import SecurityScopes

from workshop.api.dependencies import PrincipalDep
from workshop.contracts.errors import ForbiddenError
from workshop.contracts.principals import Scope


async def require_scopes(needed: SecurityScopes, principal: PrincipalDep) -> None:
    if missing := set(needed.scopes) - principal.scopes:
        scopes = " ".join(sorted(missing))
        raise ForbiddenError(f"this request requires the scope {scopes}", scopes)


def requires(scope: Scope) -> Any:
    return Security(require_scopes, scopes=[scope.value])


# %% [markdown]
# Ada has stored a case. Three statuses are possible now: 401, 403 and 404. Which one does each of these requests get?

# %%
from uuid import uuid4

tokens = {name: log_in(name) for name in ("ada", "eve", "vi")}
case = {"measurements": RECORD}
adas_case = send("POST", "/v1/cases", tokens["ada"], json=case).json()["id"]

# %%
guess = {"nobody reads Ada's case": ..., "Vi stores a case": ...}
guess |= {"Eve reads Ada's case": ..., "Eve reads a case that does not exist": ...}

# %%
replies = [
    send("GET", f"/v1/cases/{adas_case}"),
    send("POST", "/v1/cases", tokens["vi"], json=case),
    send("GET", f"/v1/cases/{adas_case}", tokens["eve"]),
    send("GET", f"/v1/cases/{uuid4()}", tokens["eve"]),
]
compare(guess, {name: reply.status_code for name, reply in zip(guess, replies, strict=True)})

# %% [markdown]
# 401: I do not know you. 403: I know you, and you may not do this at all. 404: for you, there is no such case. A 403
# would tell Eve that the case exists.
#
# ### Exercise 2: who may see it?
#
# `find_caller(token)` returns a caller with `name` and `scopes`, or raises `UnknownTokenError`. `await cases.get(case_id)`
# returns a case with `owner` and `text`, or `None`, and `await cases.delete(case_id)` erases one.
#
# - `GET /cases/{case_id}` needs the scope `cases:read` and returns `{"text": …}`; `DELETE` needs `cases:write`.
# - Without a known token in `Authorization: Bearer …`, the status is 401, with the header `WWW-Authenticate: Bearer`.
#   Without the scope it is 403. A case of another owner does not exist, unless the caller has the scope `cases:all`.
# - On the WebSocket `/cases`, the first message is the token, since a browser cannot set the header. Each further
#   message is the id of a case. Reply `{"text": …}` or `{"error": 404}`. Close with 1008 a caller who may not read.

# %% exercise="08.2"
from fastapi import WebSocket, WebSocketException

from workshop.lab.fixtures.lesson_08 import UnknownTokenError, cases, find_caller

ward = FastAPI()


# solution (about 33 lines)
def needs(scope):
    async def find_allowed(authorization: Annotated[str, Header()] = ""):
        try:
            caller = find_caller(authorization.removeprefix("Bearer "))
        except UnknownTokenError:
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"}) from None
        if scope not in caller.scopes:
            raise HTTPException(403)
        return caller

    return Depends(find_allowed)


async def find_case(case_id, caller):
    case = await cases.get(case_id)
    if case is None or (case.owner != caller.name and "cases:all" not in caller.scopes):
        raise HTTPException(404)
    return case


@ward.get("/cases/{case_id}")
async def get_case(case_id: str, caller: Annotated[object, needs("cases:read")]):
    return {"text": (await find_case(case_id, caller)).text}


@ward.delete("/cases/{case_id}")
async def delete_case(case_id: str, caller: Annotated[object, needs("cases:write")]):
    await find_case(case_id, caller)
    await cases.delete(case_id)


@ward.websocket("/cases")
async def read_cases(socket: WebSocket):
    await socket.accept()
    try:
        caller = find_caller(await socket.receive_text())
    except UnknownTokenError:
        raise WebSocketException(1008) from None
    if "cases:read" not in caller.scopes:
        raise WebSocketException(1008)
    async for case_id in socket.iter_text():
        try:
            await socket.send_json({"text": (await find_case(case_id, caller)).text})
        except HTTPException as error:
            await socket.send_json({"error": error.status_code})


# starter
# @ward.get("/cases/{case_id}")
# async def get_case(case_id: str):
#     return ...
#
#
# @ward.delete("/cases/{case_id}")
# async def delete_case(case_id: str):
#     return ...
#
#
# @ward.websocket("/cases")
# async def read_cases(socket: WebSocket):
#     await socket.accept()
#
#
# end

# %%
check("08.2", ward)

# %% [markdown]
# In the service, one dependency finds the caller for both. It asks for an `HTTPConnection`, which is what a `Request` and
# a `WebSocket` have in common.
#
# ## Cookies
#
# Every script on a page can read a token that the page keeps. A cookie can be out of their reach, and the browser adds
# it to each request by itself. That has a price. Here are a log-in of that kind, and a route that erases.

# %%
from fastapi import Cookie, Response


@app.post("/page-log-in")
async def log_in_page(response: Response):
    response.set_cookie("session", "ada")


@app.post("/erase")
async def erase(session: Annotated[str, Cookie()]):
    return f"all cases of {session} are erased"


# %% [markdown]
# Ada is logged in, and opens a page of `evil.example`. Its form sends itself to the clinic. CORS does not stop that: it
# decides who may read the *answer*. A browser that adds the cookie sends this:

# %%
EVIL = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
httpx.post(server.url + "/erase", cookies={"session": "ada"}, headers=EVIL).json()

# %% [markdown]
# This is called cross-site request forgery (CSRF). The cookie of the service has more in it than a name and a value:

# %%
own_page, user = {"Origin": service.url}, {"username": "ada", "password": PASSWORD}
logged_in = httpx.post(service.url + "/v1/auth/login", json=user, headers=own_page)
logged_in.headers["Set-Cookie"].partition("; ")[2]

# %% [markdown]
# `HttpOnly` hides it from scripts. With `SameSite=strict`, browsers do not send it with a request of another site. The
# service does not rely on that alone: it also looks at who has sent the request.

# %% mirrors="workshop.api.authentication:is_same_origin"
from starlette.requests import HTTPConnection


def is_same_origin(connection: HTTPConnection) -> bool:
    if site := connection.headers.get("Sec-Fetch-Site"):
        return site in {"same-origin", "none"}
    origin = connection.headers.get("Origin")
    if origin is None:  # a program, or a browser that follows a link
        return connection.scope.get("method", "GET") in {"GET", "HEAD"}
    return origin.partition("://")[2].lower() == connection.headers.get("Host", "").lower()


# %%
store_case = {"method": "POST", "url": service.url + "/v1/cases", "json": case, "cookies": logged_in.cookies}
{name: httpx.request(headers=sent, **store_case).status_code for name, sent in {"own": own_page, "evil": EVIL}.items()}

# %% [markdown]
# ## How often?
#
# Ada's script has a bug, and asks a thousand times a second. A limit stops it. `limits` is the library that the service
# uses, too. This app goes into a file, because we want two processes of it.

# %%
# %%writefile {folder}/own_count.py
from fastapi import FastAPI, HTTPException
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

app, limiter = FastAPI(), FixedWindowRateLimiter(MemoryStorage())


@app.get("/{caller}")
async def ask(caller: str):
    if not await limiter.hit(parse("5/day"), caller):
        raise HTTPException(429)


# %% [markdown]
# A load balancer sends each request to one of the two processes. Five requests a day are allowed. One caller sends
# twenty, in turns. How many are answered?

# %%
guess = ...


# %% start_at=false
def answered(module):
    command, caller = f"uvicorn {module}:app --port {{port}}", uuid4()
    urls = [run_command(command, name=f"{module} {number}", folder=folder).url for number in (1, 2)]
    replies = [httpx.get(f"{urls[number % 2]}/{caller}") for number in range(20)]
    return sum(reply.is_success for reply in replies)


apart = answered("own_count")
compare(guess, apart, "requests")

# %% [markdown]
# Each process has a counter of its own, so the limit grows with every process that you add. What is counted belongs in
# one place that all of them share. The service uses Redis for that, if it is told where one is. Here, a file does it.

# %%
# %%writefile {folder}/shared_count.py
import sqlite3
import time

from fastapi import FastAPI, HTTPException

app, db = FastAPI(), sqlite3.connect("counts.sqlite", isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS counts (caller, day, n, PRIMARY KEY (caller, day))")
COUNT = "INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1 RETURNING n"


@app.get("/{caller}")
async def ask(caller: str):
    [[n]] = db.execute(COUNT, (caller, time.time() // 86_400)).fetchall()
    if n > 5:
        raise HTTPException(429)


# %% start_at=false
together = answered("shared_count")
bars({"each counts alone": {"answered": apart}, "one counter": {"answered": together}}, y="requests answered, of 20")

# %% [markdown]
# ## The edge of a window
#
# Both count by the day: at midnight, everyone starts again at zero. That is called a fixed window. Take one of a minute,
# with limit 5, and a caller who asks once a second, from second 50 to second 70. How many answers?

# %%
guess = ...

# %%
from collections import Counter


def fixed_window(times, limit=5):
    counts = Counter()
    for now in times:
        counts[now // 60] += 1
        if counts[now // 60] <= limit:
            yield now


asked = range(50, 71)
compare(guess, len(list(fixed_window(asked))), "answers within 21 seconds")
marks({"asked": asked, "answered": fixed_window(asked)}, x="seconds", title="a fixed window, 5 a minute")

# %% [markdown]
# That is twice the limit, in a third of a minute. A *moving* window keeps the time of each request, and looks back from
# now: were there five in the last sixty seconds? First it looks, then it adds. So we need a table of times.

# %%
import sqlite3


def open_counter(path, timeout=5.0):
    db = sqlite3.connect(path, timeout, isolation_level=None, check_same_thread=False)
    db.execute("CREATE TABLE IF NOT EXISTS hits (caller TEXT, at REAL)")
    return db


# %% [markdown]
# Here are two connections to one table, as two processes have them. The limit is 1. Both look, and then both add.

# %%
table = Path(tempfile.mkdtemp(), "table.sqlite")
anna, ben = open_counter(table, 0.2), open_counter(table, 0.2)
counted = [db.execute("SELECT count(*) FROM hits").fetchone()[0] for db in (anna, ben)]
for db, n in zip((anna, ben), counted, strict=True):
    if n < 1:
        db.execute("INSERT INTO hits VALUES ('ada', 0)")
counted, anna.execute("SELECT count(*) FROM hits").fetchone()[0]

# %% [markdown]
# Both saw zero, and two are in. `BEGIN IMMEDIATE` starts a transaction that only one connection can have: the other one
# waits for its `COMMIT`. Ours waits for at most 0.2 seconds.

# %%
anna.execute("BEGIN IMMEDIATE")
try:
    ben.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print("while Anna has it, Ben is told:", error)
anna.execute("COMMIT")
for statement in ("BEGIN IMMEDIATE", "COMMIT"):
    ben.execute(statement)
print("after Anna's COMMIT, Ben gets his")

# %% [markdown]
# ### Exercise 3: a limit that holds
#
# Write `admit(db, caller, limit, window_s, now)` with a moving window. `db` is a connection of `open_counter`. Return 0 if
# the caller may go on, otherwise in how many seconds it may. `now` is in seconds; it never goes back.
#
# - At most `limit` of a caller's requests are admitted within `window_s` seconds, whichever process they come to. The
#   check asks from several processes at once.
# - A refused request does not count: a caller who retries all the time gets in again as soon as one who waits.
# - Callers do not affect each other.


# %% exercise="08.3"
def admit(db, caller, limit, window_s, now):
    # solution (about 10 lines)
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
    # starter
    # return ...
    # end


# %%
check("08.3", admit)

# %% [markdown]
# The service tells its callers what they have left, with each response, and a refused one when to come back. Its limit
# on `/v1/predict` is three a minute. The headers `RateLimit-Policy` and `RateLimit` have quota `q` and window `w`,
# requests that remain `r`, and seconds until there are more `t`.

# %%
for _ in range(4):
    reply = send("POST", "/v1/predict", tokens["ada"], json=RECORD)
    print(reply.status_code, reply.headers["RateLimit"], "Retry-After:", reply.headers.get("Retry-After"))

# %% [markdown]
# Ada is over the limit. What does Eve get now? And a stranger who sends a token in Ada's name, with a wrong signature?

# %%
guess = {"Eve": ..., "stranger": ...}

# %%
stranger_token = tokens["ada"][:-6] + "AAAAAA"
senders = {"Eve": tokens["eve"], "stranger": stranger_token}
compare(guess, {name: send("POST", "/v1/predict", token, json=RECORD).status_code for name, token in senders.items()})

# %% [markdown]
# The order matters: first who it is, then how often. If a service counted by the name in a token that it has not
# verified, any stranger could use up Ada's limit.
#
# ## The same question again
#
# A model takes 0.2 seconds for a row, computes one at a time, and gets the same rows again and again. So we keep its
# answers. `model.computed` is a list of what it was asked.

# %%
from workshop.lab.fixtures.lesson_08 import ROWS, SlowModel

model, kept = SlowModel(version="1.0.0", at_once=1), {}


@app.get("/by-row/{row}")
async def label_by_row(row: int):
    if row not in kept:
        kept[row] = await model.predict(ROWS[row])
    return kept[row]


# %% start_at=false
kept.clear()
timeline({"row 3, five times": load(server.url + "/by-row/3", requests=5, concurrency=1)})

# %% [markdown]
# Only the first request waits for the model. Now the team rolls out a new version of the model. Which version answers for row 3,
# and which for row 4?

# %%
guess = {3: ..., 4: ...}

# %%
model.version = "2.0.0"
compare(guess, {row: httpx.get(f"{server.url}/by-row/{row}").json() for row in guess})

# %% [markdown]
# The old version goes on answering, and would for as long as the process lives. One could empty the cache at each
# rollout, in all processes at the same moment. It is easier to make the version a part of the key.


# %%
@app.get("/by-version/{row}")
async def label_by_version(row: int):
    key = (model.version, row)
    if key not in kept:
        kept[key] = await model.predict(ROWS[row])
    return kept[key]


httpx.get(server.url + "/by-version/3").json()

# %% [markdown]
# ## Everybody at once
#
# A popular row is not in the cache yet, and ten users ask for it at the same moment. How often does the model compute?

# %%
guess = ...

# %% start_at=false
model.computed.clear()
crowd = load(server.url + "/by-version/7", requests=10)
compare(guess, len(model.computed), "times")
timeline({"ten users, one row": crowd})

# %% [markdown]
# Each of the ten finds nothing, and asks the model. That is called a stampede. It comes after each rollout, and the
# last user waits ten times as long as needed. The first one should compute, and the others wait for *its* answer.
#
# But what if the first user leaves? Two versions: the others wait for the same task, directly or behind a `shield`. How
# does that task end?

# %%
import asyncio

guess = {"await task": ..., "await shield(task)": ...}


# %%
async def task_whose_first_user_leaves(protect):
    async def user():
        return await protect(task)

    task = asyncio.create_task(model.predict(ROWS[8]))
    first = asyncio.create_task(user())
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([task])
    return "cancelled" if task.cancelled() else task.result()


ends = [await task_whose_first_user_leaves(protect) for protect in (lambda task: task, asyncio.shield)]
compare(guess, dict(zip(guess, ends, strict=True)))

# %% [markdown]
# A cancelled user cancels what it awaits. All the others would get a `CancelledError` for an answer.
#
# ### Exercise 4: compute it once
#
# Write `CachedModel(model)` with `await predict(row)`, where `row` is a list of numbers. `model` is a `SlowModel`: its
# `version` may change at any moment, also during a prediction, whose answer is then that of the old version.
#
# - Equal rows are computed once, for all who ask at the same time or later. Other rows do not wait for them.
# - Nobody who asks after a change of version gets an answer of an old one.
# - Errors are passed on, but not kept: who asks later starts a new computation.
# - If the user whose request has started it is cancelled, all others still get their answer.


# %% exercise="08.4"
# solution (about 15 lines)
class CachedModel:
    def __init__(self, model):
        self.model = model
        self.tasks = {}

    async def predict(self, row):
        key = (self.model.version, *row)

        def forget_failure(task):
            if task.cancelled() or task.exception():
                del self.tasks[key]

        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(self.model.predict(row))
            self.tasks[key].add_done_callback(forget_failure)
        return await asyncio.shield(self.tasks[key])


# starter
# CachedModel = ...
# end

# %%
check("08.4", CachedModel)

# %% [markdown]
# The cache of the service does the same, and has a limit in bytes: the longest unused is forgotten. With a Redis, the
# processes compute for each other.
#
# ## What the client has already
#
# A client can keep answers, too. The service sends an `ETag` with what describes the model. The next time, the client
# shows it, and only gets the content if there is another one by now.

# %%
described = send("GET", "/v1/model/metadata", tokens["ada"])
headers = {"Authorization": f"Bearer {tokens['ada']}", "If-None-Match": described.headers["ETag"]}
again = httpx.get(service.url + "/v1/model/metadata", headers=headers)
{reply.status_code: len(reply.content) for reply in (described, again)}

# %% [markdown]
# ## How expensive?
#
# An answer of a language model costs money, and how much is known when it ends. Here, an answer costs up to 3 cents,
# mostly 2, and a caller has 10 cents a day. Above that, the status is 402. One route looks at what is spent, the other
# reserves.

# %%
spent = Counter()


@app.get("/looks")
async def look_then_spend():
    if spent["looks"] >= 10:
        raise HTTPException(402, "today's budget is spent")
    await asyncio.sleep(0.2)  # the model answers
    spent["looks"] += 2


@app.get("/reserves")
async def reserve_then_settle():
    if spent["reserves"] + 3 > 10:
        raise HTTPException(402, "today's budget is spent, or reserved")
    spent["reserves"] += 3
    await asyncio.sleep(0.2)
    spent["reserves"] -= 1


# %% [markdown]
# A caller sends twenty requests at once. How many cents does each route spend?

# %%
guess = {"looks": ..., "reserves": ...}

# %% start_at=false
spent.clear()
sent = {path: load(f"{server.url}/{path}", requests=20) for path in guess}
compare(guess, {path: spent[path] for path in sent}, "cents")

# %% [markdown]
# Between a look and what follows from it lies an `await`: it is the race of exercise 3 again. The service reserves the
# highest possible price in the database, for all processes, and settles when the answer ends.
#
# ### Exercise 5: your own service
#
# Build `clinic`, with your `read_token` and `admit` if you like. It survives the attacks of the opening, and callers who
# ask too often. `KEYS` has the keys, `await label_of_row(row)` is the model.
#
# - `GET /label/{row}` returns `{"label": …}` to callers with an access token and the scope `predict`, as in exercises 1
#   and 2: 401 or 403. A token's `scope` is a text with spaces, such as `"predict cases:read"`.
# - Each `sub` has 3 answers in 60 seconds, here and on the WebSocket together. Above it, the status is 429, with
#   `Retry-After` in whole seconds, at least 1. Requests with status 401 or 403 count for nobody.
# - On the WebSocket `/labels`, the first message is the token; close all others with 1008. Each further message is a row:
#   reply `{"label": …}`, or `{"error": 429, "retry_after_s": …}` and go on.

# %% exercise="08.5"
import math

from workshop.lab.fixtures.lesson_08 import label_of_row

clinic = FastAPI()

# solution (about 39 lines)
counter = open_counter(folder / "clinic.sqlite")


class TooOften(Exception):
    def __init__(self, wait_s):
        self.retry_after_s = max(1, math.ceil(wait_s))


def may_predict(claims):
    return "predict" in claims.get("scope", "").split()


async def label_for(claims, row):
    if wait_s := admit(counter, claims["sub"], 3, 60, time.time()):
        raise TooOften(wait_s)
    return {"label": await label_of_row(row)}


@clinic.get("/label/{row}")
async def get_label(row: int, authorization: Annotated[str, Header()] = ""):
    try:
        claims = read_token(authorization.removeprefix("Bearer "), KEYS)
        if not may_predict(claims):
            raise HTTPException(403)
        return await label_for(claims, row)
    except jwt.InvalidTokenError:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"}) from None
    except TooOften as error:
        raise HTTPException(429, headers={"Retry-After": str(error.retry_after_s)}) from None


@clinic.websocket("/labels")
async def get_labels(socket: WebSocket):
    await socket.accept()
    try:
        claims = read_token(await socket.receive_text(), KEYS)
    except jwt.InvalidTokenError:
        raise WebSocketException(1008) from None
    if not may_predict(claims):
        raise WebSocketException(1008)
    async for row in socket.iter_text():
        try:
            await socket.send_json(await label_for(claims, int(row)))
        except TooOften as error:
            await socket.send_json({"error": 429, "retry_after_s": error.retry_after_s})


# starter
# @clinic.get("/label/{row}")
# async def get_label(row: int, authorization: Annotated[str, Header()] = ""):
#     claims = decode_part(authorization.split(".")[1])
#     return ...
#
#
# @clinic.websocket("/labels")
# async def get_labels(socket: WebSocket):
#     await socket.accept()
#     claims = decode_part((await socket.receive_text()).split(".")[1])
# end

# %%
check("08.5", clinic)

# %% [markdown]
# And the final service? The stranger takes one of Ada's tokens apart, and builds others from it. The last one is hers.

# %%
header, claims, signature = tokens["ada"].split(".")
head, facts = decode_part(header), decode_part(claims)
tried = {
    "no algorithm": ".".join([encode_part(head | {"alg": "none"}), claims, ""]),
    "another key": jwt.encode(facts, "a key that Eve has made up, 40 letters..", headers=head),
    "changed claims": ".".join([header, encode_part(facts | {"sub": "eve"}), signature]),
    "Ada's token": tokens["ada"],
}
{name: send("GET", f"/v1/cases/{adas_case}", token).status_code for name, token in tried.items()}

# %% [markdown]
# ## Quiz
#
# **1.** A colleague wants to put the diagnosis into the token, "because it is encrypted". What do you answer?
# <details><summary>Answer</summary>It is signed, not encrypted. Whoever sees the token can read it.</details>
#
# **2.** A service refuses `none` and a wrong key. Who else can read Ada's cases with a token that the log-in has
# signed?
# <details><summary>Answer</summary>Whoever has one that was issued for another service or another use. Check audience,
# issuer and kind.</details>
#
# **3.** A caller asks for somebody else's case. Why 404 and not 403?
# <details><summary>Answer</summary>A 403 would confirm that the case exists.</details>
#
# **4.** The limit is 100 a minute, and you go from two processes to eight. Each has a counter of its own. What is the
# limit now?
# <details><summary>Answer</summary>Up to 800 a minute. It was up to 200 before.</details>
#
# **5.** What belongs in the key of a cached prediction?
# <details><summary>Answer</summary>All that the answer depends on: the content of the row, and the model with its
# version.</details>
#
# ## Recap
#
# | attack or failure | what stops it |
# |---|---|
# | a token without a signature, or with another key | the service names algorithm and keys, not the token |
# | a token for another service or use | audience, issuer, kind |
# | a stolen token after the log-out | the session is looked up |
# | a stolen database, a clock | slow salted hashes, equal time for unknown users |
# | a caller who wants more | scopes (403), owners (404), on the WebSocket too |
# | a form on another site | `SameSite`, and a look at the origin |
# | a caller who asks too often | one counter for all processes, a moving window, 429 |
# | an answer of the old model | the version in the key |
# | a stampede | one task, behind a `shield`; errors are forgotten |
# | twenty answers at once for the last cent | reserve first, 402 |
#
# The stranger's token no longer reads anything, over HTTP or on the WebSocket. Next: lesson 09 moves the model into a
# deployment of its own.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
