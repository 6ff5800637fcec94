"""What all apps here share: the classifier's artifact, and a Pydantic model of its 30 features.

It imports nothing of the workshop's package, which is not installed in the peers' environments.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from numpy.typing import NDArray
from pydantic import BaseModel, create_model

_FOLDER = Path(os.environ["WORKSHOP_ARTIFACT"])
NAMES = [feature["name"] for feature in json.loads((_FOLDER / "card.json").read_text())["features"]]

_fields: dict[str, Any] = dict.fromkeys(NAMES, float)
Tumour: Any = create_model("Tumour", **_fields)


def load() -> Any:
    """The scikit-learn pipeline."""
    return skops.io.load(_FOLDER / "model.skops")


def to_rows(tumours: Iterable[BaseModel]) -> NDArray[np.float64]:
    """As a matrix."""
    return np.array([[value for _, value in tumour] for tumour in tumours])
