"""Prediction jobs: uploads, progress, results, and everything that may go wrong in between."""

import asyncio
import errno
import json
import socket
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import httpx
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from httpx_sse import connect_sse

from tests.csv_files import (
    ADDED,
    CSV,
    GOOD,
    JOBS,
    csv_of,
    ended,
    files_below,
    mistakes_in,
    result_of,
    rows_of,
    state,
    upload,
    upload_form,
)
from tests.leaving import leaving
from tests.service import ROWS, until
from tests.stand_ins import StandInClassifier, database_url
from workshop.api.app import create_app
from workshop.api.routers import prediction_jobs as router
from workshop.contracts.classifier import FloatMatrix, Scores
from workshop.contracts.errors import InvalidInputError, ModelFailedError, OverloadedError, StartError
from workshop.contracts.services import Services
from workshop.contracts.tumours import FEATURES
from workshop.integration import prediction_jobs
from workshop.integration.prediction_jobs import StoredPredictionJobs, open_prediction_jobs
from workshop.lab.app_server import Server, run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore

pytestmark = pytest.mark.slow

COLUMNS = ["id", *FEATURES, "note"]
LIMIT = 3_000_000
"""Bytes of a file. No other body may be longer than 10 000."""


@dataclass
class Classifier(StandInClassifier):
    """Says no, once it may.

    Attributes:
        may_answer: unset, it takes forever.
        errors: raised by the next calls.
        began, cancelled: set when a call begins, or is cancelled.
        sizes: rows of each call.
    """

    may_answer: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)

    async def predict(self, rows: FloatMatrix) -> Scores:
        self.sizes.append(len(rows))
        self.began.set()
        if self.errors:
            raise self.errors.pop(0)
        try:
            while not self.may_answer.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await super().predict(rows)


@dataclass
class Running:
    client: httpx.Client
    server: Server
    classifier: Classifier
    folder: Path

    def stored(self) -> list[Path]:
        """All files that the service stores."""
        return files_below(self.folder / "files")

    def jobs(self) -> int:
        """How many jobs there are, uploads under way included."""
        with closing(sqlite3.connect(self.folder / "service.sqlite")) as connection:
            return connection.execute("SELECT count(*) FROM prediction_jobs").fetchone()[0]

    def is_empty(self) -> bool:
        return not self.stored() and self.jobs() == 0


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Running]:
    """The service with its database and its files in a folder."""
    defaults = {"database_url": database_url(folder / "service.sqlite"), "files_url": str(folder / "files")}
    limits = {"max_body_bytes": 10_000, "max_file_bytes": LIMIT}
    settings = Settings(**defaults | limits | options)
    classifier = Classifier()
    classifier.may_answer.set()
    jobs = open_prediction_jobs(settings, classifier)
    app = create_app(Services(classifier, SqlCaseStore(settings.database_url), prediction_jobs=jobs), settings)
    with run_app(app) as server, httpx.Client(base_url=server.url, headers=ADA, timeout=30) as client:
        yield Running(client, server, classifier, folder)


