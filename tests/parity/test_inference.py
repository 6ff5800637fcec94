"""The Open Inference Protocol: answers as `/v1` gives them, in the shapes of the published schema, in every runtime."""

import json
import struct
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from tests.service import IMPOSSIBLE, RECORD, RECORDS, ROWS, concurrently, record
from workshop import __version__
from workshop.contracts.tumours import FEATURES

COUNT = 20
TABLE = ROWS[:COUNT]
MODEL = "/v2/models/tumour-classifier"
JSON_LENGTH = "Inference-Header-Content-Length"
DTYPES = {
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
}


def object_of(required: str = "", **properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": required.split()}


def list_of(items: object) -> dict[str, object]:
    return {"type": "array", "items": items}


TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
PLACE = {"name": TEXT, "datatype": TEXT, "shape": list_of(INTEGER)}
# The parts of specification/protocol/open_inference_rest.yaml that describe responses.
SERVER = object_of("name version extensions", name=TEXT, version=TEXT, extensions=list_of(TEXT))
DESCRIPTION = object_of(
    "name platform",
    name=TEXT,
    platform=TEXT,
    versions=list_of(TEXT),
    inputs=list_of(object_of("name datatype shape", **PLACE)),
    outputs=list_of(object_of("name datatype shape", **PLACE)),
)
RESPONSE = object_of(
    "model_name outputs",
    model_name=TEXT,
    model_version=TEXT,
    id=TEXT,
    parameters=object_of(),
    outputs=list_of(
        object_of(
            "name datatype shape data",
            **PLACE,
            parameters=object_of(),
            data=list_of({"type": ["number", "string", "boolean"]}),
        )
    ),
)
ERROR = object_of("error", error=TEXT)


def body_of(answer: httpx.Response, schema: dict[str, object], status: int = 200) -> Any:
    """The body, as JSON that matches the schema."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    Draft202012Validator(schema).validate(body)
    return body


def error_of(answer: httpx.Response, status: int = 400) -> str:
    body = body_of(answer, ERROR, status)
    assert body.keys() == {"error"}
    return body["error"]


@dataclass
class Tensor:
    """An input, as KServe's and Triton's clients send it."""

    array: np.ndarray
    name: str = "rows"
    datatype: str = "FP64"
    form: str = "flat"

    def as_json(self) -> dict[str, object]:
        tensor = {"name": self.name, "shape": list(self.array.shape), "datatype": self.datatype}
        match self.form:
            case "flat":
                return tensor | {"data": self.array.ravel().tolist()}
            case "nested":
                return tensor | {"data": self.array.tolist()}
        return tensor | {"parameters": {"binary_data_size": len(self.as_bytes())}}

    def as_bytes(self) -> bytes:
        return self.array.astype(DTYPES[self.datatype]).tobytes() if self.form == "binary" else b""


def columns(table: np.ndarray = TABLE, *shape: int, **options: str) -> list[Tensor]:
    """One tensor for each feature."""
    arrays = [column.reshape(-1, *shape) for column in table.T]
    return [Tensor(array, name, **options) for name, array in zip(FEATURES, arrays, strict=True)]


def infer(
    client: httpx.Client,
    *tensors: Tensor,
    path: str = MODEL,
    headers: dict[str, str] | None = None,
    **members: object,
) -> httpx.Response:
    """Send tensors. Like KServe's and Triton's clients, say nothing about the content type."""
    text = json.dumps({"inputs": [tensor.as_json() for tensor in tensors]} | members).encode()
    binary = b"".join(tensor.as_bytes() for tensor in tensors)
    length = {JSON_LENGTH: str(len(text))} if binary else {}
    return client.post(f"{path}/infer", content=text + binary, headers=length | (headers or {}))


def outputs_in(answer: httpx.Response) -> dict[str, list[Any]]:
    """What Triton's client reads from a response: the data of each output in its shape."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers.get(JSON_LENGTH, len(answer.content)))
    rest = answer.content[size:]
    found = {}
    for output in json.loads(answer.content[:size])["outputs"]:
        n = output.get("parameters", {}).get("binary_data_size")
        if n is None:
            data = np.array(output["data"])
        else:
            raw, rest = rest[:n], rest[n:]
            if output["datatype"] == "BYTES":
                data = np.array(list(texts_in(raw)))
            else:
                data = np.frombuffer(raw, DTYPES[output["datatype"]])
        found[output["name"]] = data.reshape(output["shape"]).tolist()
    assert rest == b""
    return found


def texts_in(raw: bytes):
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        yield raw[4 : 4 + size].decode()
        raw = raw[4 + size :]


def expected(client: httpx.Client, records: list[dict[str, float]]) -> dict[str, list[Any]]:
    """What `/v1` predicts, in the form of ``outputs_in``."""
    answer = client.post("/v1/batch-predict", json={"records": records})
    assert answer.status_code == 200, answer.text
    labels = answer.json()["predictions"]
    return {
        "prediction": [label["prediction"] for label in labels],
        "label": [label["label"] for label in labels],
        "probabilities": [list(label["probabilities"].values()) for label in labels],
    }


# ------------------------------------------------------------------------------------------------- what is offered


def test_the_server(service):
    for path in ("/v2", "/v2/"):
        body = body_of(service.get(path), SERVER)
        assert body["version"] == __version__
        assert body["extensions"] == ["binary_tensor_data"]


def test_health(service):
    assert body_of(service.get("/v2/health/live"), {}) == {"live": True}
    assert body_of(service.get("/v2/health/ready"), {}) == {"ready": True}


@pytest.mark.parametrize("path", ["", "@1.0.0", "%401.0.0", "/versions/1.0.0", "@1.0.0/versions/1.0.0"])
def test_a_model_by_its_name_and_version(service, path):
    body = body_of(service.get(MODEL + path), DESCRIPTION)
    assert (body["name"], body["versions"]) == ("tumour-classifier", ["1.0.0"])
    assert [tensor["name"] for tensor in body["inputs"]] == list(FEATURES)
    assert {tensor["name"]: tensor["shape"] for tensor in body["outputs"]} == {
        "prediction": [-1],
        "label": [-1],
        "probabilities": [-1, 2],
    }
    assert body_of(service.get(f"{MODEL}{path}/ready"), {}) == {"name": "tumour-classifier", "ready": True}
    body = body_of(infer(service, Tensor(TABLE), path=MODEL + path), RESPONSE)
    assert (body["model_name"], body["model_version"]) == ("tumour-classifier", "1.0.0")


@pytest.mark.parametrize(
    "path", ["/v2/models/other", f"{MODEL}@2", f"{MODEL}@", f"{MODEL}/versions/2", f"{MODEL}@2/versions/1.0.0"]
)
def test_an_unknown_model_or_version(service, path):
    answers = [service.get(path), service.get(f"{path}/ready"), infer(service, Tensor(TABLE), path=path)]
    for answer in answers:
        assert "available: " in error_of(answer, 404)


def test_the_tensors_that_a_model_describes_are_those_that_it_takes_and_returns(service):
    description = service.get(MODEL).json()
    tensors = [
        Tensor(TABLE[:, i], tensor["name"], tensor["datatype"]) for i, tensor in enumerate(description["inputs"])
    ]
    outputs = body_of(infer(service, *tensors), RESPONSE)["outputs"]
    returned = [{"name": tensor["name"], "datatype": tensor["datatype"]} for tensor in outputs]
    assert returned == [{"name": tensor["name"], "datatype": tensor["datatype"]} for tensor in description["outputs"]]
    for tensor, described in zip(outputs, description["outputs"], strict=True):
        assert [COUNT if size == -1 else size for size in described["shape"]] == tensor["shape"]
        assert len(tensor["data"]) == np.prod(tensor["shape"])


# ------------------------------------------------------------------------------------------------------ predictions

FORMS = {
    "rows, flat": [Tensor(TABLE)],
    "rows, nested": [Tensor(TABLE, form="nested")],
    "rows, binary": [Tensor(TABLE, form="binary")],
    "rows, under a feature's name": [Tensor(TABLE, "mean_area")],
    "columns, flat": columns(),
    "columns, nested": columns(TABLE, 1, form="nested"),
    "columns of shape [n, 1], flat": columns(TABLE, 1),
    "columns, binary": columns(form="binary"),
    "columns, in another order": columns()[::-1],
    "columns, half of them binary": [
        Tensor(column, name, form="binary" if i % 2 else "flat")
        for i, (name, column) in enumerate(zip(FEATURES, TABLE.T, strict=True))
    ],
}


@pytest.mark.parametrize("tensors", FORMS.values(), ids=FORMS)
def test_every_form_gets_the_answer_of_v1(service, tensors):
    assert outputs_in(infer(service, *tensors)) == expected(service, RECORDS[:COUNT])


def test_all_rows(service):
    assert outputs_in(infer(service, Tensor(ROWS, form="binary"))) == expected(service, RECORDS)


def test_requests_at_the_same_time(service):
    answers = concurrently(lambda i: infer(service, Tensor(ROWS[i : i + 1]), id=str(i)), range(100))
    assert [answer.json()["id"] for answer in answers] == [str(i) for i in range(100)]
    labels = [label for answer in answers for label in outputs_in(answer)["label"]]
    assert labels == expected(service, RECORDS[:100])["label"]


WHOLE = np.tile([*[1] * 10, *[0] * 10, *[100] * 10], (3, 1)).astype(np.float64)
WHOLE[:, 3] = [1, 50, 100]


@pytest.mark.parametrize("form", ["flat", "binary"])
@pytest.mark.parametrize("datatype", DTYPES)
def test_datatypes(service, datatype, form):
    table = TABLE.astype(DTYPES[datatype]).astype(np.float64) if datatype.startswith("FP") else WHOLE
    answer = infer(service, Tensor(table, datatype=datatype, form=form))
    assert outputs_in(answer) == expected(service, [record(row) for row in table])


def test_numbers_are_rounded_to_the_datatype(service):
    rounded = [record(row) for row in TABLE.astype(np.float32).astype(np.float64)]
    assert outputs_in(infer(service, Tensor(TABLE, datatype="FP32"))) == expected(service, rounded)


def test_an_id_comes_back(service):
    assert body_of(infer(service, Tensor(TABLE), id="größe 7"), RESPONSE)["id"] == "größe 7"
    assert "id" not in infer(service, Tensor(TABLE)).json()


def test_requested_outputs(service):
    complete = expected(service, RECORDS[:COUNT])
    for names in (["label"], ["probabilities", "prediction"], list(complete)):
        outputs = outputs_in(infer(service, Tensor(TABLE), outputs=[{"name": name} for name in names]))
        assert outputs == {name: complete[name] for name in names}
        assert list(outputs) == names


def test_binary_outputs(service):
    complete = expected(service, RECORDS[:COUNT])
    answer = infer(service, Tensor(TABLE), parameters={"binary_data_output": True})  # as Triton's client does
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert outputs_in(answer) == complete
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    answer = infer(service, Tensor(TABLE, form="binary"), outputs=outputs)
    assert outputs_in(answer) == {name: complete[name] for name in ("label", "probabilities")}
    outputs = [{"name": "label", "parameters": {"binary_data": False}}]
    answer = infer(service, Tensor(TABLE), outputs=outputs, parameters={"binary_data_output": True})
    body_of(answer, RESPONSE)


def test_unknown_members_and_parameters_are_ignored(service):
    tensor = Tensor(TABLE).as_json() | {"parameters": {"content_type": "np", "level": 1, "share": 0.5, "on": True}}
    body = {"model_name": "tumour-classifier", "inputs": [tensor], "parameters": {"priority": 3}}  # KServe's client
    answer = service.post(f"{MODEL}/infer", json=body)
    assert outputs_in(answer) == expected(service, RECORDS[:COUNT])


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/octet-stream", "application/json; charset=utf-8"]
)
def test_content_types(service, content_type):
    headers = {"Content-Type": content_type}
    for tensor in (Tensor(TABLE), Tensor(TABLE, form="binary")):
        assert outputs_in(infer(service, tensor, headers=headers)) == expected(service, RECORDS[:COUNT])


