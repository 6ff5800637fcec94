"""Saves the classifier as an MLflow model, which ``mlflow models serve`` takes: python mlflow_model.py FOLDER."""

import sys

import mlflow.sklearn
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from tumours import NAMES, load

mlflow.sklearn.save_model(
    load(),
    sys.argv[1],
    # Named columns, which it then validates. Without requirements: MLflow would start a process to find them.
    signature=ModelSignature(Schema([ColSpec("double", name) for name in NAMES])),
    pip_requirements=[],
    pyfunc_predict_fn="predict_proba",
)
