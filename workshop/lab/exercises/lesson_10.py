"""Lesson 10: one app, two runtimes."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from secrets import token_bytes
from typing import Any
from urllib.parse import quote

import httpx
import ray
from fastapi import FastAPI
from ray import cloudpickle
from ray.serve.context import _get_global_client
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from workshop.lab.answer import Answer, Client
from workshop.lab.applications import need_serve, running
from workshop.lab.expectations import NotYet, becomes_true, expect, show
from workshop.lab.fixtures.lesson_10 import Bus, Doubler, OtherProcess, asking, reporting
from workshop.lab.registry import exercise

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""

SOON_S = 3.0
"""For what should happen at once."""


@exercise(
    "10.1",
    hints=[
        "Like `Room`, with an `__init__` that keeps the factory and the arguments. `bind` passes them to it.",
        "`serve.deployment(serve.ingress()(Ingress)).bind(make_app, *arguments)`, and the class calls the factory in "
        "`__serve_build_asgi_app__`.",
    ],
    right="The factory travels, and each replica builds its own app.",
    seconds=LIMIT_S,
)
def runs_on_serve(answer: Answer) -> None:
    need_serve()
    arguments = ("tea", 3, {"open": True})
    make_app, made_here = reporting()
    application = answer.call(make_app, *arguments)
    if isinstance(application, FastAPI):
        raise NotYet(
            "This is the app itself, and it was made here.", expected="a Serve application, which `bind` returns"
        )
    if made_here:
        raise NotYet("The app was made here, and Ray would have to pickle it. Each replica makes its own.")
    answer.given = "on_serve(make_app, 'tea', 3, {'open': True})"
    with _reachable(answer, application) as client:
        reports = [_json(client.get("/report")) for _ in range(3)]
    expect(reports[0]["arguments"], list(arguments), why="These are the arguments of the factory.")
    visits: Counter[int] = Counter()  # by replica
    for report in reports:
        visits[report["runs_in"]] += 1
        expect(report["visits"], visits[report["runs_in"]], why="A replica makes its app once, not per request.")
    made = [report["made_in"].count(report["runs_in"]) for report in reports]
    expect(made, [1, 1, 1], why="How often the factory was called in the replica.")
    expect([report["starts"] for report in reports], [1, 1, 1], why="The app's lifespan runs once.")


@contextmanager
def _reachable(answer: Answer, application: Any, seconds: float = SOON_S) -> Iterator[Client]:
    """Run the application behind Serve's proxy for the length of the block, and yield an HTTP client for it."""
    with running(application) as name, Client(answer, f"{_proxy_url()}/{name}", seconds) as client:
        routes = client.base_url.join("/-/routes")
        becomes_true(lambda: f"/{name}" in httpx.get(routes, trust_env=False).json(), SOON_S)
        try:
            yield client
        except httpx.TimeoutException:
            raise NotYet("The replica does not respond.") from None


def _proxy_url() -> str:
    client: Any = _get_global_client()  # the only place that has it, in the test run's cluster too
    return f"http://127.0.0.1:{client.http_config.port}"


def _json(response: httpx.Response) -> Any:
    if response.status_code != 200:
        raise NotYet("This is not the app's response.", expected="200", got=_status_and_text(response))
    return response.json()


def _status_and_text(response: httpx.Response) -> str:
    return f"{response.status_code} {response.text[:100]}"


NAMES = ("ada", "Åsa: 2.5 | b, c;d", "x")


@exercise(
    "10.2",
    hints=[
        "Put the name and a signature of the name into the ticket. Then nothing has to be stored.",
        '`hmac.new(key, name.encode(), "sha256").hexdigest()` has 64 characters. Put the name behind them. When the '
        "ticket comes back, make it again from its name, and compare. `hmac.compare_digest` accepts a `str` only if it "
        "is ASCII, so compare bytes: `.encode()`.",
    ],
    right="Nothing is stored, so nothing can be missing on another replica.",
    seconds=LIMIT_S,
)
def needs_no_memory(answer: Answer) -> None:
    need_serve()
    key, other_key = token_bytes(32), token_bytes(32)
    app = answer.call(key)
    with answer.serve(app, seconds=SOON_S) as office, _other_process(answer.value, key) as other:
        tickets = {}
        for name in NAMES:
            tickets[name] = _sold(office, name)
            _expect_known(office, name, tickets[name])
        nonsense = {"nonsense": "nonsense", "nonsense, not in ASCII": "µµµ"}
        _expect_refused(office, nonsense | {"an empty ticket": "", "a name alone": "ada"})

        for name in NAMES:
            answer.given = "the same app in another process"
            status, text = answer.run(_reply(other, "GET", "/holder", {"ticket": tickets[name]}))
            why = f"A ticket that one replica sold to {name!r}, at another one with the same key."
            expect((status, text and json.loads(text)), (200, {"name": name}), why=why)
            status, text = answer.run(_reply(other, "POST", f"/tickets/{quote(name, safe='')}", {}))
            _expect_known(office, name, json.loads(text)["ticket"], "that another replica sold, with the same key")

        for secret in (repr(key)[2:-1], key.hex(), base64.b64encode(key).decode().rstrip("=")):
            if secret in tickets["ada"]:
                raise NotYet("The key is in the ticket. Whoever has one can make others.")
        _expect_refused(office, _forged(tickets["ada"], _sold(office, "bob")))
        with answer.serve(answer.call(other_key), seconds=SOON_S) as strangers:
            _expect_refused(office, {"a ticket of an office with another key": _sold(strangers, "ada")})


