"""The model and its artifact."""

import hashlib
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import skops.io
from sklearn.preprocessing import FunctionTransformer
from starlette.staticfiles import StaticFiles

from tests.service import ROWS
from workshop.contracts.errors import InvalidInputError, StartError
from workshop.contracts.tumours import FEATURES, LARGEST_VALUE
from workshop.lab.app_server import run_app
from workshop.models.artifacts import ArtifactError
from workshop.models.tumours import TumourClassifier, train, training_data

MODEL, CARD = "model.skops", "card.json"


@pytest.fixture(scope="module")
def trained() -> TumourClassifier:
    return train()


@pytest.fixture
def artifact(trained, tmp_path) -> Path:
    trained.save(tmp_path / "model")
    return tmp_path / "model"


def test_training_is_the_same_every_time(trained):
    again = train()
    assert again.card == trained.card
    np.testing.assert_array_equal(again.predict(ROWS).probabilities, trained.predict(ROWS).probabilities)


def test_the_model_is_good_and_says_how_good(trained):
    _, labels = training_data()
    scores = trained.predict(ROWS)
    assert (scores.probabilities.argmax(axis=1) == labels).mean() > 0.97
    assert trained.card.accuracy > 0.97
    assert trained.card.f1 > 0.97
    assert scores.classes == trained.card.classes == ("malignant", "benign")
    assert trained.card.positive_class == "malignant"


def test_the_card_names_each_feature_with_the_range_seen_in_training(trained):
    assert tuple(feature.name for feature in trained.card.features) == FEATURES
    assert all(
        ROWS[:, i].min() <= f.minimum < f.maximum <= ROWS[:, i].max() for i, f in enumerate(trained.card.features)
    )


