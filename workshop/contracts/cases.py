"""Cases: measurements kept under an id, with the diagnosis once pathology has confirmed it."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Case:
    """One tumour.

    Attributes:
        id: chosen by the store.
        measurements: the 30 values, in the order of ``FEATURES``.
        diagnosis: the confirmed class, or None while it is open.
    """

    id: UUID
    measurements: tuple[float, ...]
    diagnosis: str | None = None


class Cases(Protocol):
    """The cases within one transaction."""

    async def add(self, measurements: tuple[float, ...], diagnosis: str | None) -> Case: ...

    async def get(self, case_id: UUID) -> Case:
        """Raises NotFoundError."""
        ...

    async def newest(self, limit: int) -> list[Case]: ...

    async def replace(self, case: Case) -> None:
        """Raises NotFoundError."""
        ...

    async def delete(self, case_id: UUID) -> None:
        """Raises NotFoundError."""
        ...


class CaseStore(Protocol):
    """Opens transactions. All replicas of a service share what a store holds."""

    def transaction(self) -> AbstractAsyncContextManager[Cases]:
        """Commits at the end of the block, rolls back when it raises."""
        ...

    async def aclose(self) -> None:
        """Give back what the store holds open."""
        ...
