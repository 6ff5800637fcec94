"""Questions and answers on the workshop's own subject: its language models learn them, its retriever finds them.

One YAML file per topic. Each entry is an answer with several phrasings of its question; ``held_out`` phrasings are
never trained on.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer and how people ask for it.

    Attributes:
        topic: name of the file that holds it.
        answer: one or two sentences.
        questions: phrasings for training.
        held_out: phrasings that only evaluation sees.
    """

    topic: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the order of the files' names and of their lines."""
    return tuple(
        Entry(path.stem, entry["answer"], tuple(entry["questions"]), tuple(entry["held_out"]))
        for path in _files()
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
    )


def checksum() -> str:
    """SHA-256 of the files, in hexadecimal: tells whether a model was trained on this corpus."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))
