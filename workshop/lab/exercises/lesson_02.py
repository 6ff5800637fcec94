"""Lesson 02: contracts."""

import json
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import numpy as np
from pydantic import TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from workshop.contracts.classifier import FloatMatrix
from workshop.contracts.tumours import FEATURES, LARGEST_VALUE
from workshop.lab.answer import Answer, Client
from workshop.lab.expectations import NotYet, expect, show
from workshop.lab.fixtures.lesson_02 import DAMAGE, PUBLIC, damaged, find_result, model
from workshop.lab.registry import exercise
from workshop.models.tumours import training_data

LIMIT_S = 30
"""For a machine that is busy with other things. On one that is not, no check takes a third of it."""

NUMBERS = ("0", "0.0", "12", "12.5", "1e-300", "1e12", "1000000000000")
NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400)
NOT_NUMBERS = ('"17.99"', '"NaN"', '"nan"', '"Infinity"', '"1e999"', '""', "true", "false", "null", "[17.99]", "{}")
OUT_OF_RANGE = ("-1", "-1e-9", "1000000000001", "1e13")
ATTACKS = (*NOT_FINITE, *NOT_NUMBERS, *OUT_OF_RANGE)
"""What is not a measurement, as it can be written in JSON."""
SECRET = "4711.25"
"""A number that is in requests, and must not be in their answers."""


