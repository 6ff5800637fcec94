"""The answers to MLflow's payloads are those of MLflow's own server, for the same model, in every runtime."""

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import StringIO

import httpx
import numpy as np
import pandas as pd
import pytest
import skops.io

from tests.service import IMPOSSIBLE, RECORD, RECORDS, ROWS, client_at, with_literal
from workshop.contracts.tumours import FEATURES
from workshop.lab.app_server import run_app

pytestmark = pytest.mark.filterwarnings("ignore:X has feature names", "ignore:Constructing a DataFrame from a list")

COUNT = 40
TABLE = ROWS[:COUNT]
FRAME = pd.DataFrame(TABLE, columns=FEATURES)
COLUMNS = {name: column.tolist() for name, column in zip(FEATURES, TABLE.T, strict=True)}
SHUFFLED = FRAME[sorted(FEATURES)].assign(name="Ada").iloc[:, ::-1]
"""The features in another order, with a column that is not one of them."""


@pytest.fixture(scope="session")
def mlflow(artifact, tmp_path_factory) -> Iterator[dict[str, httpx.Client]]:
    """The application that `mlflow models serve` runs, for two signatures: named columns, and one tensor of rows."""
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import load_model, scoring_server
    from mlflow.sklearn import save_model
    from mlflow.types import ColSpec, Schema, TensorSpec

    inputs = {
        "columns": Schema([ColSpec("double", name) for name in FEATURES]),
        "rows": Schema([TensorSpec(np.dtype("float64"), (-1, len(FEATURES)))]),
    }
    outputs = Schema([TensorSpec(np.dtype("int64"), (-1,))])
    folder = tmp_path_factory.mktemp("mlflow")
    pipeline = skops.io.load(artifact / "model.skops")
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        clients = {}
        for signature, schema in inputs.items():
            # Without requirements: MLflow would start a process to find them.
            save_model(pipeline, folder / signature, signature=ModelSignature(schema, outputs), pip_requirements=[])
            app = scoring_server.init(load_model(str(folder / signature)))
            clients[signature] = stack.enter_context(client_at(stack.enter_context(run_app(app)).url))
        yield clients


@dataclass
class Payload:
    """A request to `/invocations`, and the signature of the model that MLflow needs for it."""

    content: str | bytes
    content_type: str | None = "application/json"
    signature: str = "columns"
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {} if self.content_type is None else {"Content-Type": self.content_type}

    def send(self, client: httpx.Client) -> httpx.Response:
        return client.post("/invocations", content=self.content, headers=self.headers)


def as_json(signature: str = "columns", **members: object) -> Payload:
    return Payload(json.dumps(members), signature=signature)


def as_csv(text: str | bytes) -> Payload:
    return Payload(text, "text/csv")


def literally(literal: str) -> Payload:
    """One record, with any text in place of one number."""
    return Payload(b'{"dataframe_records": [%b]}' % with_literal("mean_radius", literal))


def csv_of(frame: pd.DataFrame = FRAME, **options: object) -> str:
    return frame.to_csv(**{"index": False} | options)


def split(frame: pd.DataFrame = FRAME, **changes: object) -> dict[str, object]:
    return frame.to_dict(orient="split") | changes


def with_cell(value: object) -> list[dict[str, object]]:
    """Two records, the second with another mean radius."""
    return [RECORD, RECORD | {"mean_radius": value}]


VALID = {
    "split": as_json(dataframe_split=split()),
    "split, without an index": as_json(dataframe_split={"columns": FEATURES, "data": TABLE.tolist()}),
    "split, other order and columns": as_json(dataframe_split=split(SHUFFLED)),
    "records": as_json(dataframe_records=RECORDS[:COUNT]),
    "records, other order and columns": as_json(dataframe_records=SHUFFLED.to_dict(orient="records")),
    "inputs, rows": as_json("rows", inputs=TABLE.tolist()),
    "inputs, records": as_json(inputs=RECORDS[:COUNT]),
    "inputs, columns": as_json(inputs=COLUMNS),
    "inputs, one record": as_json(inputs=RECORD),
    "instances, rows": as_json("rows", instances=TABLE.tolist()),
    "instances, records": as_json(instances=RECORDS[:COUNT]),
    "instances, columns": as_json(instances=COLUMNS),
    "CSV": as_csv(csv_of()),
    "CSV, other order and columns": as_csv(csv_of(SHUFFLED)),
    "CSV with an index": as_csv(csv_of(index=True)),
    "CSV with everything quoted": as_csv(csv_of(quoting=csv.QUOTE_ALL)),
    "CSV with CRLF": as_csv(csv_of(lineterminator="\r\n")),
    "CSV with a byte order mark": as_csv(csv_of().encode("utf-8-sig")),
    "CSV with blank lines": as_csv(csv_of().replace("\n", "\n\n")),
    "CSV with line breaks in cells": as_csv(csv_of(SHUFFLED.assign(name="Ada\nLovelace"))),
    "CSV without a last line break": as_csv(csv_of().strip()),
    "UTF-8": Payload(csv_of(), "text/csv; charset=UTF-8"),
    "JSON in UTF-8": Payload(json.dumps({"inputs": COLUMNS}), "application/json;charset=utf-8"),
    "other members": as_json(dataframe_split=split(), params={"threshold": 0.5}, comment="ignored"),
    "whole numbers": as_json(dataframe_records=with_cell(18)),
    "a text that is a number": as_json(dataframe_records=with_cell("17.5")),
    "a text that is a number, in a column": as_json(inputs={name: list(map(str, COLUMNS[name])) for name in FEATURES}),
    "true": as_json(inputs=[RECORD | {"smoothness_error": True}]),
}


