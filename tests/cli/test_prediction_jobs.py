"""Prediction jobs whose process ends before they do."""

import signal

import httpx
import pytest

from tests.csv_files import GOOD, csv_of, ended, rows_of, state, upload
from tests.service import until
from workshop.contracts.tumours import FEATURES

pytestmark = pytest.mark.slow

SLOW = """
from datetime import timedelta
from workshop.cli import main
from workshop.integration import prediction_jobs as jobs
from workshop.storage import prediction_jobs as store
jobs.BATCH_ROWS, jobs.REPORT_EVERY_S, store.LEASE = 1, 0.05, timedelta(seconds=1)
main()
"""
"""The service, with jobs that take seconds, so that there is time to end it."""
ROWS = 3000


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_process_runs_the_job_again(run, end):
    first = run("api", "--port", "0", program=["-c", SLOW])
    with httpx.Client(base_url=first.url(), timeout=30) as client:
        job = upload(client, csv_of(([number, *GOOD] for number in range(ROWS)), ["id", *FEATURES]))
        last = until(lambda: state(client, job), lambda job: job["rows"] > 0)
        assert last["status"] == "running"
        first.send(end)
    with httpx.Client(base_url=run("api", "--port", "0").url(), timeout=30) as client:
        last = ended(client, job)
        assert (last["rows"], last["attempt"]) == (ROWS, 2)
        result = rows_of(client.get(f"{job}/result"))
    assert [row[0] for row in result[1:]] == [str(number) for number in range(ROWS)]
