"""Tells browsers what they may do with a response, and caches not to keep it."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NOTHING = "default-src 'none'; frame-ancestors 'none'"
"""The policy of data: whatever it contains, a browser that shows it as a page runs and loads nothing."""

_DOCUMENTATION = (
    # Swagger UI is started by a script in its page, and both load only files and the document of this service.
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_POLICIES = dict.fromkeys(("/docs", "/docs/oauth2-redirect", "/redoc"), _DOCUMENTATION)

_HTTPS_ONLY = "max-age=31536000"
"""Seconds for which a browser uses nothing but https. Subdomains are not ours to decide."""


class SecurityHeadersMiddleware:
    """Adds the headers to every response that does not have its own.

    A response with an ``ETag`` is meant to be kept and revalidated.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in security_headers(scope).items():
                    if not (name == "Cache-Control" and "ETag" in headers):
                        headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def security_headers(scope: Scope) -> dict[str, str]:
    """The headers of a response to a request, if the response has none of its own."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    headers = {
        "Content-Security-Policy": _POLICIES.get(path, _NOTHING),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    if scope["scheme"] == "https":
        headers["Strict-Transport-Security"] = _HTTPS_ONLY
    return headers