def test_probabilities_have_one_row_each_and_sum_to_one(trained):
    probabilities = trained.predict(ROWS[:7]).probabilities
    assert probabilities.shape == (7, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize("feature", range(10))
def test_a_worst_value_below_its_mean_is_impossible(trained, feature):
    rows = ROWS[:3].copy()
    rows[1, 20 + feature] = rows[1, feature] / 2
    with pytest.raises(InvalidInputError) as caught:
        trained.predict(rows)
    assert (caught.value.row, caught.value.field) == (1, FEATURES[20 + feature])
    assert FEATURES[feature] in caught.value.message


@pytest.mark.parametrize("value", [1e308, 1.1e12, -1.0, np.inf, np.nan])
@pytest.mark.parametrize("column", [0, 13, 29])
def test_a_value_out_of_range_is_impossible(trained, value, column):
    rows = ROWS[:3].copy()
    rows[1, column] = value
    with pytest.raises(InvalidInputError) as caught:
        trained.predict(rows)
    assert (caught.value.row, caught.value.field) == (1, FEATURES[column])
    assert FEATURES[column] in caught.value.message


def test_the_largest_values_can_be_predicted(trained):
    rows = np.stack([np.full(30, LARGEST_VALUE), np.zeros(30), np.where(np.arange(30) < 20, 0, LARGEST_VALUE)])
    np.testing.assert_allclose(trained.predict(rows).probabilities.sum(axis=1), 1)


def test_a_saved_model_is_the_same_model(trained, artifact):
    loaded = TumourClassifier.load(artifact)
    assert loaded.card == replace(trained.card, sha256=hashlib.sha256((artifact / MODEL).read_bytes()).hexdigest())
    np.testing.assert_array_equal(loaded.predict(ROWS).probabilities, trained.predict(ROWS).probabilities)


def test_a_model_is_loaded_from_any_url_that_fsspec_knows(artifact):
    fsspec.filesystem("memory").put(str(artifact), "/models/", recursive=True)
    with run_app(StaticFiles(directory=artifact)) as server:
        for url in (f"file://{artifact}", f"memory://models/{artifact.name}", server.url):
            assert TumourClassifier.load(url).card == TumourClassifier.load(artifact).card
        with pytest.raises(ArtifactError, match=f"{server.url}/nowhere/model.skops"):
            TumourClassifier.load(f"{server.url}/nowhere")


@pytest.mark.parametrize(
    "url", ["nonsense://x", "http://127.0.0.1:9/x", "s3://", "memory://nowhere", "http://[", "\0", "#"]
)
def test_a_url_that_cannot_be_read_is_a_one_line_error(url):
    with pytest.raises(ArtifactError, match="cannot read the model") as caught:
        TumourClassifier.load(url)
    assert "\n" not in str(caught.value)


def test_a_location_names_the_checksum_that_the_model_must_have(artifact):
    checksum = hashlib.sha256((artifact / MODEL).read_bytes()).hexdigest()
    assert TumourClassifier.load(f"{artifact}#sha256={checksum}").card.version == "1.0.0"
    assert TumourClassifier.load(f"{artifact}#sha256={checksum}&version=3").card.version == "3"
    with pytest.raises(ArtifactError, match="is another one"):
        TumourClassifier.load(f"{artifact}#sha256={'0' * 64}")
    for wrong in (checksum[1:], checksum.upper(), f"{checksum}0", "", f"{checksum}&version="):
        with pytest.raises(ArtifactError, match="should be followed by 64 hexadecimal digits"):
            TumourClassifier.load(f"{artifact}#sha256={wrong}")
    folder = artifact.rename(artifact.with_name("c#sharp"))
    assert TumourClassifier.load(folder).card.sha256 == checksum


def test_the_artifact_is_two_files_and_nothing_unfinished(artifact):
    assert {path.name for path in artifact.iterdir()} == {MODEL, CARD}


def edit_card(artifact: Path, **changes: object) -> None:
    path = artifact / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(artifact: Path) -> None:
    content = bytearray((artifact / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / MODEL).write_bytes(content)


def put_in_untrusted_code(artifact: Path) -> None:
    content = skops.io.dumps(FunctionTransformer(re.compile))
    (artifact / MODEL).write_bytes(content)
    edit_card(artifact, sha256=hashlib.sha256(content).hexdigest())


def put_in_something_else(artifact: Path) -> None:
    (artifact / MODEL).write_bytes(b"not an archive")
    edit_card(artifact, sha256=hashlib.sha256(b"not an archive").hexdigest())


DAMAGES = {
    "no folder": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "a file in place of the folder": lambda folder: (
        folder.rename(folder.with_name("elsewhere")),
        folder.write_text(""),
    ),
    "no model": lambda folder: (folder / MODEL).unlink(),
    "no card": lambda folder: (folder / CARD).unlink(),
    "a folder in place of the card": lambda folder: ((folder / CARD).unlink(), (folder / CARD).mkdir()),
    "a damaged model": flip_a_byte,
    "a model cut short": lambda folder: (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:1000]),
    "a model with untrusted code": put_in_untrusted_code,
    "a card that is not JSON": lambda folder: (folder / CARD).write_text("{"),
    "a card that is not text": lambda folder: (folder / CARD).write_bytes(b"\xff\xfe\x00"),
    "a card that is a list": lambda folder: (folder / CARD).write_text("[]"),
    "an empty card": lambda folder: (folder / CARD).write_text("{}"),
    "a card with text for a number": lambda folder: edit_card(folder, accuracy="good"),
    "a card with a number of classes": lambda folder: edit_card(folder, classes=3),
    "a card with other classes": lambda folder: edit_card(folder, classes=["yes", "no"]),
    "a card with the classes in another order": lambda folder: edit_card(folder, classes=["benign", "malignant"]),
    "a card with another positive class": lambda folder: edit_card(folder, positive_class="benign"),
    "a card without features": lambda folder: edit_card(folder, features=[]),
    "a model that is not one of skops": put_in_something_else,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_artifact_gives_a_one_line_error_with_the_remedy(artifact, damage):
    damage(artifact)
    with pytest.raises(ArtifactError) as caught:
        TumourClassifier.load(artifact)
    assert isinstance(caught.value, StartError)
    message = str(caught.value)
    assert "\n" not in message
    assert str(artifact) in message
    assert message.endswith("run: python -m workshop train")


def test_reading_while_another_thread_saves_sees_whole_files(trained, artifact):
    stop = threading.Event()

    def save_again_and_again():
        while not stop.is_set():
            trained.save(artifact)

    saver = threading.Thread(target=save_again_and_again)
    saver.start()
    try:
        for _ in range(20):
            json.loads((artifact / CARD).read_bytes())
            skops.io.loads((artifact / MODEL).read_bytes())
    finally:
        stop.set()
        saver.join()
