"""Routes that read JSON bodies with Pydantic, and routes that report errors in another protocol's format."""

import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from http import HTTPStatus
from itertools import islice
from typing import Any

from fastapi import Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from workshop.api.errors import Explanation, explain, explained_response, log_failure
from workshop.api.revalidation import NOT_MODIFIED, revalidated
from workshop.contracts.errors import ServiceError

MAX_NAMES = 50_000
"""The most member names in a body. The largest batch has 31 000. Python needs a second for 4 MB of names."""

_NAME = re.compile(rb'"\s*:')


class JsonRequest(Request):
    """A request whose JSON is parsed by Pydantic, which is faster than Python's parser and rejects lone surrogates.

    A lone surrogate cannot be encoded, so it could be neither stored nor sent back.
    """

    async def json_text(self) -> bytes:
        """The part of the body that is JSON: all of it."""
        return await self.body()

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            HTTPException: 413, the body has too many names.
            JSONDecodeError: the body is not JSON.
        """
        if not hasattr(self, "_json"):
            body = await self.json_text()
            if next(islice(_NAME.finditer(body), MAX_NAMES, None), None):
                detail = f"the body may contain at most {MAX_NAMES} names"
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, detail)
            try:
                self._json = from_json(body)
            except ValueError as error:
                raise json.JSONDecodeError(str(error), "", 0) from None
        return self._json


class JsonRoute(APIRoute):
    """A route that gets a ``JsonRequest``, and answers conditional requests if ``NOT_MODIFIED`` is in its responses."""

    request_class: type[JsonRequest] = JsonRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, called with a request of that class."""
        handler = super().get_route_handler()

        async def handle_request(request: Request) -> Response:
            response = await handler(self.request_class(request.scope, request.receive))
            return revalidated(request, response) if NOT_MODIFIED.keys() <= self.responses.keys() else response

        return handle_request


class ProtocolRoute(JsonRoute):
    """A route of a protocol that was defined elsewhere. None of these protocols has the status 422: it becomes 400."""

    def error_response(self, request: Request, explanation: Explanation) -> Response:
        """The response to an error, in the protocol's format: here a problem document."""
        return explained_response(request, explanation)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with errors turned into responses."""
        handler = super().get_route_handler()

        async def handle_request(request: Request) -> Response:
            try:
                return await handler(request)
            except (ServiceError, RequestValidationError, HTTPException) as error:
                log_failure(request, error)
                explanation = explain(error)
                if explanation.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                    explanation = replace(explanation, status=HTTPStatus.BAD_REQUEST)
                return self.error_response(request, explanation)

        return handle_request
