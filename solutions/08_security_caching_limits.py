# %% [markdown]
# # 08 Security, caching, limits
#
# A stranger without a key writes "I am Ada" into a token, and reads Ada's cases. You will see why, and refuse that token
# and others like it. Then you decide who may call what and how often, and which answers need not be computed twice.
#
# After this lesson you can
#
# - verify a token, store a password, and end a session,
# - check scopes and owners, over HTTP and on a WebSocket,
# - limit callers, however many processes answer,
# - cache predictions without returning those of an older model.
#
# On an idle machine, the code takes {{ minutes }} and {{ memory }} of memory. Allow 75 minutes, exercises included.
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
    claims |= {"exp": int(time.time()) + 4 * 3600} | changes
    return jwt.encode(claims, key, "HS256", headers={"typ": typ, "kid": "2026-12"})


# %% [markdown]
# A token has three parts, separated by dots. The first two are not encrypted, only written in base64, so anybody can
# read them. The third is the signature.

# %%
ada_token = issue("ada")
header, claims, signature = ada_token.split(".")
decode_part(header), decode_part(claims), signature

# %% [markdown]
# The service that stores the cases reads tokens with its own code. It signs the first two parts again, using the
# algorithm named in the header, and compares. Then it checks when the token expires.

# %%
import base64
import hmac

SIGN = {"HS256": lambda text: hmac.digest(KEY.encode(), text.encode(), "sha256"), "none": lambda text: b""}


def read_by_hand(token):
    text, _, signature = token.rpartition(".")
    header, claims = map(decode_part, text.split("."))
    signed = base64.urlsafe_b64encode(SIGN[header["alg"]](text)).decode().rstrip("=")
    if signed != signature or claims["exp"] < time.time():
        raise jwt.InvalidTokenError("wrong signature, or expired")
    return claims


# %% [markdown]
# The endpoint returns the cases of the caller, and nobody else's.

# %%
from typing import Annotated

import httpx
from fastapi import FastAPI, Header, HTTPException

app, CASES = FastAPI(), {"ada": ["tumour 17 is malignant"], "eve": []}


@app.get("/cases")
def own_cases(authorization: Annotated[str, Header()]):
    try:
        return CASES[read_by_hand(authorization.removeprefix("Bearer "))["sub"]]
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, str(error)) from None


# %%
def ask_cases(token):
    return httpx.get(server.url + "/cases", headers={"Authorization": f"Bearer {token}"})


server = run_app(app, name="lesson 08")
ask_cases(ada_token).json(), ask_cases(issue("eve")).json()

# %% [markdown]
# Now comes the stranger. The standard allows tokens without a signature: their algorithm is called `none`. Such a token
# needs no key, and its third part is empty.

# %%
unsigned = ".".join([encode_part({"alg": "none"}), encode_part({"sub": "ada", "exp": 10**10}), ""])
ask_cases(unsigned).json()

# %% [markdown]
# ## Which attacks get in?
#
# That was one attack. Eve tries five more. Besides her own tokens she has three that were issued to Ada: an expired one,
# a refresh token, which only serves to get new tokens, and one for another service, the newsletter.

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
# Which of the six read Ada's cases? For each, predict `"in"` or `"out"`: replace each `...`.

# %%
guess = {"no algorithm": ..., "another key": ..., "expired": ...}
guess |= {"changed claims": ..., "refresh token": ..., "another service": ...}

# %%
compare(guess, {name: "in" if ask_cases(token).is_success else "out" for name, token in ATTACKS.items()})

# %% [markdown]
# ## What just happened?
#
# `read_by_hand` lets the token say how to check it. And it checks *who* has signed, and until when the token is valid,
# but not what it is for. So every token that the log-in issues, for whatever use, opens the cases until it expires.
#
# `get_in(read)` lists the attacks that a reader lets in.


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


# %% [markdown]
# We leave the signature to PyJWT. There, our code names the algorithm, not the token. What is left?


# %%
def with_algorithm(token):
    return jwt.decode(token, KEY, algorithms=["HS256"], options={"verify_aud": False})


get_in(read_by_hand), get_in(with_algorithm)