def _contract(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except (PydanticUserError, TypeError, ValueError, RuntimeError):
        raise NotYet("Pydantic cannot use this as a type.", got=show(kind)) from None


def _both_ways(contract: TypeAdapter[Any], text: str) -> list[Any]:
    """What comes of the JSON text, parsed by Python as FastAPI does and by Pydantic: a value, or the error."""
    got: list[Any] = []
    for validate, value in ((contract.validate_python, json.loads(text)), (contract.validate_json, text)):
        try:
            got.append(validate(value))
        except ValidationError as error:
            got.append(error)
    return got


def _expect_refused(answer: Answer, contract: TypeAdapter[Any], text: str, why: str) -> None:
    answer.given = text if len(text) < 200 else f"{text[:9]}…, a whole number of {len(text)} digits"
    for got in _both_ways(contract, text):
        if not isinstance(got, ValidationError):
            raise NotYet(why, expected="refused", got=show(got))


def _accepted(answer: Answer, contract: TypeAdapter[Any], text: str, why: str) -> list[Any]:
    answer.given = text
    both = _both_ways(contract, text)
    for got in both:
        if isinstance(got, ValidationError):
            raise NotYet(why, expected="accepted", got=f"refused: {got.errors()[0]['msg']}")
        answer.run(got)  # what the verdict shows if this is None
    return both


@exercise(
    "02.1",
    hints=[
        "`Annotated[float, Field(…)]`, with the options that you have just seen. `le=` is the upper bound.",
        "Four options: `ge=0`, `le=LARGEST_VALUE`, `allow_inf_nan=False`, `strict=True`.",
    ],
    right="Numbers, finite and in range, and nothing that only looks like one.",
)
def measures(answer: Answer) -> None:
    kind = answer.value
    _contract(kind)
    contract = _contract(create_model("Record", value=(kind, ...)))
    for number in NUMBERS:
        for got in _accepted(answer, contract, f'{{"value": {number}}}', "This is a measurement."):
            if type(got.value) is bool or not isinstance(got.value, int | float):
                raise NotYet("A measurement is a number.", expected=number, got=show(got.value))
            if not math.isclose(got.value, float(number)):
                raise NotYet("The value has changed.", expected=number, got=show(got.value))
    for text in ATTACKS:
        _expect_refused(answer, contract, f'{{"value": {text}}}', "This is not a measurement.")


@exercise(
    "02.2",
    hints=[
        'Give each field its other name, `Field(alias="mean radius")`, and allow both with `validate_by_name=True`. '
        '`extra="forbid"` closes the names.',
        '`@model_validator(mode="after")` gets the whole object: compare the two, and `return self`.',
    ],
    right="Two spellings, one contract.",
)
def scans(answer: Answer) -> None:
    contract = _contract(answer.value)

    def record(mean: str | None, worst: str | None, spaces: str = "", extra: str = "") -> str:
        """A record as JSON. `spaces` names the fields that are spelled with a space."""
        pairs = {"mean": mean, "worst": worst}
        members = [
            f'"{field}{" " if field in spaces else "_"}radius": {value}' for field, value in pairs.items() if value
        ]
        return f"{{{', '.join(members)}{extra}}}"

    spellings = ("mean worst", "", "mean", "worst")
    for mean, worst in (("17.99", "25.38"), ("12", "12"), ("0", "0"), ("0.5", "1e12")):
        for spaces in spellings:
            for got in _accepted(answer, contract, record(mean, worst, spaces), "This is a scan."):
                expect((got.mean_radius, got.worst_radius), (float(mean), float(worst)))
    for text in ("[]", "[17.99, 25.38]", "null", '"mean radius"', "17.99"):
        _expect_refused(answer, contract, text, "This is not even an object.")
    for spaces in spellings:
        why = "The worst radius is smaller than the mean."
        _expect_refused(answer, contract, record("25.38", "17.99", spaces), why)
        _expect_refused(answer, contract, record("1e-9", "0", spaces), why)
        for name in ("note", "mean_radus", "mean-radius"):
            _expect_refused(answer, contract, record("1", "2", spaces, f', "{name}": 1'), f"`{name}` is no known name.")
        _expect_refused(answer, contract, record(None, "25.38", spaces), "The mean radius is missing.")
        for mean in ("17.99", "0"):
            _expect_refused(answer, contract, record(mean, None, spaces), "The worst radius is missing.")
        for text in ATTACKS:
            _expect_refused(answer, contract, record(text, "25.38", spaces), "This mean radius is not a measurement.")
            _expect_refused(answer, contract, record("0", text, spaces), "This worst radius is not a measurement.")


@exercise(
    "02.3",
    hints=[
        "A class with three fields, and `-> Result` in the signature of the endpoint.",
        "The bounds of the probability are those of a measurement: `ge`, `le` and `allow_inf_nan` in a `Field`.",
    ],
    right="Neither an insurance number nor a probability of 7.3 gets out.",
    seconds=LIMIT_S,
)
def sends_nothing_more(answer: Answer) -> None:
    with answer.serve() as client:
        for patient in (7, 8, random.randrange(20, 1000)):
            _expect_public(client, patient)
        with model.new_version():
            _expect_public(client, 7)
        _expect_documented(client)
    with answer.serve(allow_500=True) as client:
        for patient in DAMAGE:
            _expect_withheld(client, patient)
        for wrong in ({"probability": 1.001}, {"probability": math.inf}, {"label": None}):
            with damaged(patient := random.randrange(1000, 10_000), **wrong):
                _expect_withheld(client, patient)
        for certain in (0.0, 1.0):
            with damaged(patient := random.randrange(1000, 10_000), probability=certain):
                _expect_public(client, patient)
        _expect_public(client, 9)


def _expect_public(client: Client, patient: int) -> None:
    result = find_result(patient)
    got = client.get(f"/results/{patient}")
    expect(got.status_code, 200)
    if isinstance(got.json(), dict) and (more := sorted(got.json().keys() - set(PUBLIC))):
        raise NotYet("More than the three fields leaves the service.", got=", ".join(more))
    expect(got.json(), {name: result[name] for name in PUBLIC}, why="Return what `find_result` says.", exact=True)


def _expect_documented(client: Client) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/results/{patient}"]["get"]["responses"]["200"]["content"]
    schema = content.get("application/json", {}).get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    expected = ", ".join(sorted(PUBLIC))
    got = ", ".join(sorted(schema.get("properties", {})))
    if got != expected:
        raise NotYet("The document does not say what is returned.", expected=expected, got=got or "no fields")


def _expect_withheld(client: Client, patient: int) -> None:
    got = client.get(f"/results/{patient}")
    if got.status_code != 500:
        sent = {name: value for name, value in find_result(patient).items() if name in PUBLIC}
        raise NotYet(
            f"The database has {show(sent)}, which is damaged.",
            expected="status 500",
            got=f"status {got.status_code}: {show(got.text)}",
        )
    private = {name: value for name, value in find_result(patient).items() if name not in PUBLIC}
    if leaked := [name for name, value in private.items() if str(value) in got.text]:
        raise NotYet("The 500 gives away what must stay inside.", got=", ".join(leaked))


@exercise(
    "02.4",
    hints=[
        'One parameter each with `Path`, `Header` and `Cookie`, and a model with `extra="forbid"` for the query.',
        "A parameter `x_request_id` reads `X-Request-Id`; `pattern=` must fit from `^` to `$`. "
        '`Literal["en", "de"]` allows two texts.',
    ],
    right="Every part of the request has a contract.",
    seconds=LIMIT_S,
)
def lists_a_ward(answer: Answer) -> None:
    name = "".join(random.choices("abcXYZ0189-", k=12))
    with answer.serve() as client:
        for path, headers, expected in (
            ("/wards/7", {}, {"ward": 7, "limit": 20, "request_id": None, "language": "en"}),
            ("/wards/1?limit=1", {"X-Request-Id": name}, {"ward": 1, "limit": 1, "request_id": name, "language": "en"}),
            ("/wards/99?limit=100", {"Cookie": "language=de"}, {"ward": 99, "limit": 100, "language": "de"}),
            ("/wards/12", {}, {"ward": 12, "limit": 20, "request_id": None, "language": "en"}),
            ("/wards/12", {"X-Request-Id": "a" * 64, "Cookie": "theme=dark; language=en"}, {"request_id": "a" * 64}),
            ("/wards/12", {"X-Request-Id": "8-Zz-019", "X-Forwarded-For": "10.0.0.1"}, {"request_id": "8-Zz-019"}),
            ("/wards/12", {"X-Request-Id": "-abcd-12-"}, {"request_id": "-abcd-12-"}),
            ("/wards/12?limit=50", {}, {"ward": 12, "limit": 50, "request_id": None, "language": "en"}),
        ):
            got = client.get(path, headers=headers)
            given = f"GET {path} {headers or ''}".strip()
            expect(got.status_code, 200, given=given, why=got.text[:200] if got.status_code == 422 else "")
            expect(got.json(), expected, given=given)
        bad: list[tuple[str, dict[str, str]]] = [
            *((f"/wards/{ward}", {}) for ward in ("0", "100", "-1", "1.5", "x")),
            *((f"/wards/7?limit={limit}", {}) for limit in ("0", "101", "-1", "1.5", "x")),
            ("/wards/7?limt=5", {}),
            ("/wards/7?limit=5&language=de", {}),
            *(
                ("/wards/7", {"X-Request-Id": text})
                for text in ("1234567", "a" * 65, "12345678!", "!12345678", *(f"abc{sign}12345678" for sign in "_ .+"))
            ),
            *(("/wards/7", {"Cookie": f"language={text}"}) for text in ("fr", "EN", "english", "wide")),
        ]
        for path, headers in bad:
            got = client.get(path, headers=headers)
            if got.status_code != 422:
                given = f"GET {path} {headers or ''}".strip()
                got_text = f"status {got.status_code}: {show(got.text)}"
                raise NotYet("This breaks a rule.", given=given, expected="status 422", got=got_text)
        _expect_parameters(client)


def _expect_parameters(client: Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/wards/{ward}"]["get"]
    got = sorted(f"{item['name'].lower()} in {item['in']}" for item in operation.get("parameters", []))
    expected = ["language in cookie", "limit in query", "ward in path", "x-request-id in header"]
    if got != expected:
        raise NotYet("The document lists other parameters.", expected=", ".join(expected), got=", ".join(got))


@exercise(
    "02.5",
    hints=[
        "`Measurements` and `Batch` in the signatures, and `refuse` as the handler of `RequestValidationError`.",
        "`model.predict` takes one array for all records: `np.array([row_of(record) for record in batch.records])`. "
        "The best class of each row is `scores.probabilities.argmax(axis=1)`.",
    ],
    right="You have attacked it in more than a hundred ways, and nothing has reached the model.",
    seconds=LIMIT_S,
)
def closes_the_hole(answer: Answer) -> None:
    rows = training_data()[0]
    with answer.serve(seconds=10) as client, model.watched() as seen:
        watched = _WatchedService(client, seen)
        for row in (0, 19, *random.sample(range(len(rows)), 2)):
            watched.expect_prediction(rows[row])
        for order in (sorted(FEATURES), list(reversed(FEATURES))):
            members = _as_json(rows[0])
            watched.expect_prediction(rows[0], {name: members[name] for name in order})
        watched.expect_prediction(np.full(30, 12.0), dict.fromkeys(FEATURES, "12"))
        watched.expect_prediction(np.zeros(30))
        watched.expect_prediction(np.full(30, LARGEST_VALUE))
        with model.new_version():
            watched.expect_prediction(rows[19])
            watched.expect_predictions(rows[[19, 0]])
        watched.expect_predictions(rows[[0]])
        watched.expect_predictions(rows[random.sample(range(len(rows)), 10)])
        watched.expect_predictions(np.tile(rows, (2, 1))[:1000])

        for text in ATTACKS:
            watched.attack(_as_json(rows[0]), {random.choice(FEATURES): text})
            watched.attack({}, dict.fromkeys(FEATURES, text))
        whole = _as_json(rows[0]) | {"worst_area": SECRET}
        for text in (f'"Anna, {SECRET}"', f"-{SECRET}", f"[{SECRET}]"):
            watched.attack(_as_json(rows[0]), {random.choice(FEATURES): text})
        watched.attack(whole, {"mean_radus": SECRET})
        missing = random.choice(FEATURES[:20])
        watched.attack({name: value for name, value in whole.items() if name != missing}, {}, [missing])
        watched.attack({}, {}, FEATURES)
        for body in ("", "{", _object(whole)[:-1], "[]", "[1.0]", "null", "NaN", f'"Anna, {SECRET}"'):
            watched.expect_refused("/predict", body)

        for text in ATTACKS:
            watched.attack_batch(rows, {random.choice(FEATURES): text})
            watched.attack_batch(rows, dict.fromkeys(FEATURES, text))
        watched.attack_batch(rows, {"mean_radus": "1.0"})
        for count in (0, 1001, 3000):
            watched.expect_refused(
                "/batch-predict", _batch([_as_json(rows[0])] * count), ["records"], f"{count} records"
            )
        tumour = _object(_as_json(rows[0]))
        for body in ("{}", "[]", f"[{tumour}]", tumour, '{"records": null}', f'{{"records": {tumour}}}', "NaN"):
            watched.expect_refused("/batch-predict", body)
        watched.expect_refused(
            "/batch-predict", f'{{"records": [{tumour}], "note": 1.0}}', ["note"], "one record, and a note"
        )
        nothing_good = _batch([dict.fromkeys(FEATURES, "NaN")] * 1000)
        watched.expect_refused("/batch-predict", nothing_good, given="1000 records of 30 times NaN")
        if len(watched.rules) < 3:
            given = "missing names, unknown names, and values that are no measurements"
            raise NotYet("Different mistakes break different rules.", given=given, got=show(watched.rules))


def _as_json(row: FloatMatrix) -> dict[str, str]:
    """A row of 30 numbers as the text of each number, by name."""
    return {name: repr(float(value)) for name, value in zip(FEATURES, row, strict=True)}


def _object(members: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {text}' for name, text in members.items()) + "}"


def _described(wrong: dict[str, str], missing: Sequence[str] = ()) -> str:
    """What is wrong with a request, of many values only the first."""
    parts = [f"{name}: {text[:20]}" for name, text in wrong.items()] + [f"no {name}" for name in missing]
    return parts[0] + (f", and {len(parts) - 1} more" if len(parts) > 1 else "")


def _batch(records: Iterable[dict[str, str]]) -> str:
    return f'{{"records": [{", ".join(map(_object, records))}]}}'


class _WatchedService:
    """The learner's service, and what reaches its model."""

    def __init__(self, client: Client, seen: list[FloatMatrix]) -> None:
        self.client = client
        self.seen = seen
        self.rules: set[str] = set()

    def expect_prediction(self, row: FloatMatrix, members: dict[str, str] | None = None) -> None:
        """Ask about a row, sent as these members or as its numbers in the model's order."""
        got = self._expect_answer("/predict", _object(members or _as_json(row)), row[None], "one tumour")
        [expected] = _predictions(row[None])
        expect(got, expected | {"model_version": model.version}, exact=True)

    def expect_predictions(self, rows: FloatMatrix) -> None:
        given = f"{len(rows)} records"
        got = self._expect_answer("/batch-predict", _batch(map(_as_json, rows)), rows, given)
        expect(got, {"predictions": _predictions(rows), "model_version": model.version}, given=given, exact=True)

    def attack(self, members: dict[str, str], wrong: dict[str, str], missing: Sequence[str] = ()) -> None:
        """Send a tumour with these wrong values, and without some; each must be named in the answer."""
        self.expect_refused("/predict", _object(members | wrong), [*wrong, *missing], _described(wrong, missing))

    def attack_batch(self, rows: FloatMatrix, wrong: dict[str, str]) -> None:
        """Send three tumours, one of which has these wrong values."""
        records = [_as_json(row) for row in rows[:3]]
        place = random.randrange(3)
        records[place] |= wrong
        wrong = {f"records.{place}.{name}": text for name, text in wrong.items()}
        self.expect_refused("/batch-predict", _batch(records), list(wrong), _described(wrong))

    def expect_refused(self, path: str, body: str, fields: Iterable[str] = (), given: str = "") -> None:
        reply = self._post(path, body)
        given = f"POST {path} {given or body[:60]}"
        if self.seen:
            raise NotYet("This has reached the model.", given=given, expected="status 422", got=_shown(reply))
        if reply.status_code != 422:
            raise NotYet("This breaks the contract.", given=given, expected="status 422", got=_shown(reply))
        errors = reply.json().get("errors")
        expected = '{"errors": [{"field": …, "rule": …, "message": …}, …]}'
        if not isinstance(errors, list) or not errors:
            raise NotYet("The body of this 422 has another form.", given=given, expected=expected, got=_shown(reply))
        if len(errors) > 100:
            raise NotYet("At most 100 mistakes.", given=given, got=f"{len(errors)} mistakes")
        for error in errors:
            texts = [error.get(name) for name in ("field", "rule", "message")]
            if not all(isinstance(text, str) and text for text in texts):
                raise NotYet("A mistake has three texts.", given=given, expected=expected, got=show(error))
        self.rules |= {error["rule"] for error in errors}
        named = {error["field"] for error in errors}
        if lacking := sorted(set(fields) - named):
            raise NotYet("A mistake is not named.", given=given, expected=", ".join(lacking[:3]), got=_shown(reply))
        if fields and (others := sorted(named - set(fields))):
            raise NotYet("This is no mistake of this request.", given=given, got=", ".join(others[:3]))
        if SECRET in reply.text or SECRET in str(reply.headers):
            got = _shown(reply) if SECRET in reply.text else show(dict(reply.headers))
            raise NotYet("The answer repeats what was sent.", given=given, got=got)

    def _expect_answer(self, path: str, body: str, rows: FloatMatrix, given: str) -> Any:
        reply = self._post(path, body)
        if reply.status_code != 200:
            raise NotYet("This request is good.", given=f"POST {path} {given}", expected="200", got=_shown(reply))
        if not self.seen:
            raise NotYet("Each request must ask `model`.", given=f"POST {path} {given}")
        if len(self.seen) > 1:
            raise NotYet("Ask the model once.", given=f"POST {path} {given}", got=f"{len(self.seen)} times")
        if self.seen[0].shape != rows.shape or not np.array_equal(self.seen[0], rows):
            raise NotYet("The model was asked about other numbers.", given=f"POST {path} {given}")
        return reply.json()

    def _post(self, path: str, body: str) -> httpx.Response:
        self.seen.clear()
        return self.client.post(path, content=body, headers={"Content-Type": "application/json"})


def _predictions(rows: FloatMatrix) -> list[dict[str, Any]]:
    scores = model.expected(rows)
    best = scores.probabilities.argmax(axis=1)
    return [
        {"label": scores.classes[index], "probability": float(most)}
        for index, most in zip(best, scores.probabilities.max(axis=1), strict=True)
    ]


def _shown(reply: httpx.Response) -> str:
    return f"status {reply.status_code}: {show(reply.text, 200)}"