ADA, GRACE = ({"Authorization": f"Bearer {name}"} for name in ("ada", "grace"))


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(prediction_jobs, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(prediction_jobs, "REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(prediction_jobs, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(router, "LOOK_EVERY_S", 0.05)


@pytest.fixture
def service(tmp_path) -> Iterator[Running]:
    with serving(tmp_path) as service:
        yield service


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[httpx.Client]:
    """Of a service that is shared."""
    with serving(tmp_path_factory.mktemp("jobs")) as service:
        yield service.client


@pytest.fixture(scope="module")
def result(client) -> tuple[str, bytes]:
    """The path and the content of a result."""
    job = upload(client, csv_of(ROWS.tolist()))
    assert ended(client, job)["status"] == "succeeded"
    response = client.get(f"{job}/result")
    assert response.status_code == 200
    return f"{job}/result", response.content


# The result


def test_the_result_has_the_rows_of_the_file_and_a_prediction_for_each(client):
    rows = [[str(number), *GOOD, 'a, "b"\nc'] for number in range(1200)]
    columns, *predicted = result_of(client, csv_of(rows, COLUMNS))
    assert columns == [*COLUMNS, *ADDED]
    assert predicted == [[*row, "0", "no", "0.75", "1"] for row in rows]


@pytest.mark.parametrize("send", [upload, upload_form])
def test_a_file_may_be_a_body_or_in_a_form(client, send):
    job = send(client, csv_of([GOOD]))
    assert ended(client, job)["rows"] == 1
    assert rows_of(client.get(f"{job}/result"))[1] == [*GOOD, "0", "no", "0.75", "1"]


def test_a_body_may_have_any_number_of_pieces(client):
    content = csv_of([["é€😀", *GOOD, ""]], COLUMNS)
    response = client.post(JOBS, content=(bytes([byte]) for byte in content), headers=CSV)
    job = response.headers["Location"]
    assert ended(client, job)["rows"] == 1
    assert rows_of(client.get(f"{job}/result"))[1][0] == "é€😀"


def test_the_response_to_an_upload_is_the_job(client):
    response = client.post(JOBS, content=csv_of([GOOD]), headers=CSV)
    body = response.json()
    assert response.headers["Location"] == f"{JOBS}/{body['id']}"
    begin = {"status": "queued", "progress": 0.0, "rows": 0, "rejected": 0, "attempt": 0, "error": None}
    assert body == body | begin
    last = ended(client, response.headers["Location"])
    assert last == last | begin | {"status": "succeeded", "progress": 1.0, "rows": 1, "attempt": 1}
    assert last["created"] == body["created"]


def test_a_file_without_rows_has_a_result_without_rows(client):
    job = upload(client, csv_of([]))
    assert ended(client, job)["progress"] == 1.0
    assert rows_of(client.get(f"{job}/result")) == [[*FEATURES, *ADDED]]
    assert rows_of(client.get(f"{job}/errors")) == [["line", "column", "error"]]


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", '=cmd|"/c calc"!A1', "\t=1", "  x  ", "'", '"', ""])
def test_cells_that_the_service_does_not_read_are_passed_through_as_they_are(client, cell):
    assert result_of(client, csv_of([[cell, *GOOD, cell]], COLUMNS))[1][:-4] == [cell, *GOOD, cell]


def test_bad_rows_are_listed_and_good_ones_predicted(client):
    rows = [[f"{number}", *GOOD, ""] for number in range(3000)]
    rows[1][3] = "nan"
    rows[1500] = ["too", "short"]
    rows[2999][30] = "-1"
    job = upload(client, csv_of(rows, COLUMNS))
    assert ended(client, job) == state(client, job) | {"status": "succeeded", "rows": 3000, "rejected": 3}
    number = "it must be a number from 0 to 1e+12"
    assert rows_of(client.get(f"{job}/errors"))[1:] == [
        ["3", FEATURES[2], number],
        ["1502", "", "it has 2 cells instead of 32"],
        ["3001", FEATURES[29], number],
    ]
    kept = [row[0] for row in rows_of(client.get(f"{job}/result"))[1:]]
    assert kept == [str(number) for number in range(3000) if number not in (1, 1500, 2999)]


def test_a_line_of_many_megabytes_is_a_bad_row(tmp_path):
    with serving(tmp_path, max_file_bytes=20_000_000) as service:
        first, good = csv_of([GOOD]).splitlines()
        assert mistakes_in(service.client, b"\n".join([first, good, b"7" * 10_000_000, good])) == [
            ["3", "", "it cannot be read: a row may have at most 65536 characters"]
        ]


def test_a_row_that_the_model_refuses_is_a_bad_row(service):
    service.classifier.errors = [
        InvalidInputError("worst_radius must not be smaller", 1, "worst_radius"),
        InvalidInputError("worst_area must not be smaller", 0, "worst_area"),
    ]
    job = upload(
        service.client, csv_of([[number, *GOOD, ""] for number in range(4)], [name.title() for name in COLUMNS])
    )
    assert ended(service.client, job)["rejected"] == 2
    assert [row[:2] for row in rows_of(service.client.get(f"{job}/errors"))[1:]] == [
        ["2", "Worst_Area"],
        ["3", "Worst_Radius"],
    ]
    assert [row[0] for row in rows_of(service.client.get(f"{job}/result"))[1:]] == ["2", "3"]
    assert service.classifier.sizes == [4, 3, 2]


def test_a_few_rows_are_predicted_at_a_time(service):
    upload(service.client, csv_of([GOOD] * 2000))
    until(lambda: sum(service.classifier.sizes), lambda rows: rows == 2000)
    assert max(service.classifier.sizes) == prediction_jobs.BATCH_ROWS


def test_rows_that_cannot_be_measurements_are_found_without_the_model(service):
    impossible = ROWS.copy()
    impossible[:, 20:] = 0
    last = ended(service.client, upload(service.client, csv_of(impossible.tolist())))
    assert (last["rejected"], service.classifier.sizes) == (569, [])


# Files that cannot be read

UNUSABLE = {
    "nothing": (b"", "the file is empty"),
    "semicolons": (csv_of([GOOD], delimiter=";"), "not by semicolons"),
    "latin-1": (csv_of([["é", *GOOD, ""]], COLUMNS).decode().encode("latin-1"), "line 2 is not UTF-8"),
    "utf-16": (csv_of([GOOD]).decode().encode("utf-16"), "line 1 is not UTF-8"),
    "a missing feature": (csv_of([GOOD[1:]], FEATURES[1:]), "it lacks mean_radius"),
    "a long line": (b"x" * 1_000_000, "at most 65536 characters"),
}


@pytest.mark.parametrize(("content", "reason"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize(
    "request_of", [lambda file: {"content": file, "headers": CSV}, lambda file: {"files": {"file": file}}]
)
def test_a_file_that_cannot_be_read_is_refused_and_not_kept(service, content, reason, request_of):
    response = service.client.post(JOBS, **request_of(content))
    assert (response.status_code, response.json()["error"]) == (422, "InvalidFileError")
    assert reason in response.json()["detail"]
    assert service.is_empty()


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"json": {}}, 415, "send the file as text/csv or multipart/form-data"),
        ({"content": b""}, 415, "send the file as"),
        ({"data": {"file": "x"}}, 415, "send the file as"),
        ({"content": b"x", "headers": CSV | {"Content-Encoding": "gzip"}}, 415, "must not be compressed"),
        ({"files": {"other": b"x"}}, 422, "invalid values"),
        ({"files": [("file", b"x"), ("file", b"y")]}, 400, "Too many files"),
        ({"files": {"file": b"x"}, "data": {"more": "x"}}, 400, "Too many fields"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "multipart"),
    ],
)
def test_a_request_without_a_file_is_refused(service, request_, status, reason):
    response = service.client.post(JOBS, **request_)
    assert response.status_code == status, response.text
    assert reason in response.json()["detail"]
    assert service.is_empty()


