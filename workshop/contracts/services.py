"""The bundle of ports that the API is built on."""

from dataclasses import dataclass

from workshop.contracts.cases import CaseStore
from workshop.contracts.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that endpoints may call, whatever runs behind it."""

    classifier: Classifier
    cases: CaseStore
