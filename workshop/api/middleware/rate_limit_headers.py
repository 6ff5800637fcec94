"""Tells clients how much of their rate limits is left, whatever the response.

The headers are those of draft-ietf-httpapi-ratelimit-headers, revisions 08 to 11.
"""

from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workshop.api.rate_limits import Quota

STATE = "quotas"
"""Under this name, the request's state holds the quotas that the request was counted in, by policy."""


class RateLimitHeadersMiddleware:
    """Adds ``RateLimit-Policy`` and ``RateLimit`` to responses to requests that were counted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_quotas(message: Message) -> None:
            if message["type"] == "http.response.start" and (quotas := scope.get("state", {}).get(STATE)):
                MutableHeaders(scope=message).update(rate_limit_headers(quotas.values()))
            await send(message)

        await self.app(scope, receive, send_with_quotas)


def rate_limit_headers(quotas: Iterable[Quota]) -> dict[str, str]:
    """The headers that describe quotas. Their values are structured fields (RFC 9651)."""
    return {
        "RateLimit-Policy": ", ".join(
            f'"{quota.policy}";q={quota.limit.amount};w={quota.limit.get_expiry()}' for quota in quotas
        ),
        "RateLimit": ", ".join(f'"{quota.policy}";r={quota.remaining};t={quota.resets_s}' for quota in quotas),
    }