# Limits


def in_pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 50_000):
        yield content[start : start + 50_000]


@pytest.mark.parametrize("send", [bytes, in_pieces], ids=["declared", "chunked"])
def test_a_file_may_be_longer_than_other_bodies_but_not_too_long(service, send):
    content = csv_of([GOOD] * 5000)
    assert 10_000 < len(content) < LIMIT
    assert service.client.post(JOBS, content=send(content), headers=CSV).status_code == 202
    response = service.client.post(JOBS, content=send(content.ljust(LIMIT + 1)), headers=CSV)
    assert response.status_code == 413
    assert response.json()["detail"] == f"the body may have at most {LIMIT} bytes"
    assert service.jobs() == 1
    response = service.client.post("/v1/predict", content=b" " * 10_001, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["detail"]) == (413, "the body may have at most 10000 bytes")


@contextmanager
def sending(service: Running, head: str, content: bytes) -> Iterator[socket.socket]:
    """A connection on which a request has begun."""
    with socket.create_connection(("127.0.0.1", service.server.port), timeout=30) as connection:
        connection.sendall(f"POST {JOBS} HTTP/1.1\r\nHost: here\r\n{head}\r\n\r\n".encode() + content)
        yield connection


CSV_HEAD = "Content-Type: text/csv\r\nContent-Length: 1000000"
FORM_HEAD = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000"
FORM_START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'