@contextmanager
def _other_process(make_app: Any, *arguments: Any) -> Iterator[Any]:
    actor: Any = ray.remote(num_cpus=0)(OtherProcess).remote(make_app, *arguments)
    try:
        yield actor
    finally:
        ray.kill(actor)


async def _reply(other: Any, *request: Any) -> tuple[int, str]:
    reply: tuple[int, str] = await other.request.remote(*request)
    return reply


def _sold(office: Client, name: str) -> str:
    response = office.post(f"/tickets/{quote(name, safe='')}")
    ticket = _json(response).get("ticket")
    if not isinstance(ticket, str):
        raise NotYet("A ticket is a string.", expected='{"ticket": "…"}', got=response.text)
    return ticket


def _expect_known(office: Client, name: str, ticket: str, which: str = "") -> None:
    response = office.get("/holder", params={"ticket": ticket})
    if response.status_code != 200 or response.json() != {"name": name}:
        why = f"{name!r} shows a ticket {which}".strip() + "."
        raise NotYet(why, expected=f"200 {json.dumps({'name': name})}", got=_status_and_text(response))


def _expect_refused(office: Client, forged: dict[str, str]) -> None:
    for what, ticket in forged.items():
        response = office.get("/holder", params={"ticket": ticket})
        if response.status_code != 401:
            raise NotYet(f"This is {what}.", expected="401", got=_status_and_text(response))


