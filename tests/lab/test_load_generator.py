"""The load generator, against a real server."""

import asyncio
import math

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from workshop.api.middleware.timing import TimingMiddleware
from workshop.lab import load, run_app
from workshop.lab.load_generator import in_parallel, run_async

app = FastAPI()
app.state.running = app.state.most = 0


@app.get("/slow")
async def slow(request: Request):
    state = request.app.state
    state.running += 1
    state.most = max(state.most, state.running)
    await asyncio.sleep(0.2)
    state.running -= 1
    return {"most": state.most}


@app.post("/echo")
async def echo(body: dict[str, int]):
    return body


@app.get("/pieces")
async def pieces(fail: bool = False):
    async def five():
        for number in range(5):
            yield f"{number}"
            await asyncio.sleep(0.1)
            if fail and number == 2:
                raise RuntimeError("half way")

    return StreamingResponse(five())


@pytest.fixture(scope="module")
def url():
    with run_app(TimingMiddleware(app)) as server:
        yield server.url


@pytest.fixture(autouse=True)
def reset_the_maximum():
    app.state.most = 0


def test_all_requests_are_sent_at_the_same_time_by_default(url):
    load(f"{url}/slow", 20)
    assert app.state.most == 20


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_is_never_exceeded(url, concurrency):
    load(f"{url}/slow", 5, concurrency=concurrency)
    assert app.state.most == concurrency


def test_each_request_has_a_record_on_one_clock(url):
    records = load(f"{url}/slow", 4, concurrency=2)
    assert [record.number for record in records] == [0, 1, 2, 3]
    assert all(0 <= record.start < record.end for record in records)
    assert all(record.ms >= 200 for record in records)
    assert records[2].start >= min(records[0].end, records[1].end)
    assert records.total_ms >= 400


def test_the_time_that_the_application_reports_is_kept(url):
    [record] = load(f"{url}/slow", 1)
    assert 0.19 <= record.worked_s <= record.ms / 1000


def test_the_body_is_sent_and_the_answer_kept(url):
    [record] = load(f"{url}/echo", 1, method="POST", json={"a": 1})
    assert (record.status, record.body) == (200, b'{"a":1}')


def test_an_error_status_is_a_record_too(url):
    assert {record.status for record in load(f"{url}/nowhere", 2)} == {404}


def test_no_answer_is_a_record_that_says_why(url):
    [record] = load(f"{url}/slow", 1, timeout_s=0.05)
    assert (record.status, record.error) == (None, "ReadTimeout")
    [record] = load("http://127.0.0.1:9", 1)
    assert (record.status, record.error) == (None, "ConnectError")


def test_each_piece_of_an_answer_has_its_time(url):
    [record] = load(f"{url}/pieces", 1)
    assert record.body == b"01234"
    assert len(record.arrivals) == 5
    assert record.start < record.arrivals[0] < record.arrivals[-1] <= record.end
    assert record.first_ms < record.ms - 300


def test_an_answer_without_a_body_has_no_first_piece(url):
    [record] = load("http://127.0.0.1:9", 1)
    assert math.isnan(record.first_ms)


def test_an_answer_that_breaks_off_keeps_what_arrived(url):
    records = load(f"{url}/pieces?fail=true", 1)
    assert (records[0].status, records[0].error, records[0].body) == (200, "RemoteProtocolError", b"012")
    assert "status 200 RemoteProtocolError" in repr(records)


def test_it_works_while_an_event_loop_runs_as_in_a_notebook(url):
    async def cell():
        return load(f"{url}/slow", 1)

    assert len(asyncio.run(cell())) == 1


def test_the_summary_counts_and_names_statuses(url):
    assert repr(load(f"{url}/nowhere", 2)).startswith("2 requests in ")
    assert "status 404" in repr(load(f"{url}/nowhere", 1))


def test_in_parallel_keeps_the_order_and_raises_what_was_raised():
    assert in_parallel(lambda: 1, lambda: 2) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda: 1, lambda: 1 / 0)


def test_run_async_returns_what_the_coroutine_returns():
    async def answer():
        return 42

    assert run_async(answer) == 42
