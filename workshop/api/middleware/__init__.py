"""Pure ASGI middleware, one concern per file: nothing here buffers a body or breaks a stream."""
