"""What a first start makes, and what it leaves alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workshop.contracts.errors import StartError
from workshop.integration import training
from workshop.integration.training import make_missing
from workshop.models.retriever import CorpusRetriever
from workshop.models.tumours import TumourClassifier
from workshop.settings import Settings


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Settings whose defaults are in an empty project."""
    monkeypatch.setattr(training, "PROJECT", tmp_path)

    class Fresh(Settings):
        artifact: Path = tmp_path / "artifacts" / "classifier"
        retriever_artifact: Path = tmp_path / "artifacts" / "retriever"

    return Fresh


def test_it_makes_what_is_missing_and_says_so_once(fresh, capsys):
    settings = fresh()
    make_missing(settings)
    assert TumourClassifier.load(settings.artifact).card.name == "tumour-classifier"
    assert CorpusRetriever.load(settings.retriever_artifact).card.passages > 100
    assert capsys.readouterr().out.count("does not exist yet") == 2
    make_missing(settings)
    assert capsys.readouterr().out == ""


def test_without_language_models_nothing_is_indexed(fresh):
    settings = fresh(language_models=False)
    make_missing(settings)
    assert settings.artifact.exists()
    assert not settings.retriever_artifact.exists()


def test_folders_that_the_user_has_named_are_left_alone(fresh, tmp_path):
    named = tmp_path / "named"
    make_missing(fresh(artifact=named, retriever_artifact=named, DATABASE_URL="sqlite+aiosqlite:///named.sqlite"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_start_has_left_unfinished_is_made_again(fresh, tmp_path):
    unfinished = tmp_path / "artifacts" / "classifier.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "model.skops").write_bytes(b"half of a mod")
    settings = fresh(language_models=False)
    make_missing(settings)
    TumourClassifier.load(settings.artifact)


def test_one_start_makes_what_is_missing_and_the_others_wait(fresh, capsys):
    settings = fresh(language_models=False)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make_missing, [settings] * 4))
    assert capsys.readouterr().out.count("does not exist yet") == 1


def test_a_folder_that_cannot_be_written_is_one_clear_line(fresh, tmp_path):
    (tmp_path / "artifacts").write_text("a file in the folder's place")
    with pytest.raises(StartError, match=f"cannot write to {tmp_path}/artifacts"):
        make_missing(fresh(language_models=False))