# --------------------------------------------------------------------------------------------------------- mistakes

ROW = TABLE[:1]
FLAT = Tensor(ROW).as_json()
BINARY = Tensor(ROW, form="binary")


def tensor(**changes: object) -> dict[str, object]:
    return {"inputs": [FLAT | changes]}


def renamed(**names: str) -> dict[str, object]:
    tensors = [Tensor(column, names.get(name, name)) for name, column in zip(FEATURES, ROW.T, strict=True)]
    return {"inputs": [tensor.as_json() for tensor in tensors]}


WRONG = {
    "nothing": ({}, "inputs"),
    "not an object": ([], "body"),
    "no tensors": ({"inputs": []}, "inputs"),
    "two tensors": ({"inputs": [FLAT, FLAT]}, "one tensor for each feature"),
    "31 tensors": ({"inputs": [FLAT] * 31}, "at most 30"),
    "no shape": ({"inputs": [{"name": "rows", "datatype": "FP64", "data": [1.0]}]}, "shape"),
    "no data": (tensor(data=None), "inputs.0.data"),
    "29 columns": (tensor(shape=[1, 29], data=[1.0] * 29), "[n, 30]"),
    "one dimension": (tensor(shape=[30]), "[n, 30]"),
    "three dimensions": (tensor(shape=[1, 1, 30]), "shape"),
    "no rows": (tensor(shape=[0, 30], data=[]), "at least 1"),
    "unknown number of rows": (tensor(shape=[-1, 30]), "shape.0"),
    "a huge shape": (tensor(shape=[10**18, 10**18]), "inputs.0.data"),
    "a shape that is not a number": (tensor(shape=["1", 30.5]), "shape"),
    "fewer numbers than the shape": (tensor(shape=[2, 30]), "60 numbers"),
    "more numbers than the shape": (tensor(data=[1.0] * 31), "30 numbers"),
    "nested in another shape": (tensor(data=[[1.0]] * 30), "inputs.0.data"),
    "rows of different lengths": (tensor(shape=[2, 30], data=[[1.0] * 30, [1.0]]), "inputs.0.data"),
    "nested too deeply": (tensor(data=[[[1.0] * 30]]), "inputs.0.data"),
    "a number among rows": (tensor(data=[[1.0], 1.0]), "inputs.0.data"),
    "unknown datatype": (tensor(datatype="BYTES"), "datatype"),
    "lower-case datatype": (tensor(datatype="fp64"), "datatype"),
    "a text": (tensor(data=["17.99", *[1.0] * 29]), "inputs.0.data"),
    "true": (tensor(data=[True, *[1.0] * 29]), "inputs.0.data"),
    "null": (tensor(data=[None, *[1.0] * 29]), "inputs.0.data"),
    "fractions as integers": (tensor(datatype="INT64"), "INT64"),
    "out of the datatype's range": (tensor(datatype="INT8", data=[128] * 30), "INT8"),
    "negative as unsigned": (tensor(datatype="UINT8", data=[-1] * 30), "UINT8"),
    "too large for FP32": (tensor(datatype="FP32", data=[1e300] * 30), "mean_radius"),
    "a huge integer": (tensor(data=[10**400] * 30), "inputs.0.data"),
    "negative": (tensor(data=[-1.0] * 30), "row 0: mean_radius"),
    "impossible": (tensor(data=list(IMPOSSIBLE.values())), "row 0: worst_radius"),
    "a column missing": ({"inputs": renamed()["inputs"][1:]}, "mean_radius"),
    "an unknown column": (renamed(mean_area="area"), "area, mean_area"),
    "a column twice": (renamed(mean_area="mean_radius"), "mean_area, mean_radius"),
    "a column of another length": (
        {"inputs": [*renamed()["inputs"][1:], FLAT | {"name": "mean_radius", "shape": [2], "data": [1.0, 2.0]}]},
        "inputs.29.shape",
    ),
    "an unknown output": (tensor() | {"outputs": [{"name": "logits"}]}, "outputs.0.name"),
    "no outputs": (tensor() | {"outputs": []}, "outputs"),
    "an id that is a number": (tensor() | {"id": 7}, "id"),
    "a parameter that is a list": (tensor() | {"parameters": {"a": []}}, "parameters"),
    "binary data without a header": ({"inputs": [BINARY.as_json()]}, "240 bytes"),
    "a size that is a text": ({"inputs": [BINARY.as_json() | {"parameters": {"binary_data_size": "240"}}]}, "240"),
    "a size that is a float": ({"inputs": [BINARY.as_json() | {"parameters": {"binary_data_size": 240.0}}]}, "240"),
    "a negative size": ({"inputs": [BINARY.as_json() | {"parameters": {"binary_data_size": -240}}]}, "-240"),
}