@pytest.mark.parametrize("head", [CSV_HEAD, FORM_HEAD], ids=["body", "form"])
def test_without_a_key_no_byte_of_a_file_is_read(tmp_path, head):
    with serving(tmp_path, api_keys={"key": "ada"}) as service, sending(service, head, b"") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(("head", "start"), [(CSV_HEAD, b""), (FORM_HEAD, FORM_START)], ids=["body", "form"])
def test_a_file_that_arrives_too_slowly_is_refused(tmp_path, head, start):
    with serving(tmp_path, file_timeout_s=0.5, body_timeout_s=60) as service:
        with sending(service, head, start + b"id,") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        until(service.is_empty, bool)
        assert service.is_empty()


@pytest.mark.parametrize(("head", "start"), [(CSV_HEAD, b""), (FORM_HEAD, FORM_START)], ids=["body", "form"])
def test_a_client_that_leaves_during_its_upload_leaves_nothing(service, head, start):
    with sending(service, head, start + b"id," * 100_000):
        assert until(service.jobs, bool) == 1
        if head is CSV_HEAD:
            assert until(service.stored, bool)
    until(service.is_empty, bool)
    assert service.is_empty()


def test_uploads_that_do_not_fit_are_turned_away_until_there_is_space(tmp_path):
    content = csv_of([GOOD] * 1000)
    space = 4 * len(content) + 2**20
    with serving(tmp_path, max_stored_bytes=2 * space - 1) as service:
        service.classifier.may_answer.clear()
        first = upload(service.client, content)
        response = service.client.post(JOBS, content=content, headers=CSV)
        assert (response.status_code, response.json()["error"]) == (503, "OverloadedError")
        assert int(response.headers["Retry-After"]) > 0
        response = service.client.post(JOBS, content=in_pieces(csv_of([])), headers=CSV)  # of unknown length
        assert response.status_code == 503
        assert service.jobs() == 1
        assert service.client.delete(first).status_code == 204
        until(service.is_empty, bool)
        upload(service.client, content)


def test_one_principal_cannot_use_up_the_space_of_all(tmp_path):
    content = csv_of([GOOD] * 1000)
    space = 4 * len(content) + 2**20
    with serving(tmp_path, max_stored_bytes=3 * space, max_stored_bytes_per_principal=space) as service:
        service.classifier.may_answer.clear()
        upload(service.client, content)
        refused = service.client.post(JOBS, content=content, headers=CSV)
        assert (refused.status_code, refused.json()["error"]) == (429, "RateLimitedError")
        assert int(refused.headers["Retry-After"]) > 0
        graces = service.client.post(JOBS, content=content, headers=CSV | GRACE)
        assert graces.status_code == 202


