"""Every error as a problem document (RFC 9457), from one table."""

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from workshop.api.clock import now
from workshop.api.middleware import request_id
from workshop.contracts.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

MAX_DETAILS = 100
"""A problem document names no more than this many mistakes, however many a batch has."""

# The most specific class of an error decides.
_STATUS: dict[type[ServiceError], HTTPStatus] = {
    InvalidInputError: HTTPStatus.BAD_REQUEST,
    NotFoundError: HTTPStatus.NOT_FOUND,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceededError: HTTPStatus.GATEWAY_TIMEOUT,
    ModelFailedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    ServiceError: HTTPStatus.INTERNAL_SERVER_ERROR,
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


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {
        "description": HTTPStatus(code).phrase,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for code in (400, 404, 413, 422, 500, 503, 504)
}


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem document, in its OpenAPI schema too."""
    openapi_without_problems = app.openapi

    def openapi() -> dict[str, Any]:
        # A response's "model" would be declared as application/json, so PROBLEM_RESPONSES only refers to the schema.
        document = openapi_without_problems()
        _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= problem["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]

    @app.exception_handler(ServiceError)
    async def on_service_error(request: Request, error: ServiceError) -> JSONResponse:
        code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
        headers = {}
        details = []
        if isinstance(error, UnavailableError):
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        if isinstance(error, InvalidInputError):
            where = f"row {error.row}: {error.field}"
            details = [ProblemDetail(field=where, rule="impossible_value", message=error.message)]
        if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
        return _problem(request, code, error.message, type(error).__name__, details=details, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        mistakes = error.errors()
        details = [_detail(item) for item in mistakes[:MAX_DETAILS]]
        shown = "see details" if len(details) == len(mistakes) else f"details names the first {len(details)}"
        summary = f"{len(mistakes)} of the request's values break a rule; {shown}"
        return _problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, summary, "ValidationError", details=details)

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code)
        name = code.phrase.title().replace(" ", "")
        return _problem(request, code, error.detail, name, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        # Starlette logs the traceback; the caller learns only how to ask about it. This handler, and only this one,
        # runs outside the middleware that would add the header.
        return _problem(
            request,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "something went wrong in the service",
            "InternalError",
            headers={request_id.HEADER: request.state.request_id},
        )


def _problem(
    request: Request,
    code: HTTPStatus,
    detail: str,
    error: str,
    *,
    details: Sequence[ProblemDetail] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(
        title=code.phrase,
        status=code,
        detail=detail,
        instance=request.url.path,
        error=error,
        details=list(details),
        timestamp=now(),
        request_id=request.state.request_id,
    )
    return JSONResponse(problem.model_dump(mode="json"), code, headers, media_type="application/problem+json")


def _detail(item: Mapping[str, Any]) -> ProblemDetail:
    """One of Pydantic's errors. ``("body", "records", 3, "mean_area")`` becomes ``records.3.mean_area``."""
    location, rule, message = item["loc"], item["type"], item["msg"]
    if rule == "json_invalid":
        return ProblemDetail(field="body", rule=rule, message=f"{message}: {item['ctx']['error']}")
    return ProblemDetail(field=".".join(map(str, location[1:])) or "body", rule=rule, message=message)
