"""Version 2 of the Open Inference Protocol, which clients of KServe and Triton speak.

Unknown members are ignored, as in the protocol's own schema: KServe's client sends some. Sources:
``open_inference_rest.yaml`` of kserve/open-inference-protocol, and Triton's extension for binary tensor data.
"""

import math
from collections import Counter
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from annotated_types import Ge, Len
from numpy.typing import NDArray
from pydantic import BaseModel, Discriminator, Field, Strict, Tag

from workshop.api.errors import mistakes
from workshop.api.schemas.base import Integer
from workshop.contracts.classifier import FloatMatrix, ModelCard, Scores
from workshop.contracts.tumours import FEATURES

Datatype = Literal[
    "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"
]  # fmt: skip
DTYPES = dict(
    zip(get_args(Datatype), ("<f2", "<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8"), strict=True)
)
"""NumPy's names."""

Parameters = Annotated[dict[str, str | int | float | bool], Len(0, 100)]
Numbers = Annotated[list[Annotated[float, Strict()]], Field(fail_fast=True)]
TensorData = Annotated[
    Annotated[Numbers, Tag("numbers")] | Annotated[list[Numbers], Field(fail_fast=True), Tag("rows")],
    Discriminator(lambda data: "rows" if data and isinstance(data, list) and isinstance(data[0], list) else "numbers"),
]
OutputName = Literal["prediction", "label", "probabilities"]


class ErrorMessage(BaseModel):
    """An error in the protocol's format."""

    error: str


class Live(BaseModel):
    """The process runs."""

    live: bool = True


class Ready(BaseModel):
    """The service accepts requests."""

    ready: bool = True


class ModelReady(Ready):
    """The model accepts requests."""

    name: str


class ServerMetadata(BaseModel):
    """The service."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor that a model takes or returns; -1 is any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelDescription(BaseModel):
    """A model and its tensors. ``platform`` is empty: what runs the model is not known here."""

    name: str
    versions: list[str]
    platform: str = ""
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]

    @classmethod
    def of(cls, card: ModelCard) -> Self:
        """From the contract's type."""
        return cls(
            name=card.name,
            versions=[card.version],
            inputs=[TensorMetadata(name=feature.name, datatype="FP64", shape=[-1]) for feature in card.features],
            outputs=[
                TensorMetadata(name="prediction", datatype="INT64", shape=[-1]),
                TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
                TensorMetadata(name="probabilities", datatype="FP64", shape=[-1, len(card.classes)]),
            ],
        )


class InputTensor(BaseModel):
    """Numbers, in row-major order: a list, a list of rows, or binary if the parameter `binary_data_size` is set."""

    name: str
    shape: Annotated[list[Annotated[Integer, Ge(0)]], Len(1, 2)]
    datatype: Datatype
    parameters: Parameters = {}
    data: TensorData | None = None

    def read(self, place: str, binary: memoryview) -> tuple[FloatMatrix, memoryview]:
        """The numbers in their shape, and what remains of the binary data.

        Raises:
            RequestValidationError: the numbers do not match the shape or the datatype, or there are none.
        """
        dtype = np.dtype(DTYPES[self.datatype])
        n = math.prod(self.shape)
        size = self.parameters.get("binary_data_size")
        if self.data is None and size is not None:
            if not isinstance(size, int) or size != n * dtype.itemsize or len(binary) < size:
                expected = f"{self.shape} of {self.datatype} is {n * dtype.itemsize} bytes"
                raise mistakes((place, "size", f"{expected}, not {size}; {len(binary)} bytes of binary data are left"))
            raw, binary = binary[:size], binary[size:]
            return np.frombuffer(raw, dtype).astype(np.float64).reshape(self.shape), binary
        try:
            given = np.array(self.data, dtype=np.float64)
        except ValueError:  # rows of different lengths
            given = np.empty(())
        if given.size != n or given.shape not in ((n,), tuple(self.shape)):
            raise mistakes((f"{place}.data", "shape", f"There should be {n} numbers, for the shape {self.shape}"))
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = given.astype(dtype).astype(np.float64)
        if dtype.kind != "f" and not np.array_equal(numbers, given):
            raise mistakes((f"{place}.data", "datatype", f"The numbers should be {self.datatype}"))
        return numbers.reshape(self.shape), binary


