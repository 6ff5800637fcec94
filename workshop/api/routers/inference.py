"""Predictions in the Open Inference Protocol, with binary tensors, including its error format."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette import types
from starlette.datastructures import MutableHeaders

from workshop import __version__
from workshop.api.dependencies import ModelCardDep, ServicesDep, limit_rate, require_ready, requires
from workshop.api.errors import Explanation, error_responses, mistakes
from workshop.api.revalidation import NOT_MODIFIED
from workshop.api.routes import JsonRequest, ProtocolRoute
from workshop.api.schemas.inference import (
    ErrorMessage,
    InferenceRequest,
    InferenceResponse,
    Live,
    ModelDescription,
    ModelReady,
    Ready,
    ServerMetadata,
)
from workshop.contracts.classifier import Classifier, ModelCard
from workshop.contracts.errors import NotFoundError
from workshop.contracts.principals import Scope

JSON_LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"


class TensorRequest(JsonRequest):
    """A request whose JSON may be followed by binary data. Then a header has the length of the JSON."""

    async def json_text(self) -> bytes:
        """The part of the body that is JSON."""
        body = await self.body()
        length = self.headers.get(JSON_LENGTH, "")
        return body[: int(length)] if length.isdecimal() and len(length) < 16 else body  # ``binary_data`` checks it


class InferenceRoute(ProtocolRoute):
    """A route that reports errors in the protocol's format."""

    request_class = TensorRequest

    def error_response(self, request: Request, explanation: Explanation) -> JSONResponse:
        """The response to an error."""
        content = ErrorMessage(error=explanation.text).model_dump()
        return JSONResponse(content, explanation.status, dict(explanation.headers or {}))

    async def handle(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Starlette's, for a body that counts as JSON: KServe's and Triton's clients do not say that it is."""
        headers = MutableHeaders(scope=scope)
        if headers.get("Content-Type", BINARY) == BINARY:
            headers["Content-Type"] = "application/json"
        await super().handle(scope, receive, send)


ERRORS = {"model": ErrorMessage}
health_router = APIRouter(
    prefix="/v2/health",
    tags=["inference"],
    route_class=InferenceRoute,
    responses=error_responses(503, answer=ERRORS),
)
"""The routes that require no key."""
router = APIRouter(
    prefix="/v2",
    tags=["inference"],
    route_class=InferenceRoute,
    dependencies=[Depends(limit_rate), requires(Scope.PREDICT)],
    responses=error_responses(400, 401, 402, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504, answer=ERRORS),
)


async def find_model(
    name: Annotated[str, Path(description="`tumour-classifier`, or with a version: `tumour-classifier@1.0.0`")],
    card: ModelCardDep,
) -> ModelCard:
    """The card of the model with this name. Raises NotFoundError."""
    if name not in (card.name, f"{card.name}@{card.version}"):
        raise NotFoundError(f"there is no model {name}; available: {card.name}@{card.version}")
    return card


NamedModelDep = Annotated[ModelCard, Depends(find_model)]


async def check_version(version: Annotated[str, Path(description="Such as `1.0.0`")], card: NamedModelDep) -> None:
    """Raise NotFoundError if the model has another version."""
    if version != card.version:
        raise NotFoundError(f"there is no version {version} of {card.name}; available: {card.version}")


async def get_asked_classifier(request: Request, services: ServicesDep, card: NamedModelDep) -> Classifier:
    """A request that names a version never gets one that is on trial."""
    asked = request.path_params
    if asked["name"] != card.name or "version" in asked:
        return services.champion or services.classifier
    return services.classifier


MODEL = "/models/{name}"
VERSION = "/models/{name}/versions/{version}"
CHECK_VERSION = [Depends(check_version)]


@health_router.get("/live", summary="Check whether the process is alive, for KServe")
async def server_live() -> Live:
    """Asks no model."""
    return Live()


@health_router.get(
    "/ready", summary="Check whether the service is ready, for KServe", dependencies=[Depends(require_ready)]
)
async def server_ready() -> Ready:
    """The same as `/readiness`."""
    return Ready()


@router.get("/", include_in_schema=False)
@router.get("", summary="Describe the service", responses=NOT_MODIFIED)
async def server_metadata() -> ServerMetadata:
    """Its version, and the extensions of the protocol that it supports."""
    return ServerMetadata(name="workshop", version=__version__, extensions=["binary_tensor_data"])


@router.get(MODEL, summary="Describe a model's tensors", responses=NOT_MODIFIED)
@router.get(
    VERSION,
    name="model_version_metadata",
    summary="Describe a version's tensors",
    dependencies=CHECK_VERSION,
    responses=NOT_MODIFIED,
)
async def model_metadata(card: NamedModelDep) -> ModelDescription:
    """One input for each feature; a single tensor of shape [n, 30] is accepted too, under any name."""
    return ModelDescription.of(card)


@router.get(f"{MODEL}/ready", summary="Check whether a model is ready")
@router.get(
    f"{VERSION}/ready",
    name="model_version_ready",
    summary="Check whether a version is ready",
    dependencies=CHECK_VERSION,
)
async def model_ready(card: NamedModelDep) -> ModelReady:
    """If the model cannot answer, the status is 503."""
    return ModelReady(name=card.name)


async def binary_data(
    request: Request,
    json_length: Annotated[
        int | None, Header(alias=JSON_LENGTH, ge=0, description="Bytes of JSON; the rest of the body is binary data")
    ] = None,
) -> bytes:
    """What follows the JSON in the body."""
    body = await request.body()
    if json_length is None:
        return b""
    if json_length > len(body):
        raise mistakes((JSON_LENGTH, "size", f"The body has {len(body)} bytes"))
    return body[json_length:]


BinaryDataDep = Annotated[bytes, Depends(binary_data)]
_BINARY = {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
_INFER: dict[str, Any] = {
    "response_model": InferenceResponse,
    "response_model_exclude_none": True,
    "responses": {200: _BINARY},
    "openapi_extra": {"requestBody": _BINARY},
}


@router.post(f"{MODEL}/infer", summary="Classify tumours given as tensors", **_INFER)
@router.post(
    f"{VERSION}/infer",
    name="infer_with_version",
    summary="Classify tumours given as tensors, with a version",
    dependencies=CHECK_VERSION,
    **_INFER,
)
async def infer(
    tumours: InferenceRequest,
    binary: BinaryDataDep,
    card: NamedModelDep,
    classifier: Annotated[Classifier, Depends(get_asked_classifier)],
) -> InferenceResponse | Response:
    """One tensor of shape [n, 30], or thirty by the names of the features, as JSON or as binary data after the JSON."""
    scores = await classifier.predict(tumours.rows(binary))
    response, binary_outputs = InferenceResponse.of(tumours, card.name, scores)
    if not binary_outputs:
        return response
    head = response.model_dump_json(exclude_none=True).encode()
    return Response(head + binary_outputs, headers={JSON_LENGTH: str(len(head))}, media_type=BINARY)