# %% [markdown]
# `verify_aud=False` makes an error go away: PyJWT refuses a token with an audience if we name none. The right answer is
# to name this service. And since PyJWT checks the expiry only of a token that has one, we require it.


# %%
def with_audience(token):
    checks = {"audience": "clinic", "issuer": "clinic-login", "options": {"require": ["exp", "sub"]}}
    return jwt.decode_complete(token, KEY, algorithms=["HS256"], **checks)


get_in(with_audience)

# %% [markdown]
# A refresh token has the same key, issuer and audience. Only its kind differs, which the header `typ` names.


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
# Keys are replaced from time to time. For a while, two of them are valid, and the header `kid` of a token says which one
# was used. Write `read_token(token, keys)`, where `keys` maps each `kid` to its key. It returns the claims of a valid
# token, and raises `jwt.InvalidTokenError` for everything else. A token is valid if
#
# - it is signed with HS256 and the key that its `kid` names,
# - it has the kind, audience and issuer used above,
# - it has a `sub` and an `exp`, and has not expired, not even a second ago.
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
# Databases get stolen. So they should not hold passwords, only hashes that are slow to compute: whoever tries a million
# passwords has to pay for each. Ada and Eve have the same password here. Their hashes differ, because each has a random
# salt.

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
# FastAPI has a dependency that reads a name and a password from a form, with the field names of the OAuth 2.0 standard.
# We write two log-ins with it. The first refuses at once if there is no such user.

# %%
from fastapi import Depends, Security
from fastapi.security import OAuth2PasswordRequestForm, SecurityScopes

from workshop.api.passwords import Passwords

FormDep = Annotated[OAuth2PasswordRequestForm, Depends()]
passwords = Passwords()


@app.post("/early")
def log_in_early(form: FormDep):
    if form.username not in HASHES or not argon2.verify(form.password, HASHES[form.username]):
        raise HTTPException(400, "the name or the password is wrong")
    return {"access_token": issue(form.username), "token_type": "bearer"}


# %% [markdown]
# The second uses the class `Passwords` of the service. For an unknown user, it checks the password against a hash that
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
# Both have one text for a wrong name and a wrong password. But Eve wants to know who has an account. She sends a wrong
# password for Ada, and one for Zoe, who has no account, and measures. How many times longer does Ada's take?

# %%
guess = {"/early": ..., "/equal": ...}


# %% start_at=false
def wrong_password_ms(path):
    """The fastest of five each, in turns: another program may disturb some."""
    took = {"zoe": [], "ada": []}
    with httpx.Client(base_url=server.url) as client:
        for name in 5 * list(took):
            start = time.perf_counter()
            client.post(path, data={"username": name, "password": "a wrong one"})
            took[name].append(1000 * (time.perf_counter() - start))
    return {name: min(each) for name, each in took.items()}


took = {path: wrong_password_ms(path) for path in guess}
compare(guess, {path: ms["ada"] / ms["zoe"] for path, ms in took.items()}, "times")
bars(took, y="milliseconds for a wrong password")

# %% [markdown]
# The clock no longer tells Eve who has an account.
#
# ## The service and its users
#
# Now we start the final service, with three users. Ada and Eve are members. Vi is a viewer: she may read cases, but not
# store any. Access tokens are valid for four hours here, so that yours do not expire while you work.

# %%
from workshop.api.app import create_app
from workshop.contracts.principals import Role
from workshop.integration.services import build_services
from workshop.lab.fixtures.lesson_08 import RECORD, add_users
from workshop.settings import Settings

OPTIONS = {"access_token_s": 4 * 3600, "rate_limits": {"/v1/predict": "3/minute"}, "wrong_keys_limit": "1000/minute"}
database = f"sqlite+aiosqlite:///{folder}/service.sqlite"
settings = Settings(database_url=database, token_keys=KEYS, language_models=False, **OPTIONS)
add_users(settings, ada=Role.MEMBER, eve=Role.MEMBER, vi=Role.VIEWER)
service = run_app(create_app(build_services(settings), settings), name="service")


# %% [markdown]
# Its log-in takes the same form. The access token says more than ours: among other things, the id of a session, `sid`.


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
# The token is valid for hours. Ada logs out now. Which status does a request with this token get, before and after?

