"""Prediction jobs, in every runtime: uploaded to one replica, run by any, fetched from all."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from httpx_sse import connect_sse

from tests.conftest import system_tool
from tests.csv_files import CSV, GOOD, JOBS, csv_of, ended, files_below, rows_of, state, upload, upload_form
from tests.service import RECORDS, ROWS, concurrently, until
from workshop.contracts.tumours import FEATURES

COLUMNS = ["id", *FEATURES]
MANY = 20_000


@pytest.fixture(scope="module")
def job(service) -> str:
    """A job that has ended: all rows of the data, and two bad ones."""
    rows = [[number, *row] for number, row in enumerate(ROWS.tolist())]
    rows[100:100] = [["x", *GOOD[:29], "nan"], ["short"]]
    job = upload(service, csv_of(rows, COLUMNS))
    assert ended(service, job)["status"] == "succeeded"
    return job


def test_a_file_is_predicted_like_its_rows(service, job):
    columns, *rows = rows_of(service.get(f"{job}/result"))
    direct = service.post("/v1/batch-predict", json={"records": RECORDS}).json()
    assert columns == [*COLUMNS, "prediction", "label", "confidence", "model_version"]
    assert [row[0] for row in rows] == [str(number) for number in range(569)]
    assert [int(row[-4]) for row in rows] == [label["prediction"] for label in direct["predictions"]]
    assert [row[-3] for row in rows] == [label["label"] for label in direct["predictions"]]
    expected = [label["confidence"] for label in direct["predictions"]]
    np.testing.assert_allclose([float(row[-2]) for row in rows], expected, rtol=0, atol=1e-12)
    assert {row[-1] for row in rows} == {direct["model_version"]}


def test_bad_rows_are_listed(service, job):
    assert state(service, job) == state(service, job) | {"rows": 571, "rejected": 2, "progress": 1.0, "error": None}
    assert rows_of(service.get(f"{job}/errors"))[1:] == [
        ["102", FEATURES[29], "it must be a number from 0 to 1e+12"],
        ["103", "", "it has 1 cells instead of 31"],
    ]


def test_a_row_that_cannot_be_a_measurement_is_listed_and_the_others_predicted(service):
    rows = ROWS.tolist()
    rows[7][FEATURES.index("worst_radius")] = 0.5
    impossible = upload(service, csv_of(rows))
    assert ended(service, impossible)["rejected"] == 1
    [mistake] = rows_of(service.get(f"{impossible}/errors"))[1:]
    assert mistake[:2] == ["9", "worst_radius"]
    assert len(rows_of(service.get(f"{impossible}/result"))) == 569


def test_a_form_is_as_good_as_a_body(service, job):
    form = upload_form(service, csv_of(ROWS.tolist()))
    assert ended(service, form)["rows"] == 569
    assert [row[30:] for row in rows_of(service.get(f"{form}/result"))] == [
        row[31:] for row in rows_of(service.get(f"{job}/result"))
    ]


def test_every_replica_has_the_result(service, job):
    whole = service.get(f"{job}/result").content

    def fetch(turn: int) -> bytes:
        with httpx.Client(base_url=service.base_url, headers=service.headers, timeout=30) as another:
            if turn % 2:
                return another.get(f"{job}/result").content
            parts = (another.get(f"{job}/result", headers={"Range": part}) for part in ("bytes=0-999", "bytes=1000-"))
            return b"".join(part.content for part in parts)

    assert set(concurrently(fetch, range(12))) == {whole}


def test_a_result_is_sent_again_only_if_needed(service, job):
    first = service.get(f"{job}/result")
    etag = first.headers["ETag"]
    assert int(first.headers["Content-Length"]) == len(first.content)
    again = service.get(f"{job}/result", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    head = service.head(f"{job}/result")
    assert (head.status_code, head.content) == (200, b"")
    assert [head.headers[name] for name in ("ETag", "Content-Length")] == [etag, str(len(first.content))]
    tail = service.get(f"{job}/result", headers={"Range": "bytes=-10", "If-Range": etag})
    assert (tail.status_code, tail.content) == (206, first.content[-10:])
    beyond = service.get(f"{job}/result", headers={"Range": "bytes=99999999-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(first.content)}")


def in_pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 10**5):
        yield content[start : start + 10**5]


UPLOADS = {
    "declared": lambda content: {"content": content, "headers": CSV},
    "chunked": lambda content: {"content": in_pieces(content), "headers": CSV},
    "form": lambda content: {"files": {"file": content}},
}


@pytest.mark.parametrize("request_of", UPLOADS.values(), ids=UPLOADS)
def test_a_large_file_is_followed_by_events_while_others_are_answered(service, request_of):
    content = csv_of(([number, *GOOD] for number in range(MANY)), COLUMNS)
    assert len(content) > 4 * 2**20
    response = service.post(JOBS, **request_of(content))
    assert response.status_code == 202
    path = response.headers["Location"]
    with connect_sse(service, "GET", f"{path}/events", timeout=120) as source:
        events = source.iter_sse()
        states = [(event.event, json.loads(event.data)) for event in events if predicts(service)]
    assert states[-1][0] == "succeeded"
    assert states[-1][1]["rows"] == MANY
    rows = [state["rows"] for _, state in states]
    assert rows == sorted(rows)
    assert len(rows_of(service.get(f"{path}/result"))) == MANY + 1


def predicts(service: httpx.Client) -> bool:
    return service.post("/v1/predict", json=RECORDS[0]).status_code == 200


def test_nobody_else_has_the_job(service, job):
    stranger = {"Authorization": "Bearer stranger"}
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/errors"), ("GET", "/events"), ("DELETE", "")]:
        assert service.request(method, job + path, headers=stranger).status_code == 404
    assert state(service, job)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": csv_of([GOOD], delimiter=";"), "headers": CSV}, 422),
        ({"content": b"", "headers": CSV}, 422),
        ({"content": csv_of([]).decode().encode("utf-16"), "headers": CSV}, 422),
        ({"files": {"file": b"x"}}, 422),
        ({"files": {"other": b"x"}}, 422),
        ({"json": {}}, 415),
    ],
)
def test_what_is_not_a_file_of_measurements_is_refused(service, request_, status):
    response = service.post(JOBS, **request_)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"


EXAMPLES = re.findall(r"(?s)```(bash|python)\n(.*?)```", (Path(__file__).parents[2] / "docs" / "files.md").read_text())


@pytest.mark.parametrize(("language", "example"), EXAMPLES, ids=[language for language, _ in EXAMPLES])
def test_the_examples_of_the_documentation(service, tmp_path, language, example):
    (tmp_path / "measurements.csv").write_bytes(csv_of([*ROWS.tolist(), ["short"]]))
    program = {"bash": [system_tool("bash"), "-ec"], "python": [sys.executable, "-c"]}[language]
    example = example.replace("http://127.0.0.1:8000", str(service.base_url).rstrip("/"))
    done = subprocess.run([*program, example], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("event: succeeded") == 1
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 570
    assert "571,,it has 1 cells instead of 30" in (tmp_path / "mistakes.csv").read_text()


def files_of(running) -> list[Path]:
    return files_below(Path(running.settings.files_url.removeprefix("file://")))


def test_an_erased_job_is_gone_with_its_files(running, service):
    erased = upload(service, csv_of([GOOD]))
    ended(service, erased)
    name = erased.rpartition("/")[2]
    assert service.delete(erased).status_code == 204
    assert service.get(erased).status_code == 404
    left = until(lambda: [path for path in files_of(running) if name in path.parts], lambda left: not left)
    assert left == []


def test_a_client_that_leaves_during_its_upload_leaves_nothing(running, service):
    before = set(files_of(running))
    head = f"POST {JOBS} HTTP/1.1\r\nHost: here\r\nContent-Type: text/csv\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((service.base_url.host, service.base_url.port)) as connection:
        connection.sendall(head.encode() + csv_of([GOOD] * 100))
        assert until(lambda: set(files_of(running)) - before, bool)
    assert until(lambda: set(files_of(running)) - before, lambda new: not new) == set()
