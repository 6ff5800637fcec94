"""The API while its database is slow, damaged or missing, and after it has recovered."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, event

from tests.postgresql import running_postgresql
from tests.service import RECORD, until
from tests.stand_ins import (
    Service,
    StandInClassifier,
    database_url,
    draft,
    language_services,
    main,
    replace_with_a_folder,
)
from workshop.api.app import create_app
from workshop.contracts.classifier import FloatMatrix, Scores
from workshop.contracts.services import Services
from workshop.lab.app_server import run_app
from workshop.settings import Settings
from workshop.storage.cases import SqlCaseStore

pytestmark = pytest.mark.slow

NEED_DATABASE = [
    ("POST", "/v1/cases", {"measurements": RECORD}),
    ("GET", "/v1/cases", None),
    ("GET", "/v1/cases/{id}", None),
    ("PUT", "/v1/cases/{id}", {"measurements": RECORD}),
    ("DELETE", "/v1/cases/{id}", None),
    ("GET", "/v1/cases/{id}/prediction", None),
    ("GET", "/v1/stats", None),
]


class Paused(StandInClassifier):
    """Predicts only after ``go`` is set."""

    def __init__(self) -> None:
        self.entered = 0
        self.go = threading.Event()

    async def predict(self, rows: FloatMatrix) -> Scores:
        self.entered += 1
        await asyncio.to_thread(self.go.wait)
        return await super().predict(rows)


@pytest.fixture
def serve(file):
    """A service that touches the database only when it is asked to: a file is damaged while nobody uses it."""

    @contextmanager
    def serve() -> Iterator[Service]:
        url, small, big = database_url(file), draft(), main()
        services = Services(StandInClassifier(), SqlCaseStore(url), language_services(file, small, big))
        with (
            run_app(create_app(services, Settings())) as server,
            httpx.Client(base_url=server.url, timeout=30) as client,
        ):
            yield Service(client, server, small, big, file)

    return serve


def create(client: httpx.Client) -> str:
    """The path of a new case."""
    answer = client.post("/v1/cases", json={"measurements": RECORD})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def test_slow_predictions_do_not_block_other_requests(file):
    classifier, at_once = Paused(), 24  # more than there are connections in the pool
    app = create_app(Services(classifier, SqlCaseStore(database_url(file))), Settings())
    with (
        run_app(app) as server,
        httpx.Client(base_url=server.url, timeout=20, limits=httpx.Limits(max_connections=100)) as client,
        ThreadPoolExecutor(at_once) as pool,
    ):
        case = create(client)
        predictions = [pool.submit(client.get, f"{case}/prediction") for _ in range(at_once)]
        try:
            assert until(lambda: classifier.entered, lambda entered: entered == at_once, 10) == at_once
            assert client.get("/v1/cases").status_code == 200
            create(client)
        finally:
            classifier.go.set()
        assert {prediction.result().status_code for prediction in predictions} == {200}


def assert_unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error"] == "UnavailableError"
    assert "the database does not answer" in answer.json()["detail"]


def fill_with_garbage(file):
    file.write_bytes(b"garbage" * 2000)


def corrupt_all_but_the_header(file):
    content = file.read_bytes()
    file.write_bytes(content[:100] + b"\xff" * (len(content) - 100))


def truncate(file):
    with file.open("r+b") as opened:
        opened.truncate(5000)


DAMAGES = [fill_with_garbage, corrupt_all_but_the_header, truncate, replace_with_a_folder]


@pytest.mark.parametrize("way", ["copied over it", "moved into its place"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_unavailable_until_it_is_restored(serve, file, tmp_path, damage, way):
    with serve() as service:
        case = create(service.client)
        backup = shutil.copy(file, tmp_path / "backup")
        damage(file)
        for method, path, body in NEED_DATABASE:
            url = path.replace("/v1/cases/{id}", case)
            assert_unavailable(service.client.request(method, url, json=body))
        assert_unavailable(service.client.get("/readiness"))
        assert service.client.post("/v1/predict", json=RECORD).status_code == 200
        if file.is_dir():
            file.rmdir()
        if way == "copied over it":
            shutil.copy(backup, file)
        else:
            backup.rename(file)
        assert service.client.get("/readiness").status_code == 200
        assert service.client.get(case).status_code == 200
        assert service.client.get("/v1/stats").status_code == 200
        create(service.client)


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, empty])
def test_a_missing_file_is_created_again(serve, file, damage):
    with serve() as service:
        create(service.client)
        damage(file)
        assert_unavailable(service.client.get("/v1/cases"))
        assert service.client.get("/readiness").status_code == 200
        assert service.client.get("/v1/cases").json() == []
        create(service.client)
        assert service.client.get("/v1/stats").json()["total_queries"] == 0


@contextmanager
def pragma_on_new_connections(pragma: str) -> Iterator[None]:
    """Run this pragma on every new SQLite connection, to provoke a fault."""

    def set_up(connection: Any, _record: object) -> None:
        connection.cursor().execute(pragma)

    event.listen(Engine, "connect", set_up)
    try:
        yield
    finally:
        event.remove(Engine, "connect", set_up)


def test_a_read_only_file_can_be_read(serve):
    with serve() as service:
        case = create(service.client)
        with pragma_on_new_connections("PRAGMA query_only = 1"):
            assert service.client.get(case).status_code == 200
            assert_unavailable(service.client.delete(case))
            assert_unavailable(service.client.post("/v1/cases", json={"measurements": RECORD}))
            assert_unavailable(service.client.get("/readiness"))
        assert service.client.get("/readiness").status_code == 200
        assert service.client.delete(case).status_code == 204


def test_a_full_disk_rejects_new_cases_and_loses_none(serve):
    with serve() as service:
        paths = {create(service.client)}
        with pragma_on_new_connections("PRAGMA max_page_count = 1"):  # the file cannot grow
            for _ in range(100):
                answer = service.client.post("/v1/cases", json={"measurements": RECORD})
                if answer.status_code != 201:
                    break
                paths.add(answer.headers["Location"])
            assert_unavailable(answer)
            assert {service.client.get(path).status_code for path in paths} == {200}
        paths.add(create(service.client))
        assert len(service.client.get("/v1/cases?limit=100").json()) == len(paths)


def postgresql_app(url: str) -> FastAPI:
    return create_app(Services(StandInClassifier(), SqlCaseStore(url)), Settings())


def test_a_server_that_stops_is_unavailable_until_it_starts_again(postgresql):
    with (
        running_postgresql(str(postgresql.binaries / "postgres")) as server,
        run_app(postgresql_app(server.empty_database())) as app,
        httpx.Client(base_url=app.url, timeout=30) as client,
    ):
        case = create(client)
        server.stop()
        for method, path, body in NEED_DATABASE[:6]:
            assert_unavailable(client.request(method, path.replace("/v1/cases/{id}", case), json=body))
        assert_unavailable(client.get("/readiness"))
        assert client.post("/v1/predict", json=RECORD).status_code == 200
        server.start()
        assert client.get("/readiness").status_code == 200
        assert client.get(case).status_code == 200


def test_a_server_that_becomes_a_standby_can_be_read(postgresql):
    """As after a failover, it accepts no writes and has closed its connections."""
    app = postgresql_app(postgresql.empty_database())
    with run_app(app) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        case = create(client)
        postgresql.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        postgresql.close_connections()
        assert client.get(case).status_code == 200
        assert_unavailable(client.delete(case))
        assert_unavailable(client.get("/readiness"))
        postgresql.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
        postgresql.close_connections()
        assert client.get("/readiness").status_code == 200
        assert client.delete(case).status_code == 204