def _forged(ticket: str, other: str) -> dict[str, str]:
    """Changed tickets, made of two that were sold to ada and bob."""
    step = max(1, len(ticket) // 40)
    made = {
        f"a ticket made of two, cut at place {cut}": ticket[:cut] + other[cut:] for cut in range(1, len(ticket), step)
    }
    made["ada's ticket, with bob's name on it"] = ticket.replace("ada", "bob")
    for place in (0, len(ticket) // 2):
        changed = "x" if ticket[place] != "x" else "y"
        made[f"a ticket with another character at place {place}"] = ticket[:place] + changed + ticket[place + 1 :]
    made["half of a ticket"] = ticket[: len(ticket) // 2]
    made["a ticket with another character in front"] = "x" + ticket
    made["a ticket with `!` behind it"] = ticket + "!"  # which a decoder may ignore, as it may ignore the case
    made["a ticket in capitals"] = ticket.upper()
    return {what: text for what, text in made.items() if text not in (ticket, other)}


class _Member:
    """A connection to a room."""

    def __init__(self, answer: Answer, socket: ClientConnection, who: str) -> None:
        self.who = who
        self._answer = answer
        self._socket = socket

    def say(self, text: str) -> None:
        self._answer.given = f"{self.who} says {show(text, 60)}"
        try:
            self._socket.send(text)
        except ConnectionClosed:
            raise self._ended() from None

    def expect(self, text: str, why: str) -> None:
        try:
            heard = self._socket.recv(timeout=SOON_S)
        except TimeoutError:
            raise NotYet(f"{self.who} hears nothing. {why}", expected=show(text), got="silence") from None
        except ConnectionClosed:
            raise self._ended() from None
        expect(heard, text, why=f"What {self.who} should hear next. {why}")

    def vanish(self) -> None:
        """End the connection without a goodbye."""
        self._socket.close_socket()

    def leave(self) -> None:
        self._socket.close()

    def _ended(self) -> NotYet:
        code = int(self._socket.close_code or 0)
        return NotYet(f"The connection of {self.who} has ended.", got=f"code {code} {self._socket.close_reason}")


SAID = (
    "Milk first?",
    "Milk first?",
    "tea: at 4:30 | or at 5, as ever; /rooms/tea",
    '{"room": "te", "said": "no"}',
    '["tea", "ada", "hello"]',
    " two lines,\n\tand a zero \x00 ",
    "",
    "stop",
    "null",
    "☕ 'one' \"two\" \\",
    "Milk last.",
)


@exercise(
    "10.3",
    hints=[
        "Publish more than the text: the room, and something that only this connection has, such as `token_hex(8)`. "
        "Each subscription can then tell whether an item is for its own client.",
        "As in `room_on`: a task that iterates `bus.subscribe()`, beside the loop that reads. A `finally` cancels it.",
    ],
    right="Many rooms, many replicas, one bus.",
    seconds=LIMIT_S,
)
def keeps_rooms_apart(answer: Answer) -> None:
    bus = Bus()
    if not callable(answer.value):
        answer.call(bus)
    pickled = cloudpickle.dumps(answer.value)  # type: ignore[no-untyped-call]
    make_apps = [cloudpickle.loads(pickled) for _ in range(2)]  # as replicas get them: no variable is shared
    answer.given = "rooms(bus)"
    apps = [answer.run(make_app(bus)) for make_app in make_apps]
    with answer.serve(apps[0]) as one, answer.serve(apps[1]) as other, ExitStack() as seats:
        subscribes = [True]

        def enter(client: Client, room: str, name: str) -> _Member:
            who = f"{name}, in `{room}`" + (" at another replica," if client is other else ",")
            answer.given, before = f"{who} enters", bus.subscriptions
            path = f"/rooms/{quote(room, safe='')}"
            try:
                socket = seats.enter_context(
                    connect(client.socket_url(path), open_timeout=SOON_S, close_timeout=1, proxy=None)
                )
            except (InvalidHandshake, TimeoutError, EOFError, OSError) as error:
                raise NotYet("The connection was not accepted.", got=str(error)) from None
            if all(subscribes):  # an app that does not subscribe is not waited for again
                subscribes.append(becomes_true(lambda: bus.subscriptions > before or bool(client.errors), SOON_S))
            return _Member(answer, socket, who)

        def expect_subscriptions(number: int, given: str) -> None:
            if not becomes_true(lambda: bus.subscriptions <= number, SOON_S):
                why = "The bus still has a subscription of a connection that has ended."
                raise NotYet(why, given=given, expected=f"{number} subscriptions", got=str(bus.subscriptions))

        dan, eve = enter(other, "tea: green", "dan"), enter(one, "tea: green", "eve")
        fay, gus = enter(one, "te", "fay"), enter(other, "te", "gus")
        tea = [enter(one, "tea", "ada"), enter(other, "tea", "bob"), enter(one, "tea", "cleo")]
        _talk(tea, SAID)
        why = "What is said in a room reaches the others there, and nobody in `tea: green` or `te` hears `tea`."
        dan.say("No milk.")
        eve.expect("No milk.", why)
        gus.say("Nor sugar.")
        fay.expect("Nor sugar.", why)

        tea.pop(0).leave()
        expect_subscriptions(6, "ada leaves")
        tea.append(enter(one, "tea", "hal, who has come later"))  # in ada's place, at the side of cleo
        _talk(tea, SAID[:4])
        tea.pop(0).vanish()
        expect_subscriptions(6, "bob's connection breaks")
        tea.append(enter(other, "tea", "ida, who has come last"))
        _talk(tea, SAID[-4:])
        seats.close()
        expect_subscriptions(0, "all have left")


def _talk(members: list[_Member], texts: tuple[str, ...]) -> None:
    """They say these in turn. What comes first tells what did not come before: nobody has to wait for silence."""
    for number, text in enumerate(texts):
        speaker = members[number % len(members)]
        speaker.say(text)
        for listener in members:
            if listener is not speaker:
                listener.expect(text, "All others in the room hear each text as it was said, but not the sender.")


@exercise(
    "10.4",
    hints=[
        "Three parts: an adapter with a `predict` that awaits `handle.predict.remote(row)`, a class for "
        "`serve.ingress()` that makes the app with the adapter, and the two deployments, the model's bound into the "
        "API's.",
        "`except RayTaskError as error: raise error.cause`, then `except BackPressureError`, and `RayError` last: the "
        "first one is a `RayError`, too. `serve.deployment(Model).options(**options).bind()` is the model.",
    ],
    right="Neither team has to know what runs between them.",
    seconds=LIMIT_S,
)
def connects(answer: Answer) -> None:
    need_serve()
    options = {"max_ongoing_requests": 1, "max_queued_requests": 1, "ray_actor_options": {"num_cpus": 0.1}}
    application = answer.call(asking, Doubler, **options)
    answer.given = "integrate(create_app, Model, max_ongoing_requests=1, max_queued_requests=1, …)"
    with _reachable(answer, application, LIMIT_S / 3) as client:
        first = _json(client.get("/predict/21"))
        expect(first.get("result"), 42, why=f"`await model.predict(21)` in the API. {first.get('error', '')}".strip())
        if first["model_runs_in"] == first["api_runs_in"]:
            raise NotYet("The model runs in the API's process.", expected="a deployment of its own")
        got = _json(client.get("/predict/-1"))
        expect(got, {"error": "TooLow", "field": "mean_area"}, why="`Model.predict(-1)` raises TooLow('mean_area').")
        got = client.together(5, "GET", "/predict/300")
        answer.given = "five requests at the same time, with room for one, and a queue of one"
        outcomes = Counter(_json(response).get("error", "a result") for response in got)
        if set(outcomes) != {"a result", "Busy"}:
            raise NotYet(
                "The queue is full.", expected="some results, and Busy for the others", got=show(dict(outcomes))
            )
        got = _json(client.get("/predict/-2"))
        expect(got.get("error"), "Unavailable", why="The model's replica has died.")
