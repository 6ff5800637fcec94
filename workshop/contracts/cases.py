"""Cases: measurements kept under an id, with the diagnosis once pathology has confirmed it."""

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


class CaseStore(Protocol):
    """Keeps cases. All replicas of a service share what a store holds.

    Each method is a transaction of its own, done when it returns: nobody can hold one open while a model predicts. What
    must happen together, all or nothing, is one method. All raise UnavailableError.
    """

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

    async def ready(self) -> None:
        """Raises UnavailableError unless cases can be read and written. Cheap enough for a probe."""
        ...

    async def aclose(self) -> None:
        """Give back what the store holds open."""
        ...
