"""Saved scikit-learn models: skops' format, which runs no code that it does not trust."""

import os
import sys
from pathlib import Path

from workshop.contracts.errors import StartError

# At its import, skops looks into every module of scikit-learn, and one of these imports PyTorch where it is installed:
# seconds, and 200 MB in each process, for nothing.
_hides_torch = "torch" not in sys.modules
if _hides_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
from skops.io import dumps, loads  # noqa: E402

if _hides_torch:
    del sys.modules["torch"]

__all__ = ["ArtifactError", "dumps", "loads", "write"]


def write(path: Path, content: bytes) -> None:
    """Write a file whole: who reads it meanwhile sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


class ArtifactError(StartError):
    """A saved model cannot be used."""
