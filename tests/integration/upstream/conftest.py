"""What all tests of upstream servers need."""

import pytest


@pytest.fixture(autouse=True)
def time_to_probe(monkeypatch) -> None:
    """Let a probe take longer than in production: a busy machine may stand still for seconds."""
    for protocol in ("openai", "anthropic"):
        monkeypatch.setattr(f"workshop.integration.upstream.{protocol}.PROBE_TIMEOUT_S", 60.0)
