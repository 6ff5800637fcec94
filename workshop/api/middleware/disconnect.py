"""Nobody works for a client that has left.

Ray Serve cancels a request whose client closes the connection. uvicorn only says so, to whoever asks; endpoints that
wait for a model do not. With this middleware, a request ends in the same way in both.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DisconnectMiddleware:
    """Cancels a request, once, when its client leaves before the end of the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived: asyncio.Queue[Message] = asyncio.Queue(1)  # a body is read no faster than the application takes it

        async def watch(connected: asyncio.Timeout) -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await arrived.put(message)
            connected.reschedule(0)

        async def send_and_note_the_end(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                watching.cancel()  # from here on, servers say that the client has left, whether or not it has
            await send(message)

        try:
            async with asyncio.timeout(None) as connected:
                watching = asyncio.create_task(watch(connected))
                try:
                    await self.app(scope, arrived.get, send_and_note_the_end)
                finally:
                    watching.cancel()
        except (TimeoutError, ExceptionGroup):  # FastAPI's events may raise a group when they are cancelled
            if not connected.expired():
                raise