@pytest.mark.anyio
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_an_upload_that_is_cancelled_twice_leaves_nothing(tmp_path, turns):
    settings = Settings(database_url=database_url(tmp_path / "service.sqlite"), files_url=str(tmp_path / "files"))
    jobs = open_prediction_jobs(settings, Classifier())
    is_sending = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"id,"
        is_sending.set()
        await asyncio.Event().wait()

    async with aclosing(jobs):
        upload = asyncio.create_task(jobs.create("ada", content(), LIMIT))
        await is_sending.wait()
        assert files_below(tmp_path / "files")
        upload.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait([upload])
        assert upload.cancelled()
    assert not files_below(tmp_path / "files")
    with closing(sqlite3.connect(tmp_path / "service.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM prediction_jobs").fetchone() == (0,)


class FullFileSystem(LocalFileSystem):
    """A disk on which files with some names do not fit."""

    protocol = "full"
    names: tuple[str, ...] = ("upload",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("full://") if isinstance(path, str) else path)

    def _open(self, path, mode="rb", block_size=None, **options):
        file = super()._open(path, mode, block_size, **options)
        return Path("/dev/full").open(mode) if "w" in mode and Path(path).stem in self.names else file


@pytest.fixture
def full_disk(tmp_path, monkeypatch) -> Iterator[Running]:
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    with serving(tmp_path, files_url=f"full://{tmp_path}/files") as service:
        yield service


def test_a_full_disk_is_a_clear_error_for_an_upload(full_disk, caplog):
    response = full_disk.client.post(JOBS, content=csv_of([GOOD] * 1000), headers=CSV)
    assert (response.status_code, response.json()["detail"]) == (503, "there is no space left for files")
    assert "No space left on device" in caplog.text
    assert full_disk.is_empty()


@pytest.mark.parametrize("name", ["result", "errors"])
def test_a_full_disk_is_a_clear_error_for_a_job(full_disk, monkeypatch, name):
    monkeypatch.setattr(FullFileSystem, "names", (name,))
    job = upload(full_disk.client, csv_of([GOOD] * 1000))
    last = ended(full_disk.client, job)
    assert (last["status"], last["error"]) == ("failed", "there is no space left for files")
    response = full_disk.client.get(f"{job}/result")
    assert (response.status_code, response.json()["detail"]) == (
        409,
        "the job has failed: there is no space left for files",
    )
    assert until(full_disk.stored, lambda files: not files) == []


def test_a_temporary_file_that_does_not_fit_is_a_clear_error(service, monkeypatch):
    def full(*_args: object, **_options: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    response = service.client.post(JOBS, files={"file": csv_of([GOOD])})
    assert (response.status_code, response.json()["detail"]) == (503, "there is no space left for files")


def test_files_that_cannot_be_stored_are_a_clear_error(tmp_path):
    (tmp_path / "files").write_text("not a folder")
    with serving(tmp_path) as service:
        response = service.client.post(JOBS, content=csv_of([GOOD]), headers=CSV)
        assert (response.status_code, response.json()["detail"]) == (503, "the files cannot be reached")


# Whose they are, and for how long


def test_a_job_exists_for_nobody_but_its_owner(client):
    job = upload(client, csv_of([GOOD]))
    ended(client, job)
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/errors"), ("GET", "/events"), ("DELETE", "")]:
        for caller in (GRACE, {"Authorization": "Bearer adaa"}, {"Authorization": ""}):
            response = client.request(method, job + path, headers=caller)
            assert response.status_code == 404, (method, path)
            assert response.json()["detail"] == f"there is no prediction job {job.rpartition('/')[2]}"
    assert state(client, job)["status"] == "succeeded"


@pytest.mark.parametrize("path", ["", "/result", "/errors", "/events"])
@pytest.mark.parametrize(("job_id", "status"), [(uuid4(), 404), ("unknown", 422)])
def test_an_unknown_job_does_not_exist(client, path, job_id, status):
    assert client.get(f"{JOBS}/{job_id}{path}").status_code == status


@pytest.mark.parametrize(
    "path", ["/%2e%2e", "/..%2f..%2fetc%2fpasswd", "/upload", "/1", "/1/result.csv", "/result.csv", "/events/x"]
)
def test_nothing_else_can_be_fetched(client, path):
    job = upload(client, csv_of([GOOD]))
    ended(client, job)
    assert client.get(httpx.URL(client.base_url.join(job), raw_path=f"{job}{path}".encode())).status_code in (404, 422)


def test_names_of_files_are_not_used(service):
    files = {"file": ("../../../../tmp/evil.csv", csv_of([GOOD]), "text/csv")}
    job = service.client.post(JOBS, files=files).headers["Location"]
    ended(service.client, job)
    assert all(path.name in ("upload.csv", "result.csv", "errors.csv") for path in service.stored())
    assert "evil" not in service.client.get(f"{job}/result").headers["Content-Disposition"]


def test_an_erased_job_and_its_files_are_gone(service):
    job = upload(service.client, csv_of([GOOD]))
    ended(service.client, job)
    assert service.client.delete(job).status_code == 204
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")]:
        assert service.client.request(method, job + path).status_code == 404
    until(service.is_empty, bool)
    assert service.is_empty()


def test_an_erased_job_stops_at_once(service):
    service.classifier.may_answer.clear()
    job = upload(service.client, csv_of([GOOD] * 2000))
    assert service.classifier.began.wait(30)
    assert service.client.delete(job).status_code == 204
    assert service.classifier.cancelled.wait(30)
    until(service.is_empty, bool)
    assert service.is_empty()
    service.classifier.may_answer.set()
    assert len(result_of(service.client, csv_of([GOOD]))) == 2


def test_results_expire_and_are_removed(tmp_path):
    with serving(tmp_path, result_ttl_s=2) as service:
        job = upload(service.client, csv_of([GOOD]))
        until(lambda: service.client.get(job).status_code, lambda status: status == 404)
        assert service.client.get(f"{job}/result").status_code == 404
        until(service.is_empty, bool)
        assert service.is_empty()


def test_a_job_that_cannot_be_removed_does_not_keep_the_others(service, monkeypatch, caplog):
    first, second = (upload(service.client, csv_of([GOOD])) for _ in range(2))
    name = first.rpartition("/")[2]

    def rm(self, path, **options):
        if name in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, path, **options)

    original = LocalFileSystem.rm
    for job in (first, second):
        ended(service.client, job)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "rm", rm)
        for job in (first, second):
            assert service.client.delete(job).status_code == 204
        assert until(service.jobs, lambda n: n == 1) == 1
        assert {path.parts[-3] for path in service.stored()} == {name}
        assert f"prediction job {name} cannot be removed yet" in caplog.text
    until(service.is_empty, bool)
    assert service.is_empty()


