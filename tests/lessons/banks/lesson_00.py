"""Answers to lesson 00: start here."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from workshop.models.tumours import CLASSES, TumourClassifier, training_data
from workshop.settings import Settings

rows, labels = training_data()
model = TumourClassifier.load(Settings().artifact)
truth = [CLASSES[label] for label in labels]


def predict(row: int) -> dict[str, Any]:
    scores = model.predict(rows[[row]])
    best = scores.probabilities[0].argmax()
    return {"label": scores.classes[best], "probability": scores.probabilities[0, best]}


def app(path: str, endpoint: Callable[..., Any]) -> FastAPI:
    made = FastAPI()
    made.get(path)(endpoint)
    return made


# 00.2: prediction and truth side by side


def in_one_line(row: int) -> Any:
    return {"predicted": predict(row)["label"], "truth": truth[row]}


async def step_by_step(row: int) -> Any:
    best = model.predict(rows[[row]]).probabilities[0].argmax()
    return JSONResponse({"truth": CLASSES[labels[row]], "predicted": CLASSES[best]})


class Comparison(BaseModel):
    predicted: str
    truth: str


def as_a_model(row: int) -> Comparison:
    return Comparison(predicted=predict(row)["label"], truth=truth[row])


def prediction_twice(row: int) -> Any:
    label = predict(row)["label"]
    return {"predicted": label, "truth": label}


def with_the_probability(row: int) -> Any:
    return {"predicted": predict(row), "truth": truth[row]}


def forgets_return(row: int) -> Any:
    {"predicted": predict(row)["label"], "truth": truth[row]}


def swapped(row: int) -> Any:
    return {"predicted": truth[row], "truth": predict(row)["label"]}


def with_the_class_number(row: int) -> Any:
    return {"predicted": predict(row)["label"], "truth": int(labels[row])}


def always_the_first(row: int) -> Any:
    return {"predicted": predict(0)["label"], "truth": truth[0]}


def row_as_text(row) -> Any:
    return {"predicted": predict(row)["label"], "truth": truth[row]}


# 00.3: no such tumour


def asks_first(row: int) -> Any:
    if row < 0 or row >= len(rows):
        raise HTTPException(404, "There is no such tumour.")
    return predict(row)


def looks_in_a_range(row: int) -> Any:
    if row in range(len(rows)):
        return predict(row)
    return JSONResponse({"detail": f"no tumour {row}"}, HTTPStatus.NOT_FOUND)


def catches_both_ends(row: int) -> Any:
    try:
        if row < 0:
            raise IndexError(row)
        return predict(row)
    except IndexError as error:
        raise HTTPException(404) from error


def existing(row: int) -> int:
    if row not in range(len(rows)):
        raise HTTPException(404)
    return row


def depends_on_an_existing_row(row: Annotated[int, Depends(existing)]) -> Any:
    return predict(row)


def catches(row: int) -> Any:
    try:
        return predict(row)
    except IndexError:
        raise HTTPException(404) from None


def returns_the_error(row: int) -> Any:
    return predict(row) if 0 <= row < len(rows) else HTTPException(404)


def one_too_many(row: int) -> Any:
    if not 0 <= row <= len(rows):
        raise HTTPException(404)
    return predict(row)


def one_too_few(row: int) -> Any:
    if not 0 <= row < len(rows) - 1:
        raise HTTPException(404)
    return predict(row)


def without_the_first(row: int) -> Any:
    if not 0 < row < len(rows):
        raise HTTPException(404)
    return predict(row)


def only_what_was_seen(row: int) -> Any:
    if row in (569, -1):
        raise HTTPException(404)
    return predict(row)


def returns_a_status(row: int) -> Any:
    return predict(row) if 0 <= row < len(rows) else ({"detail": "There is no such tumour."}, 404)


def by_the_type(row: Annotated[int, Path(ge=0, le=568)]) -> Any:
    return predict(row)


def forgets_to_predict(row: int) -> Any:
    if not 0 <= row < len(rows):
        raise HTTPException(404)


def label_only(row: int) -> Any:
    if not 0 <= row < len(rows):
        raise HTTPException(404)
    return predict(row)["label"]


def without_the_sign(row: int) -> Any:
    return asks_first(abs(row))


def says_it_in_a_200(row: int) -> Any:
    return predict(row) if 0 <= row < len(rows) else {"detail": "There is no such tumour.", "status": 404}


def takes_text(row: str) -> Any:
    if not row.isdigit() or int(row) >= len(rows):
        raise HTTPException(404)
    return predict(int(row))


COMPARE = "/compare/{row}"
PREDICT = "/predict/{row}"

BANK = {
    "00.1": {
        "right": [212, (labels == 0).sum(), len(labels) - labels.sum(), float(np.count_nonzero(labels == 0))],
        "wrong": [
            (100, "There are more"),
            (labels.sum(), "There are fewer"),
            (len(labels == 0), "There are fewer"),
            ((labels == 0).mean(), "There are more"),
            (labels == 0, "A number is needed"),
            ("212", "A number is needed"),
            (None, "A number is needed"),
        ],
    },
    "00.2": {
        "right": [app(COMPARE, endpoint) for endpoint in (in_one_line, step_by_step, as_a_model)],
        "wrong": [
            (app(COMPARE, prediction_twice), "GET /compare/297"),
            (app(COMPARE, with_the_probability), "probability"),
            (app(COMPARE, forgets_return), "is a `return` missing"),
            (app(COMPARE, swapped), "GET /compare/297"),
            (app(COMPARE, with_the_class_number), "malignant"),
            (app(COMPARE, always_the_first), "GET /compare/19"),
            (app(COMPARE, row_as_text), "IndexError"),
            (app("/compare", in_one_line), "404"),
            (in_one_line, "A FastAPI app is needed"),
        ],
    },
    "00.3": {
        "right": [
            app(PREDICT, endpoint)
            for endpoint in (asks_first, looks_in_a_range, catches_both_ends, depends_on_an_existing_row)
        ],
        "wrong": [
            (app(PREDICT, predict), "IndexError"),
            (app(PREDICT, catches), "GET /predict/-1"),
            (app(PREDICT, returns_the_error), "GET /predict/569"),
            (app(PREDICT, one_too_many), "IndexError"),
            (app(PREDICT, one_too_few), "This tumour exists"),
            (app(PREDICT, without_the_first), "GET /predict/0"),
            (app(PREDICT, only_what_was_seen), "GET /predict/100000"),
            (app(PREDICT, returns_a_status), "There is no such tumour"),
            (app(PREDICT, by_the_type), "422"),
            (app(PREDICT, forgets_to_predict), "is a `return` missing"),
            (app(PREDICT, label_only), "must stay the same"),
            (app(PREDICT, without_the_sign), "GET /predict/-1"),
            (app(PREDICT, says_it_in_a_200), "There is no such tumour"),
            (app(PREDICT, takes_text), "Leave it to FastAPI"),
        ],
    },
}
