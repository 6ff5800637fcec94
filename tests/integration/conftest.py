import pytest

from tests.cluster import cluster

__all__ = ["cluster"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