# %%
guess = {"before": ..., "after": ...}

# %%
before = send("GET", "/v1/auth/me", ada_token).status_code
httpx.post(service.url + "/v1/auth/revoke", data={"token": ada_token})
compare(guess, {"before": before, "after": send("GET", "/v1/auth/me", ada_token).status_code})

# %% [markdown]
# The token has not changed, and has not expired. But the service looks up its session for each request. If it did not, a
# stolen token would work until it expires.
#
# ## Scopes and owners
#
# The scopes in a token say what its bearer may do. Each route of the service names the scope that it needs, in a
# dependency.

# %% mirrors="workshop.api.dependencies:require_scopes workshop.api.dependencies:requires"
from typing import Any

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
# Ada stores a case. The next four requests are all refused, with 401, 403 or 404. Which one gets which?

# %%
tokens = {name: log_in(name) for name in ("ada", "eve", "vi")}
case = {"measurements": RECORD}
adas_case = send("POST", "/v1/cases", tokens["ada"], json=case).json()["id"]

# %%
guess = {"nobody reads Ada's case": ..., "Vi stores a case": ...}
guess |= {"Eve reads Ada's case": ..., "Eve reads a case that does not exist": ...}

# %%
from uuid import uuid4

replies = [
    send("GET", f"/v1/cases/{adas_case}"),
    send("POST", "/v1/cases", tokens["vi"], json=case),
    send("GET", f"/v1/cases/{adas_case}", tokens["eve"]),
    send("GET", f"/v1/cases/{uuid4()}", tokens["eve"]),
]
compare(guess, {name: reply.status_code for name, reply in zip(guess, replies, strict=True)})

# %% [markdown]
# 401: I do not know who you are. 403: I know, and you may not do this at all. 404: for you, there is no such case. With
# a 403, Eve would learn that the case exists.
#
# ### Exercise 2: who may see it?
#
# `find_caller(token)` returns a caller with `name` and `scopes`, or raises `UnknownTokenError`. `await cases.get(case_id)`
# returns a case with `owner` and `text`, or `None`, and `await cases.delete(case_id)` erases one.
#
# - `GET /cases/{case_id}` needs the scope `cases:read` and returns `{"text": …}`, no more. `DELETE` needs `cases:write`.
# - Without a known token in `Authorization: Bearer …`, the status is 401. `unknown_caller()` is that error: its header
#   tells the client to send such a token. `token_in(authorization)` returns the token, or `""`.
# - Without the scope, it is 403. A case of another owner does not exist, unless the caller has the scope `cases:all`.
# - On the WebSocket `/cases`, the first message is the token, because a browser cannot set the header. Each further
#   message is the id of a case: reply `{"text": …}` or `{"error": 404}`. If HTTP would have a 401 or 403, close with the
#   code 1008, which says that the client has broken a rule. Many clients are connected at the same time.

# %% exercise="08.2"
from fastapi import WebSocket, WebSocketException

from workshop.lab.fixtures.lesson_08 import UnknownTokenError, cases, find_caller, token_in

ward = FastAPI()


def unknown_caller():
    return HTTPException(401, headers={"WWW-Authenticate": "Bearer"})


# solution (about 27 lines)
def allowed(token, scope):
    try:
        caller = find_caller(token)
    except UnknownTokenError:
        raise unknown_caller() from None
    if scope not in caller.scopes:
        raise HTTPException(403)
    return caller


async def find_case(case_id, caller):
    case = await cases.get(case_id)
    if case is None or (case.owner != caller.name and "cases:all" not in caller.scopes):
        raise HTTPException(404)
    return {"text": case.text}


@ward.get("/cases/{case_id}")
async def get_case(case_id: str, authorization: Annotated[str, Header()] = ""):
    return await find_case(case_id, allowed(token_in(authorization), "cases:read"))


@ward.delete("/cases/{case_id}")
async def delete_case(case_id: str, authorization: Annotated[str, Header()] = ""):
    await find_case(case_id, allowed(token_in(authorization), "cases:write"))
    await cases.delete(case_id)


