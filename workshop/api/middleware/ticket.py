"""Takes a ticket out of the URL, before a log or an error shows it."""

from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Receive, Scope, Send

PARAMETER = "ticket"


class TicketMiddleware:
    """Moves the parameter ``ticket`` from the query string to the request's state.

    The server's access log shows the query string of the same scope, so the scope is changed in place.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if PARAMETER.encode() in scope.get("query_string", b""):
            parameters = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, encoding="latin-1")
            tickets = [value for name, value in parameters if name == PARAMETER]
            if tickets:
                others = [(name, value) for name, value in parameters if name != PARAMETER]
                scope["query_string"] = urlencode(others, encoding="latin-1").encode()
                scope.setdefault("state", {})["ticket"] = tickets[0]
        await self.app(scope, receive, send)
