"""Models on other servers: one file per protocol. No type or exception of a client library leaves this package."""
