"""CSV files of measurements, and the prediction jobs that read them."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.service import ROWS, until
from workshop.contracts.tumours import FEATURES

JOBS = "/v1/prediction-jobs"
CSV = {"Content-Type": "text/csv"}
ADDED = ["prediction", "label", "confidence", "model_version"]
GOOD = [repr(value) for value in ROWS[0].tolist()]
"""The cells of a row."""


def csv_of(rows: Iterable[Sequence[object]], columns: Sequence[str] = FEATURES, **form: Any) -> bytes:
    """A file with these rows below its columns; ``form`` goes to the writer."""
    text = io.StringIO()
    csv.writer(text, **form).writerows([columns, *rows])
    return text.getvalue().encode()


def rows_of(response: httpx.Response) -> list[list[str]]:
    """The rows of a file that a job has left, its columns first."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.reader(io.StringIO(response.text, newline="")))


def upload(client: httpx.Client, content: bytes) -> str:
    """The path of a new job."""
    response = client.post(JOBS, content=content, headers=CSV)
    assert response.status_code == 202, response.text
    return response.headers["Location"]


def upload_form(client: httpx.Client, content: bytes) -> str:
    """The same with a form."""
    response = client.post(JOBS, files={"file": ("../../patients.csv", content, "text/csv")})
    assert response.status_code == 202, response.text
    return response.headers["Location"]


def state(client: httpx.Client, job: str) -> dict[str, Any]:
    response = client.get(job)
    assert response.status_code == 200, response.text
    return response.json()


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """The state of a job once it has ended."""
    last = until(lambda: state(client, job), lambda job: job["status"] in ("succeeded", "failed"), patience=120)
    assert last["status"] in ("succeeded", "failed"), last
    return last


def result_of(client: httpx.Client, content: bytes) -> list[list[str]]:
    """The rows of the result for a file, its columns first."""
    job = upload(client, content)
    assert ended(client, job)["status"] == "succeeded"
    return rows_of(client.get(f"{job}/result"))


def mistakes_in(client: httpx.Client, content: bytes) -> list[list[str]]:
    """Line, column and error of each mistake in a file."""
    job = upload(client, content)
    assert ended(client, job)["status"] == "succeeded"
    columns, *mistakes = rows_of(client.get(f"{job}/errors"))
    assert columns == ["line", "column", "error"]
    return mistakes


def files_below(folder: Path) -> list[Path]:
    """All files below a folder that may be emptied meanwhile: ``Path.rglob`` would fail then."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
