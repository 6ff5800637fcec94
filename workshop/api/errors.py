"""Turns every error into a problem document (RFC 9457), from one table."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, WebSocket, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketState

from workshop.api.authentication import accept
from workshop.api.clock import now
from workshop.api.middleware import request_id
from workshop.api.middleware.security_headers import security_headers
from workshop.contracts.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidFileError,
    InvalidInputError,
    ModelFailedError,
    NotFoundError,
    OverloadedError,
    PromptTooLongError,
    RateLimitedError,
    ServiceError,
    UnauthenticatedError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

MAX_DETAILS = 100
"""The most mistakes that a problem document lists, however many a batch contains."""

MAX_INSTANCE = 1000
"""The most characters of a path that are sent back. Real paths are shorter."""

# The most specific class of an error determines its status.
_STATUS: dict[type[ServiceError], HTTPStatus] = {
    InvalidInputError: HTTPStatus.BAD_REQUEST,
    InvalidFileError: HTTPStatus.UNPROCESSABLE_ENTITY,
    PromptTooLongError: HTTPStatus.BAD_REQUEST,
    BudgetExceededError: HTTPStatus.PAYMENT_REQUIRED,
    RateLimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    NotFoundError: HTTPStatus.NOT_FOUND,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceededError: HTTPStatus.GATEWAY_TIMEOUT,
    ModelFailedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    ServiceError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

# For an error before a WebSocket is in use. All others are the client's fault: 1008.
_CLOSE_CODES = {
    HTTPStatus.SERVICE_UNAVAILABLE: status.WS_1013_TRY_AGAIN_LATER,
    HTTPStatus.INTERNAL_SERVER_ERROR: status.WS_1011_INTERNAL_ERROR,
}


class ProblemDetail(BaseModel):
    """One thing that is wrong."""

    field: str
    rule: str
    message: str


class Problem(BaseModel):
    """The body of every error, as ``application/problem+json``."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    error: str
    details: list[ProblemDetail] = []
    timestamp: datetime
    request_id: str


def bare_problem(status: HTTPStatus, detail: str, request_id: str) -> Problem:
    """The document of a server that refuses a request before the application has seen it."""
    return Problem(
        title=status.phrase,
        status=status,
        detail=detail,
        instance="",
        error=status.phrase.title().replace(" ", ""),
        timestamp=now(),
        request_id=request_id,
    )


PROBLEM = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
"""A problem document in OpenAPI."""

_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    HTTPStatus.FORBIDDEN: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    HTTPStatus.PAYMENT_REQUIRED: {"Retry-After": {"schema": {"type": "integer"}}},
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: {"Accept-Encoding": {"schema": {"const": "identity"}}},
    HTTPStatus.TOO_MANY_REQUESTS: {
        "Retry-After": {"schema": {"type": "integer"}},
        "RateLimit": {"schema": {"type": "string"}},
        "RateLimit-Policy": {"schema": {"type": "string"}},
    },
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": {"schema": {"type": "integer"}}},
}