def test_jobs_run_one_after_the_other(service):
    service.classifier.may_answer.clear()
    first, second = (upload(service.client, csv_of([GOOD] * n)) for n in (3, 5))
    assert until(lambda: state(service.client, first)["status"], lambda status: status == "running") == "running"
    assert state(service.client, second)["status"] == "queued"
    service.classifier.may_answer.set()
    assert [ended(service.client, job)["rows"] for job in (first, second)] == [3, 5]
    assert service.classifier.sizes == [3, 5]


# Progress


def test_events_tell_the_progress_and_the_end(service, monkeypatch):
    monkeypatch.setattr(prediction_jobs, "BATCH_ROWS", 10)
    service.classifier.may_answer.clear()
    job = upload(service.client, csv_of([GOOD] * 95 + [["x"]] * 5))
    with connect_sse(service.client, "GET", f"{job}/events") as source:
        assert source.response.status_code == 200
        events = source.iter_sse()
        first = next(events)
        service.classifier.may_answer.set()
        *progress, last = [first, *events]
    assert {event.event for event in progress} == {"progress"}
    assert (last.event, last.id) == ("succeeded", "end")
    states = [json.loads(event.data) for event in [*progress, last]]
    assert states[-1] == state(service.client, job) | {"rows": 100, "rejected": 5, "progress": 1.0}
    assert [state["rows"] for state in states] == sorted(state["rows"] for state in states)


def test_a_reader_who_has_had_the_last_event_gets_no_more(client, result):
    events = result[0].replace("/result", "/events")
    with connect_sse(client, "GET", events) as source:
        [event] = source.iter_sse()
    assert event.event == "succeeded"
    assert client.get(events, headers={"Last-Event-ID": event.id}).status_code == 204
    assert client.get(events, headers={"Last-Event-ID": "300"}).status_code == 200


def test_the_events_of_a_failing_job_end_too(service):
    service.classifier.errors = [ModelFailedError("the model failed")]
    job = upload(service.client, csv_of([GOOD]))
    with connect_sse(service.client, "GET", f"{job}/events") as source:
        *_, last = source.iter_sse()
    assert (last.event, json.loads(last.data)["error"]) == ("failed", "the model failed")
    assert service.client.get(f"{job}/errors").status_code == 409


def test_the_events_of_an_erased_job_end_with_an_error(service):
    service.classifier.may_answer.clear()
    job = upload(service.client, csv_of([GOOD]))
    with connect_sse(service.client, "GET", f"{job}/events") as source:
        events = source.iter_sse()
        next(events)
        service.client.delete(job)
        *_, last = events
    assert (last.event, json.loads(last.data)["status"]) == ("error", 404)


def test_there_is_no_result_before_the_end(service):
    service.classifier.may_answer.clear()
    job = upload(service.client, csv_of([GOOD]))
    for file in ("result", "errors"):
        response = service.client.get(f"{job}/{file}")
        assert (response.status_code, response.json()["error"]) == (409, "Conflict")
        assert int(response.headers["Retry-After"]) > 0
    service.classifier.may_answer.set()
    ended(service.client, job)
    assert service.client.get(f"{job}/result").status_code == 200