@pytest.mark.parametrize(("body", "part"), WRONG.values(), ids=WRONG)
def test_a_mistake_has_the_protocols_error_format(service, body, part):
    assert part in error_of(service.post(f"{MODEL}/infer", json=body))


def test_json_that_is_broken_or_has_nan(service):
    for content in (b"", b"{", b'"text"', b"\xff", b'{"inputs": [{"name": "\\ud800"}]}'):
        error_of(service.post(f"{MODEL}/infer", content=content))
    for number in ("NaN", "Infinity", "1e400"):
        text = json.dumps(tensor(data=["HERE", *[1.0] * 29])).replace('"HERE"', number)
        assert "mean_radius" in error_of(service.post(f"{MODEL}/infer", content=text))


HEAD = json.dumps({"inputs": [BINARY.as_json()]}).encode()
TAIL = BINARY.as_bytes()
BINARY_MISTAKES = {
    "too short": (HEAD + TAIL[:-1], len(HEAD), "239 bytes of binary data are left"),
    "too long": (HEAD + TAIL + b"\0", len(HEAD), "1 bytes of binary data belong to no tensor"),
    "no tensor is binary": (json.dumps(tensor()).encode() + TAIL, len(json.dumps(tensor())), "240 bytes"),
    "a length beyond the body": (json.dumps(tensor()), len(json.dumps(tensor())) + 1, JSON_LENGTH),
    "no JSON": (HEAD + TAIL, 0, "JSON"),
    "half the JSON": (HEAD + TAIL, len(HEAD) // 2, "JSON"),
    "no length": (HEAD + TAIL, None, "JSON"),
    "a length that is not a number": (HEAD, "many", JSON_LENGTH),
    "a negative length": (HEAD, -1, JSON_LENGTH),
    "a very long number": (HEAD, "1" * 5000, JSON_LENGTH),
}


@pytest.mark.parametrize(("content", "length", "part"), BINARY_MISTAKES.values(), ids=BINARY_MISTAKES)
def test_a_mistake_with_binary_data(service, content, length, part):
    headers = {} if length is None else {JSON_LENGTH: str(length)}
    assert part.lower() in error_of(service.post(f"{MODEL}/infer", content=content, headers=headers)).lower()


def test_binary_nan(service):
    table = ROW.copy()
    table[0, 5] = np.nan
    assert "mean_compactness" in error_of(infer(service, Tensor(table, form="binary")))


def test_a_body_that_is_too_large(service):
    error_of(service.post(f"{MODEL}/infer", content=b" " * (4 * 2**20 + 1)), 413)


def test_after_all_this_the_service_still_answers(service):
    assert outputs_in(infer(service, Tensor(ROW))) == expected(service, [RECORD])