def error_responses(*codes: int, answer: Mapping[str, Any] = PROBLEM) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of error responses: the phrase and headers of each status, and their common body."""
    statuses = map(HTTPStatus, codes)
    return {code.value: {"description": code.phrase, "headers": _HEADERS.get(code, {}), **answer} for code in statuses}


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem document, and describe it in the OpenAPI document."""
    openapi_without_problems = app.openapi

    def openapi() -> dict[str, Any]:
        # A response's "model" would be declared as application/json. So PROBLEM refers to the schema, added here.
        document = openapi_without_problems()
        _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= problem["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]

    for kind in (ServiceError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _handle_error)  # type: ignore[arg-type]  # for requests and WebSockets


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a caller learns about an error, in any format."""

    status: HTTPStatus
    error: str
    message: str
    details: Sequence[ProblemDetail] = ()
    headers: Mapping[str, str] | None = None

    @property
    def text(self) -> str:
        """The details in one line, or the message if there are none, for formats without details."""
        return "; ".join(f"{detail.field}: {detail.message}" for detail in self.details) or self.message


def mistakes(*found: tuple[str, str, str]) -> RequestValidationError:
    """An error for mistakes that no schema can describe: field, rule and message of each."""
    return RequestValidationError([{"loc": ("body", field), "type": rule, "msg": text} for field, rule, text in found])


def explain(error: Exception) -> Explanation:
    """Explain an error to a caller. Reveals no internals of the service."""
    if isinstance(error, ServiceError):
        return _explain_service_error(error)
    if isinstance(error, RequestValidationError):
        mistakes = error.errors()
        details = [_problem_detail(item) for item in mistakes[:MAX_DETAILS]]
        shown = "see details" if len(details) == len(mistakes) else f"details lists the first {len(details)}"
        summary = f"invalid values in the request: {len(mistakes)}; {shown}"
        return Explanation(HTTPStatus.UNPROCESSABLE_ENTITY, "ValidationError", summary, details)
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code)
        return Explanation(code, code.phrase.title().replace(" ", ""), error.detail, headers=error.headers)
    return Explanation(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", "something went wrong in the service")


def _explain_service_error(error: ServiceError) -> Explanation:
    code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    headers = {}
    details = []
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, ForbiddenError):
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, UnavailableError | RateLimitedError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, BudgetExceededError):
        left = datetime.fromisoformat(error.resets) - now()
        headers["Retry-After"] = str(max(1, math.ceil(left.total_seconds())))
    if isinstance(error, InvalidInputError):
        where = f"row {error.row}: {error.field}"
        details = [ProblemDetail(field=where, rule="impossible_value", message=error.message)]
    return Explanation(code, type(error).__name__, error.message, details, headers)


def log_failure(request: Request, error: Exception) -> None:
    """Log an error whose cause the caller does not learn."""
    if explain(error).status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)


def problem_document(request: Request, error: Exception) -> Problem:
    """An error as a problem document: the body of a response, or a part of one."""
    return _problem_document(request, explain(error))


def _problem_document(request: Request, explanation: Explanation) -> Problem:
    return Problem(
        title=explanation.status.phrase,
        status=explanation.status,
        detail=explanation.message,
        instance=request.url.path[:MAX_INSTANCE],
        error=explanation.error,
        details=list(explanation.details),
        timestamp=now(),
        request_id=request.state.request_id,
    )


def problem_response(request: Request, error: Exception) -> JSONResponse:
    """An error as a response with a problem document."""
    return explained_response(request, explain(error))


def explained_response(request: Request, explanation: Explanation) -> JSONResponse:
    """The same for an error that has been explained already."""
    if explanation.status == HTTPStatus.METHOD_NOT_ALLOWED:
        explanation = replace(explanation, headers={"Allow": ", ".join(_allowed_methods(request))})
    # An error of the middleware itself is handled outside of what adds these headers to every other response.
    headers = {request_id.HEADER: request.state.request_id, **security_headers(request.scope)}
    headers |= explanation.headers or {}
    content = _problem_document(request, explanation).model_dump(mode="json")
    return JSONResponse(content, explanation.status, headers, media_type="application/problem+json")


async def _handle_error(request: Request | WebSocket, error: Exception) -> JSONResponse | None:
    if isinstance(request, WebSocket):
        await _close_websocket(request, error)
        return None
    if isinstance(error, ServiceError):  # Starlette logs all other errors
        log_failure(request, error)
    return problem_response(request, error)


def _allowed_methods(request: Request) -> list[str]:
    """The methods that a path allows. Starlette would list only those of the first matching route."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    routes = [route for route in iter_route_contexts(request.app.routes) if route.methods]
    found = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return sorted(found or {"GET", "HEAD"})  # a file of the playground


async def _close_websocket(websocket: WebSocket, error: Exception) -> None:
    """Close a WebSocket, with the error as the reason.

    It is accepted first if necessary: closing it earlier is a 403, whose reason browsers hide from the page.
    """
    explanation = explain(error)
    if websocket.application_state is WebSocketState.CONNECTING:
        await accept(websocket)
    await websocket.close(_CLOSE_CODES.get(explanation.status, status.WS_1008_POLICY_VIOLATION), explanation.message)


def _problem_detail(item: Mapping[str, Any]) -> ProblemDetail:
    """Convert one of Pydantic's errors. ``("body", "records", 3, "mean_area")`` becomes ``records.3.mean_area``."""
    location, rule, message = item["loc"], item["type"], item["msg"]
    if rule == "json_invalid":
        return ProblemDetail(field="body", rule=rule, message=f"{message}: {item['ctx']['error']}")
    return ProblemDetail(field=".".join(map(str, location[1:])) or "body", rule=rule, message=message)