def test_a_job_waits_for_a_busy_classifier(service):
    service.classifier.errors = [OverloadedError("busy"), OverloadedError("busy")]
    assert len(result_of(service.client, csv_of([GOOD] * 600))) == 601
    assert service.classifier.sizes == [512, 512, 512, 88]


def test_a_job_fails_when_the_classifier_stays_busy(service):
    service.classifier.errors = [OverloadedError("busy")] * 3
    last = ended(service.client, upload(service.client, csv_of([GOOD])))
    assert (last["status"], last["error"]) == ("failed", "busy")


def test_an_unexpected_error_reveals_nothing(service, caplog):
    service.classifier.errors = [RuntimeError("secret")]
    last = ended(service.client, upload(service.client, csv_of([GOOD])))
    assert (last["status"], last["error"]) == ("failed", "something went wrong in the service")
    assert "secret" in caplog.text


# Fetching a result again


def test_a_result_is_described_by_its_headers(client, result):
    path, content = result
    headers = client.get(path).headers
    job_id = path.split("/")[3]
    assert headers["ETag"] == f'"{job_id}"'
    assert headers["Content-Disposition"] == f'attachment; filename="{job_id}-result.csv"'
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "private, no-cache"
    assert int(headers["Content-Length"]) == len(content)


@pytest.mark.parametrize("file", ["result", "errors"])
def test_the_headers_of_a_file_can_be_asked_for(client, result, file):
    path = result[0].replace("result", file)
    headers = client.get(path).headers
    response = client.head(path, headers={"Range": "bytes=0-9"})
    assert (response.status_code, response.content) == (200, b"")
    for name in ("ETag", "Content-Length", "Content-Type", "Accept-Ranges"):
        assert response.headers[name] == headers[name]
    assert client.head(path, headers={"If-None-Match": headers["ETag"]}).status_code == 304


RANGES = {
    "bytes=0-0": slice(0, 1),
    "bytes=0-99": slice(0, 100),
    "bytes=100-": slice(100, None),
    "bytes=-100": slice(-100, None),
    "Bytes=5-5": slice(5, 6),
    "bytes=0-99999999": slice(0, None),
    "bytes=-99999999": slice(0, None),
}


