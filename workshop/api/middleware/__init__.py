"""Pure ASGI middleware, one concern per file. None of it buffers a body or interrupts a stream."""