@ward.websocket("/cases")
async def read_cases(socket: WebSocket):
    await socket.accept()
    try:
        caller = allowed(await socket.receive_text(), "cases:read")
    except HTTPException:
        raise WebSocketException(1008) from None
    async for case_id in socket.iter_text():
        try:
            await socket.send_json(await find_case(case_id, caller))
        except HTTPException:
            await socket.send_json({"error": 404})


# starter
# @ward.get("/cases/{case_id}")
# async def get_case(case_id: str, authorization: Annotated[str, Header()] = ""):
#     token = token_in(authorization)
#     return ...
#
#
# @ward.delete("/cases/{case_id}")
# async def delete_case(case_id: str, authorization: Annotated[str, Header()] = ""):
#     return ...
#
#
# @ward.websocket("/cases")
# async def read_cases(socket: WebSocket):
#     await socket.accept()
#     token = await socket.receive_text()
#     async for case_id in socket.iter_text():
#         await socket.send_json({"text": ...})
# end

# %%
check("08.2", ward)

# %% [markdown]
# The service has one dependency for both, `get_principal`. It asks for an `HTTPConnection`, which is what `Request` and
# `WebSocket` have in common.
#
# ## Cookies
#
# If a page stores a token, each script on the page can read it. A cookie can be hidden from scripts, and the browser adds
# it to each request by itself. This log-in sets one that other sites may use, too.

# %%
from fastapi import Cookie, Response


@app.post("/page-log-in")
async def log_in_page(response: Response):
    response.set_cookie("session", "ada", samesite="none", secure=True)


@app.post("/erase")
async def erase(session: Annotated[str, Cookie()]):
    return f"all cases of {session} are erased"


# %% [markdown]
# Ada is logged in, and opens a page of `evil.example`. It contains a form that sends itself to the clinic. Browsers
# allow that. They only prevent the page from reading the *response*. This is what her browser sends:

# %%
EVIL = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
httpx.post(server.url + "/erase", cookies={"session": "ada"}, headers=EVIL).json()

# %% [markdown]
# This is called cross-site request forgery (CSRF). Here are both cookies, without their values: the one above, and the
# one that the log-in of the service sets.

# %%
own_page, user = {"Origin": service.url}, {"username": "ada", "password": PASSWORD}
logged_in = httpx.post(service.url + "/v1/auth/login", json=user, headers=own_page)
[reply.headers["Set-Cookie"].partition("; ")[2] for reply in (httpx.post(server.url + "/page-log-in"), logged_in)]

# %% [markdown]
# `HttpOnly` hides a cookie from scripts. With `SameSite=strict`, browsers do not add it to requests from other sites. The
# service does not rely on that alone. It also checks which page has sent the request.

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
# From the foreign page, the cookie does not count. So the service does not know who is asking: 401.

# %% [markdown]
# ## How often?
#
# Ada's script has a bug, and sends requests without a pause. A limit stops it. This app counts with `limits`, the
# library that the service uses, too. We write it to a file, because we want two processes of it.

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
# A caller may send five requests a day. Ada sends twenty, and the two processes get them in turn. How many are answered?

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
# Each process has its own counter, so each process that you add raises the limit. The count has to be in one place that
# all processes share. For the service, `REDIS_URL` names it: Redis is a store that processes use over the network. Here,
# it is a file.

# %%
# %%writefile {folder}/shared_count.py
import sqlite3

from fastapi import FastAPI, HTTPException