@pytest.mark.parametrize("asked", RANGES)
def test_a_part_of_a_result_can_be_fetched(client, result, asked):
    path, content = result
    response = client.get(path, headers={"Range": asked})
    part = content[RANGES[asked]]
    assert (response.status_code, response.content) == (206, part)
    start = content.index(part)
    assert response.headers["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    assert int(response.headers["Content-Length"]) == len(part)


@pytest.mark.parametrize(
    "asked",
    ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-1,5-6", "", "bytes", "bytes=" + "9" * 5000 + "-"],
)
def test_a_range_that_means_nothing_is_ignored(client, result, asked):
    path, content = result
    response = client.get(path, headers={"Range": asked})
    assert (response.status_code, response.content) == (200, content)


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=999999999-999999999999", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(client, result, asked):
    path, content = result
    response = client.get(path, headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{len(content)}"
    assert response.headers["Content-Type"] == "application/problem+json"


def test_a_download_that_broke_off_can_be_resumed(client, result):
    path, content = result
    headers = {"Range": "bytes=1000-", "If-Range": client.get(path).headers["ETag"]}
    assert content[:1000] + client.get(path, headers=headers).content == content
    response = client.get(path, headers=headers | {"If-Range": '"another"'})
    assert (response.status_code, response.content) == (200, content)


@pytest.mark.parametrize(("tags", "status"), [("{}", 304), ("W/{}", 304), ('"a", {}', 304), ("*", 304), ('"a"', 200)])
def test_a_result_that_the_client_has_is_not_sent_again(client, result, tags, status):
    path, _ = result
    etag = client.get(path).headers["ETag"]
    response = client.get(
        path, headers={"If-None-Match": tags.format(etag), "Range": "bytes=0-"[: 9 * (status == 304)]}
    )
    assert (response.status_code, response.headers["ETag"]) == (status, etag)
    assert bool(response.content) == (status == 200)


def test_a_reader_who_does_not_read_costs_no_memory(tmp_path, monkeypatch):
    read = 0

    async def counting(self, *arguments):
        nonlocal read
        async for piece in original(self, *arguments):
            read += len(piece)
            yield piece

    original = StoredPredictionJobs.read
    monkeypatch.setattr(StoredPredictionJobs, "read", counting)
    with serving(tmp_path, max_file_bytes=40_000_000) as service:
        job = upload(service.client, csv_of([["x" * 15_000, *GOOD, ""]] * 2000, COLUMNS))
        assert ended(service.client, job)["status"] == "succeeded"
        with leaving(service.client, "GET", f"{job}/result"):
            until(lambda: read, lambda read: read >= 15_000_000, patience=2)
            assert 0 < read < 15_000_000


# Several processes


def test_a_service_that_stops_leaves_its_job_to_the_next(tmp_path):
    with serving(tmp_path) as service:
        service.classifier.may_answer.clear()
        job = upload(service.client, csv_of([GOOD]))
        assert service.classifier.began.wait(30)
    with serving(tmp_path) as service:
        assert ended(service.client, job)["rows"] == 1
        assert len(rows_of(service.client.get(f"{job}/result"))) == 2


def test_every_replica_knows_every_job(tmp_path):
    with serving(tmp_path) as one, serving(tmp_path) as other:
        one.classifier.may_answer.clear()
        jobs = [upload(one.client, csv_of([[number, *GOOD, ""]], COLUMNS)) for number in range(3)]
        assert (
            until(lambda: [state(one.client, job)["status"] for job in jobs].count("succeeded"), lambda n: n >= 2) >= 2
        )
        one.classifier.may_answer.set()
        for number, job in enumerate(jobs):
            ended(one.client, job)
            assert rows_of(other.client.get(f"{job}/result"))[1][0] == str(number)


def test_files_may_be_in_any_storage_that_fsspec_knows(tmp_path):
    with serving(tmp_path, files_url="memory://prediction-jobs") as service:
        job = upload(service.client, csv_of(ROWS.tolist()))
        ended(service.client, job)
        whole = service.client.get(f"{job}/result").content
        assert service.client.get(f"{job}/result", headers={"Range": "bytes=-70"}).content == whole[-70:]
        assert len(whole.splitlines()) == 570
        memory = fsspec.filesystem("memory")
        assert memory.find("/prediction-jobs")
        service.client.delete(job)
        until(lambda: memory.find("/prediction-jobs"), lambda files: not files)
        assert memory.find("/prediction-jobs") == []
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("url", ["nonsense://folder", "s3://bucket"])
def test_an_unknown_kind_of_storage_prevents_the_start(tmp_path, url):
    with pytest.raises(StartError, match="setting files_url: ") as raised, serving(tmp_path, files_url=url):
        pass
    assert "\n" not in str(raised.value)


def test_a_job_whose_files_are_elsewhere_is_a_clear_error(service):
    job = upload(service.client, csv_of([GOOD]))
    ended(service.client, job)
    for path in service.stored():
        path.unlink()
    response = service.client.get(f"{job}/result")
    assert (response.status_code, response.json()["detail"]) == (503, "the files cannot be reached")


def test_a_job_that_ends_every_process_is_given_up(tmp_path):
    with serving(tmp_path) as service:
        service.classifier.may_answer.clear()
        job = upload(service.client, csv_of([GOOD]))
        assert service.classifier.began.wait(30)
    with closing(sqlite3.connect(tmp_path / "service.sqlite")) as connection:
        connection.execute("UPDATE prediction_jobs SET attempt = ?", [prediction_jobs.MAX_ATTEMPTS])
        connection.commit()
    with serving(tmp_path) as service:
        last = ended(service.client, job)
    assert (last["status"], last["error"]) == ("failed", "5 attempts to read this file have not come to an end")


def test_probabilities_are_exact(service, monkeypatch):
    exact = np.random.default_rng(0).dirichlet([1, 1], size=100)

    async def predict(rows: FloatMatrix) -> Scores:
        return Scores(exact[: len(rows)], ("no", "yes"), "1")

    monkeypatch.setattr(service.classifier, "predict", predict)
    rows = result_of(service.client, csv_of([GOOD] * 100))[1:]
    assert [float(row[-2]) for row in rows] == exact.max(axis=1).tolist()
    assert [row[-4] for row in rows] == [str(best) for best in exact.argmax(axis=1)]