@pytest.mark.parametrize("payload", VALID.values(), ids=VALID)
def test_a_payload_gets_the_answer_that_mlflow_gives(service, mlflow, payload):
    theirs, ours = payload.send(mlflow[payload.signature]), payload.send(service)
    assert (theirs.status_code, ours.status_code) == (200, 200), theirs.text + ours.text
    assert ours.json() == theirs.json()
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"] == "application/json"


def test_all_rows_in_every_form(service, mlflow):
    frame = pd.DataFrame(ROWS, columns=FEATURES)
    forms = [as_json(dataframe_split=split(frame)), as_json(dataframe_records=RECORDS), as_csv(csv_of(frame))]
    theirs = [form.send(mlflow["columns"]).json()["predictions"] for form in forms]
    ours = [form.send(service).json()["predictions"] for form in forms]
    successor = service.post("/v1/batch-predict", json={"records": RECORDS}).json()["predictions"]
    assert ours == theirs == [[label["prediction"] for label in successor]] * 3


MISTAKES = {
    "unknown content type": Payload(csv_of(), "text/plain"),
    "form": Payload("inputs=1", "application/x-www-form-urlencoded"),
    "other charset": Payload(csv_of(), "text/csv; charset=latin-1"),
    "content type of MLflow 1": Payload(json.dumps(split()), "application/json; format=pandas-split"),
    "no form": as_json(),
    "two forms": as_json(inputs=RECORD, instances=RECORDS[:1]),
    "two forms, one of them empty": as_json(inputs=RECORD, instances=None),
    "unknown form": as_json(dataframe=split()),
    "null": as_json(inputs=None),
    "a number": as_json(inputs=1.0),
    "a text": as_json(instances="text"),
    "list instead of an object": Payload(json.dumps(RECORDS[:2])),
    "text instead of an object": Payload('"text"'),
    "broken JSON": Payload('{"inputs": ['),
    "nothing, as JSON": Payload(""),
    "nothing, as CSV": as_csv(""),
    "JSON as CSV": as_csv(json.dumps({"inputs": COLUMNS})),
    "CSV as JSON": Payload(csv_of()),
    "JSON that is not UTF-8": Payload(b'{"inputs": "\xff"}'),
    "CSV that is not UTF-8": as_csv(csv_of().encode() + b"\xff"),
    "missing column": as_json(dataframe_split=split(FRAME.drop(columns="mean_area"))),
    "missing column, in records": as_json(dataframe_records=FRAME.drop(columns="mean_area").to_dict("records")),
    "missing column, in one record": as_json(dataframe_records=[RECORD, {**RECORDS[1], "mean_area": None}]),
    "absent from one record": as_json(inputs=[RECORD, dict(list(RECORD.items())[1:])]),
    "missing column, in columns": as_json(inputs=dict(list(COLUMNS.items())[1:])),
    "missing column, in CSV": as_csv(csv_of(FRAME.drop(columns="mean_area"))),
    "column names with a blank": as_csv(csv_of().replace(",", ", ")),
    "CSV without a header": as_csv(csv_of(header=False)),
    "CSV with nothing but a header": as_csv(csv_of(FRAME[:0])),
    "CSV with semicolons": as_csv(csv_of(sep=";")),
    "CSV with decimal commas": as_csv(csv_of(sep=";", decimal=",")),
    "CSV with an open quote": as_csv(csv_of() + '"'),
    "CSV with a longer line": as_csv(csv_of() + "1," * 40),
    "CSV with a shorter line": as_csv(csv_of() + "1,2"),
    "CSV with an empty cell": as_csv(csv_of(FRAME.replace(17.99, None))),
    "CSV with a text in a cell": as_csv(csv_of(FRAME.replace(17.99, "large"))),
    "CSV with NaN": as_csv(csv_of(FRAME.replace(17.99, "NaN"))),
    "CSV with infinity": as_csv(csv_of(FRAME.replace(17.99, "inf"))),
    "wrong type": as_json(dataframe_split=split(FRAME.replace(17.99, "large"))),
    "wrong type, in records": as_json(dataframe_records=with_cell("large")),
    "wrong type, in instances": as_json(instances=with_cell("large")),
    "wrong type, in columns": as_json(inputs=COLUMNS | {"mean_area": ["large"] * COUNT}),
    "wrong type, in rows": as_json("rows", inputs=[["large"] * 30]),
    "list in a cell": as_json(inputs=with_cell([1.0])),
    "lists in a column": as_json(inputs=COLUMNS | {"mean_area": [[1.0]] * COUNT}),
    "object in a cell": as_json(dataframe_records=with_cell({"value": 1.0})),
    "null in a cell": as_json(dataframe_records=with_cell(None)),
    "NaN": literally("NaN"),
    "infinity": literally("Infinity"),
    "a number that is too large for a float": literally("1e400"),
    "a whole number that is too large for a float": literally("1" + "0" * 400),
    "no rows, split": as_json(dataframe_split=split(FRAME[:0])),
    "no rows, records": as_json(dataframe_records=[]),
    "no rows, inputs": as_json(inputs=[]),
    "no rows, columns": as_json(inputs={name: [] for name in FEATURES}),
    "split without data": as_json(dataframe_split={"columns": FEATURES}),
    "split without columns": as_json(dataframe_split={"data": TABLE.tolist()}),
    "split with another member": as_json(dataframe_split=split(dtype="float")),
    "split that is a list": as_json(dataframe_split=TABLE.tolist()),
    "split with a row that is too short": as_json(dataframe_split=split(data=[TABLE[0].tolist()[:-1]], index=[0])),
    "split with rows of different lengths": as_json(dataframe_split=split(data=[[1.0], [1.0, 2.0]], index=[0, 1])),
    "split with rows that are no lists": as_json(dataframe_split=split(data=[1.0] * COUNT)),
    "split with a column twice": as_json(
        dataframe_split={"columns": [FEATURES[0], *FEATURES], "data": [[1.0] * 31], "index": [0]}
    ),
    "records that are an object": as_json(dataframe_records=RECORD),
    "records that are lists": as_json(dataframe_records=TABLE.tolist()),
    "records of different kinds": as_json(inputs=[RECORD, TABLE[0].tolist()]),
    "rows that are too short": as_json("rows", inputs=TABLE[:, :-1].tolist()),
    "rows of different lengths": as_json("rows", inputs=[TABLE[0].tolist(), [1.0]]),
    "one row alone": as_json("rows", inputs=TABLE[0].tolist()),
    "columns of different lengths": as_json(instances=COLUMNS | {"mean_area": [1.0]}),
}


