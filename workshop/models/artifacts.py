"""Saved scikit-learn models, in the format of skops: loading one runs no untrusted code."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sklearn.pipeline  # noqa: F401  # and SciPy with it, which asks for PyTorch: so before that is hidden
from fsspec.core import url_to_fs

from workshop.contracts.errors import StartError

# Importing skops imports every module of scikit-learn, and one of these imports PyTorch where it is installed. That
# would cost seconds, and 200 MB in each process, for nothing.
_hides_torch = "torch" not in sys.modules
if _hides_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
from skops.io import dumps, loads  # noqa: E402

if _hides_torch:
    del sys.modules["torch"]

__all__ = ["ArtifactError", "Location", "dumps", "loads", "write"]

_PINS = re.compile(r"(?P<url>.+?)(#sha256=(?P<sha256>[0-9a-f]{64})(&version=(?P<version>[\w.-]+))?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a saved model is.

    Attributes:
        url: a folder, or any URL that fsspec knows: ``s3://bucket/folder``, ``hf://owner/name``.
        sha256: the checksum that the model must have.
        version: of the model, instead of the one in its card.
    """

    url: str
    sha256: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From text such as ``s3://bucket/folder#sha256=…&version=3``, where the last parts may be missing.

        Raises:
            ArtifactError: what follows ``#sha256=`` is no checksum.
        """
        found = _PINS.fullmatch(text)
        if found is None or "#sha256=" in found["url"]:
            raise ArtifactError(f"{text}: #sha256= should be followed by 64 hexadecimal digits, in lower case")
        return cls(**found.groupdict())

    @property
    def remedy(self) -> str:
        """What to do if it cannot be used."""
        if self.version is not None:
            return "register it again"
        return "check WORKSHOP_ARTIFACT" if "://" in self.url else "run: python -m workshop train"

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            ArtifactError: it cannot be read.
        """
        try:
            files, folder = url_to_fs(self.url)
            content: bytes = files.cat_file(f"{folder}/{name}")
            return content
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.strerror else f"{self.url}: {error}"
            raise ArtifactError(f"cannot read the model: {what}; {self.remedy}") from error
        except Exception as error:  # each kind of storage has errors of its own
            raise ArtifactError.because(f"cannot read the model: {self.url}", error, self.remedy) from error


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: a concurrent reader gets the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


class ArtifactError(StartError):
    """A saved model cannot be used."""