app, db = FastAPI(), sqlite3.connect("counts.sqlite", isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS counts (caller, day, n, PRIMARY KEY (caller, day))")
COUNT = "INSERT INTO counts VALUES (?, date('now'), 1) ON CONFLICT DO UPDATE SET n = n + 1 RETURNING n"


@app.get("/{caller}")
async def ask(caller: str):
    [[n]] = db.execute(COUNT, (caller,)).fetchall()
    if n > 5:
        raise HTTPException(429)


# %% start_at=false
together = answered("shared_count")
bars({"each counts alone": {"answered": apart}, "one counter": {"answered": together}}, y="requests answered, of 20")

# %% [markdown]
# ## The edge of a window
#
# The file has one count for each day, which starts at zero. That is called a fixed window. Now take a window of a minute,
# a limit of 5, and a caller who asks once a second, from second 50 to second 70. How many answers?

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
# That is twice the limit within 15 seconds. A *moving* window keeps the time of each request, and looks back from now:
# were there five in the last sixty seconds? If not, it adds one. For this we need a table of times.

# %%
import sqlite3


def open_counter(path, timeout=5.0):
    db = sqlite3.connect(path, timeout, isolation_level=None, check_same_thread=False)
    db.execute("CREATE TABLE IF NOT EXISTS hits (caller TEXT, at REAL)")
    return db


# %% [markdown]
# Two processes would have two connections to one table, here `anna` and `ben`. With a limit of 1, both look first, and
# then both add a row.

# %%
table = Path(tempfile.mkdtemp(), "table.sqlite")
anna, ben = open_counter(table, 0.2), open_counter(table, 0.2)
counted = [db.execute("SELECT count(*) FROM hits").fetchone()[0] for db in (anna, ben)]
for db, n in zip((anna, ben), counted, strict=True):
    if n < 1:
        db.execute("INSERT INTO hits VALUES ('ada', 0)")
counted, anna.execute("SELECT count(*) FROM hits").fetchone()[0]

# %% [markdown]
# Both have counted zero, and now there are two. `BEGIN IMMEDIATE` starts a transaction that only one connection can have
# at a time. The other one waits until the first sends `COMMIT`. In this example, it gives up after 0.2 seconds.

# %%
anna.execute("BEGIN IMMEDIATE")
try:
    ben.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print("before Anna's COMMIT:", error)
anna.execute("COMMIT")
for statement in ("BEGIN IMMEDIATE", "COMMIT"):
    ben.execute(statement)
print("after Anna's COMMIT, Ben can begin")

# %% [markdown]
# ### Exercise 3: a limit that holds
#
# Write `admit(db, caller, limit, window_s, now)` with a moving window. `db` comes from `open_counter`. Return 0 if the
# request is admitted, otherwise the number of seconds until the caller may ask again. You may round it up, but not
# down. `now` is the time in seconds.
#
# - Within any `window_s` seconds, at most `limit` requests of a caller are admitted, in whichever process. The check asks
#   from several processes at once. A request has left the window exactly `window_s` seconds later.
# - Refused requests do not count: a caller who keeps asking gets in again as soon as one who waits.
# - A caller's requests do not affect other callers. A caller's name may contain any character.


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
# The service's limit on `/v1/predict` is three requests a minute. Each response says how many remain (`r`), and in how
# many seconds there will be more (`t`). A 429 also says when to come back, in `Retry-After`.

# %%
for _ in range(4):
    reply = send("POST", "/v1/predict", tokens["ada"], json=RECORD)
    print(reply.status_code, reply.headers["RateLimit"], "Retry-After:", reply.headers.get("Retry-After"))

# %% [markdown]
# Ada is over the limit. Which status does Eve get now? And a stranger with Ada's token and a wrong signature?

# %%
guess = {"Eve": ..., "stranger": ...}

# %%
stranger_token = tokens["ada"][:-6] + "AAAAAA"
senders = {"Eve": tokens["eve"], "stranger": stranger_token}
compare(guess, {name: send("POST", "/v1/predict", token, json=RECORD).status_code for name, token in senders.items()})

# %% [markdown]
# The service first finds out who is asking, then counts. If it counted by the name in a token that it has not verified,
# any stranger could use up Ada's limit.
#
# ## The same question again
#
# This model takes 0.2 seconds for a row, and computes one row at a time. It is often asked for the same row. So we keep
# its answers. `model.computed` lists the rows that it was asked for.

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
# Only the first request waits for the model. The others get the kept answer. Then version 2.0.0 replaces 1.0.0. Which
# version answers for row 3, and which one for row 4?

# %%
guess = {3: ..., 4: ...}

# %%
model.version = "2.0.0"
compare(guess, {row: httpx.get(f"{server.url}/by-row/{row}").json().split()[-1] for row in guess})

# %% [markdown]
# Row 3 still has the answer of the old version. One could empty the caches of all processes at the moment of the rollout.
# It is easier to make the version a part of the key.


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
# Row 7 is not in the cache yet, and ten users ask for it at the same moment. How often does the model compute it?

# %%
guess = ...

# %% start_at=false
model.computed.clear()
crowd = load(server.url + "/by-version/7", requests=10)
compare(guess, len(model.computed), "times")

# %% start_at=false
timeline({"ten users, one row": crowd})

# %% [markdown]
# Whoever comes before there is an answer asks the model, too. This is called a stampede. The last user waits several
# times as long as the first. It would be better to compute once, in a task that all ten wait for.
#
# But what if the user whose request started that task leaves? We cancel that user's request, which waits for the task
# either directly or through `asyncio.shield`. How does the task end?

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


protections = zip(guess, (lambda task: task, asyncio.shield), strict=True)
compare(guess, {name: await task_whose_first_user_leaves(protect) for name, protect in protections})

# %% [markdown]
# A task that is cancelled also cancels the task that it awaits. Without the shield, the nine others would get a
# `CancelledError`.
#
# ### Exercise 4: compute it once
#
# Write a class `CachedModel(model)` with a method `await predict(row)`, where `row` is a list of numbers. `model` is a
# `SlowModel`. Its `version` may change at any moment. A prediction that has begun by then is one of the old version.
#
# - Equal rows are computed once, for all who ask at the same time or later. Rows are different if any number differs, or
#   the order. They do not wait for each other.
# - Whoever asks after a change of version gets an answer of the new one.
# - Errors of the model are passed on, but not kept: the next one who asks starts a new computation. That also holds if
#   nobody was waiting any more when the model failed. Answers for other rows are kept.
# - If the request that has started a computation is cancelled, all others still get the answer of this computation, also
#   those who ask later.


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
# A dictionary grows for ever. The cache of the service, in `workshop/storage/cache.py`, has a limit in bytes.
#
# ## What the client has already
#
# A client can keep answers, too. The service sends an `ETag`, which identifies the content, and asks the client to check
# each time whether it is still the same (`no-cache`).

# %%
described = send("GET", "/v1/model/metadata", tokens["ada"])
described.headers["ETag"], described.headers["Cache-Control"]

# %% [markdown]
# So the client sends the `ETag` with its next request. How many bytes does the body of the response have, and what is
# its status?

# %%
headers = {"Authorization": f"Bearer {tokens['ada']}", "If-None-Match": described.headers["ETag"]}
again = httpx.get(service.url + "/v1/model/metadata", headers=headers)
{reply.status_code: len(reply.content) for reply in (described, again)}

# %% [markdown]
# ## How expensive?
#
# An answer of a language model costs money, and nobody knows how much before it ends. Say it costs 2 cents here, and might
# have cost 3. A caller has 10 cents a day, then gets a 402. The first route compares with what is spent so far.

# %%
spent = Counter()


@app.get("/looks")
async def look_then_spend():
    if spent["looks"] >= 10:
        raise HTTPException(402, "today's budget is spent")
    await asyncio.sleep(0.2)  # the model answers
    spent["looks"] += 2


# %% [markdown]
# The second reserves the highest price before it asks the model, and returns the difference afterwards.


# %%
@app.get("/reserves")
async def reserve_then_settle():
    if spent["reserves"] + 3 > 10:
        raise HTTPException(402, "today's budget is spent, or reserved")
    spent["reserves"] += 3
    await asyncio.sleep(0.2)
    spent["reserves"] -= 1


# %% [markdown]
# A caller sends twenty requests at once. How many cents does the caller spend on each route?

# %%
guess = {"looks": ..., "reserves": ...}

# %% start_at=false
spent.clear()
sent = {path: load(f"{server.url}/{path}", requests=20) for path in guess}
compare(guess, {path: spent[path] for path in sent}, "cents")

# %% [markdown]
# The first route has the race of exercise 3 again: others look before it has entered what it spent. On the second,
# three reservations of 3 cents fit into 10, and each answer then cost 2. The service reserves, in its database, so that
# all processes know.
#
# ### Exercise 5: your own service
#
# Build `clinic`. You can use your `read_token` with `KEYS`, and your `admit` with `counter`. `await label_of_row(row)`
# asks the model.
#
# - `GET /label/{row}` returns `{"label": …}` to callers with a valid access token (otherwise 401, as in exercise 2) and
#   the scope `predict` (otherwise 403). The claim `scope` is a text such as `"predict cases:read"`, or missing.
# - A `sub` gets at most 3 labels in 60 seconds, over HTTP and WebSocket together, even if it asks for many at once. Then
#   the status is 429, with `Retry-After`: in how many seconds there is one more, rounded up to a whole number. A request
#   that gets a 401 or 403 does not count for anybody.
# - On the WebSocket `/labels`, the first message is the token. Close with 1008 if HTTP would have a 401 or 403. Each
#   further message is a row: reply `{"label": …}`, or `{"error": 429, "retry_after_s": …}` without closing.

# %% exercise="08.5"
import math

from workshop.lab.fixtures.lesson_08 import label_of_row

clinic, counter = FastAPI(), open_counter(folder / "clinic.sqlite")


class TooOften(Exception):
    def __init__(self, wait_s):
        self.retry_after_s = math.ceil(wait_s)


# solution (about 28 lines)
def claims_of(token):
    try:
        claims = read_token(token, KEYS)
    except jwt.InvalidTokenError:
        raise unknown_caller() from None
    if "predict" not in claims.get("scope", "").split():
        raise HTTPException(403)
    return claims


async def label_for(claims, row):
    if wait_s := admit(counter, claims["sub"], 3, 60, time.time()):
        raise TooOften(wait_s)
    return {"label": await label_of_row(row)}


@clinic.get("/label/{row}")
async def get_label(row: int, authorization: Annotated[str, Header()] = ""):
    try:
        return await label_for(claims_of(token_in(authorization)), row)
    except TooOften as error:
        raise HTTPException(429, headers={"Retry-After": str(error.retry_after_s)}) from None


@clinic.websocket("/labels")
async def get_labels(socket: WebSocket):
    await socket.accept()
    try:
        claims = claims_of(await socket.receive_text())
    except HTTPException:
        raise WebSocketException(1008) from None
    async for row in socket.iter_text():
        try:
            await socket.send_json(await label_for(claims, int(row)))
        except TooOften as error:
            await socket.send_json({"error": 429, "retry_after_s": error.retry_after_s})


# starter
# @clinic.get("/label/{row}")
# async def get_label(row: int, authorization: Annotated[str, Header()] = ""):
#     token = token_in(authorization)
#     return ...
#
#
# @clinic.websocket("/labels")
# async def get_labels(socket: WebSocket):
#     await socket.accept()
#     token = await socket.receive_text()
#     async for row in socket.iter_text():
#         await socket.send_json({"label": ...})
# end

# %%
check("08.5", clinic)

# %% [markdown]
# And the final service? Eve takes her own token apart, and writes Ada's name into it.

# %%
header, claims, signature = tokens["eve"].split(".")
head, facts = decode_part(header), decode_part(claims) | {"sub": "ada"}

# %% [markdown]
# With each of three forged tokens, she asks for Ada's case. For comparison, Ada asks, too.

# %%
tried = {
    "no algorithm": ".".join([encode_part(head | {"alg": "none"}), encode_part(facts), ""]),
    "another key": jwt.encode(facts, "a key that Eve has made up, 40 letters..", headers=head),
    "changed claims": ".".join([header, encode_part(facts), signature]),
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
# | a stolen database of passwords | slow hashes with salt |
# | a log-in that shows who has an account | the same work for unknown users |
# | a caller who wants more than it may | scopes (403), owners (404), on the WebSocket too |
# | a form on another site | `SameSite`, and a check of the origin |
# | a caller who asks too often | one counter for all processes, a moving window, 429 |
# | an answer of the old model | the version in the key |
# | a stampede | one task for all, behind a `shield` |
# | twenty answers on a budget for five | reserve first, 402 |
#
# The stranger's token opens nothing any more. Next: lesson 09 gives the model a deployment
# of its own.
#
# ## Tear-down
#
# This cell stops the servers of this lesson. You can run it at any point.

# %%
stop_all()
