"""Registered models: the versions of a model, and which of them answer."""

from dataclasses import dataclass
from typing import Protocol

VERSION_REQUESTS = "model_version_requests"
"""The metric that counts requests by ``version`` and by ``outcome``, which is ``answered`` or ``failed``."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version that never changes.

    Attributes:
        number: counts from 1.
        location: a URL to load it from, with the checksum that the registry vouches for.
    """

    number: str
    location: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """Which versions answer.

    Attributes:
        champion: the version that answers all callers but those of the challenger.
        challenger: a version on trial.
        share: of the callers whom the challenger answers, from 0 to 1.
    """

    champion: ModelVersion
    challenger: ModelVersion | None = None
    share: float = 0.0


class ModelRegistry(Protocol):
    """The registered versions of one model. All methods block, and raise UnavailableError if it does not answer."""

    def rollout(self) -> Rollout:
        """Which versions should answer now. A challenger that cannot be used is left out.

        Raises:
            NotFoundError: there is no such model, or none of its versions is active.
        """
        ...

    def withdraw(self, number: str, reason: str) -> None:
        """End the trial of a version, if it still is the challenger, and note why."""
        ...
