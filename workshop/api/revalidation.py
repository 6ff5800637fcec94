"""Conditional requests (RFC 9110): a client that already has the current content gets a 304 without it."""

import hashlib
import re
from typing import Any

from fastapi import Request, Response, status

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    status.HTTP_304_NOT_MODIFIED: {
        "description": "Not Modified: the content has the `ETag` that the request names in `If-None-Match`",
        "headers": {"ETag": {"schema": {"type": "string"}}},
    }
}
"""A ``JsonRoute`` that has this among its responses answers conditional requests."""

_ETAG = re.compile(r'"[^"]*"')


def has_content(etag: str, if_none_match: str) -> bool:
    """Whether the content that a client has is the one with this tag. Weak tags match too: ``W/"…"``."""
    return if_none_match.strip() == "*" or etag in _ETAG.findall(if_none_match)


def revalidated(request: Request, response: Response) -> Response:
    """The response with an ``ETag``, or without its body if the client has this content already.

    Clients may store it, and ask each time whether it is still the same: another model may answer at any moment.
    """
    etag = f'"{hashlib.sha256(response.body).hexdigest()}"'
    response.headers["ETag"] = etag
    response.headers["Cache-Control"] = "private, no-cache"
    if not has_content(etag, ",".join(request.headers.getlist("If-None-Match"))):
        return response
    unchanged = Response(status_code=status.HTTP_304_NOT_MODIFIED, background=response.background)
    unchanged.raw_headers = [(name, value) for name, value in response.raw_headers if not name.startswith(b"content-")]
    return unchanged
