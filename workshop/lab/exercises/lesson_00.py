"""Lesson 00: start here."""

from numbers import Real
from typing import Any

from workshop.lab.answer import Answer
from workshop.lab.expectations import NotYet, expect, show
from workshop.lab.registry import exercise
from workshop.models.tumours import TumourClassifier, training_data
from workshop.settings import Settings

MALIGNANT = 212


@exercise(
    "00.1",
    hints=[
        "`labels == 0` says for each tumour whether it is malignant.",
        "`.sum()` counts how often that is true: `(labels == 0).sum()`.",
    ],
    right="212 of the 569.",
)
def counts_the_malignant(answer: Answer) -> None:
    if not isinstance(answer.value, Real):
        raise NotYet("A number is needed here.", got=show(answer.value))
    guess = float(answer.value)
    if guess != MALIGNANT:
        message = "There are fewer." if guess > MALIGNANT else "There are more."
        raise NotYet(message, expected="the number of malignant tumours", got=show(answer.value))


@exercise(
    "00.2",
    hints=[
        '`predict(row)["label"]` is what the model says, `truth[row]` is what it was.',
        'Return both in one dictionary: `{"predicted": …, "truth": …}`.',
    ],
    right="Tumour 297 is one that the model gets wrong.",
)
def shows_the_truth(answer: Answer) -> None:
    # Right twice, then wrong in both directions.
    diagnoses = {
        0: ("malignant", "malignant"),
        19: ("benign", "benign"),
        297: ("benign", "malignant"),
        541: ("malignant", "benign"),
    }
    with answer.serve() as client:
        for row, (predicted, truth) in diagnoses.items():
            got = client.get(f"/compare/{row}")
            expect(got.status_code, 200)
            expect(got.json(), {"predicted": predicted, "truth": truth})


@exercise(
    "00.3",
    hints=[
        "The tumours that exist have the numbers 0 to `len(rows) - 1`. There are others on both sides.",
        "`if not 0 <= row < len(rows):` comes first, and raises. Then return `predict(row)`.",
    ],
    right="A client now learns what was wrong, and nobody gets another tumour's answer.",
)
def finds_no_such_tumour(answer: Answer) -> None:
    with answer.serve() as client:
        for row, prediction in _predictions(0, 297, 568).items():
            got = client.get(f"/predict/{row}")
            expect(got.status_code, 200, why="This tumour exists.")
            expect(got.json(), prediction, why="The prediction itself must stay the same.")
        for row in (569, 100_000, -1, -569):
            status = client.get(f"/predict/{row}").status_code
            expect(status, 404, why="There is no such tumour.")
        expect(
            client.get("/predict/many").status_code,
            422,
            why="Leave it to FastAPI to refuse a row that is not a number.",
        )


def _predictions(*rows: int) -> dict[int, dict[str, Any]]:
    """What the lesson's `predict` returns for each row."""
    scores = TumourClassifier.load(Settings().artifact).predict(training_data()[0][list(rows)])
    return {
        row: {"label": scores.classes[probabilities.argmax()], "probability": float(probabilities.max())}
        for row, probabilities in zip(rows, scores.probabilities, strict=True)
    }
