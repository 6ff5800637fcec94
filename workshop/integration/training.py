"""Trains the tumour classifier and indexes the retriever's passages, into the folders that the settings name."""

import asyncio
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workshop.contracts.errors import ServiceError, StartError
from workshop.settings import LESSONS, PROJECT, Settings


def train_classifier(settings: Settings, folder: Path) -> str:
    """Train it and save it in a folder. Returns one line about its quality."""
    from workshop.models.tumours import train

    model = train()
    model.save(folder)
    return f"{model.card.name} {model.card.version}: accuracy {model.card.accuracy:.3f}, f1 {model.card.f1:.3f}"


def index_passages(settings: Settings, folder: Path) -> str:
    """Index the corpus and the lessons, and save the retriever in a folder. Returns a line about it.

    Raises:
        StartError: the embedding model cannot be loaded, or its server does not embed the passages.
    """
    from workshop.integration.retriever import make_embedding
    from workshop.models.retriever import CorpusRetriever

    async def build() -> CorpusRetriever:
        retriever = await CorpusRetriever.build(LESSONS if LESSONS.is_dir() else None, make_embedding(settings))
        await retriever.aclose()
        return retriever

    try:
        retriever = asyncio.run(build())
    except ServiceError as error:
        raise StartError.because("cannot embed the passages", error) from error
    retriever.save(folder)
    return f"{retriever.card.embedding}: {retriever.card.passages} passages"


_MAKERS: dict[str, Callable[[Settings, Path], str]] = {
    "artifact": train_classifier,
    "retriever_artifact": index_passages,
}
"""By the setting that names the folder."""


def train_all(settings: Settings) -> None:
    """Train everything again, and report it."""
    for setting, make in _MAKERS.items():
        folder = Path(getattr(settings, setting))
        print(f"{make(settings, folder)}, in {folder}", flush=True)


def make_missing(settings: Settings) -> None:
    """Make what is missing in the default places, and report it.

    A folder that the user has named is left alone: it must exist already. Several processes may do this at
    the same time: one makes what is missing, and the others wait for it.

    Raises:
        StartError: it cannot be written.
    """
    artifacts = PROJECT / "artifacts"
    try:
        if "database_url" not in settings.model_fields_set:
            artifacts.mkdir(exist_ok=True)
        if _missing(settings):
            with _alone(artifacts):
                for setting in _missing(settings):
                    _make(settings, setting)
    except OSError as error:
        raise StartError.because(f"cannot write to {artifacts}", error) from error


def _missing(settings: Settings) -> list[str]:
    needed = _MAKERS if settings.language_models else ["artifact"]
    return [
        name for name in needed if name not in settings.model_fields_set and not Path(getattr(settings, name)).exists()
    ]


def _make(settings: Settings, setting: str) -> None:
    folder = Path(getattr(settings, setting))
    print(f"{folder} does not exist yet. Making it takes a few seconds.", flush=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    print(_MAKERS[setting](settings, unfinished), flush=True)
    unfinished.rename(folder)  # so the folder never exists half-finished


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The block runs in one process at a time."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed or the process ends
        yield
