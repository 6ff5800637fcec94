"""Cases: measurements stored under an id, with the diagnosis once pathology has confirmed it."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Case:
    """One tumour.

    Attributes:
        id: chosen by the store.
        owner: the principal who stored it.
        measurements: the 30 values, in the order of ``FEATURES``.
        diagnosis: the confirmed class, or None while it is open.
    """

    id: UUID
    owner: str
    measurements: tuple[float, ...]
    diagnosis: str | None = None


class CaseStore(Protocol):
    """Stores cases. All replicas of a service share one store.

    Each method is a transaction, finished when it returns, so that none stays open while a model predicts. Changes that
    must succeed or fail together are one method. Where ``owner`` is not None, only the cases of this principal exist
    for the caller. All methods raise UnavailableError.
    """

    async def add(self, owner: str, measurements: tuple[float, ...], diagnosis: str | None) -> Case: ...

    async def get(self, case_id: UUID, owner: str | None) -> Case:
        """Raises NotFoundError."""
        ...

    async def newest(self, limit: int, owner: str | None) -> list[Case]: ...

    async def replace(
        self, case_id: UUID, owner: str | None, measurements: tuple[float, ...], diagnosis: str | None
    ) -> Case:
        """Raises NotFoundError."""
        ...

    async def delete(self, case_id: UUID, owner: str | None) -> None:
        """Raises NotFoundError."""
        ...

    async def ready(self) -> None:
        """Raise UnavailableError unless cases can be read and written. Cheap enough for a probe."""
        ...

    async def aclose(self) -> None:
        """Release the store's resources."""
        ...