@pytest.mark.parametrize("payload", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_the_status_that_mlflow_gives_it(service, mlflow, payload):
    theirs, ours = payload.send(mlflow[payload.signature]), payload.send(service)
    assert ours.status_code == theirs.status_code, ours.text + theirs.text
    assert ours.status_code in (400, 415)
    assert ours.headers["Content-Type"] == "application/problem+json"
    assert ours.json()["status"] == ours.status_code


STRICTER = {
    "negative": as_json(dataframe_records=with_cell(-1.0)),
    "too large for a measurement": literally("1e13"),
    "impossible": as_json(dataframe_records=[IMPOSSIBLE]),
    "CSV with a column twice": as_csv(csv_of(FRAME.iloc[:, [0, *range(30)]])),
    "Parquet": Payload(FRAME.to_parquet(), "application/vnd.apache.parquet"),
    "CSV with an index that has no name": as_csv(csv_of(index=True).removeprefix(",")),
}


@pytest.mark.parametrize("payload", STRICTER.values(), ids=STRICTER)
def test_what_mlflow_answers_and_this_service_refuses(service, mlflow, payload):
    assert payload.send(mlflow["columns"]).status_code == 200
    assert payload.send(service).status_code == (415 if "parquet" in payload.headers["Content-Type"] else 400)


def test_what_mlflow_refuses_and_this_service_answers(service, mlflow):
    """Rows without names: MLflow takes them only for a model whose signature has no names."""
    rows = as_json(inputs=TABLE.tolist())
    assert rows.send(mlflow["columns"]).status_code == 400
    assert rows.send(service).json() == rows.send(mlflow["rows"]).json()


def test_a_large_table(service, mlflow):
    frame = pd.concat([pd.DataFrame(ROWS, columns=FEATURES)] * 8)
    by_row = as_json(dataframe_split=split(frame))
    assert (
        by_row.send(service).json() == as_csv(csv_of(frame)).send(service).json() == by_row.send(mlflow["rows"]).json()
    )
    by_name = as_json(dataframe_records=RECORDS * 3)  # more names than a body may have
    assert by_name.send(service).status_code == 413


def test_without_a_content_type_mlflow_fails_and_this_service_explains(service, mlflow):
    payload = Payload(json.dumps({"inputs": COLUMNS}), None)
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        payload.send(mlflow["columns"]).raise_for_status()
    assert payload.send(service).status_code == 415


def details(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 400
    return [(detail["field"], detail["rule"]) for detail in answer.json()["details"]]


LINES = csv_of().splitlines()
NUMBERS = LINES[1]
WHERE: dict[str, tuple[Payload, list[tuple[str, str]]]] = {
    "cells": (
        as_csv("\n".join([*LINES, NUMBERS.replace("17.99", "large"), "", NUMBERS.replace("10.38", "")])),
        [("line 42: mean_radius", "float_parsing"), ("line 44: mean_texture", "float_parsing")],
    ),
    "an underscore": (
        as_csv("\n".join([*LINES, NUMBERS.replace("17.99", "1_7.99")])),
        [("line 42: mean_radius", "float_parsing")],
    ),
    "a length": (as_csv("\n".join([*LINES, "1,2"])), [("line 42", "row_length")]),
    "an open quote": (as_csv("\n".join([*LINES, '"1'])), [("line 42", "csv")]),
    "an impossible row": (
        as_csv("\n".join([LINES[0], "", NUMBERS, ",".join(map(str, IMPOSSIBLE.values()))])),
        [("line 4: worst_radius", "impossible_value")],
    ),
    "a negative number": (
        as_csv("\n".join([*LINES, NUMBERS.replace("17.99", "-1")])),
        [("line 42: mean_radius", "impossible_value")],
    ),
    "a column": (as_csv(csv_of(FRAME.drop(columns="mean_area"))), [("mean_area", "missing")]),
    "a record": (as_json(inputs=with_cell("large")), [("row 1: mean_radius", "float_parsing")]),
    "a record with an underscore": (as_json(inputs=with_cell("1_7")), [("row 1: mean_radius", "float_parsing")]),
    "an impossible record": (
        as_json(dataframe_records=[RECORD, IMPOSSIBLE]),
        [("row 1: worst_radius", "impossible_value")],
    ),
    "a form": (as_json(inputs=[RECORD], instances=[RECORD]), [("body", "one_form")]),
}


@pytest.mark.parametrize(("payload", "places"), WHERE.values(), ids=WHERE)
def test_an_error_says_where(service, payload, places):
    assert details(payload.send(service)) == places


def test_a_hundred_mistakes_are_reported_and_not_more(service):
    text = StringIO()
    csv.writer(text).writerows([FEATURES, *[["?"] * 30] * 500])
    assert len(details(as_csv(text.getvalue()).send(service))) == 100


def test_mlflows_own_client(service):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    client = ScoringServerClient(service.base_url.host, service.base_url.port)
    client.wait_server_ready()
    assert client.get_version()
    predictions = client.invoke(FRAME).get_predictions()
    labels = service.post("/v1/batch-predict", json={"records": RECORDS[:COUNT]}).json()["predictions"]
    assert predictions[0].tolist() == [label["prediction"] for label in labels]
    with pytest.raises(Exception, match=r"error code 400.*mean_radius"):
        client.invoke(FRAME.replace(17.99, "large"))


def test_the_other_routes_of_mlflows_server(service, mlflow):
    ours, theirs = (client.get("/ping") for client in (service, mlflow["columns"]))
    assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text)
    assert ours.headers["Content-Type"].startswith("text/plain")  # MLflow says JSON, which a line break is not
    assert service.get("/health").status_code == mlflow["columns"].get("/health").status_code
    assert service.get("/version").text.count(".") == mlflow["columns"].get("/version").text.count(".")
