"""Stops the work for a client that has left.

Ray Serve cancels a request when its client closes the connection. uvicorn only sends a message, which an endpoint that
waits for a model does not receive. With this middleware, both behave the same.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

WATCH_AFTER_S = 0.05
"""Most requests end sooner, and are spared the cost of a second task."""


class DisconnectMiddleware:
    """Cancels a request, once, when its client leaves before the end of the response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Message] = asyncio.Queue(1)  # reads a body no faster than the application takes it
        watching: asyncio.Task[None] | None = None
        is_reading = has_ended = False
        timer: asyncio.TimerHandle

        async def watch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await arrived.put(message)
            connected.reschedule(0)

        def start_watching() -> None:
            nonlocal watching, timer
            if is_reading:  # then ``receive_and_watch`` watches
                timer = loop.call_later(WATCH_AFTER_S, start_watching)
            else:
                watching = loop.create_task(watch())

        def stop_watching() -> None:
            timer.cancel()
            if watching is not None:
                watching.cancel()

        async def receive_and_watch() -> Message:
            nonlocal is_reading
            if watching is not None:
                return await arrived.get()
            is_reading = True
            try:
                message = await receive()
            finally:
                is_reading = False
            if message["type"] == "http.disconnect" and not has_ended:
                connected.reschedule(0)
                await loop.create_future()  # cancelled at once
            return message

        async def send_and_stop_watching(message: Message) -> None:
            nonlocal has_ended
            if message["type"] == "http.response.body" and not message.get("more_body"):
                has_ended = True  # from here on, servers report a disconnect even if the client is still there
                stop_watching()
            await send(message)

        timer = loop.call_later(WATCH_AFTER_S, start_watching)
        try:
            async with asyncio.timeout(None) as connected:
                try:
                    await self.app(scope, receive_and_watch, send_and_stop_watching)
                finally:
                    stop_watching()
        except (TimeoutError, ExceptionGroup):  # FastAPI's server-sent events may raise a group when cancelled
            if not connected.expired():
                raise
