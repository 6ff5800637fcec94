"""Saved scikit-learn models, in the format of skops: loading one runs no untrusted code."""

import os
import sys
from pathlib import Path

from workshop.contracts.errors import StartError

# Importing skops imports every module of scikit-learn, and one of these imports PyTorch where it is installed. That
# would cost seconds, and 200 MB in each process, for nothing.
_hides_torch = "torch" not in sys.modules
if _hides_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
from skops.io import dumps, loads  # noqa: E402

if _hides_torch:
    del sys.modules["torch"]

__all__ = ["ArtifactError", "dumps", "loads", "write"]


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: a concurrent reader gets the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


class ArtifactError(StartError):
    """A saved model cannot be used."""
