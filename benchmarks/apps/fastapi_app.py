"""The plain app that one writes first: it validates, calls the model, and does nothing else."""

from fastapi import FastAPI
from tumours import Tumour, load, to_rows

app = FastAPI()
pipeline = load()


@app.post("/predict")
def predict(tumour: Tumour) -> list[float]:
    """The probabilities of one row."""
    probabilities: list[list[float]] = pipeline.predict_proba(to_rows([tumour])).tolist()
    return probabilities[0]


@app.post("/predict-batch")
def predict_batch(tumours: list[Tumour]) -> list[list[float]]:
    """The probabilities of many rows."""
    probabilities: list[list[float]] = pipeline.predict_proba(to_rows(tumours)).tolist()
    return probabilities


@app.post("/constant")
async def constant(tumour: Tumour) -> list[float]:
    """The same for every row: the most that FastAPI could answer, were there no model."""
    return [0.5, 0.5]


@app.post("/constant-batch")
async def constant_batch(tumours: list[Tumour]) -> list[list[float]]:
    """The same for many rows."""
    return [[0.5, 0.5]] * len(tumours)