class RequestedOutput(BaseModel):
    """An output to return. With the parameter `binary_data`, as binary data."""

    name: OutputName
    parameters: Parameters = {}


class InferenceRequest(BaseModel):
    """Tumours: one tensor of shape [n, 30], columns in the order of the features, or a tensor for each feature.

    Without `outputs`, all are returned, as binary data if the parameter `binary_data_output` is true.
    """

    id: str | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[InputTensor], Len(1, len(FEATURES))]
    outputs: Annotated[list[RequestedOutput], Len(1, len(get_args(OutputName)))] | None = None

    def rows(self, binary: bytes) -> FloatMatrix:
        """The measurements, shape (n, 30).

        Args:
            binary: what follows the JSON in the body.

        Raises:
            RequestValidationError: a tensor is missing, unknown or there twice, or something is wrong with one.
        """
        tensors = []
        rest = memoryview(binary)
        for i, tensor in enumerate(self.inputs):
            numbers, rest = tensor.read(f"inputs.{i}", rest)
            tensors.append(numbers)
        if rest:
            raise mistakes(("body", "size", f"{len(rest)} bytes of binary data belong to no tensor"))
        rows = tensors[0] if len(tensors) == 1 else self._columns_joined(tensors)
        if rows.shape[1:] != (len(FEATURES),) or not len(rows):
            raise mistakes(("inputs.0.shape", "shape", f"It should be [n, {len(FEATURES)}], and n at least 1"))
        return rows

    def _columns_joined(self, tensors: list[FloatMatrix]) -> FloatMatrix:
        times = Counter(tensor.name for tensor in self.inputs)
        if wrong := {name for name in (*FEATURES, *times) if name not in FEATURES or times[name] != 1}:
            message = f"There should be one tensor for each feature; wrong: {', '.join(sorted(wrong))}"
            raise mistakes(("inputs", "names", message))
        n = len(tensors[0])
        for i, tensor in enumerate(tensors):
            if tensor.shape not in ((n,), (n, 1)):
                raise mistakes((f"inputs.{i}.shape", "shape", f"It should be [{n}] or [{n}, 1]"))
        columns = {tensor.name: numbers.ravel() for tensor, numbers in zip(self.inputs, tensors, strict=True)}
        return np.column_stack([columns[name] for name in FEATURES])


class OutputTensor(BaseModel):
    """An output, in row-major order. Binary data follows the JSON, in the order of the outputs."""

    name: OutputName
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: list[int | float | str] | None = None


class InferenceResponse(BaseModel):
    """The outputs, and the version of the model that answered."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]

    @classmethod
    def of(cls, request: InferenceRequest, model: str, scores: Scores) -> tuple[Self, bytes]:
        """The response that was requested, and the binary data that follows it."""
        best = scores.probabilities.argmax(axis=1)
        found: dict[OutputName, tuple[str, NDArray[Any]]] = {
            "prediction": ("INT64", best.astype("<i8")),
            "label": ("BYTES", np.array(scores.classes)[best]),
            "probabilities": ("FP64", scores.probabilities.astype("<f8")),
        }
        requested = request.outputs or [RequestedOutput(name=name) for name in found]
        all_binary = request.parameters.get("binary_data_output", False)
        outputs, binary = [], []
        for output in requested:
            datatype, array = found[output.name]
            tensor = OutputTensor(name=output.name, datatype=datatype, shape=list(array.shape))
            if output.parameters.get("binary_data", all_binary) is True:
                binary.append(_to_bytes(array))
                tensor.parameters = {"binary_data_size": len(binary[-1])}
            else:
                tensor.data = array.ravel().tolist()
            outputs.append(tensor)
        response = cls(model_name=model, model_version=scores.model_version, id=request.id, outputs=outputs)
        return response, b"".join(binary)


def _to_bytes(array: NDArray[Any]) -> bytes:
    """Numbers as they are; before each text its length, as a 32-bit integer."""
    if array.dtype.kind != "U":
        return array.tobytes()
    texts = (text.encode() for text in array.tolist())
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
